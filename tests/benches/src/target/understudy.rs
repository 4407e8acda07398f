//! Commands to our own leader: an operator's note over QUIC with mutual TLS.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use understudy_common::identity::Principal;
use understudy_common::wire::{Operate, Request, Response};
use understudy_coordinator::config::ClusterConfig;
use understudy_transport::{Endpoint, Link};

const CALL_MAX: Duration = Duration::from_secs(5);
const DIAL_MAX: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(crate) struct Understudy {
    link: Link,
}

/// Finds who leads and opens the connections to it.
pub(super) async fn leader(file: &Path, connections: usize) -> Result<Vec<Understudy>> {
    let config = ClusterConfig::read(file)?;
    let endpoint = Endpoint::bind("127.0.0.1:0".parse()?, &config.credentials)?;
    for member in &config.coordinators {
        let dial = endpoint.dial(member.addr, Principal::Coordinator(member.id));
        let Ok(Ok(link)) = tokio::time::timeout(DIAL_MAX, dial).await else {
            continue;
        };
        let first = Understudy { link };
        if first.note(&super::text(0, 0)).await.is_err() {
            continue;
        }
        let mut all = vec![first];
        while all.len() < connections {
            let link = endpoint
                .dial(member.addr, Principal::Coordinator(member.id))
                .await?;
            all.push(Understudy { link });
        }
        return Ok(all);
    }
    bail!("no coordinator takes commands")
}

impl Understudy {
    pub(crate) const fn on(link: Link) -> Self {
        Self { link }
    }

    pub(crate) async fn note(&self, text: &str) -> Result<()> {
        let note = Request::Operate(Operate::Note {
            text: text.to_owned(),
        });
        match self.link.call(&note, CALL_MAX).await.context("a note")? {
            Response::Document(_) | Response::Done => Ok(()),
            other => super::unexpected(other),
        }
    }
}
