//! The network around the event loop: who may open which stream, and where outputs go.
//!
//! Invariants: nothing here decides or keeps state that matters; every queue is bounded, and what
//! does not fit is dropped, since raft messages and orders are sent again.

mod accept;
mod beacons;
mod hosts;
mod peers;
mod renewal;
mod rpc;
mod snapshots;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use raft::eraftpb::Message;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::revocation::Revocations;
use understudy_common::wire::{CoordinatorList, Order};
use understudy_transport::Endpoint;

use crate::config::Member;
use crate::coordinator::Event;
use crate::forecast::Inbox;
use crate::state::Coordinators;

use hosts::HostEvent;

/// Raft messages that wait for one peer.
pub const PEER_QUEUE_MAX: usize = 512;
/// Orders and link changes that wait for the hosts' task.
const HOST_QUEUE_MAX: usize = 4_096;

/// Where the loop's outputs go.
#[derive(Debug)]
pub struct Outbox {
    me: CoordinatorId,
    endpoint: Endpoint,
    events: mpsc::Sender<Event>,
    peers: BTreeMap<CoordinatorId, Peer>,
    hosts: mpsc::Sender<HostEvent>,
    /// Who the coordinators are, for the agents.
    coordinators: watch::Sender<CoordinatorList>,
    /// Whose certificates are refused, for the agents.
    revoked: watch::Sender<Revocations>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Peer {
    addr: SocketAddr,
    /// Its task ends when this is dropped and what waits is sent.
    queue: mpsc::Sender<Message>,
}

impl Outbox {
    pub(crate) fn send(&self, to: CoordinatorId, message: Message) {
        let Some(peer) = self.peers.get(&to) else { return };
        if peer.queue.try_send(message).is_err() {
            tracing::debug!(%to, "dropped a raft message: its queue is full");
        }
    }

    pub(crate) fn order(&self, host: HostId, order: Order) {
        if self
            .hosts
            .try_send(HostEvent::Order {
                host,
                order: Box::new(order),
            })
            .is_err()
        {
            tracing::debug!(%host, "dropped an order: the queue is full; it is sent again");
        }
    }

    /// Talks to the members of the state, and to no others but those that are not known to it yet.
    pub(crate) fn follow(&mut self, known: &Coordinators) {
        while self.tasks.try_join_next().is_some() {}
        self.peers.retain(|id, _| known.listens_to(*id));
        let members: Vec<_> = known
            .members
            .iter()
            .filter_map(|(id, member)| Some((*id, member.addr?)))
            .collect();
        for (id, addr) in &members {
            if self.peers.get(id).is_none_or(|peer| peer.addr != *addr) {
                self.peers.remove(id);
                self.meet(*id, *addr);
            }
        }
        self.coordinators.send_replace(CoordinatorList {
            revision: known.revision,
            members,
        });
    }

    /// Refuses these from now on, and tells the agents.
    pub(crate) fn refuse(&self, list: &Revocations) {
        if let Err(error) = self.endpoint.revoke(list) {
            tracing::error!(%error, "revocations are in force but would not be at the next start");
        }
        self.revoked.send_replace(list.clone());
    }

    /// Another coordinator is at `addr`, as far as is known: what the state says later counts.
    pub(crate) fn meet(&mut self, id: CoordinatorId, addr: SocketAddr) {
        if id == self.me || self.peers.contains_key(&id) {
            return;
        }
        let (queue, messages) = mpsc::channel(PEER_QUEUE_MAX);
        self.peers.insert(id, Peer { addr, queue });
        let (endpoint, events) = (self.endpoint.clone(), self.events.clone());
        self.tasks
            .spawn(peers::run(endpoint, Member { id, addr }, messages, events));
    }
}

/// Starts everything that talks; it ends when `tasks` and the outbox are dropped.
pub fn start(
    endpoint: &Endpoint,
    me: CoordinatorId,
    events: &mpsc::Sender<Event>,
    beacons: Option<Arc<Inbox>>,
    certificate: PathBuf,
    tasks: &mut JoinSet<()>,
) -> Outbox {
    let (hosts, host_events) = mpsc::channel(HOST_QUEUE_MAX);
    let coordinators = watch::Sender::default();
    let revoked = watch::Sender::default();
    tasks.spawn(hosts::run(
        host_events,
        coordinators.subscribe(),
        revoked.subscribe(),
    ));
    tasks.spawn(renewal::run(
        endpoint.clone(),
        me,
        certificate,
        events.clone(),
        coordinators.subscribe(),
    ));
    tasks.spawn(accept::run(
        endpoint.clone(),
        events.clone(),
        hosts.clone(),
        beacons,
    ));
    Outbox {
        me,
        endpoint: endpoint.clone(),
        events: events.clone(),
        peers: BTreeMap::new(),
        hosts,
        coordinators,
        revoked,
        tasks: JoinSet::new(),
    }
}
