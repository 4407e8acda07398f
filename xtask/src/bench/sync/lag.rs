//! Rows about lag: how long small writes wait for their acknowledgement while they keep coming.

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::stage::Stage;
use crate::bench::Wanted;
use crate::bench::report::{Better, Judged, Kind, Row};
use crate::shell::say;

const P50: Kind = Kind {
    id: "lag_p50_ms",
    unit: "ms",
    better: Better::Lower,
    judged: Judged::Ours,
    must: Some(300.0),
    goal: Some(60.0),
};
const P99: Kind = Kind {
    id: "lag_p99_ms",
    must: Some(600.0),
    goal: Some(250.0),
    ..P50
};
pub(super) const KINDS: [Kind; 2] = [P50, P99];

const RATE: u64 = 1_000;
/// A writer that falls behind measures something else.
const RATE_SHARE_MIN: f64 = 0.98;
const WARM_UP_MS: u64 = 1_000;

struct Scale {
    bytes: u64,
    files: u64,
    rounds: usize,
    round_ms: u64,
}

const FULL: Scale = Scale {
    bytes: 1 << 20,
    files: 1_024,
    rounds: 3,
    round_ms: 10_000,
};
const QUICK: Scale = Scale {
    bytes: 64 << 10,
    files: 64,
    rounds: 1,
    round_ms: 1_000,
};

#[derive(Deserialize)]
struct Waited {
    writes: u64,
    per_s: f64,
    generations: usize,
    p50_us: f64,
    p99_us: f64,
}

pub(super) fn rows(wanted: &Wanted) -> [Row; 2] {
    measure(wanted).unwrap_or_else(|why| KINDS.map(|kind| Row::missing(kind, format!("{why:#}"))))
}

fn measure(wanted: &Wanted) -> Result<[Row; 2]> {
    let scale = if wanted.quick { &QUICK } else { &FULL };
    say(
        "lag",
        format!(
            "{} files of {} KiB: the first copy",
            scale.files,
            scale.bytes >> 10
        ),
    );
    let mut stage = Stage::open(wanted, scale.bytes, scale.files)?;
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    let order = |ms: u64| format!("steady {RATE} {ms} {}", scale.files);
    let _: Waited = stage.order(&order(WARM_UP_MS))?;
    for _ in 0..scale.rounds {
        let waited: Waited = stage.order(&order(scale.round_ms))?;
        ensure!(
            wanted.quick || waited.per_s >= RATE as f64 * RATE_SHARE_MIN,
            "the writer came to {:.0} writes a second",
            waited.per_s
        );
        say(
            "lag",
            format!(
                "{:.1} ms median, {:.1} ms p99 of {} writes in {} generations",
                waited.p50_us / 1e3,
                waited.p99_us / 1e3,
                waited.writes,
                waited.generations
            ),
        );
        p50.push(waited.p50_us / 1e3);
        p99.push(waited.p99_us / 1e3);
    }
    let figures = stage.figures()?;
    ensure!(
        figures.tracked && figures.unknown == 0,
        "the kernel does not track the files"
    );
    Ok([Row::measured(P50, p50), Row::measured(P99, p99)])
}
