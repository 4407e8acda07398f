//! A primary and a shadow on two hosts, and what a change costs them.

mod plan;
mod program;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use understudy_testbed::{Host, HostSpec, Testbed};

use super::ssh::Ssh;
use crate::bench::Wanted;
pub(crate) use plan::Plan;
use program::Program;

const PORT: u16 = 7401;
/// For the file system of a disk, and journals of small generations.
const DISK_MORE_MIB: u64 = 1_024;
/// The checkpoint follows the acknowledgement, and what was read in the cut is read once more.
const AFTERWARDS: Duration = Duration::from_millis(700);
const SECTOR: u64 = 512;

/// What one change cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counters {
    /// By the primary, from its files.
    pub(super) read: u64,
    /// Of the primary's cable, both ways, with all headers.
    pub(super) wire: u64,
    /// Of the shadow's disk, read and written, with the file system's own journal.
    pub(super) shadow_io: u64,
}

/// Ended with the bed.
pub(crate) struct Stage {
    primary: Option<Program>,
    shadow: Option<Program>,
    hosts: [Arc<Host>; 2],
    data: PathBuf,
    copy: PathBuf,
    plan: Plan,
    /// From the start of the primary to the acknowledgement of its first generation.
    pub(super) first_copy_s: f64,
    _bed: Testbed,
}

#[derive(Deserialize)]
struct Settled {
    seconds: f64,
}

#[derive(Deserialize)]
struct Changed {
    us: f64,
}

/// What the primary counts of its own doing.
#[derive(Deserialize)]
pub(super) struct Figures {
    bytes_read: u64,
    /// Files that were read again in doubt.
    pub(super) unknown: u64,
    /// Whether the kernel says what changed.
    pub(super) tracked: bool,
}

#[derive(Deserialize)]
struct Listening {}

impl Stage {
    /// The shadow has the first copy of so many files of so many bytes when this returns.
    pub(super) fn open(wanted: &Wanted, bytes: u64, files: u64) -> Result<Self> {
        let mut stage = Self::prepare(Plan::of(wanted, bytes, files)?)?;
        let label = format!("{} MiB", stage.plan.mib());
        stage.first_copy_s = stage.attach()?;
        crate::shell::say("first copy", format!("{label} in {:.1} s", stage.first_copy_s));
        stage.rest()?;
        Ok(stage)
    }

    /// The hosts, the files and the shadow; no primary.
    pub(crate) fn prepare(plan: Plan) -> Result<Self> {
        let mut bed = Testbed::start("benchsync")?;
        let at = |last| Ipv4Addr::new(10, 77, 0, last);
        let mut ours = HostSpec::new("primary", at(1)).direct();
        // The first generation is in the journal and in the files before it leaves the journal; and there may be
        // another copy beside it.
        let disk_mib = 3 * plan.mib() + plan.files / 100 + DISK_MORE_MIB;
        let mut theirs = HostSpec::new("shadow", at(2)).disk_mib(disk_mib).direct();
        if let Some(file_system) = plan.disks {
            ours = ours.disk_mib(plan.mib() + DISK_MORE_MIB).file_system(file_system);
            theirs = theirs.file_system(file_system);
        }
        let hosts = [bed.add(ours)?, bed.add(theirs)?];
        let copy = bed.disk_mount_point().join("data");
        let data = match plan.disks {
            Some(_) => copy.clone(),
            None => plan.directory.join("data"),
        };
        let mut stage = Self {
            primary: None,
            shadow: None,
            hosts,
            data,
            copy,
            plan,
            first_copy_s: 0.0,
            _bed: bed,
        };
        stage.make_files()?;
        if stage.plan.shadow {
            let state = stage.copy.with_file_name("state");
            let mut shadow = stage.side("shadow", 1, &stage.copy, &state)?;
            let mut shadow = Program::start(&mut shadow).context("the shadow")?;
            let Listening {} = shadow.answer().context("the shadow")?;
            stage.shadow = Some(shadow);
        }
        Ok(stage)
    }

    fn make_files(&self) -> Result<()> {
        let run = |line: &[&str], at: &Path| -> Result<()> {
            let mut command = self.hosts[0].command(&self.plan.load)?;
            command.arg("sync").args(line).arg(at).stdin(Stdio::null());
            let output = command.output().context("starting understudy-load")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "understudy-load: {}", said.trim());
            Ok(())
        };
        run(&["keys", "--dir"], &self.keys())?;
        let (size, count) = (self.plan.bytes.to_string(), self.plan.files.to_string());
        run(
            &["make", "--bytes", &size, "--files", &count, "--data"],
            &self.data,
        )
    }

    fn keys(&self) -> PathBuf {
        self.plan.directory.join("keys")
    }

    fn side(&self, role: &str, host: usize, data: &Path, state: &Path) -> Result<Command> {
        let host = &self.hosts[host];
        let mut command = host.command(&self.plan.load)?;
        let listen = SocketAddr::from((host.address(), PORT));
        command
            .args(["sync", role, "--keys"])
            .arg(self.keys())
            .args(["--listen", &listen.to_string(), "--data"])
            .arg(data)
            .arg("--state")
            .arg(state);
        Ok(command)
    }

    /// Starts the primary; seconds until its first generation is acknowledged.
    pub(super) fn attach(&mut self) -> Result<f64> {
        let mut primary = self.side("primary", 0, &self.data, &self.plan.directory.join("state"))?;
        primary.args(["--seed", &self.plan.seed.to_string()]);
        if self.plan.shadow {
            let shadow = SocketAddr::from((self.hosts[1].address(), PORT));
            primary.args(["--shadow", &shadow.to_string()]);
        }
        if self.plan.freezes {
            fs::create_dir_all(self.workload())?;
            primary.arg("--freeze").arg(self.workload());
        }
        self.primary = Some(Program::start(&mut primary).context("the primary")?);
        let Settled { seconds } = self.order("settle")?;
        Ok(seconds)
    }

    /// Ends the primary: no kernel program of it is left.
    pub(super) fn detach(&mut self) -> Result<()> {
        match self.primary.take() {
            Some(primary) => primary.end().context("the primary"),
            None => Ok(()),
        }
    }

    /// The cgroup that cuts freeze.
    pub(super) fn workload(&self) -> PathBuf {
        self.hosts[0].cgroups().unified().join("workload")
    }

    /// The primary's and the shadow's.
    pub(super) const fn hosts(&self) -> &[Arc<Host>; 2] {
        &self.hosts
    }

    /// The primary's files, as its host calls them.
    pub(super) fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// Both trees, as they are reached from here: the primary's, and the shadow's.
    pub(super) fn trees(&self) -> [PathBuf; 2] {
        [self.hosts[0].path(&self.data), self.hosts[1].path(&self.copy)]
    }

    /// Another folder on the disk of the files.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.plan.directory.join(name)
    }

    /// Overwrites so many random pages: milliseconds until they were acknowledged, and what it cost.
    pub(super) fn change(&mut self, files: u64, changes: u64) -> Result<(f64, Counters)> {
        let before = self.counters()?;
        let Changed { us } = self.order(&format!("change {files} {changes}"))?;
        self.rest()?;
        let after = self.counters()?;
        let cost = Counters {
            read: after.read - before.read,
            wire: after.wire - before.wire,
            shadow_io: after.shadow_io - before.shadow_io,
        };
        Ok((us / 1e3, cost))
    }

    /// The same files onto the same disk; seconds.
    pub(super) fn first_copy_over_ssh(&self) -> Result<f64> {
        let [ours, theirs] = &self.hosts;
        let disk = theirs.disk().context("the shadow has a disk")?;
        let to = disk.mount_point().join("rsync");
        Ssh::start(theirs, &self.plan.directory)?.copy(ours, &self.data, theirs, &to)
    }

    /// Until nothing follows from what happened.
    pub(super) fn rest(&self) -> Result<()> {
        std::thread::sleep(AFTERWARDS);
        let disk = self.hosts[1].disk().context("the shadow has a disk")?;
        let at = disk.mount_point().to_string_lossy().into_owned();
        self.hosts[1].run(&["sync", "--file-system", &at])
    }

    /// Until everything that was written on the primary's disk is on it.
    pub(super) fn written(&self) -> Result<()> {
        self.hosts[0].run(&["sync", "--file-system", &self.data.to_string_lossy()])
    }

    pub(super) fn figures(&mut self) -> Result<Figures> {
        self.order("figures")
    }

    fn counters(&mut self) -> Result<Counters> {
        let figures = self.figures()?;
        ensure!(
            figures.tracked && figures.unknown == 0,
            "the kernel does not track the files"
        );
        let disk = self.hosts[1].disk().context("the shadow has a disk")?;
        let stat = format!("/sys/dev/block/{}/stat", disk.numbers());
        let stat = fs::read_to_string(&stat).context(stat)?;
        let field = |text: &str, at: usize| -> Result<u64> {
            let field = text.split_whitespace().nth(at).context("a counter is missing")?;
            Ok(field.parse()?)
        };
        let (read, written) = (field(&stat, 2)?, field(&stat, 6)?);
        let devices = self.hosts[0].inside(|| Ok(fs::read_to_string("/proc/thread-self/net/dev")?))?;
        let prefix = format!("{}:", self.hosts[0].interface());
        let line = devices
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(&prefix));
        let line = line.context("the primary has no cable")?;
        Ok(Counters {
            read: figures.bytes_read,
            wire: field(line, 0)? + field(line, 8)?,
            shadow_io: (read + written) * SECTOR,
        })
    }

    /// Time that the primary's process spent so far.
    pub(super) fn primary_cpu(&self) -> Result<Duration> {
        let primary = self.primary.as_ref().context("no primary runs")?;
        let tasks = format!("/proc/{}/task", primary.pid());
        let mut ns = 0;
        for task in fs::read_dir(&tasks).context(tasks)? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split_whitespace().next().context("schedstat is empty")?;
            ns += first.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(ns))
    }

    /// Of the primary.
    pub(super) fn order<T: DeserializeOwned>(&mut self, order: &str) -> Result<T> {
        let primary = self.primary.as_mut().context("no primary runs")?;
        primary.order(order).context("the primary")
    }
}
