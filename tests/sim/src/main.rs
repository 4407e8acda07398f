//! `understudy-sim`: runs seeds, counts violations, and says how to run a failing one again.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde_json::{Value, json};
use understudy_sim::{EFFECTS, Fault, PREMISES, Summary, Tally, catch, fault_kinds, run, run_seeds};

/// Seeds in which a known bug has to be caught.
const BROKEN_SEEDS: u64 = 500;
/// Seeds of a run that names neither a seed nor a number.
const SEEDS: u64 = 1_000;

#[derive(Parser)]
#[command(
    name = "cargo xtask sim",
    about = "Runs simulated clusters, one for each seed"
)]
struct Arguments {
    /// How many seeds; one if only --seed is given
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// One JSON object as the last line
    #[arg(long)]
    json: bool,
    /// Puts known bugs into the build, one after the other, and runs seeds until each is caught
    #[arg(long)]
    broken: bool,
    /// With one seed: tell what happens as it happens
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { 64 } else { 0 };
            eprint!("{error}");
            return ExitCode::from(code);
        }
    };
    let first = arguments.seed.unwrap_or(0);
    let count = arguments
        .seeds
        .unwrap_or(if arguments.seed.is_some() { 1 } else { SEEDS });
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if arguments.broken {
        return break_builds(arguments.seeds.unwrap_or(BROKEN_SEEDS), threads, arguments.json);
    }
    let begun = Instant::now();
    let summary = if count == 1 && arguments.verbose {
        Summary::of(first, run(first, None, true))
    } else {
        run_seeds(first, count, threads, None, |_, _| false)
    };
    let seconds = begun.elapsed().as_secs_f64();
    for (seed, why) in &summary.violations {
        eprintln!("seed {seed}: {why}");
        eprintln!("again: cargo xtask sim --seed {seed} --verbose");
    }
    let per_hour = (summary.seeds as f64 / seconds * 3_600.0).round();
    if arguments.json {
        println!("{}", document(&summary, per_hour));
    } else {
        print_table(&summary, per_hour);
    }
    ExitCode::from(u8::from(!summary.violations.is_empty()))
}

/// Each invariant has to catch the bugs that it is there for.
fn break_builds(seeds: u64, threads: usize, json: bool) -> ExitCode {
    // That raft stops a replica is what some of them are caught by.
    std::panic::set_hook(Box::new(|_| {}));
    let mut rows = Vec::new();
    let mut missed = 0;
    for (invariant, fault) in Fault::ALL {
        let caught = catch(invariant, fault, seeds, threads);
        missed += u64::from(caught.is_err());
        let seed = caught.as_ref().ok().map(|(seed, _)| *seed);
        match caught {
            Ok((seed, why)) => {
                let why = why.lines().next().unwrap_or_default();
                eprintln!("{fault:?}: caught by seed {seed}: {why}");
            }
            Err(_) => eprintln!("{fault:?}: not caught by `{invariant}` in {seeds} seeds"),
        }
        rows.push(json!({ "invariant": invariant, "bug": format!("{fault:?}"), "caught_by_seed": seed }));
    }
    if json {
        println!("{}", json!({ "broken": rows, "missed": missed, "seeds": seeds }));
    }
    ExitCode::from(u8::from(missed > 0))
}

fn document(summary: &Summary, per_hour: f64) -> Value {
    json!({
        "sim_violations": summary.violations.len(),
        "sim_seeds_per_hour": per_hour,
        "seeds": summary.seeds,
        "trace": format!("{:016x}", summary.trace),
        "events": summary.events,
        "grants": summary.grants,
        "simulated_s": summary.simulated_ms / 1_000,
        "simulated_s_min": summary.simulated_ms_min / 1_000,
        "faults_min": summary.faults_min,
        "faults": counts(&summary.tally, fault_kinds()),
        "effects": counts(&summary.tally, EFFECTS.into_iter()),
        "premises": counts(&summary.tally, PREMISES.into_iter()),
        "also": counts(&summary.tally, others(&summary.tally)),
    })
}

fn counts<'a>(tally: &Tally, names: impl Iterator<Item = &'a str>) -> Value {
    names
        .map(|name| (name.to_owned(), json!(tally.get(name))))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// What was counted and is not asked for.
fn others(tally: &Tally) -> impl Iterator<Item = &'static str> {
    let named = |name: &&'static str| {
        !PREMISES.contains(name) && !EFFECTS.contains(name) && !fault_kinds().any(|kind| kind == *name)
    };
    tally.iter().map(|(name, _)| name).filter(named)
}

fn print_table(summary: &Summary, per_hour: f64) {
    println!("{:>10}  seeds, {per_hour} an hour", summary.seeds);
    println!("{:>10}  violations", summary.violations.len());
    println!("{:>10}  events, {} grants", summary.events, summary.grants);
    println!("{:>10}  at least, faults in one seed", summary.faults_min);
    println!("{:016x}  trace", summary.trace);
    for (name, times) in summary.tally.iter() {
        println!("{times:>10}  {name}");
    }
}
