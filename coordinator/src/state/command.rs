//! What entries of the log say.

use std::net::SocketAddr;

use understudy_common::domain::Domain;
use understudy_common::id::{CoordinatorId, Epoch, GenerationId, HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::spec::ServiceSpec;
use understudy_common::units::BasisPoints;
use understudy_common::wire::{self, Apart, DecodeError, FinalCut, Inventory};

use super::Hold;

/// Bytes of a reason that are kept.
pub const WHY_BYTES_MAX: usize = 1_024;
/// The newest command version that this program can apply.
///
/// A command travels with the version that it needs. A leader proposes none that a member cannot
/// apply, and a replica that meets one stops rather than pass it over. A new [`Change`] needs the
/// next version; one that changes what it does is a new one.
pub const COMMAND_VERSION: u32 = 2;

/// One entry of the log. Its bytes are an rkyv archive in raft's `Entry.data`.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Command {
    /// Wall time of the proposer, for people and for the anti-flap window.
    pub at_ms: u64,
    pub change: Change,
    /// Why it was proposed, for the event log; may be empty. At most [`WHY_BYTES_MAX`].
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Change {
    RegisterHost {
        host: HostId,
        name: String,
        boot: u128,
        addr: SocketAddr,
        version: String,
        inventory: Inventory,
        domain: Domain,
    },
    ApplyService(ServiceSpec),
    /// Gives the next epoch, and only that, to a host.
    Grant {
        service: ServiceId,
        epoch: Epoch,
        holder: HostId,
        /// The boot that its reports came from.
        boot: u128,
        from: Option<GenerationId>,
        reason: GrantReason,
    },
    BeginHandover {
        service: ServiceId,
        epoch: Epoch,
        to: HostId,
        reason: MoveReason,
    },
    /// The holder reported that its gate is closed for the epoch.
    HolderFenced {
        service: ServiceId,
        epoch: Epoch,
    },
    /// The holder reported the final cut and who has it.
    FinalCut {
        service: ServiceId,
        epoch: Epoch,
        cut: FinalCut,
    },
    /// The holder reported that it serves.
    Served {
        service: ServiceId,
        epoch: Epoch,
    },
    /// The host is to be filled.
    AddShadow {
        service: ServiceId,
        host: HostId,
    },
    /// The host is ready and the holder acknowledged the set: it can be promoted from now on.
    ShadowReady {
        service: ServiceId,
        epoch: Epoch,
        host: HostId,
    },
    /// The host's copy is no longer ready: it cannot be promoted.
    ShadowUnready {
        service: ServiceId,
        host: HostId,
    },
    Risks(Vec<(HostId, BasisPoints)>),
    SafeMode {
        host: HostId,
        on: bool,
    },
    Pause {
        on: bool,
    },
    /// The leader no longer renews the epoch's lease, so that it ends.
    Condemned {
        service: ServiceId,
        epoch: Epoch,
        /// Against the word of its holder, because those who watch it agree that it cannot be reached.
        by_evidence: bool,
    },
    /// Something that would be done is held back, or not any more.
    Held {
        hold: Hold,
        on: bool,
    },
    /// An operator's remark.
    Note {
        text: String,
    },
    /// A coordinator says which commands it can apply.
    Announce {
        coordinator: CoordinatorId,
        version: u32,
        /// The version of its program.
        software: String,
    },
    /// The host is to keep no copy any more.
    RemoveShadow {
        service: ServiceId,
        host: HostId,
    },
    /// An operator vouches that this boot of the host is dead.
    ConfirmDead {
        host: HostId,
        boot: u128,
    },
    /// The holder reported a stretch of time that it served without the coordinators.
    ServedApart {
        service: ServiceId,
        host: HostId,
        boot: u128,
        apart: Apart,
    },
    /// From version 2 on: a token, known by its secret's hash.
    IssueToken {
        hash: [u8; 32],
        name: Option<String>,
        expires_at_ms: u64,
    },
    RevokeToken {
        number: u64,
    },
    /// The token is used up for this certificate request.
    Admit {
        token: [u8; 32],
        request: [u8; 32],
        host: HostId,
        name: String,
    },
    /// All certificates that the principal has so far are refused.
    Revoke {
        who: Principal,
    },
    RemoveHost {
        host: HostId,
        force: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum GrantReason {
    /// Nobody has served it yet.
    First,
    /// The last step of a planned handover.
    Handover,
    /// The lease of the previous holder ended.
    LeaseEnded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum MoveReason {
    Predicted { risk: BasisPoints },
    Operator,
}

impl Command {
    pub const fn new(at_ms: u64, change: Change) -> Self {
        Self {
            at_ms,
            change,
            why: String::new(),
        }
    }

    /// Adds the reason; what is beyond its bound is cut off.
    #[must_use]
    pub fn because(mut self, why: &str) -> Self {
        self.why = why[..why.floor_char_boundary(WHY_BYTES_MAX)].to_owned();
        self
    }

    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self).into_vec()
    }

    /// # Errors
    /// [`DecodeError`] when the bytes are no command.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        wire::decode(bytes)
    }
}

impl Change {
    /// The command version that a replica needs to apply it.
    pub const fn version(&self) -> u32 {
        match self {
            // How versions are told is known to all of them.
            Self::Announce { .. } => 0,
            Self::RegisterHost { .. }
            | Self::ApplyService(_)
            | Self::Grant { .. }
            | Self::BeginHandover { .. }
            | Self::HolderFenced { .. }
            | Self::FinalCut { .. }
            | Self::Served { .. }
            | Self::AddShadow { .. }
            | Self::ShadowReady { .. }
            | Self::ShadowUnready { .. }
            | Self::Risks(_)
            | Self::SafeMode { .. }
            | Self::Pause { .. }
            | Self::Condemned { .. }
            | Self::Held { .. }
            | Self::Note { .. }
            | Self::RemoveShadow { .. } => 1,
            Self::ConfirmDead { .. }
            | Self::ServedApart { .. }
            | Self::IssueToken { .. }
            | Self::RevokeToken { .. }
            | Self::Admit { .. }
            | Self::Revoke { .. }
            | Self::RemoveHost { .. } => 2,
        }
    }

    /// The service that it is about, if it is about one.
    pub const fn service(&self) -> Option<ServiceId> {
        match self {
            Self::Grant { service, .. }
            | Self::BeginHandover { service, .. }
            | Self::HolderFenced { service, .. }
            | Self::FinalCut { service, .. }
            | Self::Served { service, .. }
            | Self::AddShadow { service, .. }
            | Self::ShadowReady { service, .. }
            | Self::ShadowUnready { service, .. }
            | Self::Condemned { service, .. }
            | Self::RemoveShadow { service, .. }
            | Self::ServedApart { service, .. } => Some(*service),
            Self::RegisterHost { .. }
            | Self::ApplyService(_)
            | Self::Risks(_)
            | Self::SafeMode { .. }
            | Self::Pause { .. }
            // A remark: it holds up no decision about the service.
            | Self::Held { .. }
            | Self::Note { .. }
            | Self::Announce { .. }
            | Self::ConfirmDead { .. }
            | Self::IssueToken { .. }
            | Self::RevokeToken { .. }
            | Self::Admit { .. }
            | Self::Revoke { .. }
            | Self::RemoveHost { .. } => None,
        }
    }
}
