//! Long runs that must stay uneventful.

pub mod jitter;
mod stall;
mod theft;
