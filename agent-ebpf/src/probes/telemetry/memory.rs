//! Reclaim stalls and the out-of-memory killer.

use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;

use crate::kernel::{Pointer, current, pid, task_in_scope};
use crate::maps::{RECLAIM_SINCE, count, elapsed, stamp};

/// `mm_vmscan_direct_reclaim_begin` and `mm_vmscan_memcg_reclaim_begin`: the current task stalls.
#[inline(always)]
pub fn reclaim_begin(_ctx: &BtfTracePointContext) -> Option<()> {
    let task = current();
    if !task_in_scope(task) {
        return None;
    }
    stamp(&RECLAIM_SINCE, pid(task))
}

/// `mm_vmscan_direct_reclaim_end` and `mm_vmscan_memcg_reclaim_end`.
#[inline(always)]
pub fn reclaim_end(_ctx: &BtfTracePointContext) -> Option<()> {
    let ns = elapsed(&RECLAIM_SINCE, pid(current()))?;
    count!(reclaim_ns, ns)?;
    count!(reclaim_stalls, 1)
}

/// `mark_victim(task, uid)`, as it is since 6.8.
#[inline(always)]
pub fn oom_victim(ctx: &BtfTracePointContext) -> Option<()> {
    let task: Pointer = ctx.arg(0);
    if !task_in_scope(task) {
        return None;
    }
    debug!(ctx, "out of memory: process {} was chosen", pid(task));
    count!(oom_kills, 1)
}
