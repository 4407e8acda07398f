//! Small writes at a steady rate, and how long each waits for its acknowledgement.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use understudy_agent::clock::boot_time;

use super::acks::{Ack, Acks};
use super::files::{Dice, PAGE, path};
use crate::latency::Latencies;

const WRITES_MAX: u64 = 1 << 22;
/// After the last write.
const ACK_MAX: Duration = Duration::from_secs(60);
const ACK_POLL: Duration = Duration::from_millis(5);

/// Random pages of random files, so many a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steady {
    pub(super) rate: u64,
    pub(super) length: Duration,
    pub(super) files: u64,
}

/// One write, on the boot clock.
#[derive(Clone, Copy, Debug)]
struct Write {
    begun_ns: u64,
    done_ns: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Waited {
    writes: u64,
    per_s: f64,
    generations: usize,
    p50_us: Option<u32>,
    p99_us: Option<u32>,
}

impl Steady {
    /// Nobody asks the engine for a cut: each write waits for those that it makes by itself.
    pub(super) async fn run(self, data: PathBuf, acks: &Acks, seed: u64) -> Result<Waited> {
        acks.clear();
        let writes = tokio::task::spawn_blocking(move || self.write(&data, Dice::new(seed))).await??;
        let last = writes.last().context("nothing was written")?.done_ns;
        let until = Instant::now() + ACK_MAX;
        while acks.newest().is_none_or(|ack| ack.cut_ns < last) {
            ensure!(Instant::now() < until, "the last write is not acknowledged");
            tokio::time::sleep(ACK_POLL).await;
        }
        let first = writes.first().context("nothing was written")?.begun_ns;
        let acks = acks.all();
        let waits = waits(&writes, &acks)
            .context("a write is in no generation")?
            .sorted();
        Ok(Waited {
            writes: writes.len() as u64,
            per_s: writes.len() as f64 * 1e9 / (last - first) as f64,
            generations: acks.len(),
            p50_us: waits.quantile_us(0.5),
            p99_us: waits.quantile_us(0.99),
        })
    }

    /// One that comes late does not move those after it.
    fn write(&self, data: &Path, mut dice: Dice) -> Result<Vec<Write>> {
        let count = (self.length.as_secs_f64() * self.rate as f64) as u64;
        ensure!((1..WRITES_MAX).contains(&count), "{count} writes");
        let begun = Instant::now();
        let (mut writes, mut page) = (Vec::with_capacity(count as usize), vec![0; PAGE]);
        for number in 0..count {
            let due = begun + Duration::from_secs_f64(number as f64 / self.rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let path = path(data, dice.below(self.files));
            let file = File::options().write(true).open(&path);
            let file = file.with_context(|| path.display().to_string())?;
            let pages = file.metadata()?.len() / PAGE as u64;
            ensure!(pages > 0, "{} has no whole page", path.display());
            dice.fill(&mut page);
            let at = dice.below(pages) * PAGE as u64;
            let begun_ns = boot_time().0;
            file.write_all_at(&page, at)?;
            let done_ns = boot_time().0;
            writes.push(Write { begun_ns, done_ns });
        }
        Ok(writes)
    }
}

/// From the beginning of each write until the first acknowledgement of a generation whose cut was begun when the
/// write was done; none when there is no such generation.
fn waits(writes: &[Write], acks: &[Ack]) -> Option<Latencies> {
    let mut waits = Latencies::default();
    let mut at = 0;
    for write in writes {
        at += acks[at..].iter().position(|ack| ack.cut_ns >= write.done_ns)?;
        let ns = acks[at].acked_ns.saturating_sub(write.begun_ns);
        waits.push(Duration::from_nanos(ns));
    }
    Some(waits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_waits_for_a_cut_that_began_when_it_was_done() {
        let write = |begun: u64, done: u64| Write {
            begun_ns: begun * 1_000,
            done_ns: done * 1_000,
        };
        let ack = |cut: u64, acked: u64| Ack {
            cut_ns: cut * 1_000,
            acked_ns: acked * 1_000,
        };
        let writes = [write(10, 20), write(30, 45), write(50, 60)];
        let acks = [ack(25, 40), ack(40, 70), ack(80, 100)];
        let waits = waits(&writes, &acks)
            .map(Latencies::sorted)
            .expect("all are in one");
        assert_eq!(
            [0.3, 0.6, 1.0].map(|share| waits.quantile_us(share)),
            [Some(30), Some(50), Some(70)]
        );
        assert!(super::waits(&writes, &acks[..2]).is_none());
    }
}
