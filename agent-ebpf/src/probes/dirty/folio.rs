//! Folios that became dirty: stores through mappings, and everything else that has no event of its own.

use aya_ebpf::Global;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::inode::{self, Object};
use crate::mapped;
use crate::mark::Marker;

#[unsafe(no_mangle)]
static FOLIO_FLAGS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FOLIO_FLAGS_1: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static FOLIO_INDEX: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static MAPPING_HOST: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static PG_HEAD: Global<u32> = Global::new(0);

/// `(folio, mapping)`: fires when a clean folio becomes dirty. All of its pages are marked.
#[btf_tracepoint]
fn dirty_folio(ctx: BtfTracePointContext) -> u32 {
    let (folio, mapping): (Object, Object) = (ctx.arg(0), ctx.arg(1));
    if mapping.is_null() {
        return 0;
    }
    unsafe {
        let inode: Object = inode::field(mapping, &MAPPING_HOST);
        let Some(watch) = inode::watch(inode) else {
            return 0;
        };
        if mapped::counts_exactly(inode, mapping, watch) {
            return 0;
        }
        let flags: u64 = inode::field(folio, &FOLIO_FLAGS);
        let order = if flags >> PG_HEAD.load() & 1 == 1 {
            inode::field::<u64>(folio, &FOLIO_FLAGS_1) & 0xff
        } else {
            0
        };
        let index: u64 = inode::field(folio, &FOLIO_INDEX);
        Marker::with(watch.slot, |marker| {
            marker.bytes(index << 12, 4096 << (order & 31));
        });
    }
    0
}
