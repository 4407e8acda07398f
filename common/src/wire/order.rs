//! Orders: the role that the replicated state wants one host to have for one service.
//!
//! Orders are level-triggered: each states the whole desired role, so re-sending is harmless and
//! losing one costs only time. An agent refuses an order whose epoch is below the highest that it
//! has seen for the service.

use std::net::SocketAddr;

use crate::id::{Epoch, GenerationId, HostId, ServiceId};
use crate::spec::ServiceSpec;
use crate::wire::Refusal;

/// A host and where its agent listens for sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Peer {
    pub host: HostId,
    pub addr: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Order {
    pub service: ServiceId,
    /// The service's current epoch.
    pub epoch: Epoch,
    /// Raft index of the state that this order was derived from; rises with every change.
    pub revision: u64,
    pub role: Role,
    pub spec: ServiceSpec,
    /// Who holds the epoch, for the others to watch.
    pub holder: Option<Peer>,
    /// To a holder: no host outside its shadows is granted a later epoch unless it obeyed a newer order
    /// before. False while nobody ever served: any host of the service may be granted the next one.
    pub bounding: bool,
    /// The boot of the host that the order is for, as the state knows it: another boot does not obey.
    pub boot: u128,
}

impl Order {
    /// Whether it was meant for this boot of the host. A machine that lost its power lost what its services
    /// had not synced, so it must not go on with what it was told before.
    ///
    /// # Errors
    /// [`Refusal::Invalid`]: once the host's hello is in the state, an order for its new boot follows.
    pub fn check_boot(&self, boot: u128) -> Result<(), Refusal> {
        if self.boot == boot {
            return Ok(());
        }
        Err(Refusal::Invalid(
            "the order is for another boot of this host".to_owned(),
        ))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Role {
    /// Hold the lease of `Order::epoch`: activate from `from` if not serving yet, serve, and ship
    /// generations to `shadows`.
    Serve {
        /// Newest generation that the promotion was decided on; none for a service that never ran.
        from: Option<GenerationId>,
        shadows: Vec<Peer>,
    },
    /// Planned handover, on the holder: close the gate, report the fence, stop the workload, make
    /// the final cut and ship it to `shadows`, report it.
    Release { shadows: Vec<Peer> },
    /// Keep a copy; accept generations of `primary`, of this epoch or newer, and serve nobody.
    Shadow { primary: HostId },
    /// Fenced off: serve nobody, copy nothing, keep the data.
    Idle,
}
