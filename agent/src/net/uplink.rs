//! One coordinator: dialled again and again, told everything that all of them are told, obeyed when
//! it leads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use understudy_common::beacon::{Beacon, BeaconEncoder};
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::{Credentials, Principal};
use understudy_common::wire::{
    self, CoordinatorList, Hello, HostReport, Order, PromiseRequest, Promised, Refusal, Renew, Renewed,
    Request, Response, StreamKind,
};
use understudy_transport::{Endpoint, Link, PendingCall, TransportError};

use crate::config::Coordinator;

/// Renewals that wait for one link; more are of no use, since each replaces the one before.
pub const RENEWALS_MAX: usize = 4;
const REDIAL_MIN: Duration = Duration::from_millis(100);
/// Coordinators that return wait for a lease before they take over: a holder must have been heard by then.
const REDIAL_MAX: Duration = Duration::from_millis(200);
/// A first packet that is lost is sent again after a second, so a dial that takes longer begins anew.
const DIAL_MAX: Duration = Duration::from_millis(700);
const HELLO_MAX: Duration = Duration::from_secs(5);
/// A renewal that is answered later extends nothing.
const RENEW_MAX: Duration = Duration::from_secs(1);
const REPORT_MAX: Duration = Duration::from_secs(1);
/// Pause after a hello on an open link, which may be refused for good.
const GREET_PAUSE: Duration = Duration::from_millis(200);
/// Pause between two reports, so that a burst of changes is one report.
const REPORT_PAUSE: Duration = Duration::from_millis(5);

/// From the links to the agent's loop.
#[derive(Debug)]
pub enum Asked {
    Order {
        order: Box<Order>,
        answer: oneshot::Sender<Result<(), Refusal>>,
    },
    Renewed(Renewed),
    /// A holder asks this host for promises.
    Promise {
        request: PromiseRequest,
        answer: oneshot::Sender<Promised>,
    },
    /// A shadow answered.
    Promised {
        from: HostId,
        promised: Promised,
    },
}

/// What all coordinators are told.
#[derive(Clone, Debug)]
pub struct Said {
    /// None until the host knows itself; a new one is said again.
    pub hello: watch::Receiver<Option<Arc<Hello>>>,
    pub reports: watch::Receiver<HostReport>,
    pub beacons: broadcast::Sender<Beacon>,
    pub renewals: broadcast::Sender<Renew>,
    /// To the agent's loop.
    pub asked: mpsc::Sender<Asked>,
    /// Who the coordinators are, as one of them says.
    pub lists: mpsc::Sender<CoordinatorList>,
    /// Refuses those whom the coordinators name.
    pub endpoint: Endpoint,
    /// Links that are up.
    pub open: watch::Sender<Open>,
}

/// The links that are up, one for each coordinator.
pub type Open = BTreeMap<CoordinatorId, Link>;

/// Keeps a link to the coordinator for as long as the agent runs.
pub async fn keep_linked(endpoint: Endpoint, coordinator: Coordinator, said: Said) {
    let Coordinator { id, addr } = coordinator;
    let (mut pause, mut told) = (REDIAL_MIN, false);
    let Some(mut own) = endpoint.credentials() else {
        return;
    };
    loop {
        own.mark_unchanged();
        let dialled = timeout(DIAL_MAX, endpoint.dial(addr, Principal::Coordinator(id))).await;
        match dialled.unwrap_or(Err(TransportError::Timeout(DIAL_MAX))) {
            Ok(link) => {
                let mut hello = said.hello.clone();
                hello.mark_unchanged();
                // In TLS 1.3 a refusal shows with the first call.
                match greet(&link, &said).await {
                    Ok(()) => {
                        tracing::info!(coordinator = %id, %addr, "connected");
                        (pause, told) = (REDIAL_MIN, false);
                        let listed = Listed::new(&said.open, id, &link);
                        if let Err(error) = talk(&link, &said, hello, &mut own).await {
                            tracing::warn!(coordinator = %id, %error, "disconnected");
                        }
                        drop(listed);
                    }
                    Err(error) if told => tracing::debug!(coordinator = %id, %error, "no link"),
                    Err(error) => {
                        tracing::warn!(coordinator = %id, %error, "no link; it is tried again and again");
                        told = true;
                    }
                }
                link.close("the agent begins anew");
            }
            Err(error) if told => tracing::debug!(coordinator = %id, %error, "no link"),
            Err(error) => {
                tracing::warn!(coordinator = %id, %error, "no link; it is tried again and again");
                told = true;
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(REDIAL_MAX);
    }
}

/// A link that is up, until it is dropped.
struct Listed<'a> {
    open: &'a watch::Sender<Open>,
    id: CoordinatorId,
}

impl<'a> Listed<'a> {
    fn new(open: &'a watch::Sender<Open>, id: CoordinatorId, link: &Link) -> Self {
        open.send_modify(|open| {
            open.insert(id, link.clone());
        });
        Self { open, id }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.open.send_modify(|open| {
            open.remove(&self.id);
        });
    }
}

async fn talk(
    link: &Link,
    said: &Said,
    hello: watch::Receiver<Option<Arc<Hello>>>,
    own: &mut watch::Receiver<Credentials>,
) -> Result<(), TransportError> {
    tokio::select! {
        ended = link.show_renewals(own) => ended,
        ended = renewals(link, said.renewals.subscribe(), &said.asked) => ended,
        ended = reports(link, said) => ended,
        ended = hellos(link, said, hello) => ended,
        ended = beacons(link, said.beacons.subscribe()) => ended,
        ended = orders(link, said) => ended,
    }
}

/// A follower cannot register anybody: it says so, and the next report brings it up again.
async fn greet(link: &Link, said: &Said) -> Result<(), TransportError> {
    let Some(hello) = said.hello.borrow().clone() else {
        return Ok(());
    };
    match link.call(&Request::Hello((*hello).clone()), HELLO_MAX).await? {
        Response::Refused(refusal) => {
            tracing::warn!(who = %link.principal(), %refusal, "it does not take this host in");
        }
        Response::Done
        | Response::NotLeader(_)
        | Response::Renewed(_)
        | Response::Document(_)
        | Response::Promised(_)
        | Response::Admitted(_)
        | Response::Certificate(_) => {}
    }
    Ok(())
}

/// Says what was not known when the link was made.
async fn hellos(
    link: &Link,
    said: &Said,
    mut hello: watch::Receiver<Option<Arc<Hello>>>,
) -> Result<(), TransportError> {
    while hello.changed().await.is_ok() {
        greet(link, said).await?;
    }
    std::future::pending().await
}

async fn renewals(
    link: &Link,
    mut queue: broadcast::Receiver<Renew>,
    asked: &mpsc::Sender<Asked>,
) -> Result<(), TransportError> {
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            renew = queue.recv() => {
                let renew = match renew {
                    Ok(renew) => renew,
                    // Each replaces the one before.
                    Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                };
                let link = link.clone();
                calls.spawn(async move { link.call(&Request::Renew(renew), RENEW_MAX).await });
            }
            Some(call) = calls.join_next() => match call {
                Ok(Ok(Response::Renewed(renewed))) => {
                    // The loop is gone only when the agent stops.
                    let _ = asked.send(Asked::Renewed(renewed)).await;
                }
                Ok(Ok(_) | Err(TransportError::Timeout(_))) | Err(_) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }
}

/// Sends the newest report whenever there is a new one. The agent's loop makes one at least every beat.
async fn reports(link: &Link, said: &Said) -> Result<(), TransportError> {
    let mut reports = said.reports.clone();
    reports.mark_changed();
    while reports.changed().await.is_ok() {
        let begun = Instant::now();
        let report = reports.borrow_and_update().clone();
        match link.call(&Request::Report(report), REPORT_MAX).await {
            Ok(Response::Refused(Refusal::Unknown(_))) => {
                greet(link, said).await?;
                sleep(GREET_PAUSE).await;
            }
            Ok(_) | Err(TransportError::Timeout(_)) => {}
            Err(error) => return Err(error),
        }
        sleep(REPORT_PAUSE.saturating_sub(begun.elapsed())).await;
    }
    Ok(())
}

async fn beacons(link: &Link, mut beacons: broadcast::Receiver<Beacon>) -> Result<(), TransportError> {
    let mut stream = link.open_uni(StreamKind::Beacon).await?;
    let mut encoder = BeaconEncoder::default();
    loop {
        match beacons.recv().await {
            Ok(beacon) => stream.send(&encoder.encode(&beacon)).await?,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(who = %link.principal(), missed, "the link is too slow for beacons");
            }
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}

async fn orders(link: &Link, said: &Said) -> Result<(), TransportError> {
    let mut calls = JoinSet::new();
    loop {
        let stream = link.accept_bi().await?;
        while calls.try_join_next().is_some() {}
        let (who, said) = (link.principal(), said.clone());
        // The transport bounds how many of them a peer may have open.
        calls.spawn(async move {
            if let Err(error) = take_order(stream, &said).await {
                tracing::debug!(%who, %error, "a call ended");
            }
        });
    }
}

async fn take_order(stream: PendingCall, said: &Said) -> Result<(), TransportError> {
    let (kind, mut sender, mut receiver) = stream.kind().await?;
    if kind != StreamKind::Rpc {
        return Err(TransportError::UnknownStream(kind as u8));
    }
    let Some(frame) = receiver.receive().await? else {
        return Ok(());
    };
    let response = match wire::decode::<Request>(&frame)? {
        Request::Order(order) => {
            let (answer, answered) = oneshot::channel();
            let order = Box::new(order);
            // The loop is gone only when the agent stops.
            let _ = said.asked.send(Asked::Order { order, answer }).await;
            match answered.await {
                Ok(Ok(())) => Response::Done,
                Ok(Err(refusal)) => Response::Refused(refusal),
                Err(_) => Response::Refused(Refusal::Busy("this agent, which stops".to_owned())),
            }
        }
        Request::Coordinators(list) => {
            let _ = said.lists.send(list).await;
            Response::Done
        }
        Request::Revoked(list) => {
            let endpoint = said.endpoint.clone();
            // Waits for the disk.
            match tokio::task::spawn_blocking(move || endpoint.revoke(&list)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "revocations are in force but would not be at the next start");
                }
                // Only when the agent stops.
                Err(_) => return Ok(()),
            }
            Response::Done
        }
        _ => Response::Refused(Refusal::Invalid("agents take orders only".to_owned())),
    };
    sender.send(&wire::encode(&response)).await?;
    sender.finish();
    Ok(())
}
