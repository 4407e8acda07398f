//! Runs the generator, `understudy-load`, and reads what it measured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::daemon::ends_with_us;

/// Whom the generator talks to.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Etcd(Vec<SocketAddr>),
    /// `cluster.toml`.
    Understudy(PathBuf),
}

/// How long, and how fast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) connections: usize,
    pub(super) warm_up_ms: u64,
    pub(super) measure_ms: u64,
    /// Commands a second; none: as many as are answered.
    pub(super) rate: Option<f64>,
}

/// What one run of `understudy-load commits` saw.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Commits {
    pub(super) commits: u64,
    pub(super) per_s: f64,
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    errors: u64,
    last_error: Option<String>,
}

pub(super) const CLIENTS: usize = 64;
/// A run in which more commands failed than one in so many measured something else.
const ERRORS_ONE_IN: u64 = 100;

pub(super) fn commits(program: PathBuf, target: &Target, run: Run) -> Result<Commits> {
    let mut command = Command::new(program);
    command.arg("commits");
    match target {
        Target::Etcd(members) => {
            for member in members {
                command.arg("--etcd").arg(member.to_string());
            }
        }
        Target::Understudy(file) => {
            command.arg("--cluster").arg(file);
        }
    }
    command
        .args(["--clients", &CLIENTS.to_string()])
        .args(["--connections", &run.connections.to_string()])
        .args(["--warm-up-ms", &run.warm_up_ms.to_string()])
        .args(["--measure-ms", &run.measure_ms.to_string()]);
    if let Some(rate) = run.rate {
        command.args(["--rate", &rate.to_string()]);
    }
    let output = ends_with_us(&mut command)
        .stdin(Stdio::null())
        .output()
        .context("starting the generator")?;
    ensure!(
        output.status.success(),
        "the generator failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let commits: Commits = serde_json::from_slice(&output.stdout).context("the generator's answer")?;
    ensure!(
        commits.commits > 0 && commits.errors <= commits.commits / ERRORS_ONE_IN,
        "{} commands were committed and {} failed, the last one since {}",
        commits.commits,
        commits.errors,
        commits.last_error.as_deref().unwrap_or("of nothing")
    );
    Ok(commits)
}
