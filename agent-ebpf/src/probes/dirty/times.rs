//! Attributes that change with no other event: a time that is set alone, a hole that is punched where one is.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use understudy_common::abi::dirty::NOTE_TIMES;

use crate::inode::{self, Object};
use crate::mark::Marker;

/// `(inode, ctime)`
#[btf_tracepoint]
fn time_set(ctx: BtfTracePointContext) -> u32 {
    note(ctx.arg(0))
}

/// `(inode, old, new, cur)`: where times are as fine as who asks for them needs (6.13).
#[btf_tracepoint]
fn time_exchanged(ctx: BtfTracePointContext) -> u32 {
    note(ctx.arg(0))
}

/// The change time moved; what it is the change of may be stored only after this.
#[inline(always)]
fn note(inode: Object) -> u32 {
    if let Some(watch) = inode::watch(inode) {
        Marker::with(watch.slot, |marker| marker.note(NOTE_TIMES));
    }
    0
}
