//! Generations: what changed here, shipped there.
//!
//! Invariants: nothing waits for the disk inside a freeze; a shadow acknowledges only what is on its
//! disk; a primary's trouble with one shadow never holds up its workload or the other shadows.

mod attributes;
mod checkpoint;
mod content;
mod cutter;
mod drive;
mod fill;
mod identity;
pub(crate) mod journal;
mod placement;
mod primary;
pub mod roots;
pub mod scan;
mod scrub;
pub mod shadow;
mod shipper;
pub mod store;
pub mod tracker;

pub use identity::is_own;
pub use primary::{Primary, PrimaryError, PrimarySettings, PrimaryStatus};
pub use shadow::{Promoted, Shadow, ShadowError, ShadowSettings, ShadowStatus};

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod testdisk;
#[cfg(test)]
mod tests;
