//! xfs: changes of the file's shape and size. What it writes and zeroes, punched ranges among it, goes
//! through iomap.

use aya_ebpf::Global;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use understudy_common::abi::dirty::NOTE_TOUCHED;

use crate::inode::{self, Object};
use crate::mark::Marker;
use crate::shape::{self, ALL};

/// Where the inode lies in xfs's own.
#[unsafe(no_mangle)]
static XFS_INODE: Global<u32> = Global::new(0);

/// `fs/xfs/xfs_inode.h`: the inode's lock, and the lock of its extents and size.
const IOLOCK_EXCL: u32 = 1 << 0;
const ILOCK_EXCL: u32 = 1 << 2;

#[inline(always)]
fn inode_of(xfs_inode: Object) -> Object {
    unsafe { xfs_inode.byte_add(XFS_INODE.load() as usize) }
}

/// `(ip, lock_flags, caller)`, after the lock was let go of. Each transaction on the extents and each
/// change of the size ends with one.
#[btf_tracepoint]
fn xfs_unlock(ctx: BtfTracePointContext) -> u32 {
    let flags: u32 = ctx.arg(1);
    if flags & (IOLOCK_EXCL | ILOCK_EXCL) == 0 {
        return 0;
    }
    let inode = inode_of(ctx.arg(0));
    let Some(watch) = inode::watch(inode) else {
        return 0;
    };
    shape::step(inode, watch, flags & IOLOCK_EXCL != 0);
    shape::resized(inode, watch);
    0
}

/// `(ip, new_size)`, after the page cache was cut off; also when blocks past the end are given back.
#[btf_tracepoint]
fn xfs_truncate(ctx: BtfTracePointContext) -> u32 {
    let inode = inode_of(ctx.arg(0));
    let Some(watch) = inode::watch(inode) else {
        return 0;
    };
    let (new_size, size): (u64, u64) = (ctx.arg(1), inode::size(inode));
    if new_size < size {
        Marker::with(watch.slot, |marker| marker.span(NOTE_TOUCHED, new_size, u64::MAX));
    }
    shape::resized(inode, watch);
    0
}

/// `(ip)`: everything behind a place that is not said moves.
#[btf_tracepoint]
fn xfs_collapse(ctx: BtfTracePointContext) -> u32 {
    shaped(ctx.arg(0))
}

#[btf_tracepoint]
fn xfs_insert(ctx: BtfTracePointContext) -> u32 {
    shaped(ctx.arg(0))
}

/// `(ip, which)`, after the extents of two files changed places.
#[btf_tracepoint]
fn xfs_swapped(ctx: BtfTracePointContext) -> u32 {
    shaped(ctx.arg(0))
}

#[btf_tracepoint]
fn xfs_exchanged(ctx: BtfTracePointContext) -> u32 {
    shaped(ctx.arg(0))
}

#[inline(always)]
fn shaped(xfs_inode: Object) -> u32 {
    if let Some(watch) = inode::watch(inode_of(xfs_inode)) {
        shape::begin(watch, 0, ALL);
    }
    0
}

/// `(src, src_offset, len, dest, dest_offset)`: reflinks, copies made of them, and deduplication.
#[btf_tracepoint]
fn xfs_remap(ctx: BtfTracePointContext) -> u32 {
    let (len, dest, start): (u64, Object, u64) = (ctx.arg(2), ctx.arg(3), ctx.arg(4));
    if let Some(watch) = inode::watch(inode_of(dest)) {
        shape::begin(watch, start, len);
    }
    0
}
