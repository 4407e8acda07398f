//! ext4: buffered writes (exact ranges), and changes of the file's shape: truncate, punch, zero, collapse,
//! insert, and any change of size.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use understudy_common::abi::dirty::{NOTE_TOUCHED, Watch};

use crate::inode::{self, Object};
use crate::mark::Marker;
use crate::shape::{self, ALL};

#[btf_tracepoint]
fn da_write_end(ctx: BtfTracePointContext) -> u32 {
    written(&ctx)
}

#[btf_tracepoint]
fn write_end(ctx: BtfTracePointContext) -> u32 {
    written(&ctx)
}

#[btf_tracepoint]
fn journalled_write_end(ctx: BtfTracePointContext) -> u32 {
    written(&ctx)
}

/// `(inode, pos, len, copied)`, after the copy and before the file's end moves.
#[inline(always)]
fn written(ctx: &BtfTracePointContext) -> u32 {
    let Some(watch) = inode::watch(ctx.arg(0)) else {
        return 0;
    };
    let pos: u64 = ctx.arg(1);
    let len = u64::from(ctx.arg::<u32>(2));
    // It holds the inode's lock: what shaped the file is over.
    watch.shaping = 0;
    Marker::with(watch.slot, |marker| {
        marker.bytes(pos, len);
        // The size is raised a moment later, and the inode need not be marked dirty for it.
        if pos + len > watch.size {
            marker.note(NOTE_TOUCHED);
            watch.size = pos + len;
        }
    });
    0
}

/// `(inode, ip)`, at the end of every change of the inode: finds truncation upwards, `fallocate`,
/// and direct writes past the end. An operation that shapes the file ends with one.
#[btf_tracepoint]
fn mark_inode_dirty(ctx: BtfTracePointContext) -> u32 {
    let inode: Object = ctx.arg(0);
    let Some(watch) = inode::watch(inode) else {
        return 0;
    };
    shape::step(inode, watch, false);
    shape::resized(inode, watch);
    0
}

/// `(inode)`, after the page cache was cut off at the new size.
#[btf_tracepoint]
fn truncate_enter(ctx: BtfTracePointContext) -> u32 {
    let inode: Object = ctx.arg(0);
    let Some(watch) = inode::watch(inode) else {
        return 0;
    };
    let size = inode::size(inode);
    Marker::with(watch.slot, |marker| {
        marker.span(NOTE_TOUCHED, size, u64::MAX);
        watch.size = size;
    });
    0
}

#[btf_tracepoint]
fn punch_hole(ctx: BtfTracePointContext) -> u32 {
    ranged(&ctx)
}

#[btf_tracepoint]
fn zero_range(ctx: BtfTracePointContext) -> u32 {
    ranged(&ctx)
}

/// `(inode, offset, len, …)`, before the change.
#[inline(always)]
fn ranged(ctx: &BtfTracePointContext) -> u32 {
    let Some(watch) = inode::watch(ctx.arg(0)) else {
        return 0;
    };
    begin(watch, ctx.arg(1), ctx.arg(2))
}

#[btf_tracepoint]
fn collapse_range(ctx: BtfTracePointContext) -> u32 {
    shifted(&ctx)
}

#[btf_tracepoint]
fn insert_range(ctx: BtfTracePointContext) -> u32 {
    shifted(&ctx)
}

/// `(inode, offset, len)`: everything behind moves.
#[inline(always)]
fn shifted(ctx: &BtfTracePointContext) -> u32 {
    let Some(watch) = inode::watch(ctx.arg(0)) else {
        return 0;
    };
    begin(watch, ctx.arg(1), ALL)
}

#[inline(always)]
fn begin(watch: &mut Watch, start: u64, len: u64) -> u32 {
    // The last event of the operation before came while that held the lock.
    watch.shaping = 0;
    shape::begin(watch, start, len);
    0
}
