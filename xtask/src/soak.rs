//! `cargo xtask soak NAME`: long runs that must stay uneventful.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Subcommand;
use understudy_testbed::exercise;
use understudy_testbed::soak::jitter::{self, Jitter};

use crate::shell::{become_root, is_root, provide};

const MINUTES_MAX: u64 = 24 * 60;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    soak: Soak,
    /// Everything is built: set by the soak itself when it becomes root
    #[arg(long, hide = true, global = true)]
    built: bool,
}

#[derive(Debug, Subcommand)]
enum Soak {
    /// Stalls of 200 ms, 5 % loss and 80 % stolen processor time: no service may move
    Jitter {
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=MINUTES_MAX))]
        minutes: u64,
        /// Decides when who is stalled
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Print one JSON object as the last line of standard output; everything else goes to standard error
        #[arg(long)]
        json: bool,
    },
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if !args.built {
        provide()?;
    }
    if !is_root() {
        return Err(become_root("the soak"));
    }
    if let Some(reason) = exercise::missing() {
        bail!("the soak cannot run here: {reason}");
    }
    let Soak::Jitter { minutes, seed, json } = args.soak;
    let jitter = jitter::run(seed, Duration::from_secs(minutes * 60), &mut |line| {
        eprintln!("{line}")
    })?;
    if json {
        println!("{}", serde_json::to_string(&jitter)?);
    } else {
        table(&jitter);
    }
    if let Some(why) = jitter.not_in_force.first() {
        bail!("the run proves nothing: {why}");
    }
    Ok(ExitCode::from(u8::from(!jitter.held())))
}

fn table(jitter: &Jitter) {
    let Jitter { minutes, stalls, .. } = jitter;
    println!("{:<20} {minutes:.1} min", "time");
    println!("{:<20} {}", "false handovers", jitter.false_handovers);
    println!(
        "{:<20} {stalls} ({} confirmed), {:.0} ms median, {:.0} ms at most",
        "stalls", jitter.stalls_confirmed, jitter.stall_ms_median, jitter.stall_ms_max
    );
    println!(
        "{:<20} {:.1} % ({} of {} packets)",
        "loss", jitter.loss_percent, jitter.packets_dropped, jitter.packets_seen
    );
    println!(
        "{:<20} {:.0} % of all processors; the cluster had {:.0} %",
        "stolen", jitter.theft_percent, jitter.cluster_cpu_percent
    );
    println!(
        "{:<20} {} answered, {:.0} ms at most without an answer",
        "appends", jitter.appends, jitter.outage_ms_max
    );
    for event in &jitter.events {
        println!("  {event}");
    }
}
