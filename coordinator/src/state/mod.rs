//! The replicated state and its total, deterministic `apply`.
//!
//! Invariants: `state/` never reads a clock, does no I/O, holds no floats and no unordered maps, so
//! that replicas which applied the same log are equal byte for byte. Every command is either
//! applied whole or changes nothing but a counter. Everything is bounded: [`HOSTS_MAX`],
//! [`SERVICES_MAX`], [`EVENTS_MAX`].

mod admission;
mod apply;
mod command;
mod coordinators;
mod events;
mod hold;
mod orders;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use understudy_common::domain::Domain;
use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::spec::{CoordinatorLoss, ServiceSpec};
use understudy_common::units::{BasisPoints, BootTime};
use understudy_common::wire::{FinalCut, Inventory};

pub use admission::{Admission, Admittance, HOST_NAME_BYTES_MAX, TOKENS_MAX, Token, TokenFate, is_host_name};
pub use apply::Outcome;
pub use command::{COMMAND_VERSION, Change, Command, GrantReason, MoveReason, WHY_BYTES_MAX};
pub use coordinators::{
    Coordinator, Coordinators, Membership, MembershipChange, SOFTWARE_BYTES_MAX, Standing, VOTERS_MAX,
};
pub use events::{EVENTS_MAX, Event, EventKind, Events};
pub use hold::{Cause, Hold};
pub use orders::orders_for;
pub use snapshot::SNAPSHOT_VERSION;

/// Hosts that one cluster registers; more are refused.
pub const HOSTS_MAX: usize = 32_768;
/// Services that one cluster protects; more are refused.
pub const SERVICES_MAX: usize = 4_096;
/// One move of a service by prediction, and one by evidence, within this window.
pub const WINDOW_MS: u64 = 600_000;

/// What all coordinators agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct State {
    /// Raft index of the last applied entry.
    pub index: u64,
    pub hosts: BTreeMap<HostId, Host>,
    pub services: BTreeMap<ServiceId, Service>,
    /// While set nothing is moved by prediction; a lease end is never held back.
    pub paused: bool,
    pub events: Events,
    /// Entries that were no command. They changed nothing.
    pub garbage: u64,
    /// Commands whose check failed. They changed nothing.
    pub refused: u64,
    /// What is held back now and was told as an event.
    pub held: BTreeSet<Hold>,
    pub coordinators: Coordinators,
    pub admission: Admission,
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Host {
    pub name: String,
    pub boot: u128,
    pub addr: SocketAddr,
    pub version: String,
    pub inventory: Inventory,
    /// The model's last word; none where it has said nothing.
    pub risk: Option<BasisPoints>,
    /// Serves nobody and shadows nothing until it ends.
    pub safe_mode: bool,
    pub domain: Domain,
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Service {
    pub spec: ServiceSpec,
    /// Rises by one with every grant; 0 before the first.
    pub epoch: Epoch,
    pub holder: Option<Holder>,
    /// Some holder has served it: there is content that only the promotable may continue.
    pub ever_served: bool,
    /// The promotable set: in the holder's shadow list, acknowledged by it, and once ready.
    pub shadows: BTreeSet<HostId>,
    /// Being filled: in the holder's shadow list but not promotable. The value is the revision
    /// that the holder must have acknowledged before the host is.
    pub joining: BTreeMap<HostId, u64>,
    pub phase: Phase,
    /// Raft index of the last change that its orders derive from.
    pub revision: u64,
    /// Wall time of the last move by prediction.
    pub predicted_at_ms: Option<u64>,
    /// Wall time of the last time that a holder was condemned by evidence.
    pub distrusted_at_ms: Option<u64>,
    /// The holder before a planned move, until its successor serves: fenced, it keeps the address and ships
    /// the final cut to whoever lacks it.
    pub leaving: Option<HostId>,
    /// The last stretch of time that its holder reported to have served without the coordinators.
    pub apart: Option<ServedApart>,
}

/// Who owns the current epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Holder {
    pub host: HostId,
    /// Its boot when the epoch was granted. Another boot of it holds nothing.
    pub boot: u128,
    /// Newest generation that the grant was decided on.
    pub from: Option<GenerationId>,
    /// It has served in this epoch.
    pub served: bool,
    /// An operator vouched that its host is dead: it gets no lease in this epoch any more.
    pub dead: bool,
}

/// Names one stretch of time without the coordinators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ServedApart {
    pub host: HostId,
    pub boot: u128,
    pub since: BootTime,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Phase {
    #[default]
    Steady,
    /// A planned move of the service to `to`.
    Handover {
        to: HostId,
        reason: MoveReason,
        step: Step,
    },
    /// A new holder takes over from one whose lease ended.
    Failover,
}

/// Steps of a planned handover, in order.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Step {
    /// The holder is asked to close its gate.
    Release,
    /// Its gate is closed for the epoch; it makes the final cut.
    Fenced,
    /// The final cut is on the shadows named in it; the next epoch can be granted to one of them.
    Cut(FinalCut),
    /// The next epoch was granted; its holder starts the service.
    Activate,
}

impl Phase {
    /// The word for people.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Handover { .. } => "handover",
            Self::Failover => "failover",
        }
    }
}

impl Service {
    /// Whether the current epoch can no longer be served because the state says so: its holder was
    /// fenced or rebooted.
    pub fn holder_rebooted(&self, state: &State) -> bool {
        self.holder.is_some_and(|holder| {
            state
                .hosts
                .get(&holder.host)
                .is_none_or(|host| host.boot != holder.boot)
        })
    }

    /// Whether the silence of the holder means that its gate is closed. Under a policy that lets it go on
    /// without coordinators it does not, until it is known to have rebooted or an operator vouches.
    pub fn silence_ends(&self, state: &State) -> bool {
        self.spec.policy.coordinator_loss == CoordinatorLoss::Stop
            || self.holder.is_some_and(|holder| holder.dead)
            || self.holder_rebooted(state)
    }

    /// Who can be granted the next epoch, besides the holder itself.
    pub fn promotable(&self) -> BTreeSet<HostId> {
        if self.ever_served {
            self.shadows.clone()
        } else {
            self.spec.hosts.iter().copied().collect()
        }
    }

    /// Whether the log says that the holder's gate is closed for the current epoch.
    pub const fn is_fenced(&self) -> bool {
        matches!(
            self.phase,
            Phase::Handover {
                step: Step::Fenced | Step::Cut(_),
                ..
            }
        )
    }

    /// Whether a move by prediction at this wall time keeps its distance from the one before.
    pub fn may_be_predicted(&self, at_ms: u64) -> bool {
        is_past_window(self.predicted_at_ms, at_ms)
    }

    /// The same for a move against the word of its holder.
    pub fn may_be_distrusted(&self, at_ms: u64) -> bool {
        is_past_window(self.distrusted_at_ms, at_ms)
    }

    pub fn is_shadow(&self, host: HostId) -> bool {
        self.shadows.contains(&host) || self.joining.contains_key(&host)
    }
}

fn is_past_window(last: Option<u64>, at_ms: u64) -> bool {
    last.is_none_or(|last| at_ms.saturating_sub(last) >= WINDOW_MS)
}

impl State {
    pub fn host_by_name(&self, name: &str) -> Option<(HostId, &Host)> {
        self.hosts
            .iter()
            .find(|(_, host)| host.name == name)
            .map(|(id, host)| (*id, host))
    }

    pub fn service_by_name(&self, name: &str) -> Option<(ServiceId, &Service)> {
        self.services
            .iter()
            .find(|(_, service)| service.spec.name == name)
            .map(|(id, service)| (*id, service))
    }

    /// The host's name, or its number before it said hello.
    pub fn host_name(&self, id: HostId) -> String {
        self.hosts
            .get(&id)
            .map_or_else(|| id.to_string(), |host| host.name.clone())
    }
}
