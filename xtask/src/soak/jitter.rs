//! `soak jitter`: stalls, loss and stolen processor time that must not move a service.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use understudy_testbed::exercise;
use understudy_testbed::soak::jitter::{self, Jitter};

pub(super) fn run(minutes: u64, seed: u64, json: bool) -> Result<ExitCode> {
    if let Some(reason) = exercise::missing() {
        bail!("the soak cannot run here: {reason}");
    }
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
