//! Block requests and file syncs.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;

use crate::kernel::{
    Pointer, current, file_in_scope, pid, request_in_scope, request_operation, request_start_ns,
};
use crate::maps::{SYNC_SINCE, count, elapsed, observe, stamp};

const READ: u32 = 0;
const WRITE: u32 = 1;

/// `block_io_done(request)`. The request knows when it began, so no map is needed.
#[inline(always)]
pub fn done(ctx: &BtfTracePointContext) -> Option<()> {
    let request: Pointer = ctx.arg(0);
    if !request_in_scope(request) {
        return None;
    }
    let start = request_start_ns(request);
    // A queue that keeps no times leaves it at zero.
    if start == 0 {
        return None;
    }
    // SAFETY: the helper takes nothing.
    let ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(start);
    match request_operation(request) {
        READ => observe!(block_read, ns),
        WRITE => observe!(block_write, ns),
        _ => None,
    }
}

/// `block_rq_error(request, error, bytes)`.
#[inline(always)]
pub fn error(ctx: &BtfTracePointContext) -> Option<()> {
    let request: Pointer = ctx.arg(0);
    if !request_in_scope(request) {
        return None;
    }
    debug!(
        ctx,
        "block request failed, operation {}",
        request_operation(request)
    );
    count!(block_errors, 1)
}

/// `ext4_sync_file_enter(file, datasync)`. Holds what block requests do not: the wait in a cgroup's I/O throttle, which
/// comes before the request exists, and the wait for the journal.
#[inline(always)]
pub fn sync_enter(ctx: &BtfTracePointContext) -> Option<()> {
    if !file_in_scope(ctx.arg(0)) {
        return None;
    }
    stamp(&SYNC_SINCE, pid(current()))
}

/// `ext4_sync_file_exit(inode, result)`.
#[inline(always)]
pub fn sync_exit(_ctx: &BtfTracePointContext) -> Option<()> {
    observe!(fsync, elapsed(&SYNC_SINCE, pid(current()))?)
}
