//! `understudy init`: certificates and ready-to-edit configuration files of a new cluster.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::Principal;

use crate::authority::{Authority, AuthorityError, CA_DAYS_MIN, Pair, Validity};
use crate::config::MEMBERS_MAX;
use crate::state::is_host_name;

const HOSTS_MAX: usize = 10_000;
const DAYS_MAX: u32 = 36_500;

#[derive(Clone, Debug, clap::Args)]
pub struct InitArgs {
    /// Where to write; created, or empty.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// A host's name and where its agent listens; once for each host.
    #[arg(long = "host", value_name = "NAME=ADDRESS:PORT", value_parser = super::parse_host, required = true)]
    pub hosts: Vec<HostArg>,
    /// Where a coordinator listens; once for each, three or five are usual.
    #[arg(long = "coordinator", value_name = "ADDRESS:PORT", required = true)]
    pub coordinators: Vec<SocketAddr>,
    /// How long the certificates of hosts, coordinators and operator are valid.
    #[arg(long, value_name = "DAYS", default_value_t = 825)]
    pub valid_days: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostArg {
    pub name: String,
    pub addr: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("{0}")]
    Usage(String),
    #[error("{0} is there and not empty; give a new directory, so that no key is overwritten")]
    NotEmpty(PathBuf),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

#[derive(Debug)]
pub struct Written {
    pub dir: PathBuf,
    pub files: Vec<String>,
}

pub(super) struct NewFile {
    pub name: String,
    pub text: String,
    pub secret: bool,
}

/// Makes a cluster's CA, certificates and configuration files.
///
/// # Errors
/// [`InitError`]; with `Usage` and `NotEmpty` nothing was written.
pub fn init(args: &InitArgs) -> Result<Written, InitError> {
    check(args)?;
    let files = files(args, OffsetDateTime::now_utc())?;
    prepare(&args.dir)?;
    for file in &files {
        write(&args.dir, file)?;
    }
    Ok(Written {
        dir: args.dir.clone(),
        files: files.into_iter().map(|file| file.name).collect(),
    })
}

fn check(args: &InitArgs) -> Result<(), InitError> {
    let refuse = |rule: String| Err(InitError::Usage(rule));
    if !(1..=DAYS_MAX).contains(&args.valid_days) {
        return refuse(format!("--valid-days: 1 to {DAYS_MAX}"));
    }
    if args.coordinators.len() > MEMBERS_MAX || args.hosts.len() > HOSTS_MAX {
        return refuse(format!(
            "at most {MEMBERS_MAX} coordinators and {HOSTS_MAX} hosts"
        ));
    }
    for (at, host) in args.hosts.iter().enumerate() {
        if !is_host_name(&host.name) {
            return refuse(format!(
                "--host {}: 1 to 32 lower-case letters, digits and hyphens",
                host.name
            ));
        }
        if args.hosts[..at]
            .iter()
            .any(|other| other.name == host.name || other.addr == host.addr)
        {
            return refuse(format!(
                "--host {}: its name or address is there twice",
                host.name
            ));
        }
    }
    for (at, addr) in args.coordinators.iter().enumerate() {
        if args.coordinators[..at].contains(addr) {
            return refuse(format!("--coordinator {addr} is there twice"));
        }
    }
    Ok(())
}

fn files(args: &InitArgs, now: OffsetDateTime) -> Result<Vec<NewFile>, InitError> {
    let authority = Authority::new(Validity::days_from(now, args.valid_days.max(CA_DAYS_MIN)))?;
    let issuer = authority.delegate(Validity::days_from(now, args.valid_days.max(CA_DAYS_MIN)))?;
    let validity = Validity::days_from(now, args.valid_days);
    let mut files = Vec::new();
    push_pair(&mut files, "ca", authority.pair());
    push_pair(&mut files, "issuer", issuer.pair());
    push_pair(
        &mut files,
        "operator",
        &authority.issue(Principal::Operator, validity)?,
    );
    files.push(NewFile {
        name: "cluster.toml".to_owned(),
        text: cluster_toml(args),
        secret: false,
    });
    for (n, host) in (1..).zip(&args.hosts) {
        let name = format!("host-{n}");
        push_pair(
            &mut files,
            &name,
            &authority.issue(Principal::Host(HostId(n)), validity)?,
        );
        files.push(NewFile {
            name: format!("{name}.toml"),
            text: host_toml(n, host, &numbered(args)),
            secret: false,
        });
    }
    let first_host = u32::try_from(args.hosts.len()).map_or(u32::MAX, |hosts| hosts + 1);
    for (n, addr) in (1..).zip(&args.coordinators) {
        let name = format!("coordinator-{n}");
        let pair = authority.issue(Principal::Coordinator(CoordinatorId(n)), validity)?;
        push_pair(&mut files, &name, &pair);
        files.push(NewFile {
            name: format!("{name}.toml"),
            text: coordinator_toml(n, *addr, &numbered(args), false, first_host),
            secret: false,
        });
    }
    Ok(files)
}

pub(super) fn push_pair(files: &mut Vec<NewFile>, name: &str, pair: &Pair) {
    files.push(NewFile {
        name: format!("{name}.pem"),
        text: pair.certificate.clone(),
        secret: false,
    });
    files.push(NewFile {
        name: format!("{name}.key"),
        text: pair.key.clone(),
        secret: true,
    });
}

fn cluster_toml(args: &InitArgs) -> String {
    format!(
        "# For people: understudy --cluster THIS-FILE status\n\n{}{}",
        identity("operator"),
        members(&numbered(args), "coordinators")
    )
}

pub(super) fn host_toml(n: u32, host: &HostArg, coordinators: &[(u64, SocketAddr)]) -> String {
    let HostArg { name, addr } = host;
    format!(
        r#"# understudy-agent on {name}. Paths are relative to this file.
host = {n}
name = "{name}"
state_dir = "/srv/understudy"            # on the host's own disk
listen = "{addr}"

{identity}{coordinators}
[telemetry]
bpf = true

[bpf]
pin_dir = "/sys/fs/bpf/understudy/{n}"     # on a bpffs

[workload]
cgroup = "/sys/fs/cgroup/understudy"     # on cgroup2; the parent of the services' cgroups

# Shadows stand on hosts that share none of these with the primary. What is not named is not shared.
# [domain]
# rack = "r1"
# power = "feed-a"
# region = "eu-1"
"#,
        identity = identity(&format!("host-{n}")),
        coordinators = members(coordinators, "coordinators"),
    )
}

/// `joins`: the others run already, and this one is not among them.
pub(super) fn coordinator_toml(
    n: u64,
    addr: SocketAddr,
    others: &[(u64, SocketAddr)],
    joins: bool,
    first_host: u32,
) -> String {
    let joins = if joins { "joins = true\n" } else { "" };
    format!(
        r#"# understudy-coordinator. Paths are relative to this file.
id = {n}
data_dir = "/var/lib/understudy/coordinator-{n}"
listen = "{addr}"
{joins}
{identity}{members}
# Without it services move only after their host is gone.
# [prediction]
# model = "/usr/share/understudy/model.onnx"
# card = "/usr/share/understudy/model.json"
# onnxruntime = "/usr/lib/libonnxruntime.so"

# Admits new hosts when it leads, and renews certificates. Who has this key can pose as any host or coordinator.
[issuer]
cert = "issuer.pem"
key = "issuer.key"
first_host = {first_host}                           # lower numbers were given by `understudy init`
# valid_s = 7776000                      # of what it signs: 90 days; renewed in the last third
"#,
        identity = identity(&format!("coordinator-{n}")),
        members = members(others, "members"),
    )
}

fn identity(name: &str) -> String {
    format!("[identity]\nca = \"ca.pem\"\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n")
}

fn numbered(args: &InitArgs) -> Vec<(u64, SocketAddr)> {
    (1..).zip(args.coordinators.iter().copied()).collect()
}

pub(super) fn members(members: &[(u64, SocketAddr)], key: &str) -> String {
    members
        .iter()
        .map(|(n, addr)| format!("\n[[{key}]]\nid = {n}\naddr = \"{addr}\"\n"))
        .collect()
}

pub(super) fn prepare(dir: &Path) -> Result<(), InitError> {
    let failed = |source| InitError::Write {
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .map_err(failed);
        }
        Err(error) => return Err(failed(error)),
    };
    match entries {
        None => Ok(()),
        Some(_) => Err(InitError::NotEmpty(dir.to_owned())),
    }
}

pub(super) fn write(dir: &Path, file: &NewFile) -> Result<(), InitError> {
    let path = dir.join(&file.name);
    let failed = |source| InitError::Write {
        path: path.clone(),
        source,
    };
    let mode = if file.secret { 0o600 } else { 0o644 };
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&path)
        .map_err(failed)?;
    out.write_all(file.text.as_bytes()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClusterConfig, CoordinatorConfig};
    use std::os::unix::fs::PermissionsExt as _;

    fn args(dir: PathBuf) -> InitArgs {
        let addr = |text: &str| text.parse().unwrap();
        InitArgs {
            dir,
            hosts: vec![
                HostArg {
                    name: "a".into(),
                    addr: addr("192.0.2.11:7401"),
                },
                HostArg {
                    name: "b".into(),
                    addr: addr("192.0.2.12:7401"),
                },
            ],
            coordinators: vec![
                addr("192.0.2.1:7400"),
                addr("192.0.2.2:7400"),
                addr("192.0.2.3:7400"),
            ],
            valid_days: 30,
        }
    }

    #[test]
    fn what_init_writes_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("cluster");
        let written = init(&args(at.clone())).unwrap();
        assert!(written.files.contains(&"host-2.toml".to_owned()));
        assert_eq!(
            ClusterConfig::read(&at.join("cluster.toml"))
                .unwrap()
                .coordinators
                .len(),
            3
        );
        let config = CoordinatorConfig::read(&at.join("coordinator-2.toml")).unwrap();
        assert_eq!(config.id, CoordinatorId(2));
        assert!(config.prediction.is_none());
        assert_eq!(config.issuer.map(|issuer| issuer.first_host), Some(3));
        for key in [
            "ca.key",
            "issuer.key",
            "host-1.key",
            "coordinator-3.key",
            "operator.key",
        ] {
            let mode = std::fs::metadata(at.join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn a_directory_that_is_not_empty_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("precious"), "x").unwrap();
        assert!(matches!(
            init(&args(dir.path().to_owned())),
            Err(InitError::NotEmpty(_))
        ));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unknown_key_is_refused_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("cluster");
        init(&args(at.clone())).unwrap();
        let path = at.join("coordinator-1.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, expected) in [
            ("ca = ", "co = ", "identity.co"),
            ("listen = ", "listne = ", "listne"),
            ("id = 1", "id = 9", "id: 9 is not among the members"),
            ("192.0.2.2:7400", "192.0.2.2", "members.addr"),
            (
                "coordinator-1.pem",
                "host-1.pem",
                "identity.cert: a certificate of coordinator-1",
            ),
        ] {
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = CoordinatorConfig::read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
