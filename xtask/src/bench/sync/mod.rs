//! `cargo xtask bench sync`: what a change costs on its way to a shadow, beside rsync on the same files; how long
//! writes wait, what tracking costs who writes, how long a workload is frozen, and whether anything is missed.
//!
//! Primary and shadow are processes on two hosts of a test bed, with a cable between them, the shadow on a disk of its
//! own. They have no coordinator, and no workload to freeze but in the row about freezes: what is measured is tracker,
//! cut, transport and journal. rsync copies the same files to another folder, without a network, and need not wait
//! for a disk.

mod fio;
mod freeze;
mod lag;
pub(crate) mod missed;
mod ssh;
mod stage;
mod syncthing;
mod tree;
mod writes;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Wanted;
use super::report::{Better, Judged, Kind, Row, median};
use crate::setup;
use crate::shell::{ask, command, in_path, is_root, say};
use stage::{Counters, Stage};

const GIB: u64 = 1 << 30;

const DELTA: Kind = Kind {
    id: "delta_vs_rsync",
    unit: "ms",
    better: Better::Lower,
    judged: Judged::Ratio,
    must: Some(100.0),
    goal: Some(400.0),
};
const DELTA_1: Kind = Kind {
    id: "delta_vs_rsync_1_gib",
    must: None,
    goal: None,
    ..DELTA
};
const DELTA_2: Kind = Kind {
    id: "delta_vs_rsync_2_gib",
    ..DELTA_1
};
const FLATNESS: Kind = Kind {
    id: "delta_flatness",
    unit: "",
    better: Better::Lower,
    judged: Judged::Ours,
    must: Some(1.5),
    goal: Some(1.1),
};
const READ: Kind = Kind {
    id: "delta_bytes_read",
    unit: "B",
    must: Some(1_153_434.0),
    goal: Some(65_536.0),
    ..FLATNESS
};
const WIRE: Kind = Kind {
    id: "delta_bytes_wire",
    must: Some(16_384.0),
    goal: Some(8_192.0),
    ..READ
};
const SHADOW_IO: Kind = Kind {
    id: "delta_bytes_shadow_io",
    must: Some(262_144.0),
    goal: Some(131_072.0),
    ..READ
};
const IDLE: Kind = Kind {
    id: "idle_100k_cpu_percent",
    unit: "%",
    must: Some(0.5),
    goal: Some(0.1),
    ..FLATNESS
};
const TREE: Kind = Kind {
    id: "tree_1pct_vs_rsync",
    must: Some(3.0),
    goal: Some(10.0),
    ..DELTA
};

const INITIAL: Kind = Kind {
    id: "initial_vs_rsync_ssh",
    unit: "s",
    must: Some(1.0),
    goal: Some(1.5),
    ..DELTA
};

pub(super) const IDS: [&str; 17] = [
    DELTA.id,
    DELTA_1.id,
    DELTA_2.id,
    FLATNESS.id,
    READ.id,
    WIRE.id,
    SHADOW_IO.id,
    IDLE.id,
    TREE.id,
    INITIAL.id,
    lag::KINDS[0].id,
    lag::KINDS[1].id,
    writes::KINDS[0].id,
    writes::KINDS[1].id,
    freeze::KIND.id,
    missed::KIND.id,
    syncthing::KIND.id,
];

struct Scale {
    /// The last one is that of the row with a must.
    sizes: [u64; 3],
    rounds: usize,
    /// Of ours for each of rsync.
    changes: usize,
    tree_files: u64,
    idle: Duration,
    initial: u64,
    initial_runs: usize,
}

const FULL: Scale = Scale {
    sizes: [GIB, 2 * GIB, 8 * GIB],
    rounds: 5,
    changes: 5,
    tree_files: 100_000,
    idle: Duration::from_secs(20),
    initial: 4 * GIB,
    initial_runs: 3,
};
const QUICK: Scale = Scale {
    sizes: [8 << 20, 16 << 20, 64 << 20],
    rounds: 1,
    changes: 2,
    tree_files: 2_000,
    idle: Duration::from_secs(1),
    initial: 32 << 20,
    initial_runs: 1,
};
const TREE_FILE: u64 = 4_096;

/// What rsync is called with, beside the paths.
const RSYNC: [&str; 3] = ["--archive", "--inplace", "--no-whole-file"];

/// One file: each change, and each run of rsync.
#[derive(Default)]
struct Delta {
    ours_ms: Vec<f64>,
    rsync_ms: Vec<f64>,
    costs: Vec<Counters>,
}

/// Why the bench cannot run here; none when it can.
#[cfg(test)]
pub(super) fn missing() -> Option<String> {
    understudy_testbed::missing()
}

pub(super) fn measure(wanted: &Wanted) -> Result<Vec<Row>> {
    ensure!(
        is_root(),
        "the bench needs root for its hosts and kernel programs"
    );
    let scale = if wanted.quick { &QUICK } else { &FULL };
    let compared = [DELTA, DELTA_1, DELTA_2, TREE];
    let peer = if compared.iter().any(|kind| wanted.row(kind.id)) {
        rsync(wanted.installs)
    } else {
        Err(anyhow::anyhow!("no row that was asked for has rsync beside it"))
    };
    let mut rows = Vec::new();
    let deltas = [DELTA, DELTA_1, DELTA_2, FLATNESS, READ, WIRE, SHADOW_IO];
    if deltas.iter().any(|kind| wanted.row(kind.id)) {
        let mut found = Vec::new();
        for size in scale.sizes {
            let label = format!("{} MiB", size >> 20);
            found.push(delta(wanted, scale, size, &label, peer.is_ok()).with_context(|| label));
        }
        rows.extend(delta_rows(&peer, found));
    }
    if wanted.row(IDLE.id) || wanted.row(TREE.id) {
        rows.extend(match tree(wanted, scale, &peer) {
            Ok(rows) => rows,
            Err(why) => [IDLE, TREE].map(|kind| Row::missing(kind, format!("{why:#}"))),
        });
    }
    if wanted.row(INITIAL.id) {
        rows.push(initial(wanted, scale).unwrap_or_else(|why| Row::missing(INITIAL, format!("{why:#}"))));
    }
    if lag::KINDS.iter().any(|kind| wanted.row(kind.id)) {
        rows.extend(lag::rows(wanted));
    }
    rows.extend(writes::rows(wanted));
    if wanted.row(freeze::KIND.id) {
        rows.push(freeze::row(wanted));
    }
    if wanted.row(missed::KIND.id) {
        rows.push(missed::row(wanted));
    }
    if wanted.row(syncthing::KIND.id) {
        rows.push(syncthing::row(wanted));
    }
    rows.retain(|row| wanted.row(row.id()));
    Ok(rows)
}

fn delta_rows(peer: &Result<String>, found: Vec<Result<Delta>>) -> Vec<Row> {
    let [small, middle, large]: [Result<Delta>; 3] = match found.try_into() {
        Ok(three) => three,
        Err(_) => return Vec::new(),
    };
    let flatness = match (&small, &large) {
        (Ok(small), Ok(large)) => median(&large.ours_ms).zip(median(&small.ours_ms)),
        _ => None,
    };
    let costs = |kind, figure: fn(&Counters) -> u64| match &large {
        Ok(large) => {
            let all = large.costs.iter().map(|counters| figure(counters) as f64);
            Row::measured(kind, all.collect())
        }
        Err(why) => Row::missing(kind, format!("{why:#}")),
    };
    let compared = |kind, delta: &Result<Delta>| match delta {
        Ok(delta) => beside(kind, peer, delta.ours_ms.clone(), delta.rsync_ms.clone()),
        Err(why) => Row::missing(kind, format!("{why:#}")),
    };
    vec![
        compared(DELTA, &large),
        compared(DELTA_1, &small),
        compared(DELTA_2, &middle),
        match flatness {
            Some((large, small)) => Row::measured(FLATNESS, vec![large / small]),
            None => Row::missing(FLATNESS, "a size could not be measured"),
        },
        costs(READ, |counters| counters.read),
        costs(WIRE, |counters| counters.wire),
        costs(SHADOW_IO, |counters| counters.shadow_io),
    ]
}

fn beside(kind: Kind, peer: &Result<String>, ours: Vec<f64>, theirs: Vec<f64>) -> Row {
    let row = Row::measured(kind, ours);
    match peer {
        Ok(name) => row.beside(name, theirs),
        Err(why) => row.because(format!("nothing beside it: {why:#}")),
    }
}

/// Changes of one page in one file.
fn delta(wanted: &Wanted, scale: &Scale, size: u64, label: &str, compares: bool) -> Result<Delta> {
    say(label, "one file: the first copy");
    let mut stage = Stage::open(wanted, size, 1)?;
    let rsync_at = stage.beside("rsync");
    if compares {
        peer_copy(&stage.data(), &rsync_at)?;
    }
    let mut delta = Delta::default();
    for _ in 0..scale.rounds {
        for _ in 0..scale.changes {
            let (ms, counters) = stage.change(1, 1)?;
            delta.ours_ms.push(ms);
            delta.costs.push(counters);
        }
        if compares {
            delta.rsync_ms.push(peer_copy(&stage.data(), &rsync_at)?);
        }
        say(label, progress(&delta.ours_ms, "rsync", &delta.rsync_ms));
    }
    Ok(delta)
}

/// Many small files: nothing changes, then one in a hundred does.
fn tree(wanted: &Wanted, scale: &Scale, peer: &Result<String>) -> Result<[Row; 2]> {
    say("tree", format!("{} files: the first copy", scale.tree_files));
    let mut stage = Stage::open(wanted, TREE_FILE, scale.tree_files)?;
    let rsync_at = stage.beside("rsync");
    if peer.is_ok() {
        peer_copy(&stage.data(), &rsync_at)?;
    }
    let mut idle = Vec::new();
    for _ in 0..scale.rounds.min(3) {
        let before = stage.primary_cpu()?;
        let begun = Instant::now();
        std::thread::sleep(scale.idle);
        let used = stage.primary_cpu()? - before;
        idle.push(100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64());
    }
    say(
        "tree",
        format!("{:.2} % of a core while nothing changes", idle[0]),
    );
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..scale.rounds {
        ours.push(stage.change(scale.tree_files, scale.tree_files / 100)?.0);
        if peer.is_ok() {
            theirs.push(peer_copy(&stage.data(), &rsync_at)?);
        }
        say("tree", progress(&ours, "rsync", &theirs));
    }
    Ok([Row::measured(IDLE, idle), beside(TREE, peer, ours, theirs)])
}

/// First copies of one file onto the same disk, ours and then rsync's.
fn initial(wanted: &Wanted, scale: &Scale) -> Result<Row> {
    let peer = ssh::provide(wanted.installs);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..scale.initial_runs {
        let stage = Stage::open(wanted, scale.initial, 1)?;
        ours.push(stage.first_copy_s);
        if peer.is_ok() {
            theirs.push(stage.first_copy_over_ssh()?);
        }
        say(
            "initial",
            format!(
                "ours {:.1} s, rsync over ssh {:.1} s",
                ours[ours.len() - 1],
                theirs.last().copied().unwrap_or(f64::NAN)
            ),
        );
    }
    Ok(beside(INITIAL, &peer, ours, theirs))
}

fn progress(ours: &[f64], peer: &str, theirs: &[f64]) -> String {
    let shown = |figures: &[f64]| median(figures).map_or("-".to_owned(), |ms| format!("{ms:.1} ms"));
    format!("ours {}, {peer} {}", shown(ours), shown(theirs))
}

/// The name of the peer, which is there.
fn rsync(may_install: bool) -> Result<String> {
    if may_install {
        setup::install(&["rsync"])?;
    }
    ensure!(in_path("rsync"), "rsync is not installed");
    Ok(rsync_version())
}

fn rsync_version() -> String {
    let version = ask(command("rsync").arg("--version")).unwrap_or_default();
    let number = version.split_whitespace().nth(2).unwrap_or_default();
    format!("rsync {number}").trim().to_owned()
}

/// Brings `to` up to date; milliseconds.
fn peer_copy(from: &Path, to: &Path) -> Result<f64> {
    let begun = Instant::now();
    let status = Command::new("rsync")
        .args(RSYNC)
        .arg(from.join(""))
        .arg(to.join(""))
        .stdin(Stdio::null())
        .status()
        .context("starting rsync")?;
    let took = begun.elapsed();
    ensure!(status.success(), "rsync failed: {status}");
    Ok(took.as_secs_f64() * 1e3)
}
