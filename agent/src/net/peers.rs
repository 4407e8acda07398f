//! Requests for promises to other hosts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use understudy_common::id::HostId;
use understudy_common::identity::Principal;
use understudy_common::wire::{Peer, PromiseRequest, Request, Response};
use understudy_transport::{Endpoint, Link, TransportError};

use super::Asked;

/// Hosts that are asked; further ones are not, and what they shadow is not served on promises.
const PEERS_MAX: usize = 256;
/// Requests that wait for one link; more are of no use, since each replaces the one before.
const REQUESTS_MAX: usize = 2;
const DIAL_MAX: Duration = Duration::from_secs(1);
/// A promise that comes later extends nothing.
const PROMISE_MAX: Duration = Duration::from_secs(1);

/// A link to each host that was ever asked, dialled when there is something to ask.
#[derive(Debug)]
pub struct Peers {
    endpoint: Endpoint,
    /// To the agent's loop.
    asked: mpsc::Sender<Asked>,
    links: BTreeMap<HostId, Asking>,
}

#[derive(Debug)]
struct Asking {
    addr: SocketAddr,
    requests: mpsc::Sender<PromiseRequest>,
    task: AbortHandle,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Peers {
    pub const fn new(endpoint: Endpoint, asked: mpsc::Sender<Asked>) -> Self {
        Self {
            endpoint,
            asked,
            links: BTreeMap::new(),
        }
    }

    /// Sends the request soon, or never: it is asked again. Must be called inside a tokio runtime.
    pub fn ask(&mut self, Peer { host, addr }: Peer, request: PromiseRequest) {
        if self.links.get(&host).is_some_and(|asking| asking.addr != addr) {
            self.links.remove(&host);
        }
        if self.links.len() >= PEERS_MAX && !self.links.contains_key(&host) {
            tracing::warn!(%host, "cannot ask for a promise: {PEERS_MAX} other hosts are asked already");
            return;
        }
        let asking = self.links.entry(host).or_insert_with(|| {
            let (requests, queue) = mpsc::channel(REQUESTS_MAX);
            let link = keep_asking(
                self.endpoint.clone(),
                Peer { host, addr },
                queue,
                self.asked.clone(),
            );
            let task = tokio::spawn(link).abort_handle();
            Asking { addr, requests, task }
        });
        let _ = asking.requests.try_send(request);
    }
}

async fn keep_asking(
    endpoint: Endpoint,
    peer: Peer,
    mut requests: mpsc::Receiver<PromiseRequest>,
    asked: mpsc::Sender<Asked>,
) {
    while let Some(first) = requests.recv().await {
        let dialled = timeout(DIAL_MAX, endpoint.dial(peer.addr, Principal::Host(peer.host))).await;
        let link = match dialled.unwrap_or(Err(TransportError::Timeout(DIAL_MAX))) {
            Ok(link) => link,
            Err(error) => {
                tracing::debug!(host = %peer.host, %error, "cannot be asked for a promise");
                continue;
            }
        };
        if let Err(error) = talk(&link, peer.host, first, &mut requests, &asked).await {
            tracing::debug!(host = %peer.host, %error, "a link for promises ended");
        }
        link.close("it is dialled anew when there is something to ask");
    }
}

/// Several requests may be under way: one that is lost does not hold up the next.
async fn talk(
    link: &Link,
    host: HostId,
    first: PromiseRequest,
    requests: &mut mpsc::Receiver<PromiseRequest>,
    asked: &mpsc::Sender<Asked>,
) -> Result<(), TransportError> {
    let mut calls = JoinSet::new();
    let call = |request| {
        let link = link.clone();
        async move { link.call(&Request::Promise(request), PROMISE_MAX).await }
    };
    calls.spawn(call(first));
    loop {
        tokio::select! {
            request = requests.recv() => {
                let Some(request) = request else { return Ok(()) };
                calls.spawn(call(request));
            }
            Some(answer) = calls.join_next() => match answer {
                Ok(Ok(Response::Promised(promised))) => {
                    // The loop is gone only when the agent stops.
                    let _ = asked.send(Asked::Promised { from: host, promised }).await;
                }
                Ok(Ok(Response::Refused(refusal))) => {
                    tracing::debug!(%host, %refusal, "promises nothing");
                }
                Ok(Ok(_) | Err(TransportError::Timeout(_))) | Err(_) => {}
                Ok(Err(error)) => return Err(error),
            },
        }
    }
}
