//! When a folio that a write(2) dirties may count for the pages written alone.
//!
//! A folio fires when it becomes dirty, not for each of its pages. If a write marked only its own pages,
//! a store through a mapping to another page of the same, by then dirty, folio would go unseen. So a
//! folio counts whole as soon as a store is possible: while a shared writable mapping exists, and for
//! ever after the first page fault under one. If any folio counted for less before, that fault marks
//! the whole file, once.
//!
//! Writer and fault may meet: the one sets `exact` and then looks at `mapped`, the other sets `mapped`
//! and then looks at `exact`, with a barrier in between, so at least one of them knows of the other.

use aya_ebpf::Global;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use understudy_common::abi::dirty::{NOTE_TOUCHED, Watch};

use crate::folio::MAPPING_HOST;
use crate::inode::{self, Holder, Object};
use crate::mark::Marker;

#[unsafe(no_mangle)]
static MAPPING_WRITABLE: Global<u32> = Global::new(0);
/// Zero where page faults cannot be seen: folios count whole then.
#[unsafe(no_mangle)]
static FAULTS_SEEN: Global<u32> = Global::new(0);

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
pub unsafe fn counts_exactly(inode: Object, mapping: Object, watch: &mut Watch) -> bool {
    if FAULTS_SEEN.load() == 0 || watch.mapped != 0 || unsafe { has_writable_mappings(mapping) } {
        return false;
    }
    if inode::lock_holder(inode) != Holder::Current {
        return false;
    }
    if watch.exact == 0 {
        watch.exact = 1;
        Marker::with(watch.slot, Marker::barrier);
        // Read again: the fault may have come before `exact` was seen.
        return unsafe { core::ptr::read_volatile(&watch.mapped) } == 0;
    }
    true
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
                watch.mapped = 1;
                marker.barrier();
                if core::ptr::read_volatile(&watch.exact) != 0 {
                    marker.span(NOTE_TOUCHED, 0, u64::MAX);
                }
            });
        }
    }
    0
}
