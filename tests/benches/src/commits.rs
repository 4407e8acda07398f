//! Many clients that each have one command outstanding, as fast as they are answered or at a given rate.
//!
//! A latency begins when a command is sent. At a given rate it begins when the command was due, if its client was
//! still waiting for the answer before it then: a slow answer is not excused by what it held up.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::latency::Latencies;
use crate::target::{Client, Cluster, Target};

/// After a command that failed.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    cluster: Cluster,
    /// Clients, each with one command outstanding
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Connections that the clients share
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Before anything is counted
    #[arg(long, default_value_t = 2_000)]
    warm_up_ms: u64,
    #[arg(long, default_value_t = 10_000)]
    measure_ms: u64,
    /// Commands a second of all clients together; without it as many as are answered
    #[arg(long)]
    rate: Option<f64>,
}

/// When a client begins, what is counted, and how far apart its commands are.
#[derive(Clone, Copy)]
struct Schedule {
    from: Instant,
    until: Instant,
    every: Option<Duration>,
}

#[derive(Default)]
struct Done {
    latencies: Latencies,
    errors: u64,
    last_error: Option<String>,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    ensure!(args.clients > 0 && args.connections > 0, "at least one client");
    let target = Target::connect(&args.cluster, args.connections).await?;
    let from = Instant::now() + Duration::from_millis(args.warm_up_ms);
    let length = Duration::from_millis(args.measure_ms);
    let schedule = Schedule {
        from,
        until: from + length,
        every: args
            .rate
            .map(|rate| Duration::from_secs_f64(args.clients as f64 / rate)),
    };
    let mut clients = JoinSet::new();
    for number in 0..args.clients {
        // Spread over one interval, so that they do not send in step.
        let phase = schedule.every.map_or(Duration::ZERO, |every| {
            every.mul_f64(number as f64 / args.clients as f64)
        });
        clients.spawn(client(target.client(number), number, phase, schedule));
    }
    let mut all = Done::default();
    for done in clients.join_all().await {
        all.latencies.append(done.latencies);
        all.errors += done.errors;
        all.last_error = done.last_error.or(all.last_error);
    }
    let commits = all.latencies.len();
    let sorted = all.latencies.sorted();
    let answer = json!({
        "commits": commits,
        "per_s": commits as f64 / length.as_secs_f64(),
        "p50_us": sorted.quantile_us(0.5),
        "p99_us": sorted.quantile_us(0.99),
        "max_us": sorted.quantile_us(1.0),
        "errors": all.errors,
        "last_error": all.last_error,
    });
    println!("{answer}");
    Ok(())
}

async fn client(client: Client, number: usize, phase: Duration, schedule: Schedule) -> Done {
    let mut done = Done::default();
    let mut due = Instant::now() + phase;
    let mut count = 0;
    while Instant::now() < schedule.until {
        let mut began = Instant::now();
        if let Some(every) = schedule.every {
            if began < due {
                tokio::time::sleep_until(due).await;
                began = Instant::now();
            } else {
                began = due;
            }
            due += every;
        }
        count += 1;
        let outcome = client.commit(number, count).await;
        let ended = Instant::now();
        match outcome {
            Ok(()) if began >= schedule.from && ended <= schedule.until => {
                done.latencies.push(ended - began);
            }
            Ok(()) => {}
            Err(why) => {
                done.errors += 1;
                done.last_error = Some(format!("{why:#}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    done
}
