//! The host agent: watches the kernel, ships generations, holds leases, obeys orders.

pub mod agent;
pub mod boot;
pub mod btf;
pub mod clock;
pub mod config;
pub mod gate;
pub mod lease;
pub mod net;
pub mod observe;
pub mod service;
pub mod sync;
pub mod telemetry;
pub mod traffic;
pub mod workload;

/// The kernel programs, as `cargo xtask build-ebpf` built them.
pub mod object {
    use aya::include_bytes_aligned;

    pub static TELEMETRY: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/telemetry"));
    pub static DIRTY: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dirty"));
    pub static GATE: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate"));
}
