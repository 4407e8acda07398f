//! Ends of processes in the cgroups of services, pushed at once.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;
use understudy_common::abi::telemetry::{EXIT_BYTES_MAX, Exit, VICTIMS_MAX, WATCHED_MAX};

use crate::kernel::{Pointer, cgroup_id, exit_code, pid, tgid};
use crate::maps::count;

/// The cgroups of services, by cgroup2 id. Nothing else is told.
#[map]
static WATCHED: HashMap<u64, u8> = HashMap::with_max_entries(WATCHED_MAX, 0);

/// Processes that the out-of-memory killer chose, until they end.
#[map]
static VICTIMS: LruHashMap<u32, u8> = LruHashMap::with_max_entries(VICTIMS_MAX, 0);

#[map]
static EXITS: RingBuf = RingBuf::with_byte_size(EXIT_BYTES_MAX, 0);

/// `sched_process_exit(task, ..)`: of a process, not of each of its threads.
#[inline(always)]
pub fn exit(ctx: &BtfTracePointContext) -> Option<()> {
    let task: Pointer = ctx.arg(0);
    let process = tgid(task);
    if pid(task) != process {
        return None;
    }
    let cgroup = cgroup_id(task);
    WATCHED.get_ptr(&cgroup)?;
    let exit = Exit {
        cgroup,
        // SAFETY: the helper takes nothing.
        boot_ns: unsafe { bpf_ktime_get_boot_ns() },
        process,
        code: exit_code(task),
        out_of_memory: u32::from(VICTIMS.remove(&process).is_ok()),
        padding: 0,
    };
    if EXITS.output::<Exit>(exit, 0).is_err() {
        return count!(exits_lost, 1);
    }
    Some(())
}

/// `mark_victim(task, uid)`, as it is since 6.8.
#[inline(always)]
pub fn victim(ctx: &BtfTracePointContext) -> Option<()> {
    let task: Pointer = ctx.arg(0);
    WATCHED.get_ptr(&cgroup_id(task))?;
    // Full: the oldest makes room.
    VICTIMS.insert(&tgid(task), &1, 0).ok()
}
