//! The dirty tracker: which pages of the watched files changed.
//!
//! Invariants: nothing is filtered by process (io_uring workers and write-back write too), only by
//! inode; a mark that cannot be stored is noted as lost, never dropped in silence; every mark is made
//! between `enter` and `leave`, so that the agent can tell when a retired epoch is complete.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features)] // the bpf target has no other way to atomic operations

#[path = "../probes/dirty/btrfs.rs"]
mod btrfs;
#[path = "../probes/dirty/direct.rs"]
mod direct;
#[path = "../probes/dirty/ext4.rs"]
mod ext4;
#[path = "../probes/dirty/folio.rs"]
mod folio;
#[path = "../probes/dirty/inode.rs"]
mod inode;
#[path = "../probes/dirty/iomap.rs"]
mod iomap;
#[path = "../probes/dirty/mapped.rs"]
mod mapped;
#[path = "../probes/dirty/mark.rs"]
mod mark;
#[path = "../probes/dirty/shape.rs"]
mod shape;
#[path = "../probes/dirty/times.rs"]
mod times;
#[path = "../probes/dirty/xfs.rs"]
mod xfs;

use understudy_ebpf as _;
