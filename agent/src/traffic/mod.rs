//! Brings a service's clients to this host (DESIGN §7).
//!
//! Invariants: a driver never asks whether this host may serve: the gate does, in the kernel. Taking
//! and leaving are idempotent, so that they can be repeated after any crash.

mod arp;
mod virtual_ip;

use std::future::Future;
use std::io;
use std::net::Ipv4Addr;

pub use arp::ANNOUNCEMENTS;
pub use virtual_ip::VirtualIp;

/// A way to bring clients here. All calls are for one service on one host.
pub trait TrafficDriver {
    /// Clients come here from now on. Open the gate first: announcements pass through it.
    fn take(&mut self) -> impl Future<Output = Result<(), TrafficError>> + Send;
    /// Clients no longer come here. Harmless when they did not; to be called at start for every
    /// service that has no live lease here.
    fn leave(&mut self) -> impl Future<Output = Result<(), TrafficError>> + Send;
    /// Whether clients come here now, read back from where it takes effect.
    ///
    /// # Errors
    /// [`TrafficError`].
    fn is_here(&self) -> Result<bool, TrafficError>;
}

#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    #[error("there is no interface {interface} to carry {address}: look at the service's `interface`")]
    NoInterface {
        interface: String,
        address: Ipv4Addr,
        #[source]
        source: io::Error,
    },
    #[error("cannot {what} {address} on {interface}; it needs CAP_NET_ADMIN")]
    Address {
        what: &'static str,
        address: Ipv4Addr,
        interface: String,
        #[source]
        source: Box<rtnetlink::Error>,
    },
    #[error("cannot announce {address} on {interface}; it needs CAP_NET_RAW")]
    Announce {
        address: Ipv4Addr,
        interface: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot talk netlink to the kernel")]
    Netlink(#[source] io::Error),
}

#[cfg(test)]
mod tests;
