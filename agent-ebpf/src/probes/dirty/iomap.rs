//! What file systems on iomap write into the page cache, or zero in it: xfs.

use aya_ebpf::Global;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::inode::{self, Object};
use crate::mark::Marker;
use crate::shape;

#[unsafe(no_mangle)]
static ITER_INODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static ITER_POS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static ITER_FLAGS: Global<u32> = Global::new(0);
/// Length of the mapping that was worked on; zero at the first call.
#[unsafe(no_mangle)]
static ITER_MAPPED: Global<u32> = Global::new(0);
/// `iter_start_pos` where the kernel has it (6.15): the position is past the work by then.
#[unsafe(no_mangle)]
static ITER_START: Global<u32> = Global::new(0);
/// `processed` where it has not: the position is still at the start of the work.
#[unsafe(no_mangle)]
static ITER_PROCESSED: Global<u32> = Global::new(0);

/// `include/linux/iomap.h`
const IOMAP_WRITE: u32 = 1 << 0;
const IOMAP_ZERO: u32 = 1 << 1;
const IOMAP_DIRECT: u32 = 1 << 4;

/// `(iter, ops, caller)`, when `iomap_iter` is asked for the next mapping and when there is none: what
/// was done with the last one is there to be read, and the size has moved.
///
/// Also before a store through a mapping (`iomap_page_mkwrite`), with the folio's range.
#[btf_tracepoint]
fn iomap_iter(ctx: BtfTracePointContext) -> u32 {
    let iter: Object = ctx.arg(0);
    unsafe {
        let flags: u32 = inode::field(iter, &ITER_FLAGS);
        // Direct writes have events of their own, when they are done.
        if flags & (IOMAP_WRITE | IOMAP_ZERO) == 0 || flags & IOMAP_DIRECT != 0 {
            return 0;
        }
        if inode::field::<u64>(iter, &ITER_MAPPED) == 0 {
            return 0;
        }
        let inode: Object = inode::field(iter, &ITER_INODE);
        let Some(watch) = inode::watch(inode) else {
            return 0;
        };
        let pos: i64 = inode::field(iter, &ITER_POS);
        let (start, len) = if ITER_START.load() != 0 {
            let start: i64 = inode::field(iter, &ITER_START);
            (start, pos - start)
        } else {
            (pos, inode::field::<i64>(iter, &ITER_PROCESSED))
        };
        if start >= 0 && len > 0 {
            Marker::with(watch.slot, |marker| marker.bytes(start as u64, len as u64));
        }
        shape::resized(inode, watch);
    }
    0
}
