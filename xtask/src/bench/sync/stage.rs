//! A primary and a shadow on two hosts, and what a change costs them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use understudy_testbed::{Host, HostSpec, Testbed};

use super::ssh::Ssh;
use crate::bench::Wanted;

const PORT: u16 = 7401;
/// For the file system of the shadow's disk, and journals of small generations.
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
pub(super) struct Stage {
    primary: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    shadow: Child,
    hosts: [Arc<Host>; 2],
    directory: PathBuf,
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

#[derive(Deserialize)]
struct Figures {
    bytes_read: u64,
    unknown: u64,
    tracked: bool,
}

#[derive(Deserialize)]
struct Listening {}

impl Stage {
    /// The shadow has the first copy of so many files of so many bytes when this returns.
    pub(super) fn open(wanted: &Wanted, bytes: u64, files: u64) -> Result<Self> {
        let directory = wanted.directory("sync")?;
        let load = wanted.programs.path("understudy-load");
        let (keys, data) = (directory.join("keys"), directory.join("data"));
        let run = |line: &[&str], more: &[&Path]| -> Result<()> {
            let mut command = Command::new(&load);
            let output = command.arg("sync").args(line).args(more).stdin(Stdio::null());
            let output = output.output().context("starting understudy-load")?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "understudy-load: {}", said.trim());
            Ok(())
        };
        run(&["keys", "--dir"], &[&keys])?;
        let (size, count) = (bytes.to_string(), files.to_string());
        run(&["make", "--bytes", &size, "--files", &count, "--data"], &[&data])?;

        let mut bed = Testbed::start("benchsync")?;
        let at = |last| Ipv4Addr::new(10, 77, 0, last);
        // The first generation is in the journal and in the files before it leaves the journal; and there may be
        // another copy beside it.
        let disk_mib = ((3 * bytes * files) >> 20) + files / 100 + DISK_MORE_MIB;
        let ours = bed.add(HostSpec::new("primary", at(1)))?;
        let theirs = bed.add(HostSpec::new("shadow", at(2)).disk_mib(disk_mib))?;
        let disk = bed.disk_mount_point();
        let side = |role: &str, host: &Host, data: &Path, state: &Path| -> Result<Command> {
            let mut command = host.command(&load)?;
            let listen = SocketAddr::from((host.address(), PORT));
            command
                .args(["sync", role, "--keys"])
                .arg(&keys)
                .args(["--listen", &listen.to_string(), "--data"])
                .arg(data)
                .arg("--state")
                .arg(state)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            Ok(command)
        };
        let mut shadow = side("shadow", &theirs, &disk.join("data"), &disk.join("state"))?
            .spawn()
            .context("starting the shadow")?;
        let mut said = BufReader::new(shadow.stdout.take().context("the shadow's output")?);
        let Listening {} = answer(&mut said)?;
        let mut primary = side("primary", &ours, &data, &directory.join("state"))?;
        let listens = SocketAddr::from((theirs.address(), PORT));
        let mut primary = primary
            .args(["--shadow", &listens.to_string()])
            .spawn()
            .context("starting the primary")?;
        let orders = primary.stdin.take().context("the primary's input")?;
        let answers = BufReader::new(primary.stdout.take().context("the primary's output")?);
        let mut stage = Self {
            primary,
            orders,
            answers,
            shadow,
            hosts: [ours, theirs],
            directory,
            first_copy_s: 0.0,
            _bed: bed,
        };
        let Settled { seconds } = stage.order("settle")?;
        let label = format!("{} MiB", (bytes * files) >> 20);
        crate::shell::say("first copy", format!("{label} in {seconds:.1} s"));
        stage.first_copy_s = seconds;
        stage.rest()?;
        Ok(stage)
    }

    pub(super) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Another folder on the disk of the files.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.directory.join(name)
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
        Ssh::start(theirs, &self.directory)?.copy(ours, &self.data(), theirs, &to)
    }

    /// Until nothing follows from what happened.
    fn rest(&self) -> Result<()> {
        std::thread::sleep(AFTERWARDS);
        let disk = self.hosts[1].disk().context("the shadow has a disk")?;
        let at = disk.mount_point().to_owned();
        self.hosts[1].run(&["sync", "--file-system", &at.to_string_lossy()])
    }

    fn counters(&mut self) -> Result<Counters> {
        let figures: Figures = self.order("figures")?;
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
        let tasks = format!("/proc/{}/task", self.primary.id());
        let mut ns = 0;
        for task in fs::read_dir(&tasks).context(tasks)? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split_whitespace().next().context("schedstat is empty")?;
            ns += first.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(ns))
    }

    fn order<T: DeserializeOwned>(&mut self, order: &str) -> Result<T> {
        writeln!(self.orders, "{order}").context("the primary ended")?;
        answer(&mut self.answers).with_context(|| order.to_owned())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for process in [&mut self.primary, &mut self.shadow] {
            // One that has ended already cannot be killed.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn answer<T: DeserializeOwned>(answers: &mut BufReader<ChildStdout>) -> Result<T> {
    let mut line = String::new();
    answers.read_line(&mut line)?;
    ensure!(!line.is_empty(), "the process ended");
    serde_json::from_str(&line).with_context(|| line.trim().to_owned())
}
