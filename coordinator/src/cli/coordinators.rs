//! `understudy coordinators`: who they are, and changes of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Subcommand;
use time::OffsetDateTime;
use understudy_common::id::CoordinatorId;
use understudy_common::identity::Principal;
use understudy_common::wire::Operate;

use super::ask::{AskError, Cluster};
use super::document::Status;
use super::init::{self, NewFile};
use super::{CliError, show};
use crate::authority::{Authority, Pair, Validity};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Add one: it catches up as a learner and votes then.
    Add {
        #[arg(value_name = "ID=ADDRESS:PORT")]
        newcomer: Newcomer,
        /// The cluster's directory as `init` wrote it, with `ca.key`; that of the cluster file when not given.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// How long its certificate is valid.
        #[arg(long, value_name = "DAYS", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        valid_days: u32,
    },
    /// Remove one for good; its number is not used again.
    Remove { id: CoordinatorArg },
    /// Give the leadership to another one.
    Transfer { id: CoordinatorArg },
}

/// `4` or `coordinator-4`.
#[derive(Clone, Copy, Debug)]
pub(super) struct CoordinatorArg(CoordinatorId);

impl FromStr for CoordinatorArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix("coordinator-").unwrap_or(text);
        match number.parse() {
            Ok(id) if id > 0 => Ok(Self(CoordinatorId(id))),
            _ => Err(format!("`{text}` is not a coordinator's number, like 4")),
        }
    }
}

/// `4=192.0.2.4:7400`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newcomer {
    id: CoordinatorId,
    addr: SocketAddr,
}

impl FromStr for Newcomer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, addr) = text
            .split_once('=')
            .ok_or("expected ID=ADDRESS:PORT, like 4=192.0.2.4:7400")?;
        let CoordinatorArg(id) = id.parse()?;
        let addr = addr
            .parse()
            .map_err(|_| format!("`{addr}` is not an address with a port, like 192.0.2.4:7400"))?;
        Ok(Self { id, addr })
    }
}

pub(super) async fn run(
    cluster: &mut Cluster,
    file: &Path,
    action: Option<Action>,
    json: bool,
) -> Result<(), CliError> {
    match action {
        None => Ok(show::coordinators(&cluster.status().await?, json)?),
        Some(Action::Add {
            newcomer,
            dir,
            valid_days,
        }) => {
            let dir = dir.unwrap_or_else(|| file.parent().unwrap_or(Path::new("")).to_owned());
            add(cluster, file, &dir, newcomer, valid_days, json).await
        }
        Some(Action::Remove {
            id: CoordinatorArg(id),
        }) => {
            let done = format!("{id} leaves; stop it, and take it out of {}", file.display());
            change(cluster, Operate::RemoveCoordinator { id }, &done, json).await
        }
        Some(Action::Transfer {
            id: CoordinatorArg(to),
        }) => {
            let done = format!("{to} leads");
            change(cluster, Operate::TransferLeadership { to }, &done, json).await
        }
    }
}

async fn change(cluster: &mut Cluster, operate: Operate, done: &str, json: bool) -> Result<(), CliError> {
    let answer = cluster.ask(operate).await?;
    show::done(answer.as_deref(), done, json);
    Ok(())
}

/// The files are written first, so that a coordinator that is added can also be started; when the
/// leader refuses, they are taken back.
async fn add(
    cluster: &mut Cluster,
    file: &Path,
    dir: &Path,
    newcomer: Newcomer,
    valid_days: u32,
    json: bool,
) -> Result<(), CliError> {
    let Newcomer { id, addr } = newcomer;
    let others = others(&cluster.status().await?)?;
    let files = files(dir, newcomer, &others, valid_days)?;
    for (at, new) in files.iter().enumerate() {
        if let Err(error) = init::write(dir, new) {
            take_back(dir, &files[..at]);
            return Err(error.into());
        }
    }
    let answer = cluster.ask(Operate::AddCoordinator { id, addr }).await;
    if matches!(answer, Err(AskError::Refused(_) | AskError::NoLeader(_))) {
        take_back(dir, &files);
    }
    let answer = answer?;
    append(file, &init::members(&[(id.0, addr)], "coordinators"))?;
    let done = format!(
        "{id} is being added. Copy {id}.*, ca.pem and issuer.* from {} to it, and start it there:\n  understudy-coordinator --config {id}.toml\nIt votes once it has caught up: understudy coordinators",
        dir.display()
    );
    show::done(answer.as_deref(), &done, json);
    Ok(())
}

/// The members now, as the leader says.
fn others(status: &str) -> Result<Vec<(u64, SocketAddr)>, CliError> {
    let status: Status = serde_json::from_str(status)?;
    let members = status.coordinators.iter();
    Ok(members
        .filter_map(|member| Some((member.id, member.addr?)))
        .collect())
}

fn files(
    dir: &Path,
    Newcomer { id, addr }: Newcomer,
    others: &[(u64, SocketAddr)],
    valid_days: u32,
) -> Result<Vec<NewFile>, CliError> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(|source| CliError::Read { path, source })
    };
    let pair = Pair {
        certificate: read("ca.pem")?,
        key: read("ca.key")?,
    };
    let authority = Authority::from_pair(pair).map_err(init::InitError::from)?;
    let validity = Validity::days_from(OffsetDateTime::now_utc(), valid_days);
    let pair = authority
        .issue(Principal::Coordinator(id), validity)
        .map_err(init::InitError::from)?;
    let mut files = Vec::new();
    init::push_pair(&mut files, &id.to_string(), &pair);
    files.push(NewFile {
        name: format!("{id}.toml"),
        text: init::coordinator_toml(id.0, addr, others, true, first_host(dir)),
        secret: false,
    });
    Ok(files)
}

/// As the other coordinators' files say; a number too high leaves a gap and does no harm.
fn first_host(dir: &Path) -> u32 {
    let hosts = (1..u32::MAX).take_while(|n| dir.join(format!("host-{n}.pem")).exists());
    hosts.last().map_or(1, |last| last + 1)
}

fn take_back(dir: &Path, files: &[NewFile]) {
    for file in files {
        // They were written a moment ago; what cannot be removed is refused by name the next time.
        let _ = std::fs::remove_file(dir.join(&file.name));
    }
}

fn append(file: &Path, text: &str) -> Result<(), CliError> {
    let write = || {
        let mut file = std::fs::OpenOptions::new().append(true).open(file)?;
        std::io::Write::write_all(&mut file, text.as_bytes())
    };
    write().map_err(|source| {
        CliError::Init(init::InitError::Write {
            path: file.to_owned(),
            source,
        })
    })
}
