//! Links: to every coordinator (`uplink`), and from other hosts (`inbound`).
//!
//! Invariants: decides nothing. A peer is who its certificate says; what it may not send ends its
//! stream with the reason. Every queue between a link and the agent's loop is bounded.

mod inbound;
mod uplink;

pub use inbound::accept;
pub use uplink::{Asked, RENEWALS_MAX, Said, Uplink, keep_linked};
