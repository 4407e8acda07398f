//! Links: to every coordinator (`coordinators`, `uplink`), to the shadows of what is held here (`peers`),
//! and from other hosts (`inbound`); and the certificate that all of them are made with (`renewal`).
//!
//! Invariants: decides nothing. A peer is who its certificate says; what it may not send ends its
//! stream with the reason. Every queue between a link and the agent's loop is bounded.

mod coordinators;
mod inbound;
mod peers;
mod renewal;
mod uplink;

pub use coordinators::{LISTS_MAX, follow};
pub use inbound::{Inbox, accept};
pub use peers::Peers;
pub use renewal::keep_renewed;
pub use uplink::{Asked, RENEWALS_MAX, Said};
