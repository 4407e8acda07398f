//! `cargo xtask`: everything that is done to this repository, one file per subcommand.
//!
//! Invariants: what people or CI parse goes to standard output, everything else to standard error;
//! only the steps that need root ask for it; nothing is installed outside `target/` except
//! distribution packages.

mod bench;
mod ci;
mod demo;
mod ebpf;
mod exercise;
mod fix;
mod lab;
mod repo;
mod setup;
mod shell;
mod sim;
mod soak;
mod test;
mod train;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and demonstrates Understudy")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what building and testing need; what is there is left alone
    Setup,
    /// Builds the kernel programs into target/bpf
    BuildEbpf,
    /// Runs all tests; arguments go to the test runner
    Test {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// What CI runs: format, lints, documentation, licences, tests
    Ci,
    /// Measures, beside a peer where there is one; at most an hour
    Bench(bench::Args),
    /// A service outlives two hosts; needs root, at most eight minutes after set-up
    Demo(demo::Args),
    /// Real programs under random faults: one owner, nothing acknowledged lost, nobody stuck; needs root
    Exercise(exercise::Args),
    /// Formats, and applies what the lints can fix
    Fix,
    /// Records labelled runs of faults and look-alikes; needs root, at most an hour, goes on where it stopped
    Lab(lab::Args),
    /// Long runs that must stay uneventful; needs root
    Soak(soak::Args),
    /// Trains the model from the committed traces
    Train(train::Args),
    /// Runs simulated clusters, one for each seed: --seeds N --seed S [--json] [--verbose]
    #[command(disable_help_flag = true)]
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("error: {why:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let held = match command {
        Command::Lab(arguments) => return lab::run(repo::root(), &arguments),
        Command::Train(arguments) => return train::run(repo::root(), &arguments),
        Command::Demo(arguments) => return demo::run(&arguments),
        Command::Exercise(arguments) => return exercise::run(&arguments),
        Command::Soak(arguments) => return soak::run(&arguments),
        Command::Bench(arguments) => return bench::run(arguments),
        Command::Sim { arguments } => return sim::run(&arguments),
        Command::Setup => setup::run().map(|()| true),
        Command::BuildEbpf => ebpf::run().map(|()| true),
        Command::Test { arguments } => test::run(&arguments),
        Command::Ci => ci::run(),
        Command::Fix => fix::run().map(|()| true),
    };
    Ok(if held? {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
