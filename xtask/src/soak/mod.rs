//! `cargo xtask soak NAME`: long runs that must stay uneventful.

mod jitter;
mod sync;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::shell::{become_root, is_root, provide};

const MINUTES_MAX: u64 = 24 * 60;
const OPERATIONS_MAX: u64 = 1_000_000_000;

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
    /// Random operations on real disks, both trees compared after each generation: nothing may be missed
    Sync {
        /// On each file system
        #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=OPERATIONS_MAX))]
        ops: u64,
        /// Decides which operations
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
    match args.soak {
        Soak::Jitter { minutes, seed, json } => jitter::run(minutes, seed, json),
        Soak::Sync { ops, seed, json } => sync::run(ops, seed, json),
    }
}
