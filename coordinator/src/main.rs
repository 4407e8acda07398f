//! `understudy-coordinator`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use understudy_coordinator::config::CoordinatorConfig;
use understudy_coordinator::run;
use understudy_transport::Endpoint;

/// How long peers get to hear the goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// One replica of an Understudy cluster's coordinator.
#[derive(Debug, Parser)]
#[command(name = "understudy-coordinator", version)]
struct Args {
    /// Its configuration, as `understudy init` wrote it.
    #[arg(long, value_name = "FILE", default_value = "/etc/understudy/coordinator.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Fails only when stdout or stderr is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,raft_engine=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let config = match CoordinatorConfig::read(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("understudy-coordinator: {error}");
            return ExitCode::from(64);
        }
    };
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("understudy-coordinator: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start(config: CoordinatorConfig) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let endpoint = Endpoint::bind_for_newcomers(config.listen, &config.credentials)?;
            let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            // Everything that must last is on disk before it is told: stopping is letting go.
            let stop = async {
                tokio::select! {
                    _ = term.recv() => tracing::info!("stops: SIGTERM"),
                    _ = int.recv() => tracing::info!("stops: SIGINT"),
                }
            };
            run(config, endpoint.clone(), stop).await?;
            endpoint.close();
            // A peer that does not listen is not waited for.
            let _ = tokio::time::timeout(GOODBYE, endpoint.wait_idle()).await;
            Ok(())
        })
}
