//! `cargo xtask bench NAME`: figures, with a peer beside them where there is one.
//!
//! Invariants: rows have the form of [`report`]; a row that could not be measured says why and is not met; peer and
//! ours take turns on the same machine, disk and moment; programs are built for release, with `--quick` as the
//! tests are built; everything started is ended with its value.

mod daemon;
mod fleet;
mod fsync;
mod load;
mod programs;
mod raft;
mod report;
mod sync;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::repo;
use crate::shell::{become_root, is_root, say};
pub(crate) use programs::Programs;
use report::{Report, Row};
pub(crate) use sync::missed;

#[derive(Debug, clap::Args)]
pub struct Args {
    bench: Bench,
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    json: bool,
    /// Only the rows with these ids
    #[arg(long, value_delimiter = ',', value_name = "ID,ID")]
    only: Vec<String>,
    /// Seconds instead of minutes: shows that the bench works, and is never quoted
    #[arg(long)]
    quick: bool,
    /// Everything is built: set by the bench itself when it becomes root
    #[arg(long, hide = true)]
    built: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bench {
    /// Commits a second, their latency, and the gap that a killed leader leaves
    Raft,
    /// Hosts that one core of a leader takes, and the memory of each
    Fleet,
    /// A small change on its way to a shadow
    Sync,
}

/// What a bench is asked for.
struct Wanted {
    only: Vec<String>,
    quick: bool,
    /// Whether a peer that is missing may be installed.
    installs: bool,
    programs: Programs,
}

impl Wanted {
    /// An empty folder for a cluster's disks and logs, which stay until the next time.
    fn directory(&self, name: &str) -> Result<PathBuf> {
        let all = repo::root().join(if self.quick {
            "target/bench/quick"
        } else {
            "target/bench"
        });
        let directory = all.join(name);
        if directory.exists() {
            std::fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
        }
        std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        Ok(directory)
    }

    fn row(&self, id: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == id)
    }
}

impl Bench {
    const fn ids(self) -> &'static [&'static str] {
        match self {
            Self::Raft => &raft::IDS,
            Self::Fleet => &fleet::IDS,
            Self::Sync => &sync::IDS,
        }
    }

    fn measure(self, wanted: &Wanted) -> Result<Vec<Row>> {
        match self {
            Self::Raft => raft::measure(wanted),
            Self::Fleet => fleet::measure(wanted),
            Self::Sync => sync::measure(wanted),
        }
    }

    /// For hosts of its own and the kernel programs.
    const fn needs_root(self) -> bool {
        matches!(self, Self::Sync)
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

pub fn run(args: Args) -> Result<ExitCode> {
    let ids = args.bench.ids();
    if let Some(unknown) = args.only.iter().find(|id| !ids.contains(&id.as_str())) {
        eprintln!(
            "error: bench {} has no row {unknown}; it has {}",
            args.bench.name(),
            ids.join(", ")
        );
        return Ok(ExitCode::from(64));
    }
    if !args.built {
        crate::ebpf::run()?;
        say("build", "the programs");
    }
    let programs = match (args.quick, args.built) {
        (true, false) => Programs::as_tested(),
        (true, true) => Programs::found(),
        (false, false) => Programs::released(),
        (false, true) => Ok(Programs::released_before()),
    }?;
    if args.bench.needs_root() && !is_root() {
        return Err(become_root("the bench"));
    }
    let wanted = Wanted {
        only: args.only,
        quick: args.quick,
        installs: true,
        programs,
    };
    let report = Report::new(args.bench.name(), args.bench.measure(&wanted)?);
    report.table(args.quick);
    if args.json {
        println!("{}", report.json());
    }
    Ok(if report.met() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The rows of a quick run, peers only where they are installed; none where it cannot run.
    fn quick(bench: Bench) -> Option<Vec<Value>> {
        let programs = match Programs::found() {
            Ok(programs) => programs,
            Err(why) => {
                println!("skipped: {why:#}");
                return None;
            }
        };
        let wanted = Wanted {
            only: Vec::new(),
            quick: true,
            installs: false,
            programs,
        };
        let report = Report::new(bench.name(), bench.measure(&wanted).unwrap()).json();
        assert_eq!(report["bench"], bench.name());
        let rows = report["rows"].as_array().unwrap().clone();
        let ids: Vec<_> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
        assert_eq!(ids, bench.ids());
        Some(rows)
    }

    #[test]
    fn a_quick_raft_bench_measures_every_row() {
        let Some(rows) = quick(Bench::Raft) else { return };
        for row in rows {
            assert!(row["ours"].as_f64().is_some_and(|ours| ours > 0.0), "{row}");
            let compared = row["id"].as_str().unwrap().contains("_vs_");
            if compared && row["peer"].is_null() {
                assert!(row["why"].as_str().unwrap().contains("etcd"), "{row}");
            } else if compared {
                assert!(row["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{row}");
            }
        }
    }

    #[test]
    fn a_quick_sync_bench_measures_every_row() {
        if let Some(reason) = sync::missing() {
            println!("skipped: {reason}");
            return;
        }
        let Some(rows) = quick(Bench::Sync) else { return };
        for row in &rows {
            let because_of = |peer: &str| row["why"].as_str().is_some_and(|why| why.contains(peer));
            assert!(
                row["ours"].as_f64().is_some_and(|ours| ours >= 0.0) || because_of("fio is not installed"),
                "{row}"
            );
            let compared = row["id"].as_str().unwrap().contains("_vs_");
            if compared && row["peer"].is_null() {
                assert!(
                    because_of("is not installed") || because_of("are not installed"),
                    "{row}"
                );
            }
        }
        let missed = rows.iter().find(|row| row["id"] == "missed_writes").unwrap();
        assert_eq!(missed["ours"], 0.0, "{missed}");
        // A page cannot be shipped with less, nor be read or written with less.
        for bytes in &rows[4..7] {
            let bytes = bytes["ours"].as_f64().unwrap();
            assert!((4_096.0..10_000_000.0).contains(&bytes), "{bytes}");
        }
    }

    #[test]
    fn a_quick_fleet_bench_measures_every_row() {
        if !fleet::runtime().is_file() {
            println!("skipped: there is no ONNX Runtime: run `cargo xtask setup`");
            return;
        }
        let Some(rows) = quick(Bench::Fleet) else { return };
        assert!(
            rows[0]["ours"].as_f64().is_some_and(|hosts| hosts >= 20.0),
            "{}",
            rows[0]
        );
        // A window of 300 ticks with 2 bytes a value cannot be smaller, nor a host this large.
        let bytes = rows[1]["ours"].as_f64().unwrap();
        assert!((10_000.0..1_000_000.0).contains(&bytes), "{}", rows[1]);
    }
}
