//! The build system: `cargo xtask --help`.

mod lab;
mod train;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Records labelled runs of faults and look-alikes; needs root, at most an hour, goes on where it stopped.
    Lab(lab::Args),
    /// Trains the model from the committed traces.
    Train(train::Args),
}

fn main() -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the workspace")?;
    match Cli::parse().command {
        Task::Lab(args) => lab::run(root, &args),
        Task::Train(args) => train::run(root, &args),
    }
}
