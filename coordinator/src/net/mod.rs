//! The network around the event loop: who may open which stream, and where outputs go.
//!
//! Invariants: nothing here decides or keeps state that matters; every queue is bounded, and what
//! does not fit is dropped, since raft messages and orders are sent again.

mod accept;
mod beacons;
mod hosts;
mod peers;
mod rpc;

use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;

use raft::eraftpb::Message;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use understudy_common::beacon::Beacon;
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::wire::Order;
use understudy_transport::Endpoint;

use crate::config::Member;
use crate::coordinator::Event;

use hosts::HostEvent;

/// Raft messages that wait for one peer.
pub const PEER_QUEUE_MAX: usize = 512;
/// Orders and link changes that wait for the hosts' task.
const HOST_QUEUE_MAX: usize = 4_096;

/// Where the loop's outputs go.
#[derive(Debug)]
pub struct Outbox {
    peers: BTreeMap<CoordinatorId, mpsc::Sender<Message>>,
    hosts: mpsc::Sender<HostEvent>,
}

impl Outbox {
    pub(crate) fn send(&self, to: CoordinatorId, message: Message) {
        let Some(peer) = self.peers.get(&to) else { return };
        if peer.try_send(message).is_err() {
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
}

/// Starts everything that talks; it ends when `tasks` is dropped.
pub fn start(
    endpoint: &Endpoint,
    me: CoordinatorId,
    members: &[Member],
    events: &mpsc::Sender<Event>,
    beacons: Option<SyncSender<Beacon>>,
    tasks: &mut JoinSet<()>,
) -> Outbox {
    let (hosts, host_events) = mpsc::channel(HOST_QUEUE_MAX);
    tasks.spawn(hosts::run(host_events));
    tasks.spawn(accept::run(
        endpoint.clone(),
        events.clone(),
        hosts.clone(),
        beacons,
    ));
    let mut peers = BTreeMap::new();
    for member in members.iter().filter(|member| member.id != me) {
        let (queue, messages) = mpsc::channel(PEER_QUEUE_MAX);
        peers.insert(member.id, queue);
        tasks.spawn(peers::run(endpoint.clone(), *member, messages, events.clone()));
    }
    Outbox { peers, hosts }
}
