//! The bounded ring of what happened, for people and for `understudy events`.

use std::collections::VecDeque;

use understudy_common::id::{HostId, ServiceId};

/// Events kept; the oldest goes first.
pub const EVENTS_MAX: usize = 512;

#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Events {
    last_seq: u64,
    ring: VecDeque<Event>,
}

#[derive(
    Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
pub struct Event {
    /// Rises by one with every event, from 1.
    pub seq: u64,
    pub at_ms: u64,
    pub kind: EventKind,
    pub service: Option<ServiceId>,
    pub host: Option<HostId>,
    pub text: String,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    HostJoined,
    HostReturned,
    ServiceApplied,
    Granted,
    HandoverBegan,
    HolderFenced,
    FinalCut,
    Serving,
    ShadowAdded,
    ShadowReady,
    ShadowUnready,
    SafeModeBegan,
    SafeModeEnded,
    Paused,
    Resumed,
    Condemned,
    HeldBack,
    Noted,
    CoordinatorAdded,
    CoordinatorPromoted,
    CoordinatorRemoved,
    CoordinatorAnnounced,
    ShadowRemoved,
    ConfirmedDead,
    ServedApart,
    TokenIssued,
    TokenRevoked,
    HostAdmitted,
    HostRemoved,
    Revoked,
}

impl Events {
    pub(super) fn push(
        &mut self,
        at_ms: u64,
        kind: EventKind,
        service: Option<ServiceId>,
        host: Option<HostId>,
        text: String,
    ) {
        if self.ring.len() == EVENTS_MAX {
            self.ring.pop_front();
        }
        self.last_seq += 1;
        self.ring.push_back(Event {
            seq: self.last_seq,
            at_ms,
            kind,
            service,
            host,
            text,
        });
    }

    /// Events after the sequence number, oldest first.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = &Event> {
        self.ring.iter().filter(move |event| event.seq > seq)
    }
}
