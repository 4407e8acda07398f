//! The row about freezes: how long a workload stands still in cuts while it writes in three ways.

use anyhow::{Context as _, Result, ensure};
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

/// What the workload writes between two cuts.
const DIRTY: f64 = (8 << 20) as f64;
/// How far off that may be for the rate to be taken.
const OFF_MAX: f64 = 0.2;
const RATE_TRIES_MAX: usize = 4;
const FIRST_RATE: f64 = (32 << 20) as f64;
/// All writers together, bytes a second.
const RATE_MAX: f64 = (512 << 20) as f64;
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
    rate_seconds: u64,
    seconds: u64,
}

const FULL: Scale = Scale {
    bytes: 64 << 20,
    rate_seconds: 5,
    seconds: 120,
};
const QUICK: Scale = Scale {
    bytes: 8 << 20,
    rate_seconds: 1,
    seconds: 2,
};

#[derive(Deserialize)]
struct Freezes {
    us: Vec<u64>,
    timed_out: u64,
    untimed: u64,
}

struct Run {
    freezes: Freezes,
    /// Written between two freezes.
    dirty: f64,
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
    let mut rate = FIRST_RATE;
    for _ in 0..RATE_TRIES_MAX {
        let run = write(&mut stage, scale, rate, scale.rate_seconds)?;
        let off = DIRTY / run.dirty;
        if (off - 1.0).abs() <= OFF_MAX {
            break;
        }
        rate = (rate * off).clamp(DIRTY / 8.0, RATE_MAX);
    }
    let run = write(&mut stage, scale, rate, scale.seconds)?;
    let Freezes {
        mut us,
        timed_out,
        untimed,
    } = run.freezes;
    ensure!(untimed == 0, "{untimed} freezes were not timed");
    us.sort_unstable();
    let p99 = us[(us.len() * 99).div_ceil(100) - 1];
    let note = format!(
        "{} freezes, {timed_out} of them timed out and thawed; {:.1} MiB written from one to the next",
        us.len(),
        run.dirty / f64::from(1 << 20)
    );
    let ms = |us: u64| us as f64 / 1e3;
    let row = Row::measured(KIND, us.into_iter().map(ms).collect());
    Ok(row.standing_for(ms(p99)).noting(note))
}

fn write(stage: &mut Stage, scale: &Scale, rate: f64, seconds: u64) -> Result<Run> {
    let each = Some((rate / WRITERS.len() as f64) as u64);
    let jobs = WRITERS.map(|job| Job { rate: each, ..job });
    let _: Freezes = stage.order("freezes")?;
    let written = fio::run(stage, &jobs, scale.bytes, seconds, true)?;
    let freezes: Freezes = stage.order("freezes")?;
    let count = freezes.us.len();
    (count > 0).then_some(()).context("nothing was frozen")?;
    let dirty = written.bytes as f64 / count as f64;
    say(
        "freeze",
        format!(
            "{count} freezes, {} timed out; {:.1} MiB from one to the next",
            freezes.timed_out,
            dirty / f64::from(1 << 20)
        ),
    );
    Ok(Run { freezes, dirty })
}
