//! `cargo xtask demo`: a service outlives two hosts, once because the failure was predicted and
//! once although it was not.
//!
//! Invariants: everything on the stage is the real thing from `target/debug`; what is measured is
//! measured from outside (a client, probes, the kernel) or read from what an operator can read; a
//! figure that was not measured is null and fails its must; nothing is left behind.

mod client;
mod cluster;
mod cost;
mod figures;
mod probe;
mod redis;
#[cfg(test)]
mod rehearsal;
mod report;
mod scenario;
mod scene;
mod timeline;
mod watch;

use std::fs;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use serde_json::json;
use understudy_testbed::fault::Class;

use crate::repo;
use crate::shell::{become_root, is_root, provide};
use report::{MOVED_SHARE_MIN, Measured};
use scenario::Acts;
use scene::Scene;
use timeline::Timeline;

const RUNS_MAX: u64 = 100;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object as the last line of standard output; everything else goes to standard error
    #[arg(long)]
    json: bool,
    /// Decides the look-alike, the fault and its rate; without it every run is another
    #[arg(long)]
    seed: Option<u64>,
    /// Only the predicted failure, on a fresh cluster each time
    #[arg(long)]
    predicted_only: bool,
    /// How often, with --predicted-only
    #[arg(long, default_value_t = 1, requires = "predicted_only", value_parser = clap::value_parser!(u64).range(1..=RUNS_MAX))]
    runs: u64,
    /// Everything is built: set by the demo itself when it becomes root
    #[arg(long, hide = true)]
    built: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if !args.built {
        provide()?;
    }
    if !is_root() {
        return Err(become_root("the demo"));
    }
    if let Some(reason) = understudy_testbed::missing() {
        bail!("the demo cannot run here: {reason}");
    }
    let seed = args.seed.unwrap_or_else(fresh_seed);
    let met = if args.predicted_only {
        series(args, seed)
    } else {
        whole(args, seed)
    };
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_micros() as u64 % 1_000_000
}

/// The whole story; whether everything that must hold did.
fn whole(args: &Args, seed: u64) -> bool {
    let mut timeline = Timeline::new(args.json);
    timeline.note(format_args!("seed {seed}: cargo xtask demo --seed {seed}"));
    let measured = perform(seed, &mut timeline, scenario::class(seed), true).0;
    measured.table(&mut timeline);
    let failed: Vec<&str> = measured
        .musts()
        .iter()
        .filter(|must| !must.met)
        .map(|must| must.key)
        .collect();
    if let Some(why) = &measured.broken_off {
        timeline.plain(&format!("\nThe story broke off: {why}"));
    }
    if failed.is_empty() {
        timeline.plain("\nEverything that must hold held.");
    } else {
        timeline.plain(&format!("\nDid not hold: {}", failed.join(", ")));
    }
    if args.json {
        println!("{}", measured.json());
    }
    failed.is_empty() && measured.broken_off.is_none()
}

/// Predicted failures only, each with a seed and a cluster of its own.
fn series(args: &Args, first: u64) -> bool {
    let mut timeline = Timeline::new(args.json);
    let (mut moved, mut false_moves, mut rows) = (0, 0, Vec::new());
    for n in 0..args.runs {
        let seed = first + n;
        let class = scenario::class(seed);
        timeline.chapter(&format!("Run {} of {}, seed {seed}", n + 1, args.runs));
        let (measured, did) = perform(seed, &mut timeline, class, false);
        let in_time = did && measured.planned.lead_s.is_some_and(|lead| lead > 0.0);
        // A run that broke off before anything could move did not move falsely either.
        let false_here = measured.false_moves.unwrap_or(0);
        moved += u64::from(in_time);
        false_moves += false_here;
        timeline.note(format_args!(
            "moved in time: {in_time}; false moves: {false_here}"
        ));
        rows.push(json!({
            "seed": seed, "fault": measured.fault, "look_alike": measured.look_alike, "moved": in_time,
            "lead_s": measured.planned.lead_s, "risk": measured.planned.risk,
            "false_moves": false_here, "broken_off": measured.broken_off,
        }));
    }
    let runs = args.runs;
    timeline.plain(&format!(
        "\n{moved} of {runs} moved in time, {false_moves} false moves"
    ));
    if args.json {
        println!(
            "{}",
            json!({"runs": runs, "runs_moved": moved, "false_moves": false_moves, "rows": rows})
        );
    }
    moved as f64 >= runs as f64 * MOVED_SHARE_MIN && false_moves == 0
}

/// One performance; what was measured until its end or until it broke off, and whether the
/// predicted move happened.
fn perform(seed: u64, timeline: &mut Timeline, class: Class, all_acts: bool) -> (Measured, bool) {
    let began = Instant::now();
    let mut acts = Acts::default();
    let mut scene = match Scene::open(seed, timeline) {
        Ok(scene) => scene,
        Err(why) => {
            let broken_off = Some(format!("{why:#}"));
            return (
                Measured {
                    seed,
                    broken_off,
                    ..Measured::default()
                },
                false,
            );
        }
    };
    let outcome = play(&mut scene, &mut acts, class, all_acts);
    scenario::conclude(&mut scene, &acts);
    scene.measured.seconds = began.elapsed().as_secs_f64();
    scene.measured.broken_off = outcome.err().map(|why| format!("{why:#}"));
    let logs = repo::root().join("target/demo");
    let _ = fs::remove_dir_all(&logs);
    if let Err(why) = scene.cluster.bed().save_logs(&logs) {
        scene
            .timeline
            .note(format_args!("the logs could not be kept: {why:#}"));
    } else if scene.measured.broken_off.is_some() {
        scene
            .timeline
            .note(format_args!("the logs are in {}", logs.display()));
    }
    (scene.measured.clone(), acts.moved())
}

fn play(scene: &mut Scene<'_>, acts: &mut Acts, class: Class, all_acts: bool) -> Result<()> {
    scene.protect()?;
    scenario::look_alike(scene)?;
    scenario::predicted(scene, acts, class)?;
    if all_acts {
        scenario::unannounced(scene, acts)?;
    }
    Ok(())
}
