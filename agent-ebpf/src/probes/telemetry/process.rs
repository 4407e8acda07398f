//! Process ends and TCP retransmissions.

use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;

use crate::kernel::{Pointer, exit_code, pid, socket_in_scope, task_in_scope, tgid};
use crate::maps::count;

/// The part of an exit code that holds the signal.
const SIGNAL: u32 = 0x7f;

/// `sched_process_exit(task, ..)`: counts processes, not their threads.
#[inline(always)]
pub fn exit(ctx: &BtfTracePointContext) -> Option<()> {
    let task: Pointer = ctx.arg(0);
    if pid(task) != tgid(task) || !task_in_scope(task) {
        return None;
    }
    let signal = exit_code(task) & SIGNAL;
    if signal != 0 {
        debug!(ctx, "process {} was ended by signal {}", tgid(task), signal);
        count!(exits_by_signal, 1)?;
    }
    count!(exits, 1)
}

/// `tcp_retransmit_skb(socket, buffer, ..)`.
#[inline(always)]
pub fn tcp_retransmit(ctx: &BtfTracePointContext) -> Option<()> {
    if !socket_in_scope(ctx.arg(0)) {
        return None;
    }
    count!(tcp_retransmits, 1)
}
