//! Telemetry: distributions and causes that procfs cannot give (DESIGN §3).
//!
//! Invariants: the programs read, stamp and count, nothing else; one per-CPU record holds all results, and only the
//! rare ends of services' processes are pushed; every
//! kernel offset and the scope are `.rodata` constants written by the loader, and a program whose offsets are not
//! known is never loaded; maps are bounded, and a stamp that finds its map full is counted as lost.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "the only way to an atomic add on this target")]

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use understudy_ebpf as _;

#[path = "../probes/telemetry/block.rs"]
mod block;
#[path = "../probes/telemetry/cpu.rs"]
mod cpu;
#[path = "../probes/telemetry/kernel.rs"]
mod kernel;
#[path = "../probes/telemetry/maps.rs"]
mod maps;
#[path = "../probes/telemetry/memory.rs"]
mod memory;
#[path = "../probes/telemetry/process.rs"]
mod process;
#[path = "../probes/telemetry/workload.rs"]
mod workload;

/// A program of the given name around a function that may find nothing to do.
macro_rules! probes {
    ($($name:ident => $body:path;)+) => {$(
        #[btf_tracepoint]
        pub fn $name(ctx: BtfTracePointContext) -> i32 {
            let _: Option<()> = $body(&ctx);
            0
        }
    )+};
}

probes! {
    sched_wakeup => cpu::wakeup;
    sched_wakeup_new => cpu::wakeup;
    sched_switch => cpu::switch;
    block_io_done => block::done;
    block_rq_error => block::error;
    ext4_sync_file_enter => block::sync_enter;
    ext4_sync_file_exit => block::sync_exit;
    reclaim_begin => memory::reclaim_begin;
    reclaim_end => memory::reclaim_end;
    cgroup_reclaim_begin => memory::reclaim_begin;
    cgroup_reclaim_end => memory::reclaim_end;
    oom_victim => memory::oom_victim;
    tcp_retransmit => process::tcp_retransmit;
    process_exit => process::exit;
    workload_exit => workload::exit;
    workload_victim => workload::victim;
}
