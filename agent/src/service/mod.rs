//! One service on this host: what is to be done (`machine`), doing it (`driver`), and what is
//! known of it after a restart (`kept`).
//!
//! Invariants: `machine.rs` does no I/O and reads no clock. A service serves only after its copy is
//! whole, its workload is well and its gate is open, in this order; a fence is never behind any of it.

mod driver;
mod kept;
mod machine;
#[cfg(test)]
mod tests;

pub use driver::{Driver, DriverSettings, Registry};
pub use kept::KeptOrders;
#[doc(hidden)]
pub use machine::Fault;
pub use machine::{Action, Event, Job, Machine, Outcome, SyncStatus};
