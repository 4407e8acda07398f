//! `understudy-agent`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use understudy_agent::agent;
use understudy_agent::config::{AgentConfig, ConfigError};
use understudy_agent::telemetry::{RecordConfig, RecordError, TelemetryError, record};
use understudy_agent::workload::thaw_guard;

const FAILURE: u8 = 2;
const USAGE: u8 = 64;

/// The Understudy host agent.
#[derive(Debug, Parser)]
#[command(name = "understudy-agent", version, args_conflicts_with_subcommands = true)]
struct Cli {
    /// Its configuration, as `understudy init` wrote it.
    #[arg(long, value_name = "FILE", default_value = "/etc/understudy/agent.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
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
    if let Some(code) = thaw_guard::run_if_asked() {
        return code;
    }
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
        .with_ansi(false)
        .init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let usage = error.is::<ConfigError>()
                || error.downcast_ref().is_some_and(RecordError::is_usage)
                || matches!(
                    error.downcast_ref(),
                    Some(agent::AgentError::Telemetry(TelemetryError::Scope(_)))
                );
            eprintln!("understudy-agent: {error:#}");
            if usage { USAGE.into() } else { FAILURE.into() }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Some(Command::Record { config, out, seconds }) => {
            let config = RecordConfig::read(&config)?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(record(&config, &out, seconds))?)
        }
        None => serve(AgentConfig::read(&cli.config)?),
    }
}

fn serve(config: AgentConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        // Workloads go on. Unless an agent comes back in time their leases end and the gate closes.
        tokio::select! {
            ended = agent::run(config) => ended?,
            _ = term.recv() => tracing::info!("stops: SIGTERM"),
            _ = int.recv() => tracing::info!("stops: SIGINT"),
        }
        Ok(())
    });
    // A disk that hangs is not waited for: what is on it is safe to be cut short.
    runtime.shutdown_background();
    outcome
}
