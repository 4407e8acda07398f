//! Accepts links, and lets each principal open only the streams that are its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::Principal;
use understudy_common::wire::StreamKind;
use understudy_transport::{Endpoint, FrameReceiver, Incoming, Link, TransportError};

use super::hosts::HostEvent;
use super::{beacons, rpc, snapshots};
use crate::coordinator::Event;
use crate::forecast::Inbox;

/// Links open at once, handshakes included: every host's, and as many again that are not known to be dead yet or
/// belong to operators and coordinators. Further peers wait at the socket.
const LINKS_MAX: usize = 2 * crate::state::HOSTS_MAX;
/// Newcomers at once; more are turned away.
const NEWCOMERS_MAX: usize = 16;
/// How long one of them may stay.
const NEWCOMER_MAX: Duration = Duration::from_secs(15);

#[derive(Clone)]
pub(super) struct Server {
    pub(super) endpoint: Endpoint,
    pub(super) events: mpsc::Sender<Event>,
    hosts: mpsc::Sender<HostEvent>,
    /// None: nobody predicts.
    beacons: Option<Arc<Inbox>>,
    numbers: Arc<AtomicU64>,
    /// Room for snapshots that come in.
    pub(super) snapshots: Arc<Semaphore>,
    newcomers: Arc<Semaphore>,
}

pub(super) async fn run(
    endpoint: Endpoint,
    events: mpsc::Sender<Event>,
    hosts: mpsc::Sender<HostEvent>,
    beacons: Option<Arc<Inbox>>,
) {
    let server = Server {
        endpoint: endpoint.clone(),
        events,
        hosts,
        beacons,
        numbers: Arc::default(),
        snapshots: Arc::new(Semaphore::new(snapshots::AT_ONCE)),
        newcomers: Arc::new(Semaphore::new(NEWCOMERS_MAX)),
    };
    let room = Arc::new(Semaphore::new(LINKS_MAX));
    let mut links = JoinSet::new();
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let Some(incoming) = endpoint.accept().await else {
            return;
        };
        while links.try_join_next().is_some() {}
        let server = server.clone();
        links.spawn(async move {
            server.greet(incoming).await;
            drop(permit);
        });
    }
}

impl Server {
    async fn greet(self, incoming: Incoming) {
        let from = incoming.remote_addr();
        match incoming.handshake().await {
            Ok(link) => self.serve(link).await,
            Err(error) => tracing::warn!(%from, %error, "refused a connection"),
        }
    }

    async fn serve(self, link: Link) {
        let who = link.principal();
        tracing::info!(%who, from = %link.remote_addr(), "connected");
        if let Some(certificate) = link.certificate() {
            // Fails only when the process stops.
            let _ = self.events.send(Event::Certificate(certificate)).await;
        }
        match who {
            Principal::Host(host) => self.serve_host(host, &link).await,
            Principal::Coordinator(_) | Principal::Operator => self.streams(&link).await,
            Principal::Newcomer => self.serve_newcomer(&link).await,
        }
        tracing::info!(%who, "disconnected");
    }

    async fn serve_host(&self, host: HostId, link: &Link) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        // Fails only when the process stops.
        let _ = self
            .hosts
            .send(HostEvent::Joined {
                host,
                link: link.clone(),
                number,
            })
            .await;
        self.streams(link).await;
        let (last, was_last) = oneshot::channel();
        let _ = self.hosts.send(HostEvent::Left { host, number, last }).await;
        if was_last.await.unwrap_or(false) {
            let _ = self.events.send(Event::HostGone(host)).await;
        }
    }

    /// Anybody can be a newcomer: there is room for few, and not for long.
    async fn serve_newcomer(&self, link: &Link) {
        let Ok(_room) = self.newcomers.try_acquire() else {
            link.close("too many newcomers: try again");
            return;
        };
        if tokio::time::timeout(NEWCOMER_MAX, self.streams(link))
            .await
            .is_err()
        {
            link.close("a newcomer stays no longer");
        }
    }

    /// Takes the peer's streams in until the link ends.
    async fn streams(&self, link: &Link) {
        let (who, from) = (link.principal(), link.remote_addr());
        let mut streams = JoinSet::new();
        loop {
            // The transport bounds how many of them a peer may have open.
            tokio::select! {
                stream = link.accept_bi() => match stream {
                    Ok(stream) => {
                        let (server, link) = (self.clone(), link.clone());
                        streams.spawn(async move {
                            report(who, rpc::serve(&server, &link, stream).await);
                        });
                    }
                    Err(_) => return,
                },
                stream = link.accept_uni() => match stream {
                    Ok(stream) => {
                        let server = self.clone();
                        streams.spawn(async move {
                            let outcome = match stream.kind().await {
                                Ok((kind, frames)) => server.uni(who, from, kind, frames).await,
                                Err(error) => Err(error),
                            };
                            report(who, outcome);
                        });
                    }
                    Err(_) => return,
                },
                Some(_) = streams.join_next() => {}
            }
        }
    }

    async fn uni(
        &self,
        who: Principal,
        addr: SocketAddr,
        kind: StreamKind,
        frames: FrameReceiver,
    ) -> Result<(), TransportError> {
        match (who, kind) {
            (Principal::Coordinator(from), StreamKind::Raft) => raft(from, addr, frames, &self.events).await,
            (Principal::Host(host), StreamKind::Beacon) => {
                beacons::serve(host, frames, self.beacons.as_deref()).await
            }
            _ => Err(TransportError::UnknownStream(kind as u8)),
        }
    }
}

/// A stream that ended with its link is no news.
fn report(who: Principal, outcome: Result<(), TransportError>) {
    match outcome {
        Ok(()) => {}
        Err(error @ TransportError::Closed(_)) => tracing::debug!(%who, %error, "a stream ended"),
        Err(error) => tracing::warn!(%who, %error, "closed a stream"),
    }
}

async fn raft(
    from: CoordinatorId,
    addr: SocketAddr,
    mut frames: FrameReceiver,
    events: &mpsc::Sender<Event>,
) -> Result<(), TransportError> {
    while let Some(frame) = frames.receive().await? {
        let message =
            protobuf::Message::parse_from_bytes(&frame).map_err(|error: protobuf::ProtobufError| {
                understudy_common::wire::DecodeError {
                    expected: "raft message",
                    why: error.to_string(),
                }
            })?;
        if events.try_send(Event::Message { from, addr, message }).is_err() {
            tracing::debug!(%from, "dropped a raft message: the loop is behind");
        }
    }
    Ok(())
}
