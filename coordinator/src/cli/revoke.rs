//! `understudy revoke`: refuses the certificates that somebody has so far.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use understudy_common::identity::Principal;
use understudy_common::wire::Operate;

use super::ask::{AskError, Cluster};
use super::init::{InitError, NewFile, push_pair, write};
use super::{CliError, show};
use crate::authority::{Authority, Pair, Validity};

#[derive(Debug, clap::Args)]
pub(super) struct RevokeArgs {
    /// A host's name, or `host-7`, `coordinator-2` (remove it first) or `operator`.
    who: String,
    /// For `operator`: the cluster's directory with `ca.key`, where the new certificate goes; that of
    /// the cluster file when not given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// For `operator`: how long the new certificate is valid.
    #[arg(long, value_name = "DAYS", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    valid_days: u32,
}

pub(super) async fn run(
    cluster: &mut Cluster,
    file: &Path,
    args: RevokeArgs,
    json: bool,
) -> Result<(), CliError> {
    let RevokeArgs { who, dir, valid_days } = args;
    let replacement = if who == "operator" {
        let dir = dir.unwrap_or_else(|| file.parent().unwrap_or(Path::new("")).to_owned());
        let enrolment = cluster.config().credentials.identity().enrolment + 1;
        Some((dir.clone(), new_operator(&dir, enrolment, valid_days)?))
    } else {
        None
    };
    let answer = cluster.ask(Operate::Revoke { who: who.clone() }).await;
    // The new certificate counts in any case; when it is not known whether the old one still does,
    // only the new one is of use.
    let unknown = matches!(answer, Err(AskError::Unknown { .. }));
    if let Some((dir, files)) = replacement {
        for new in files {
            if answer.is_err() && !unknown {
                // It was written a moment ago; what cannot be removed is refused by name the next time.
                let _ = std::fs::remove_file(dir.join(new.name));
                continue;
            }
            let to = dir.join(new.name.replacen("next-", "", 1));
            let from = dir.join(new.name);
            std::fs::rename(&from, &to).map_err(|source| InitError::Write { path: to, source })?;
        }
    }
    let answer = answer?;
    let done = format!("the certificates that {who} has so far are refused");
    show::done(answer.as_deref(), &done, json);
    Ok(())
}

/// Written under other names first: whatever happens after the old one is refused, the new one is there.
fn new_operator(dir: &Path, enrolment: u32, valid_days: u32) -> Result<Vec<NewFile>, CliError> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(|source| CliError::Read { path, source })
    };
    let ca = Pair {
        certificate: read("ca.pem")?,
        key: read("ca.key")?,
    };
    let validity = Validity::days_from(OffsetDateTime::now_utc(), valid_days);
    let pair = Authority::from_pair(ca)
        .and_then(|ca| ca.enrol(Principal::Operator, enrolment, validity))
        .map_err(InitError::from)?;
    let mut files = Vec::new();
    push_pair(&mut files, "next-operator", &pair);
    for file in &files {
        write(dir, file)?;
    }
    Ok(files)
}
