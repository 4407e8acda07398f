//! Requests and responses on `Rpc` streams.

use std::net::SocketAddr;

use crate::domain::Domain;
use crate::id::{CoordinatorId, Epoch, GenerationId, HostId, ServiceId};
use crate::revocation::Revocations;
use crate::units::{BasisPoints, BootTime};
use crate::wire::Order;

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Request {
    /// Agent → coordinator, first request on a connection.
    Hello(Hello),
    /// Agent → coordinator, every renewal interval, for all leases that the host holds.
    Renew(Renew),
    /// Agent → coordinator, every report interval and at once when something in it changed.
    Report(HostReport),
    /// Coordinator → agent: the desired role of the host for a service.
    Order(Order),
    /// Operator → coordinator.
    Operate(Operate),
    /// Coordinator → agent: who the coordinators are, when the agent connects and when it changes.
    Coordinators(CoordinatorList),
    /// Agent → agent: the holder of these leases asks one of its shadows for a promise.
    Promise(PromiseRequest),
    /// Newcomer → coordinator: asks for a certificate.
    Join(Join),
    /// Coordinator → agent: whose certificates are refused, when the agent connects and when it changes.
    Revoked(Revocations),
    /// Agent or coordinator → coordinator: asks for a new certificate of the one that the link was
    /// made with: the same principal, enrolment and key, which the link has proved.
    RenewCertificate,
    /// Agent or coordinator → coordinator: what it shows from now on, on new links: DER, its own first,
    /// then those between it and the CA. At most [`CHAIN_MAX`] certificates.
    ShowCertificate(Vec<Vec<u8>>),
}

/// Longest chain of certificates that is looked at.
pub const CHAIN_MAX: usize = 4;

/// What a newcomer shows and wants.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Join {
    /// The token's secret. The cluster keeps only its hash.
    pub secret: [u8; 16],
    /// What the host is to be called.
    pub name: String,
    /// A PKCS #10 request, DER, for the key that the newcomer made and keeps. At most [`CSR_BYTES_MAX`].
    pub request: Vec<u8>,
}

/// Longest certificate request that is looked at.
pub const CSR_BYTES_MAX: usize = 4_096;

/// What a newcomer is from now on.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Admitted {
    pub host: HostId,
    pub name: String,
    pub enrolment: u32,
    pub coordinators: Vec<(CoordinatorId, SocketAddr)>,
    /// PEM: the host's certificate and those between it and the CA; the coordinator's shell signs it.
    pub certificate: String,
    /// PEM.
    pub ca: String,
}

/// Who the coordinators are and where they listen.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct CoordinatorList {
    /// Rises with every change; a list of a lower one is out of date.
    pub revision: u64,
    pub members: Vec<(CoordinatorId, SocketAddr)>,
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Response {
    Done,
    Renewed(Renewed),
    /// Not the leader; ask that one if there is one.
    NotLeader(Option<CoordinatorId>),
    /// The request was understood and is refused.
    Refused(Refusal),
    /// A JSON document for the CLI.
    Document(String),
    Promised(Promised),
    Admitted(Admitted),
    /// PEM: the new certificate and those between it and the CA.
    Certificate(String),
}

#[derive(
    Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, thiserror::Error,
)]
pub enum Refusal {
    #[error("{speaker} may not speak for {subject}")]
    NotYours { speaker: String, subject: String },
    #[error("the order's epoch {order} is older than {seen}, which this host has already seen")]
    StaleEpoch { order: Epoch, seen: Epoch },
    #[error("{0}")]
    Invalid(String),
    #[error("there is no {0}")]
    Unknown(String),
    #[error("the queue of {0} is full; try again")]
    Busy(String),
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Hello {
    pub host: HostId,
    pub name: String,
    /// Random per boot of the host (or of its test bed): a change means that nothing in memory survived.
    pub boot: u128,
    /// Where the agent listens for sync.
    pub addr: SocketAddr,
    pub version: String,
    pub inventory: Inventory,
    pub domain: Domain,
}

/// What the machine is, from `sysinfo`.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
pub struct Inventory {
    pub kernel: String,
    pub os: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    /// Loaded kernel programs, and where the signals come from: `tp_btf`, `raw_tp`, `procfs`.
    pub ebpf_programs: u32,
    pub ebpf_source: String,
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Renew {
    pub host: HostId,
    /// Rises with every renewal of this host; the answer carries it back.
    pub sequence: u64,
    pub leases: Vec<(ServiceId, Epoch)>,
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Renewed {
    pub sequence: u64,
    /// The leases that are extended to (send time of `sequence` on the holder's clock) + L. One
    /// that was asked for and is not here was refused.
    pub leases: Vec<(ServiceId, Epoch)>,
}

/// Asks for a promise not to serve any of these services in a later epoch for the length of
/// [`crate::lease::LeaseTimes::promise`], from its receipt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct PromiseRequest {
    /// The holder, who asks.
    pub host: HostId,
    /// Rises with every request of this host; the answer carries it back.
    pub sequence: u64,
    pub leases: Vec<(ServiceId, Epoch)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Promised {
    pub sequence: u64,
    /// What is promised. One that was asked for and is not here was refused.
    pub leases: Vec<(ServiceId, Epoch)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct HostReport {
    pub host: HostId,
    pub boot: u128,
    /// Rises with every report of this boot.
    pub sequence: u64,
    pub services: Vec<ServiceReport>,
    /// When it was made, on the host's own clock: the ages in it count up to here.
    pub at: BootTime,
    /// What this host sees of the holders of its services, from its own side.
    pub evidence: Vec<Evidence>,
}

/// What one host sees of the holder of a service in an epoch.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
pub struct Evidence {
    pub service: ServiceId,
    pub epoch: Epoch,
    pub holder: HostId,
    /// The QUIC endpoint of its agent.
    pub agent: Sight,
    /// The service's address at the port of its health check; none when that is no TCP port.
    pub address: Option<Sight>,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
pub struct Sight {
    pub reach: Reach,
    /// Since when every question ended like this, on the observer's own clock.
    pub since: BootTime,
    /// It answered at least once since the observer began to watch this holder in this epoch.
    pub answered: bool,
    /// When the last question ended, on the observer's own clock.
    pub asked: BootTime,
    /// Questions in a row that ended like this.
    pub times: u32,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    Answered,
    /// By an RST or an ICMP message: the machine lives and does not serve there.
    Refused,
    /// Silence: it is dead or cut off, or what lies between is.
    Dropped,
    /// The observer could not ask, which says nothing about the holder.
    Unreachable,
}

/// Where one host stands with one service. Facts only; the coordinator draws the conclusions.
#[derive(
    Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
pub struct ServiceReport {
    pub service: ServiceId,
    /// Highest epoch seen here.
    pub epoch: Epoch,
    /// Revision of the newest order obeyed.
    pub revision: u64,
    /// Serving with an open gate in this epoch.
    pub serving: Option<Epoch>,
    /// Highest epoch that this host's gate is fenced at: nothing of it or below can be served here again.
    pub fenced: Epoch,
    /// The final cut of a planned handover and the shadows that acknowledged it.
    pub final_cut: Option<FinalCut>,
    pub copy: CopyState,
    /// Newest sealed (on a shadow) or cut (on the primary) generation.
    pub generation: Option<GenerationId>,
    /// On the primary: the newest generation that each shadow acknowledged.
    pub acked: Vec<(HostId, GenerationId)>,
    /// Why the last activation or start failed.
    pub failure: Option<String>,
    pub sync: SyncFigures,
    /// What the open gate rests on; the lease while it is closed.
    pub basis: Basis,
    /// The last stretch of time that was served on anything but the lease in this boot.
    pub apart: Option<Apart>,
}

/// What lets a holder serve.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Basis {
    /// The coordinators renewed it.
    #[default]
    Lease,
    /// All its shadows promised not to take over.
    Promises,
    /// The service's policy says so.
    Policy,
}

/// A stretch of time that a holder served without the coordinators.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Apart {
    /// On the holder's boot clock; together with its boot it names the stretch.
    pub since: BootTime,
    pub until: BootTime,
    /// The weakest basis in it.
    pub basis: Basis,
    pub epoch: Epoch,
}

#[derive(
    Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
pub struct FinalCut {
    pub epoch: Epoch,
    pub generation: GenerationId,
    pub acked_by: Vec<HostId>,
}

/// State of a shadow's copy.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum CopyState {
    /// Nothing usable.
    #[default]
    Cold,
    /// Being filled or checked.
    Warming,
    /// A sealed generation that can be promoted.
    Ready,
}

/// Cumulative figures of one service's sync on one host since the agent started.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, serde::Serialize,
)]
pub struct SyncFigures {
    pub generations: u64,
    /// Bytes sent for whole files (first copy or resync).
    pub full_bytes: u64,
    /// Bytes of file content sent as deltas.
    pub delta_bytes: u64,
    pub bytes_read: u64,
    pub freezes: u64,
    pub freezes_timed_out: u64,
    pub freeze_us_last: u64,
    pub freeze_us_p99: u64,
    /// Files that had to be re-read because the tracker was not sure.
    pub unknown: u64,
    pub cuts_discarded: u64,
    /// Cut to acknowledgement of the last generation.
    pub lag_us_last: u64,
    pub final_delta_bytes: u64,
    /// Files of an older history kept aside on this host.
    pub diverged_files: u64,
    /// Read again to find what no mark told.
    pub scrubbed_bytes: u64,
    /// Times that all files were.
    pub scrubs: u64,
    /// Blocks that were found to have changed though nothing had marked them.
    pub missed_writes: u64,
    /// Changed ranges come from the kernel; false where changes are found by scanning.
    pub tracked: bool,
}

/// What an operator may ask for. Texts are TOML as written by people; the coordinator validates.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Operate {
    /// Hosts, services, coordinators, recent events.
    Status,
    /// Events after this sequence number, oldest first, bounded.
    Events {
        after: u64,
    },
    ApplyService {
        toml: String,
    },
    Handover {
        service: String,
        to: Option<String>,
    },
    /// Ends a host's safe mode.
    Restore {
        host: String,
    },
    /// Stops or resumes moves by prediction. Failovers are never held back.
    Pause {
        on: bool,
    },
    /// What the leader would do now, and what not, with the reasons; as if these things were so.
    /// Nothing is touched.
    Plan {
        suppositions: Vec<Supposition>,
    },
    /// A remark for the event log, at most [`NOTE_BYTES_MAX`] bytes.
    Note {
        text: String,
    },
    /// As a learner first; it votes once it has caught up.
    AddCoordinator {
        id: CoordinatorId,
        addr: SocketAddr,
    },
    RemoveCoordinator {
        id: CoordinatorId,
    },
    TransferLeadership {
        to: CoordinatorId,
    },
    /// The operator vouches that the host is dead: its gates are closed for good in this boot.
    ConfirmDead {
        host: String,
    },
    /// Makes a token known by the hash of its secret.
    IssueToken {
        hash: [u8; 32],
        /// The only name that a host may join with; that of a known host makes the newcomer that host.
        name: Option<String>,
        ttl_ms: u64,
    },
    Tokens,
    RevokeToken {
        number: u64,
    },
    /// Refuses all certificates that the principal or host has so far.
    Revoke {
        who: String,
    },
    RemoveHost {
        host: String,
        force: bool,
    },
    /// Whose certificates end when, as far as the leader has seen them.
    Certificates,
}

/// Something to plan with that is not so.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Supposition {
    pub host: String,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Fate {
    /// Its risk has been this for long enough to count.
    Risk(BasisPoints),
    /// It has been silent for so long that its leases are over.
    Dead,
}

/// Longest remark of an operator.
pub const NOTE_BYTES_MAX: usize = 256;
