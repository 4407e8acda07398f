//! Rows about what tracking costs a program that writes.
//!
//! With tracking: the primary's kernel programs are attached to the file and it cuts generations as it always does,
//! reading what is dirty. They go to no shadow, which would take its share of the same processors although it lives on
//! another host. Without: the primary has ended. The file is on the disk of the repository: a loop device takes writes
//! so slowly that nothing else would be seen, and its own writes would be counted as well.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::fio::{self, Job, Written};
use super::stage::{Plan, Stage};
use crate::bench::Wanted;
use crate::bench::report::{Better, Judged, Kind, Row};
use crate::shell::say;

const RATIO: Kind = Kind {
    id: "write_throughput_ratio",
    unit: "",
    better: Better::Higher,
    judged: Judged::Ours,
    must: Some(0.97),
    goal: Some(0.99),
};
const COST: Kind = Kind {
    id: "tracker_ns_per_write",
    unit: "ns",
    better: Better::Lower,
    judged: Judged::Ours,
    must: Some(120.0),
    goal: Some(60.0),
};
pub(super) const KINDS: [Kind; 2] = [RATIO, COST];

/// Programs at page faults of files: no write(2) passes there, whatever else on the machine does.
const NOT_OF_WRITES: [&str; 2] = ["fault", "map_pages"];
const WRITER: Job = Job {
    name: "buffered",
    words: &["--ioengine=psync"],
    rate: None,
};

struct Scale {
    bytes: u64,
    pairs: usize,
    cost_runs: usize,
    seconds: u64,
}

const FULL: Scale = Scale {
    bytes: 1 << 30,
    pairs: 15,
    cost_runs: 5,
    seconds: 5,
};
const QUICK: Scale = Scale {
    bytes: 16 << 20,
    pairs: 1,
    cost_runs: 1,
    seconds: 1,
};

/// Of one kernel program so far.
#[derive(Deserialize)]
struct RunTime {
    ns: u64,
    runs: u64,
}

pub(super) fn rows(wanted: &Wanted) -> Vec<Row> {
    let wanted_kinds: Vec<_> = KINDS.into_iter().filter(|kind| wanted.row(kind.id)).collect();
    if wanted_kinds.is_empty() {
        return Vec::new();
    }
    if let Err(why) = fio::provide(wanted.installs) {
        return wanted_kinds
            .into_iter()
            .map(|kind| Row::missing(kind, format!("{why:#}")))
            .collect();
    }
    let scale = if wanted.quick { &QUICK } else { &FULL };
    let measure = |kind: Kind| {
        let row = if kind.id == RATIO.id {
            ratio(wanted, scale)
        } else {
            cost(wanted, scale)
        };
        row.unwrap_or_else(|why| Row::missing(kind, format!("{why:#}")))
    };
    wanted_kinds.into_iter().map(measure).collect()
}

fn prepare(wanted: &Wanted, scale: &Scale) -> Result<Stage> {
    let plan = Plan::of(wanted, scale.bytes, 1)?;
    Stage::prepare(Plan {
        shadow: false,
        ..plan
    })
}

/// Who comes first takes turns.
fn ratio(wanted: &Wanted, scale: &Scale) -> Result<Row> {
    let mut stage = prepare(wanted, scale)?;
    write(&stage, scale)?;
    let (mut ratios, mut with_all, mut without_all) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..scale.pairs {
        let (with, without) = if pair % 2 == 0 {
            let without = write(&stage, scale)?;
            (tracked(&mut stage, scale)?, without)
        } else {
            (tracked(&mut stage, scale)?, write(&stage, scale)?)
        };
        ratios.push(with.per_s / without.per_s);
        with_all.push(with.per_s);
        without_all.push(without.per_s);
        say(
            "fio",
            format!("{:.0} writes/s with, {:.0} without", with.per_s, without.per_s),
        );
    }
    let middle = |all: &[f64]| crate::bench::report::median(all).unwrap_or_default();
    let note = format!(
        "medians: {:.0} writes a second with tracking, {:.0} without",
        middle(&with_all),
        middle(&without_all)
    );
    Ok(Row::measured(RATIO, ratios).noting(note))
}

fn tracked(stage: &mut Stage, scale: &Scale) -> Result<Written> {
    stage.attach()?;
    let written = write(stage, scale)?;
    let figures = stage.figures()?;
    ensure!(figures.tracked, "the kernel does not track the file");
    stage.detach()?;
    Ok(written)
}

/// Onto a disk that has nothing left to write.
fn write(stage: &Stage, scale: &Scale) -> Result<Written> {
    stage.written()?;
    fio::run(stage, &[WRITER], scale.bytes, scale.seconds, false)
}

/// In runs of its own, since the kernel's statistics cost as well.
fn cost(wanted: &Wanted, scale: &Scale) -> Result<Row> {
    let mut stage = prepare(wanted, scale)?;
    stage.attach()?;
    let _: serde_json::Value = stage.order("statistics")?;
    let (mut costs, mut said) = (Vec::new(), String::new());
    for _ in 0..scale.cost_runs {
        stage.written()?;
        let before = run_times(&mut stage)?;
        let written = fio::run(&stage, &[WRITER], scale.bytes, scale.seconds, false)?;
        let after = run_times(&mut stage)?;
        let mut ns = 0;
        let mut each = Vec::new();
        for (name, now) in &after {
            let was = before.get(name).map_or((0, 0), |was| (was.ns, was.runs));
            let (took, runs) = (now.ns - was.0, now.runs - was.1);
            if NOT_OF_WRITES.contains(&name.as_str()) || runs == 0 {
                continue;
            }
            ns += took;
            each.push(format!(
                "{name} {:.1} ns × {:.3}",
                took as f64 / runs as f64,
                runs as f64 / written.writes as f64
            ));
        }
        costs.push(ns as f64 / written.writes as f64);
        said = each.join(", ");
        say("fio", format!("{:.0} ns a write: {said}", costs[costs.len() - 1]));
    }
    Ok(Row::measured(COST, costs).noting(format!("each program and its runs a write, last run: {said}")))
}

fn run_times(stage: &mut Stage) -> Result<BTreeMap<String, RunTime>> {
    stage.order("run_time")
}
