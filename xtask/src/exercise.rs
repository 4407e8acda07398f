//! `cargo xtask exercise`: real programs under faults that a seed deals; see `understudy_testbed::exercise`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use understudy_testbed::exercise::{self, Report, Settings};

use crate::repo;
use crate::shell::{become_root, is_root, provide};

const MINUTES_MAX: u64 = 24 * 60;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Begin no round after this many minutes
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=MINUTES_MAX))]
    minutes: u64,
    /// Decides which faults come in which order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    json: bool,
    /// Everything is built: set by the exerciser itself when it becomes root
    #[arg(long, hide = true)]
    built: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if !args.built {
        provide()?;
    }
    if !is_root() {
        return Err(become_root("the exerciser"));
    }
    if let Some(reason) = exercise::missing() {
        bail!("the exerciser cannot run here: {reason}");
    }
    let settings = Settings {
        seed: args.seed,
        at_most: Duration::from_secs(args.minutes * 60),
        keep_logs: repo::root().join(format!("target/exercise/{}", args.seed)),
    };
    let report = exercise::run(&settings, &mut |line| eprintln!("{line}"))?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        table(&report);
    }
    Ok(ExitCode::from(u8::from(!report.held())))
}

fn table(report: &Report) {
    println!("{:<28} {}", "seed", report.seed);
    println!("{:<28} {:.0} s, {} rounds", "time", report.seconds, report.rounds);
    for (kind, times) in &report.faults {
        let outage = report.outage_ms_max.get(kind);
        let outage = outage.map_or(String::new(), |ms| format!(", longest outage {ms:.0} ms"));
        println!("{kind:<28} {times}{outage}");
    }
    println!("{:<28} {}", "double failures", report.double_failures);
    println!(
        "{:<28} {} ({} planned)",
        "moves", report.moves, report.planned_moves
    );
    println!(
        "{:<28} {} acknowledged, {} lost after the cut of a takeover ({:.0} ms at most)",
        "appends", report.acknowledged, report.lost_after_the_cut, report.loss_window_ms_max
    );
    println!("{:<28} {}", "answers checked", report.answers_checked);
    println!(
        "{:<28} served after {:.1} s, whole after {:.1} s",
        "worst recovery", report.served_again_s_max, report.whole_again_s_max
    );
    for violation in &report.violations {
        println!(
            "VIOLATION in round {} ({}): {}",
            violation.round, violation.faults, violation.what
        );
    }
    println!("{:<28} {}", "violations", report.exercise_violations);
    if !report.held() {
        println!("again: {}", report.command);
    }
}
