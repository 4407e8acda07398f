//! `understudy-load`: the load of the benches, one process for all its clients.
//!
//! Invariants: it judges nothing and starts nothing; what was measured is one JSON object a line on standard
//! output, everything else goes to standard error; one thread, so that both sides of a comparison get the same.

mod commits;
mod fleet;
mod latency;
mod probe;
mod sync;
mod target;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use understudy_agent::workload::thaw_guard;

#[derive(Parser)]
#[command(name = "understudy-load", version)]
struct Args {
    #[command(subcommand)]
    load: Load,
}

#[derive(Subcommand)]
enum Load {
    /// Commits commands from many clients for a while
    Commits(commits::Args),
    /// Hosts that send a beacon each second; obeys lines on standard input
    Fleet(fleet::Args),
    /// Commits through whoever leads, one line for each commit, until it is stopped
    Probe(probe::Args),
    /// A primary and its shadow; the primary obeys lines on standard input
    Sync(sync::Args),
}

fn main() -> ExitCode {
    if let Some(code) = thaw_guard::run_if_asked() {
        return code;
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Fails only when stdout or stderr is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    match run(args.load) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("understudy-load: {why:#}");
            ExitCode::from(2)
        }
    }
}

fn run(load: Load) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            match load {
                Load::Commits(args) => commits::run(args).await,
                Load::Fleet(args) => fleet::run(args).await,
                Load::Probe(args) => probe::run(args).await,
                Load::Sync(args) => sync::run(args).await,
            }
        })
}
