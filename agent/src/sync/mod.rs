//! Generations: what changed here, shipped there.

pub mod tracker;
