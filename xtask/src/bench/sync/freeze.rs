//! The row about freezes: how long a workload stands still in cuts while it writes in three ways.

use anyhow::{Result, ensure};
use serde::Deserialize;
use understudy_testbed::FileSystem;

use super::fio::{self, Job};
use super::stage::{Plan, Stage};
use crate::bench::Wanted;
use crate::bench::report::{Better, Judged, Kind, Row};
use crate::shell::say;

pub(super) const KIND: Kind = Kind {
    id: "freeze_p99_ms",
    unit: "ms",
    better: Better::Lower,
    judged: Judged::Ours,
    must: Some(50.0),
    goal: Some(10.0),
};

/// What the workload is to write from one freeze to the next.
const DIRTY: f64 = (8 << 20) as f64;
/// What the writers are let loose with, and how far that may be changed for the next stretch; bytes a second.
const RATE_FIRST: f64 = (32 << 20) as f64;
const RATES: [f64; 2] = [(1 << 20) as f64, (512 << 20) as f64];
const STEP_MAX: f64 = 2.0;
/// Stretches that only find the rate.
const FINDING: usize = 3;
const WRITERS: [Job; 3] = [
    Job {
        name: "fsync",
        words: &["--ioengine=sync", "--fsync=1"],
        rate: None,
    },
    Job {
        name: "mmap",
        words: &["--ioengine=mmap"],
        rate: None,
    },
    Job {
        name: "io_uring",
        words: &["--ioengine=io_uring", "--iodepth=32"],
        rate: None,
    },
];

struct Scale {
    bytes: u64,
    stretches: usize,
    /// Of each stretch: the next one is at a rate that this one gives.
    seconds: u64,
}

const FULL: Scale = Scale {
    bytes: 64 << 20,
    stretches: 12,
    seconds: 10,
};
const QUICK: Scale = Scale {
    bytes: 8 << 20,
    stretches: 1,
    seconds: 1,
};

#[derive(Default, Deserialize)]
struct Freezes {
    us: Vec<u64>,
    timed_out: u64,
    untimed: u64,
}

pub(super) fn row(wanted: &Wanted) -> Row {
    measure(wanted).unwrap_or_else(|why| Row::missing(KIND, format!("{why:#}")))
}

fn measure(wanted: &Wanted) -> Result<Row> {
    fio::provide(wanted.installs)?;
    let scale = if wanted.quick { &QUICK } else { &FULL };
    let plan = Plan::of(wanted, scale.bytes, WRITERS.len() as u64)?.on(FileSystem::EXT4);
    let mut stage = Stage::prepare(Plan {
        freezes: true,
        ..plan
    })?;
    stage.attach()?;
    let (mut rate, mut all, mut bytes) = (RATE_FIRST, Freezes::default(), 0);
    for stretch in 0..FINDING + scale.stretches {
        let (freezes, written) = write(&mut stage, scale, rate)?;
        let dirty = written as f64 / freezes.us.len() as f64;
        say(
            "freeze",
            format!(
                "{} freezes, {} timed out; {:.1} MiB from one to the next",
                freezes.us.len(),
                freezes.timed_out,
                mib(dirty)
            ),
        );
        // What is written between two cuts rises faster than the rate, since the cuts take longer as well.
        let step = (DIRTY / dirty).sqrt().clamp(1.0 / STEP_MAX, STEP_MAX);
        rate = (rate * step).clamp(RATES[0], RATES[1]);
        if stretch >= FINDING {
            all.add(freezes);
            bytes += written;
        }
    }
    let Freezes {
        mut us,
        timed_out,
        untimed,
    } = all;
    ensure!(untimed == 0, "{untimed} freezes were not timed");
    us.sort_unstable();
    let p99 = us[(us.len() * 99).div_ceil(100) - 1];
    let note = format!(
        "{} freezes, {timed_out} of them timed out and thawed; {:.1} MiB written from one to the next",
        us.len(),
        mib(bytes as f64 / us.len() as f64)
    );
    let ms = |us: u64| us as f64 / 1e3;
    let row = Row::measured(KIND, us.into_iter().map(ms).collect());
    Ok(row.standing_for(ms(p99)).noting(note))
}

/// One stretch: its freezes, at least one, and the bytes that were written in it.
fn write(stage: &mut Stage, scale: &Scale, rate: f64) -> Result<(Freezes, u64)> {
    let each = Some((rate / WRITERS.len() as f64) as u64);
    let jobs = WRITERS.map(|job| Job { rate: each, ..job });
    let _: Freezes = stage.order("freezes")?;
    let written = fio::run(stage, &jobs, scale.bytes, scale.seconds, true)?;
    let freezes: Freezes = stage.order("freezes")?;
    ensure!(!freezes.us.is_empty(), "nothing was frozen");
    Ok((freezes, written.bytes))
}

impl Freezes {
    fn add(&mut self, more: Self) {
        self.us.extend(more.us);
        self.timed_out += more.timed_out;
        self.untimed += more.untimed;
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}
