//! A coordinator on core 0 and the fleet's generator on core 1, which is told what to do line by line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::runtime;
use crate::bench::Wanted;
use crate::bench::daemon::{Daemon, ends_with_us, free_addresses, pinned};
use crate::repo;

/// Ticks that a coordinator keeps of each host.
pub(super) const WINDOW_TICKS: u64 = 300;
const LEADERS_CORE: usize = 0;
const OTHERS_CORE: usize = 1;
/// Open files beside the hosts' sockets.
const FILES_BESIDE: u64 = 256;

/// One step, as the generator counted it and as the coordinator knows it.
#[derive(Debug, Deserialize)]
pub(super) struct Measured {
    pub(super) hosts: u64,
    pub(super) seconds: f64,
    pub(super) sent: u64,
    pub(super) late: u64,
    pub(super) sent_ever: u64,
    coordinator: Beacons,
}

#[derive(Debug, Deserialize)]
struct Beacons {
    received: u64,
    dropped: u64,
    tick_us_p50: Option<u64>,
    tick_us_p99: Option<u64>,
}

impl Measured {
    pub(super) const fn received(&self) -> u64 {
        self.coordinator.received
    }

    pub(super) const fn dropped(&self) -> u64 {
        self.coordinator.dropped
    }

    pub(super) const fn tick_us_p99(&self) -> Option<u64> {
        self.coordinator.tick_us_p99
    }

    pub(super) fn line(&self) -> String {
        let ms = |us: Option<u64>| us.unwrap_or_default() as f64 / 1e3;
        format!(
            "{} hosts: {:.0} beacons/s, {} late, {} dropped, tick p50 {:.0} ms, p99 {:.0} ms",
            self.hosts,
            self.sent as f64 / self.seconds,
            self.late,
            self.dropped(),
            ms(self.coordinator.tick_us_p50),
            ms(self.coordinator.tick_us_p99)
        )
    }
}

pub(super) struct Stage {
    coordinator: Daemon,
    generator: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct Configured {
    config: PathBuf,
}

/// Any answer.
#[derive(Deserialize)]
struct Done {}

impl Stage {
    pub(super) fn open(
        wanted: &Wanted,
        name: &str,
        sockets: usize,
        every_ms: u64,
        predicts: bool,
    ) -> Result<Self> {
        ensure!(
            runtime().is_file(),
            "{} is missing: run `cargo xtask setup`",
            runtime().display()
        );
        let directory = wanted.directory(name)?;
        let listen = free_addresses(1)?[0];
        let mut generator = Command::new(wanted.programs.path("understudy-load"));
        generator
            .arg("fleet")
            .arg("--dir")
            .arg(directory.join("cluster"))
            .args(["--listen", &listen.to_string()])
            .args(["--sockets", &sockets.to_string()])
            .args(["--every-ms", &every_ms.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut generator = ends_with_us(pinned(&mut generator, OTHERS_CORE))
            .spawn()
            .context("starting the generator")?;
        let orders = generator.stdin.take().context("the generator's input")?;
        let mut answers = BufReader::new(generator.stdout.take().context("the generator's output")?);
        let Configured { config } = answer(&mut answers)?;
        if predicts {
            predict(&config)?;
        }
        let mut coordinator = Command::new(wanted.programs.path("understudy-coordinator"));
        coordinator.arg("--config").arg(&config).env("RUST_LOG", "warn");
        let coordinator = Daemon::start(
            pinned(&mut coordinator, LEADERS_CORE),
            &directory.join("coordinator.log"),
        )?;
        Ok(Self {
            coordinator,
            generator,
            orders,
            answers,
        })
    }

    /// Opens links until there are so many.
    pub(super) fn link(&mut self, hosts: usize) -> Result<()> {
        self.order(&format!("link {hosts}")).map(|Done {}| ())
    }

    /// Lets the hosts that have a link and are silent say hello and send beacons.
    pub(super) fn start(&mut self) -> Result<()> {
        self.order("start").map(|Done {}| ())
    }

    pub(super) fn measure(&mut self, seconds: u64) -> Result<Measured> {
        self.order(&format!("measure {seconds}"))
    }

    fn order<T: DeserializeOwned>(&mut self, order: &str) -> Result<T> {
        ensure!(!self.coordinator.has_ended(), "the coordinator ended");
        writeln!(self.orders, "{order}").context("the generator ended")?;
        answer(&mut self.answers).with_context(|| order.to_owned())
    }

    /// The coordinator's resident memory.
    pub(super) fn resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.coordinator.pid());
        let status = std::fs::read_to_string(&path).context(path)?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|kib| kib.trim().parse::<u64>().ok())
            .context("VmRSS")?;
        Ok(kib << 10)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.generator.kill();
        let _ = self.generator.wait();
    }
}

fn answer<T: DeserializeOwned>(answers: &mut BufReader<ChildStdout>) -> Result<T> {
    let mut line = String::new();
    answers.read_line(&mut line)?;
    ensure!(!line.is_empty(), "the generator ended");
    serde_json::from_str(&line).with_context(|| line.trim().to_owned())
}

/// Adds the committed model to a coordinator's configuration.
fn predict(config: &Path) -> Result<()> {
    let models = repo::root().join("coordinator/models");
    let mut file = std::fs::OpenOptions::new().append(true).open(config)?;
    write!(
        file,
        "\n[prediction]\nmodel = \"{}\"\ncard = \"{}\"\nonnxruntime = \"{}\"\n",
        models.join("fast.onnx").display(),
        models.join("fast.card.json").display(),
        runtime().display(),
    )?;
    Ok(())
}

/// Raises the limit of open files, which what is started inherits, as far as it may be raised.
pub(super) fn allow_sockets(sockets: usize) -> Result<()> {
    let needed = sockets as u64 + FILES_BESIDE;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for the kernel to fill.
    let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    ensure!(got == 0, "reading the limit of open files failed");
    ensure!(
        limit.rlim_max >= needed,
        "{sockets} hosts with a socket each need {needed} open files, and the hard limit is {}: raise it with `ulimit -Hn {needed}` as root",
        limit.rlim_max
    );
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid rlimit.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    ensure!(set == 0, "raising the limit of open files failed");
    Ok(())
}
