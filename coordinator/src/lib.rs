//! The coordinator: a replicated state of hosts, services and epochs, the leases and plans on it.

pub mod lease;
pub mod plan;
pub mod replica;
pub mod state;
