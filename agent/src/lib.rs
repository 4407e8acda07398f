//! The host agent: watches the kernel, ships generations, holds leases, obeys orders.

pub mod btf;
pub mod sync;

pub mod telemetry;

/// The kernel programs, as `cargo xtask build-ebpf` built them.
pub mod object {
    use aya::include_bytes_aligned;

    pub static TELEMETRY: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/telemetry"));
    pub static DIRTY: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dirty"));
    pub static GATE: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gate"));
}

pub mod gate;
pub mod lease;
pub mod traffic;
pub mod workload;
