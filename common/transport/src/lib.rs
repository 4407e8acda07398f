//! QUIC with mutual TLS: endpoints, links between two principals, and framed streams on them.
//!
//! Invariants: the only place that imports quinn. It knows frames and principals but no policy;
//! every frame length is bounded by its stream kind before memory is taken for it.

mod file;
mod frame;
mod knock;
mod link;
mod renewal;
mod revoked;
mod socket;
mod tls;

pub use frame::{FrameReceiver, FrameSender};
pub use knock::Knock;
pub use link::{Endpoint, Incoming, Link, PendingCall, PendingStream};
pub use renewal::{RenewalError, chain_in, keep_renewed};

/// Concurrent streams that a peer may open on one link, each way. Further opens wait.
pub const STREAMS_MAX: u32 = 256;

#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error(transparent)]
    Identity(#[from] understudy_common::identity::IdentityError),
    #[error("cannot listen on {addr}")]
    Bind {
        addr: std::net::SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot dial {addr}: {why}")]
    Dial { addr: std::net::SocketAddr, why: String },
    #[error(
        "TLS refused the connection: {0}; check that both certificates come from this cluster's CA, have not expired and are not revoked"
    )]
    Tls(String),
    #[error("the certificate is not taken: {0}")]
    Renewal(String),
    #[error("the certificate of {0} is revoked")]
    Revoked(String),
    #[error("the list of revoked certificates in {} cannot be used: {why}; remove it only if the coordinators can be reached: they send it again", path.display())]
    Revocations { path: std::path::PathBuf, why: String },
    #[error("the link is closed: {0}")]
    Closed(String),
    #[error("the peer is {found}, expected {expected}")]
    WrongPeer { expected: String, found: String },
    #[error("a frame of {len} bytes is over the limit of {max}")]
    FrameTooLong { len: usize, max: usize },
    #[error("stream kind {0} is unknown or not allowed here")]
    UnknownStream(u8),
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
    #[error(transparent)]
    Decode(#[from] understudy_common::wire::DecodeError),
}
