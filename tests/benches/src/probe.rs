//! Asks every coordinator to commit, again and again, and says when one did: what a client sees of a leader's death.
//!
//! Invariant: a line stands for a commit that began after the line's `began_ns` and ended at `ended_ns`, both on
//! the boot clock, so that whoever kills the leader can tell which commits came after.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::task::JoinSet;
use understudy_common::identity::Principal;
use understudy_coordinator::clock::boot_now;
use understudy_coordinator::config::{ClusterConfig, Member};
use understudy_transport::Endpoint;

use crate::target::Understudy;

/// Between two commands to one coordinator.
const PAUSE: Duration = Duration::from_millis(5);
const DIAL_MAX: Duration = Duration::from_millis(300);
/// A coordinator that does not answer for so long is dialled anew.
const ANSWER_MAX: Duration = Duration::from_millis(1_000);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `cluster.toml` of an Understudy cluster
    #[arg(long)]
    cluster: PathBuf,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let config = ClusterConfig::read(&args.cluster)?;
    let endpoint = Endpoint::bind("127.0.0.1:0".parse()?, &config.credentials)?;
    let mut all = JoinSet::new();
    for member in config.coordinators {
        all.spawn(ask(endpoint.clone(), member));
    }
    all.join_all().await;
    Ok(())
}

async fn ask(endpoint: Endpoint, member: Member) {
    let mut count = 0_u64;
    loop {
        let dial = endpoint.dial(member.addr, Principal::Coordinator(member.id));
        if let Ok(Ok(link)) = tokio::time::timeout(DIAL_MAX, dial).await {
            let coordinator = Understudy::on(link.clone());
            loop {
                count += 1;
                let began = boot_now();
                let note = format!("probe {count}");
                let Ok(outcome) = tokio::time::timeout(ANSWER_MAX, coordinator.note(&note)).await else {
                    break;
                };
                match outcome {
                    Ok(()) => {
                        let line = json!({
                            "coordinator": member.id, "began_ns": began.0, "ended_ns": boot_now().0,
                        });
                        println!("{line}");
                    }
                    Err(why)
                        if why
                            .downcast_ref::<understudy_transport::TransportError>()
                            .is_some() =>
                    {
                        break;
                    }
                    // It does not lead.
                    Err(_) => {}
                }
                tokio::time::sleep(PAUSE).await;
            }
            link.close("dials anew");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
