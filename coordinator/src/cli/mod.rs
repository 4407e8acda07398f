//! `understudy`: what people type. Answers go to stdout, everything else to stderr.
//!
//! Invariants: it decides nothing and keeps nothing; exit codes are 0 ok, 1 negative answer,
//! 2 failure, 64 bad usage or configuration.

mod ask;
mod certificates;
mod coordinators;
mod document;
mod events;
mod init;
mod join;
mod plan;
mod revoke;
mod show;
mod table;
mod token;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use understudy_common::wire::{Operate, Supposition};

use crate::config::{ClusterConfig, ConfigError};
use ask::{AskError, Cluster};
pub use init::{HostArg, InitArgs, InitError, init};
use join::JoinError;

/// Keeps services on bare-metal servers alive by acting before the host fails.
#[derive(Debug, Parser)]
#[command(name = "understudy", version)]
struct Args {
    /// The cluster to talk to, as `understudy init` wrote it.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "/etc/understudy/cluster.toml"
    )]
    cluster: PathBuf,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the certificates and configuration files of a new cluster.
    Init(InitArgs),
    /// Leader, hosts and services at a glance.
    Status,
    /// Each host with its risk; remove one.
    Hosts {
        #[command(subcommand)]
        action: Option<HostsAction>,
    },
    /// Make a token with which one new host can join; list and revoke tokens.
    Token(token::TokenArgs),
    /// Make this machine a host of the cluster that the token is of.
    Join(join::JoinArgs),
    /// Refuse the certificates that a host, coordinator or operator has so far.
    Revoke(revoke::RevokeArgs),
    /// Whose certificates end when, which are revoked, and when they were renewed.
    Certificates,
    /// Each service with its shadows and sync.
    Services,
    /// What happened, oldest first.
    Events {
        /// Only events after this number.
        #[arg(long, default_value_t = 0, value_name = "N")]
        after: u64,
        /// Keep printing as things happen.
        #[arg(long)]
        follow: bool,
    },
    /// What the leader would do now and what not, with the reasons. Touches nothing.
    Plan {
        /// As if the host had this risk (0.9 or 90%) or were dead; may be given several times.
        #[arg(long = "if", value_name = "HOST=RISK|dead", value_parser = plan::supposition)]
        suppositions: Vec<Supposition>,
    },
    /// Move a service in an orderly way.
    Handover {
        service: String,
        /// The host that takes over; the best shadow when not given.
        #[arg(long, value_name = "HOST")]
        to: Option<String>,
    },
    /// End a host's safe mode: it becomes a shadow again.
    Restore { host: String },
    /// Move nothing because of a prediction until `resume`; a lost host is still replaced.
    Pause,
    /// Act on predictions again.
    Resume,
    /// Vouch that a host is dead, so that services whose policy lets a silent holder go on are taken over.
    Fence {
        host: String,
        /// It has no power, or was taken off the network for good: two hosts may serve if that is not so.
        #[arg(long, required = true)]
        confirm_dead: bool,
    },
    /// Declare a service.
    Apply { file: PathBuf },
    /// Who the coordinators are; add, remove, give the leadership away.
    Coordinators {
        #[command(subcommand)]
        action: Option<coordinators::Action>,
    },
    /// Write a remark into the event log: one line of at most 256 bytes.
    Note { text: String },
}

#[derive(Debug, Subcommand)]
enum HostsAction {
    /// Take a host out for good; it can come back only with a new token. What it holds is moved first.
    Remove {
        host: String,
        /// Though it is the last shadow of a service.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Init(#[from] InitError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot start: {0}")]
    Start(std::io::Error),
    #[error("the coordinator's answer is not what this version of understudy expects: {0}")]
    Document(#[from] serde_json::Error),
}

impl CliError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Ask(AskError::Refused(_)) | Self::Join(JoinError::Refused(_)) => 1,
            Self::Config(_)
            | Self::Join(JoinError::Token(_) | JoinError::Write(InitError::NotEmpty(_)))
            | Self::Read { .. }
            | Self::Init(InitError::Usage(_) | InitError::NotEmpty(_)) => 64,
            Self::Init(_) | Self::Join(_) | Self::Ask(_) | Self::Start(_) | Self::Document(_) => 2,
        }
    }
}

/// Parses the process's arguments, runs, and returns its exit code.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Fails only when stdout or stderr is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("understudy: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: Args) -> Result<(), CliError> {
    if let Command::Init(init_args) = &args.command {
        let written = init(init_args)?;
        show::initialised(&written, args.json);
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Start)?;
    if let Command::Join(join_args) = &args.command {
        let written = runtime.block_on(join::run(join_args))?;
        show::joined(&written, args.json);
        return Ok(());
    }
    let config = ClusterConfig::read(&args.cluster)?;
    runtime.block_on(converse(config, args))
}

async fn converse(config: ClusterConfig, args: Args) -> Result<(), CliError> {
    let mut cluster = Cluster::new(config)?;
    let json = args.json;
    let outcome = match args.command {
        // They talk to no cluster as its operator.
        Command::Init(_) | Command::Join(_) => Ok(()),
        Command::Status => show::status(&cluster.status().await?, json).map_err(CliError::from),
        Command::Hosts { action: None } => {
            show::hosts(&cluster.status().await?, json).map_err(CliError::from)
        }
        Command::Hosts {
            action: Some(HostsAction::Remove { host, force }),
        } => {
            let done = format!("{host} is removed; its data stays on it, and its agent can be stopped");
            change(&mut cluster, Operate::RemoveHost { host, force }, &done, json).await
        }
        Command::Token(token_args) => token::run(&mut cluster, token_args, json).await,
        Command::Revoke(revoke_args) => revoke::run(&mut cluster, &args.cluster, revoke_args, json).await,
        Command::Certificates => certificates::run(&mut cluster, json).await,
        Command::Services => show::services(&cluster.status().await?, json).map_err(CliError::from),
        Command::Events { after, follow } => events::run(&mut cluster, after, follow, json).await,
        Command::Plan { suppositions } => plan::run(&mut cluster, suppositions, json).await,
        Command::Handover { service, to } => {
            let done = format!("{service} is being handed over");
            change(&mut cluster, Operate::Handover { service, to }, &done, json).await
        }
        Command::Restore { host } => {
            let done = format!("{host} leaves safe mode");
            change(&mut cluster, Operate::Restore { host }, &done, json).await
        }
        Command::Pause => {
            let done = "paused: no prediction moves a service";
            change(&mut cluster, Operate::Pause { on: true }, done, json).await
        }
        Command::Resume => {
            let done = "predictions move services again";
            change(&mut cluster, Operate::Pause { on: false }, done, json).await
        }
        Command::Fence {
            host,
            confirm_dead: _,
        } => {
            let done = format!("{host} is taken for dead");
            change(&mut cluster, Operate::ConfirmDead { host }, &done, json).await
        }
        Command::Apply { file } => {
            let toml = std::fs::read_to_string(&file).map_err(|source| CliError::Read {
                path: file.clone(),
                source,
            })?;
            let done = format!("{} is applied", file.display());
            change(&mut cluster, Operate::ApplyService { toml }, &done, json).await
        }
        Command::Coordinators { action } => {
            coordinators::run(&mut cluster, &args.cluster, action, json).await
        }
        Command::Note { text } => change(&mut cluster, Operate::Note { text }, "noted", json).await,
    };
    cluster.close().await;
    outcome
}

async fn change(cluster: &mut Cluster, operate: Operate, done: &str, json: bool) -> Result<(), CliError> {
    let answer = cluster.ask(operate).await?;
    show::done(answer.as_deref(), done, json);
    Ok(())
}

/// `NAME=ADDRESS`, as `--host` takes it.
fn parse_host(text: &str) -> Result<HostArg, String> {
    let (name, addr) = text
        .split_once('=')
        .ok_or("expected NAME=ADDRESS:PORT, like a=192.0.2.11:7401")?;
    let addr: SocketAddr = addr
        .parse()
        .map_err(|_| format!("`{addr}` is not an address with a port, like 192.0.2.11:7401"))?;
    Ok(HostArg {
        name: name.to_owned(),
        addr,
    })
}
