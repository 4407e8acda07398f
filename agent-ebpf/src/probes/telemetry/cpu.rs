//! Run-queue latency: from runnable to running.

use aya_ebpf::programs::BtfTracePointContext;

use crate::kernel::{Pointer, pid, state, task_in_scope};
use crate::maps::{RUNNABLE_SINCE, elapsed, observe, stamp};

/// `sched_wakeup(task)` and `sched_wakeup_new(task)`.
#[inline(always)]
pub fn wakeup(ctx: &BtfTracePointContext) -> Option<()> {
    runnable(ctx.arg(0))
}

/// `sched_switch(preempt, prev, next, ..)`: a task that is switched away while runnable waits again.
#[inline(always)]
pub fn switch(ctx: &BtfTracePointContext) -> Option<()> {
    let (prev, next): (Pointer, Pointer) = (ctx.arg(1), ctx.arg(2));
    if state(prev) == 0 {
        let _ = runnable(prev);
    }
    observe!(run_queue, elapsed(&RUNNABLE_SINCE, pid(next))?)
}

#[inline(always)]
fn runnable(task: Pointer) -> Option<()> {
    let id = pid(task);
    // The idle tasks are thread 0 and are always runnable.
    if id == 0 || !task_in_scope(task) {
        return None;
    }
    stamp(&RUNNABLE_SINCE, id)
}
