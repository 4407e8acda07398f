//! btrfs: what it writes is marked for delayed allocation, and what it changes otherwise is locked
//! meanwhile, both by range in the inode's tree of extent states.
//!
//! A write(2) or a page fault sets the first, again for pages that are dirty already. Punching,
//! zeroing, truncating, reflinking and encoded writes hold the second while they hold the inode's lock;
//! who reads or writes back locks ranges without that.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use understudy_common::abi::dirty::{NOTE_EARLY, NOTE_TOUCHED, Watch};

use crate::inode::{self, Holder, Object};
use crate::mark::Marker;

#[unsafe(no_mangle)]
static TREE_INODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static TREE_OWNER: Global<u32> = Global::new(0);
/// Value of `IO_TREE_INODE_IO`: the other trees are not of a file's content.
#[unsafe(no_mangle)]
static TREE_OF_INODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static EXTENT_DELALLOC: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static EXTENT_LOCKED: Global<u32> = Global::new(0);

/// A file with a watch whose tree an event is about.
struct File {
    size: u64,
    /// The running task holds the inode's lock.
    is_held: bool,
    watch: &'static mut Watch,
    start: u64,
    /// Just behind; `u64::MAX` for everything.
    end: u64,
}

/// `(tree, start, len, bits)`. The holder of the inode's lock is looked at first, because write-back is
/// most of the events.
#[inline(always)]
fn of(ctx: &BtfTracePointContext, bit: &Global<u32>, by_holder_alone: bool) -> Option<File> {
    let (tree, start, len): (Object, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if ctx.arg::<u32>(3) & bit.load() == 0 {
        return None;
    }
    let inode = unsafe {
        if u32::from(inode::field::<u8>(tree, &TREE_OWNER)) != TREE_OF_INODE.load() {
            return None;
        }
        // In a union, whose members the verifier does not tell apart.
        let place = tree.byte_add(TREE_INODE.load() as usize).cast::<*const c_void>();
        inode::of_btrfs(bpf_probe_read_kernel(place).ok()?)
    };
    let is_held = inode::probed_lock_holder(inode) == Holder::Current;
    if by_holder_alone && !is_held {
        return None;
    }
    let watch = inode::watch_of_btrfs(inode)?;
    let end = start.wrapping_add(len);
    let end = if end <= start { u64::MAX } else { end };
    Some(File {
        size: inode::probed_size(inode).ok()?,
        is_held,
        watch,
        start,
        end,
    })
}

/// Before the tree is changed: after the copy of a write(2), before a store through a mapping.
#[btf_tracepoint]
fn btrfs_set_bits(ctx: BtfTracePointContext) -> u32 {
    let Some(file) = of(&ctx, &EXTENT_DELALLOC, false) else {
        return 0;
    };
    Marker::with(file.watch.slot, |marker| {
        // The size is raised a moment later, and whole blocks are all that is said.
        if file.end > file.size {
            marker.note(NOTE_TOUCHED);
        }
        marker.bytes(file.start, file.end - file.start);
    });
    if file.is_held {
        file.watch.shape_start = file.start;
        file.watch.shape_len = file.end - file.start;
    }
    0
}

/// Before the range is unlocked: its extents are changed, and so is the page cache but for reflinks,
/// which drop theirs afterwards, and the size but for truncation upwards.
#[btf_tracepoint]
fn btrfs_clear_bits(ctx: BtfTracePointContext) -> u32 {
    let Some(file) = of(&ctx, &EXTENT_LOCKED, true) else {
        return 0;
    };
    let (watch, size) = (file.watch, file.size);
    let written_end = watch.shape_start.saturating_add(watch.shape_len);
    let is_written = file.start >= watch.shape_start && file.end <= written_end;
    Marker::with(watch.slot, |marker| {
        if !is_written {
            marker.note(NOTE_TOUCHED | NOTE_EARLY);
        }
        if file.end == u64::MAX {
            marker.span(0, file.start, u64::MAX);
        } else {
            marker.bytes(file.start, file.end - file.start);
        }
        if size < watch.size {
            marker.span(NOTE_TOUCHED, size, u64::MAX);
        } else if size > watch.size {
            marker.note(NOTE_TOUCHED);
        }
        watch.size = size;
    });
    0
}

/// `(inode, ctime)`: the one event after the size of a file that is truncated upwards moved.
#[btf_tracepoint]
fn changed(ctx: BtfTracePointContext) -> u32 {
    let inode: Object = ctx.arg(0);
    if let Some(watch) = inode::watch(inode) {
        crate::shape::resized(inode, watch);
    }
    0
}
