//! Direct I/O, which passes the page cache by.

use aya_ebpf::Global;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::BtfTracePointContext;
use understudy_common::abi::dirty::NOTE_LOST;

use crate::inode::{self, Object};
use crate::mark::Marker;
use crate::shape;

#[unsafe(no_mangle)]
static KIOCB_FILE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static KIOCB_POS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FILE_INODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static ITER_SOURCE: Global<u32> = Global::new(0);

/// # Safety
/// `kiocb` is a pointer that the verifier trusts.
#[inline(always)]
unsafe fn inode_of(kiocb: Object) -> Object {
    unsafe {
        let file: Object = inode::field(kiocb, &KIOCB_FILE);
        inode::field(file, &FILE_INODE)
    }
}

/// Reads of watched files under way, by their `kiocb`. One that falls out counts as a write.
#[map]
static READS: LruHashMap<u64, u8> = LruHashMap::with_max_entries(4096, 0);

/// `(kiocb, iter, …)`: nothing in `direct_complete` tells a read from a write.
#[btf_tracepoint]
fn direct_begin(ctx: BtfTracePointContext) -> u32 {
    let (kiocb, iter): (Object, Object) = (ctx.arg(0), ctx.arg(1));
    let key = kiocb as u64;
    unsafe {
        if inode::field::<u8>(iter, &ITER_SOURCE) != 0 {
            // A read that ended without completing may have left its entry in the same place.
            let _ = READS.remove(&key);
        } else if inode::watch(inode_of(kiocb)).is_some() {
            let _ = READS.insert(&key, &0, 0);
        }
    }
    0
}

/// `(kiocb, error, ret)`, after the data landed and the page cache let go of the range; the position
/// is past it by then. Whatever did not begin as a read since the file is watched is a write.
#[btf_tracepoint]
fn direct_complete(ctx: BtfTracePointContext) -> u32 {
    let kiocb: Object = ctx.arg(0);
    let ret: i64 = ctx.arg(2);
    unsafe {
        let inode = inode_of(kiocb);
        let Some(watch) = inode::watch(inode) else {
            return 0;
        };
        if READS.remove(&(kiocb as u64)).is_ok() || ret == 0 {
            return 0;
        }
        let end: u64 = inode::field(kiocb, &KIOCB_POS);
        Marker::with(watch.slot, |marker| {
            if ret > 0 && end >= ret as u64 {
                marker.bytes(end - ret as u64, ret as u64);
            } else {
                marker.note(NOTE_LOST);
            }
        });
        shape::resized(inode, watch);
    }
    0
}
