//! When a folio that a write(2) dirties may count for the pages written alone.
//!
//! A folio fires when it becomes dirty, not for each of its pages. If a write marked only its own pages,
//! a store through a mapping to another page of the same, by then dirty, folio would go unseen. So a
//! folio counts whole as soon as a store is possible: while a shared writable mapping exists, and for
//! ever after the first page fault under one. That fault marks the whole file once, for the folios
//! that counted for less before it.

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_get_current_task;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use understudy_common::abi::dirty::{NOTE_TOUCHED, Watch};

use crate::inode::{self, Object};
use crate::mark::Marker;
use crate::write::MAPPING_HOST;

#[unsafe(no_mangle)]
static MAPPING_WRITABLE: Global<u32> = Global::new(0);
/// Zero where the kernel's inode lock has no owner or faults cannot be seen: folios count whole then.
#[unsafe(no_mangle)]
static INODE_LOCK_OWNER: Global<u32> = Global::new(0);

/// # Safety
/// `mapping` is a pointer that the verifier trusts.
#[inline(always)]
unsafe fn has_writable_mappings(mapping: Object) -> bool {
    unsafe { inode::field::<i32>(mapping, &MAPPING_WRITABLE) > 0 }
}

/// Whether the folio is dirtied by something that marks its exact range by itself: a buffered write,
/// truncation or punch. They hold the inode's lock for writing; page faults and everything else that
/// dirties folios come without it.
///
/// # Safety
/// `inode` and `mapping` are pointers that the verifier trusts.
#[inline(always)]
pub unsafe fn counts_exactly(inode: Object, mapping: Object, watch: &Watch) -> bool {
    /// Set by waiters; the lowest bit, which stays in, says that readers hold the lock.
    const NONSPINNABLE: u64 = 2;
    unsafe {
        if INODE_LOCK_OWNER.load() == 0 || watch.mapped != 0 || has_writable_mappings(mapping) {
            return false;
        }
        let owner: u64 = inode::field(inode, &INODE_LOCK_OWNER);
        owner & !NONSPINNABLE == bpf_get_current_task()
    }
}

/// `(mapping, index)`
#[btf_tracepoint]
fn fault(ctx: BtfTracePointContext) -> u32 {
    faulted(ctx.arg(0))
}

/// `(mapping, start, end)`
#[btf_tracepoint]
fn map_pages(ctx: BtfTracePointContext) -> u32 {
    faulted(ctx.arg(0))
}

/// No page can be stored to through a mapping before one of these two fired for the file.
#[inline(always)]
fn faulted(mapping: Object) -> u32 {
    unsafe {
        if !has_writable_mappings(mapping) {
            return 0;
        }
        let Some(watch) = inode::watch(inode::field(mapping, &MAPPING_HOST)) else {
            return 0;
        };
        if watch.mapped == 0 {
            Marker::with(watch.slot, |marker| {
                marker.note(NOTE_TOUCHED, 0);
                watch.mapped = 1;
            });
        }
    }
    0
}
