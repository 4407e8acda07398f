//! What two Understudy programs must agree on.
//!
//! Invariants: nothing here does I/O, reads a clock, spawns a task or takes a lock. `abi` alone is
//! `no_std` and is shared with the eBPF programs; everything else needs the `std` feature.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod abi;

#[cfg(feature = "std")]
pub mod delta;

#[cfg(feature = "std")]
pub mod beacon;
#[cfg(feature = "std")]
pub mod domain;
#[cfg(feature = "std")]
pub mod id;
#[cfg(feature = "std")]
pub mod identity;
#[cfg(feature = "std")]
pub mod key_path;
#[cfg(feature = "std")]
pub mod lease;
#[cfg(feature = "std")]
pub mod renewal;
#[cfg(feature = "std")]
pub mod revocation;
#[cfg(feature = "std")]
pub mod spec;
#[cfg(feature = "std")]
pub mod units;
#[cfg(feature = "std")]
pub mod wire;
