//! The leader is killed again and again; how long until the next commit.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use understudy_testbed::boot_ns;

use super::understudy::Cluster;
use crate::bench::daemon::ends_with_us;

/// A cluster that takes longer is broken.
const COMMIT_MAX: Duration = Duration::from_secs(30);
/// Commits through one leader after which it is taken for settled.
const SETTLED: usize = 20;
/// What a member that came back is given to catch up: it must be able to vote, and to win.
const CATCH_UP: Duration = Duration::from_millis(1_000);

#[derive(Deserialize)]
struct Line {
    coordinator: usize,
    began_ns: u64,
    ended_ns: u64,
}

/// The probe and what it prints; killed when dropped.
struct Probe {
    child: Child,
    lines: Receiver<Line>,
}

impl Probe {
    fn start(program: &Path, cluster: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("probe").arg("--cluster").arg(cluster);
        let mut child = ends_with_us(&mut command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the probe")?;
        let output = BufReader::new(child.stdout.take().context("the probe's output")?);
        let (sender, lines) = channel();
        // Ends with the probe's output.
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let Ok(line) = serde_json::from_str(&line) else {
                    continue;
                };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The first commit that began after this time of the boot clock.
    fn commit_after(&self, after_ns: u64) -> Result<Line> {
        let until = Instant::now() + COMMIT_MAX;
        loop {
            match self
                .lines
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(line) if line.began_ns >= after_ns => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("nothing was committed for {COMMIT_MAX:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("the probe ended"),
            }
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds from each kill of the leader to the end of the next commit.
pub(super) fn gaps(cluster: &mut Cluster, probe: &Path, count: usize) -> Result<Vec<f64>> {
    let probe = Probe::start(probe, &cluster.file())?;
    let mut gaps = Vec::with_capacity(count);
    for n in 0..count {
        let mut leader = probe.commit_after(boot_ns())?.coordinator;
        let mut settled = 0;
        let caught_up = boot_ns() + CATCH_UP.as_nanos() as u64;
        while settled < SETTLED {
            let line = probe.commit_after(0)?;
            settled = if line.coordinator == leader && line.ended_ns >= caught_up {
                settled + 1
            } else {
                0
            };
            leader = line.coordinator;
        }
        cluster.check()?;
        let killed_ns = boot_ns();
        cluster.kill(leader);
        let next = probe.commit_after(killed_ns)?;
        gaps.push((next.ended_ns - killed_ns) as f64 / 1e9);
        cluster.restart(leader)?;
        if n % 20 == 19 {
            crate::shell::say("kills", format!("{} of {count}", n + 1));
        }
    }
    Ok(gaps)
}
