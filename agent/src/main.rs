//! `understudy-agent`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use understudy_agent::telemetry::{RecordConfig, RecordError, record};

const FAILURE: u8 = 2;
const USAGE: u8 = 64;

/// The Understudy host agent.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Records this host's telemetry as a trace, and does nothing else.
    Record {
        /// The agent's configuration; `host` and `[telemetry]` are read.
        #[arg(long)]
        config: PathBuf,
        /// The trace to append to.
        #[arg(long)]
        out: PathBuf,
        /// Stop after this many ticks of one second; without it, at SIGINT or SIGTERM.
        #[arg(long)]
        seconds: Option<u64>,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Writing the help can only fail with the terminal gone.
            let _ = error.print();
            return if error.use_stderr() {
                USAGE.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::Level::INFO.into())
                .from_env_lossy(),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = error.downcast_ref().is_some_and(RecordError::is_usage);
            tracing::error!("{error:#}");
            if usage { USAGE.into() } else { FAILURE.into() }
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match command {
        Command::Record { config, out, seconds } => {
            let config = RecordConfig::read(&config)?;
            runtime.block_on(record(&config, &out, seconds))?;
        }
    }
    Ok(())
}
