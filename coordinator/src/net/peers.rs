//! Raft messages to one other coordinator: dial, send in order, and dial again when the link ends.

use std::time::Duration;

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use understudy_common::identity::Principal;
use understudy_common::wire::StreamKind;
use understudy_transport::{Endpoint, FrameSender, Link, TransportError};

use super::snapshots;
use crate::config::Member;
use crate::coordinator::Event;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(1_000);
/// A dial that takes longer is given up: the network may have come back in the meantime.
const DIAL_MAX: Duration = Duration::from_millis(1_500);

pub(super) async fn run(
    endpoint: Endpoint,
    peer: Member,
    mut messages: mpsc::Receiver<Message>,
    events: mpsc::Sender<Event>,
) {
    let mut backoff = BACKOFF_MIN;
    let mut last_error = None;
    let Some(mut own) = endpoint.credentials() else {
        return;
    };
    loop {
        own.mark_unchanged();
        match connect(&endpoint, peer).await {
            Ok((link, sender)) => {
                tracing::info!(peer = %peer.id, addr = %peer.addr, "connected");
                (backoff, last_error) = (BACKOFF_MIN, None);
                // Told while the link was down: raft has newer things to say.
                while let Ok(message) = messages.try_recv() {
                    if message.get_msg_type() == MessageType::MsgSnapshot {
                        snapshot_sent(&events, peer, false).await;
                    }
                }
                let mut under_way = JoinSet::new();
                let why = tokio::select! {
                    why = pump(sender, &link, peer, &mut messages, &mut under_way, &events) => why,
                    why = link.closed() => Some(why),
                    ended = link.show_renewals(&mut own) => ended.err().map(|error| error.to_string()),
                };
                if !under_way.is_empty() {
                    snapshot_sent(&events, peer, false).await;
                }
                let Some(why) = why else { return };
                tracing::warn!(peer = %peer.id, why, "the link ended");
            }
            Err(error) => {
                let error = error.to_string();
                // Once, not at every attempt.
                if last_error.as_ref() != Some(&error) {
                    tracing::warn!(peer = %peer.id, addr = %peer.addr, error, "cannot connect; trying again");
                }
                last_error = Some(error);
                if messages.is_closed() {
                    return;
                }
            }
        }
        tokio::time::sleep(backoff.mul_f64(jitter())).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

async fn connect(endpoint: &Endpoint, peer: Member) -> Result<(Link, FrameSender), TransportError> {
    let dial = async {
        let link = endpoint.dial(peer.addr, Principal::Coordinator(peer.id)).await?;
        let sender = link.open_uni(StreamKind::Raft).await?;
        Ok((link, sender))
    };
    tokio::time::timeout(DIAL_MAX, dial)
        .await
        .unwrap_or(Err(TransportError::Timeout(DIAL_MAX)))
}

/// Sends until the stream fails (why) or the loop is gone (none).
async fn pump(
    mut sender: FrameSender,
    link: &Link,
    peer: Member,
    messages: &mut mpsc::Receiver<Message>,
    under_way: &mut JoinSet<bool>,
    events: &mpsc::Sender<Event>,
) -> Option<String> {
    loop {
        let message = tokio::select! {
            message = messages.recv() => message?,
            Some(arrived) = under_way.join_next() => {
                snapshot_sent(events, peer, arrived.unwrap_or(false)).await;
                continue;
            }
        };
        if message.get_msg_type() == MessageType::MsgSnapshot {
            if under_way.is_empty() {
                under_way.spawn(snapshots::send(link.clone(), message));
            }
            continue;
        }
        let bytes = match message.write_to_bytes() {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, "a raft message cannot be encoded");
                continue;
            }
        };
        if let Err(error) = sender.send(&bytes).await {
            return Some(error.to_string());
        }
    }
}

/// raft waits for the fate of a snapshot; the loop is gone only when the process stops.
async fn snapshot_sent(events: &mpsc::Sender<Event>, peer: Member, arrived: bool) {
    let to = peer.id;
    let _ = events.send(Event::SnapshotSent { to, arrived }).await;
}

/// 0.5 to 1.5, so that coordinators that lost each other do not dial in step.
fn jitter() -> f64 {
    0.5 + (crate::random() % 1_000) as f64 / 1_000.0
}
