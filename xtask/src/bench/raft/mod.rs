//! `cargo xtask bench raft`: three replicas on the loopback address, beside three members of etcd.
//!
//! Both clusters run on the same disk with their logs synced before anything is answered, and both get the same
//! commands from the same generator: 64 clients, each with one command of 256 bytes outstanding. etcd is asked at
//! its leader by gRPC without encryption, ours at its leader by QUIC with mutual TLS.

mod etcd;
mod kills;
mod understudy;

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::load::{Commits, Run, Target, commits};
use super::report::{Better, Judged, Kind, Row, median};
use super::{Wanted, fsync};
use crate::shell::say;
use etcd::Etcd;
use understudy::Cluster;

const MEMBERS: usize = 3;
/// Kills of which median and 99th percentile are given.
const KILLS: usize = 100;

const THROUGHPUT: Kind = Kind {
    id: "raft_vs_etcd_throughput",
    unit: "commits/s",
    better: Better::Higher,
    judged: Judged::Ratio,
    must: Some(1.5),
    goal: Some(5.0),
};
const P99: Kind = Kind {
    id: "raft_vs_etcd_p99",
    unit: "ms",
    better: Better::Lower,
    judged: Judged::Ratio,
    must: Some(1.0),
    goal: Some(2.0),
};
const KILL_P50: Kind = Kind {
    id: "leader_kill_p50_s",
    unit: "s",
    better: Better::Lower,
    judged: Judged::Ours,
    must: Some(1.5),
    goal: Some(0.5),
};
const KILL_P99: Kind = Kind {
    id: "leader_kill_p99_s",
    must: Some(3.0),
    goal: Some(1.0),
    ..KILL_P50
};

pub(super) const IDS: [&str; 5] = [THROUGHPUT.id, P99.id, KILL_P50.id, KILL_P99.id, fsync::ROW.id];

struct Scale {
    runs: usize,
    run: Run,
    kills: usize,
}

impl Scale {
    const fn of(quick: bool) -> Self {
        let (runs, kills, warm_up_ms, measure_ms) = if quick {
            (1, 2, 200, 500)
        } else {
            (5, KILLS, 2_000, 10_000)
        };
        Self {
            runs,
            run: Run {
                connections: super::load::CLIENTS,
                warm_up_ms,
                measure_ms,
                rate: None,
            },
            kills,
        }
    }
}

/// The two clusters, side by side.
struct Stage {
    generator: PathBuf,
    scale: Scale,
    ours: Cluster,
    /// Or why there is none.
    etcd: Result<Etcd, String>,
}

pub(super) fn measure(wanted: &Wanted) -> Result<Vec<Row>> {
    let directory = wanted.directory("raft")?;
    let compares = wanted.row(THROUGHPUT.id) || wanted.row(P99.id);
    let etcd = if compares {
        etcd::provide(wanted.installs)
            .and_then(|()| Etcd::start(&directory))
            .map_err(|why| format!("no etcd beside it: {why:#}"))
    } else {
        Err("not asked for".to_owned())
    };
    let mut stage = Stage {
        generator: wanted.programs.path("understudy-load"),
        scale: Scale::of(wanted.quick),
        ours: Cluster::start(&directory, &wanted.programs)?,
        etcd,
    };
    let mut rows = Vec::new();
    if compares {
        rows.extend(stage.compare());
    }
    if wanted.row(KILL_P50.id) || wanted.row(KILL_P99.id) {
        rows.extend(stage.kills());
    }
    drop(stage);
    let fsync: Result<Vec<_>> = (0..5).map(|_| fsync::median_us(&directory)).collect();
    rows.push(Row::measured(fsync::ROW, fsync?));
    rows.retain(|row| wanted.row(row.id()));
    Ok(rows)
}

impl Stage {
    /// Throughput first: half of etcd's is the rate at which latencies are compared.
    fn compare(&mut self) -> [Row; 2] {
        say("throughput", "64 clients, etcd and ours in turn");
        let run = self.scale.run;
        let peak = match self.take_turns(run) {
            Ok(peak) => peak,
            Err(why) => {
                let why = format!("{why:#}");
                return [THROUGHPUT, P99].map(|kind| Row::missing(kind, why.clone()));
            }
        };
        let throughput = self.row(THROUGHPUT, &peak, |commits| Some(commits.per_s));
        let etcd: Vec<_> = peak.etcd.iter().map(|commits| commits.per_s).collect();
        // Without etcd there is a latency of ours to show, at half of our own rate.
        let ours = || median(&peak.ours.iter().map(|commits| commits.per_s).collect::<Vec<_>>());
        let Some(peak) = median(&etcd).or_else(ours) else {
            return [throughput, Row::missing(P99, "no peak to take half of")];
        };
        say("latency", format!("at {:.0} commits/s", peak / 2.0));
        let half = Run {
            rate: Some(peak / 2.0),
            ..run
        };
        let p99 = match self.take_turns(half) {
            Ok(turns) => self.row(P99, &turns, |commits| commits.p99_us.map(|us| us / 1e3)),
            Err(why) => Row::missing(P99, format!("{why:#}")),
        };
        [throughput, p99]
    }

    fn take_turns(&mut self, run: Run) -> Result<Turns> {
        let mut turns = Turns::default();
        for _ in 0..self.scale.runs {
            if let Ok(etcd) = &self.etcd {
                let target = Target::Etcd(etcd.clients.clone());
                turns.etcd.push(self.turn(&etcd.version, &target, run)?);
            }
            self.ours.check()?;
            let target = Target::Understudy(self.ours.file());
            turns.ours.push(self.turn("ours", &target, run)?);
        }
        Ok(turns)
    }

    fn turn(&self, who: &str, target: &Target, run: Run) -> Result<Commits> {
        let commits = commits(self.generator.clone(), target, run).with_context(|| who.to_owned())?;
        say(
            who,
            format!(
                "{:.0} commits/s, p50 {:.2} ms, p99 {:.2} ms",
                commits.per_s,
                commits.p50_us.unwrap_or_default() / 1e3,
                commits.p99_us.unwrap_or_default() / 1e3
            ),
        );
        Ok(commits)
    }

    fn row(&self, kind: Kind, turns: &Turns, figure: impl Fn(&Commits) -> Option<f64>) -> Row {
        let row = Row::measured(kind, turns.ours.iter().filter_map(&figure).collect());
        match &self.etcd {
            Ok(etcd) => row.beside(&etcd.version, turns.etcd.iter().filter_map(&figure).collect()),
            Err(why) => row.because(why.clone()),
        }
    }

    fn kills(&mut self) -> [Row; 2] {
        say("kills", format!("of the leader, {}", self.scale.kills));
        match kills::gaps(&mut self.ours, &self.generator, self.scale.kills) {
            Ok(mut gaps) => {
                gaps.sort_by(f64::total_cmp);
                // The spread of both is that of single kills.
                let p99 = gaps[(gaps.len() * 99).div_ceil(100) - 1];
                [
                    Row::measured(KILL_P50, gaps.clone()),
                    Row::measured(KILL_P99, gaps).standing_for(p99),
                ]
            }
            Err(why) => {
                let why = format!("{why:#}");
                [KILL_P50, KILL_P99].map(|kind| Row::missing(kind, why.clone()))
            }
        }
    }
}

#[derive(Default)]
struct Turns {
    etcd: Vec<Commits>,
    ours: Vec<Commits>,
}
