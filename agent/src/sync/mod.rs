//! Generations: what changed here, shipped there.
//!
//! Invariants: nothing waits for the disk inside a freeze; a shadow acknowledges only what is on its
//! disk; a primary's trouble with one shadow never holds up its workload or the other shadows.

mod checkpoint;
mod content;
mod cutter;
mod drive;
mod identity;
mod journal;
mod placement;
mod primary;
pub mod roots;
pub mod scan;
pub mod shadow;
mod shipper;
pub mod store;
pub mod tracker;

pub use primary::{Primary, PrimaryError, PrimarySettings, PrimaryStatus};
pub use shadow::{Promoted, Shadow, ShadowError, ShadowSettings, ShadowStatus};

#[cfg(test)]
mod tests;
