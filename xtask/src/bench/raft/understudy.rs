//! Three coordinators, as `understudy init` configures them, on the loopback address.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::MEMBERS;
use crate::bench::daemon::{Daemon, free_addresses};
use crate::bench::programs::Programs;
use crate::shell::output;

pub(super) struct Cluster {
    directory: PathBuf,
    coordinator: PathBuf,
    members: Vec<Option<Daemon>>,
}

impl Cluster {
    pub(super) fn start(directory: &Path, programs: &Programs) -> Result<Self> {
        let config = directory.join("cluster");
        let mut init = Command::new(programs.path("understudy"));
        init.arg("init").arg("--dir").arg(&config);
        init.args(["--host", "nobody=127.0.0.1:1"]);
        for addr in free_addresses(MEMBERS)? {
            init.args(["--coordinator", &addr.to_string()]);
        }
        let made = output(&mut init)?;
        ensure!(
            made.status.success(),
            "understudy init: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let mut cluster = Self {
            directory: directory.to_owned(),
            coordinator: programs.path("understudy-coordinator"),
            members: (0..MEMBERS).map(|_| None).collect(),
        };
        for n in 1..=MEMBERS {
            cluster.place_data(n)?;
            cluster.restart(n)?;
        }
        Ok(cluster)
    }

    /// What clients read.
    pub(super) fn file(&self) -> PathBuf {
        self.directory.join("cluster/cluster.toml")
    }

    fn config(&self, n: usize) -> PathBuf {
        self.directory.join(format!("cluster/coordinator-{n}.toml"))
    }

    fn place_data(&self, n: usize) -> Result<()> {
        let (path, data) = (self.config(n), self.directory.join(format!("coordinator-{n}")));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let default = format!("/var/lib/understudy/coordinator-{n}");
        ensure!(text.contains(&default), "{} names no {default}", path.display());
        std::fs::write(&path, text.replace(&default, &data.display().to_string()))?;
        Ok(())
    }

    pub(super) fn restart(&mut self, n: usize) -> Result<()> {
        let mut command = Command::new(&self.coordinator);
        command.arg("--config").arg(self.config(n));
        let log = self.directory.join(format!("coordinator-{n}.log"));
        self.members[n - 1] = Some(Daemon::start(&mut command, &log)?);
        Ok(())
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self, n: usize) {
        self.members[n - 1] = None;
    }

    /// A member that ended by itself, and where its log is.
    pub(super) fn check(&mut self) -> Result<()> {
        for (n, member) in (1..).zip(&mut self.members) {
            let ended = member.as_mut().is_some_and(Daemon::has_ended);
            let log = self.directory.join(format!("coordinator-{n}.log"));
            ensure!(!ended, "coordinator {n} ended: see {}", log.display());
        }
        Ok(())
    }
}
