//! Operations that change content without writing it: they shift, replace or exchange extents.
//!
//! The kernel announces them, and the content changes later, bit by bit. So their range is marked when
//! they begin, and again whenever a later event of the same file comes from their own task while it
//! still holds the inode's lock, and for the last time when it lets go of it.

use understudy_common::abi::dirty::{NOTE_EARLY, NOTE_TOUCHED, Watch};

use crate::inode::{self, Holder, Object};
use crate::mark::Marker;

/// What an operation changes when it does not say.
pub const ALL: u64 = u64::MAX;

/// An operation is about to change `len` bytes from `start` on. Its task holds the inode's lock, so the
/// one before is over; but if that shifted extents, its letting go of the lock may be told only later,
/// and has to mark for both then.
#[inline(always)]
pub fn begin(watch: &mut Watch, start: u64, len: u64) {
    if watch.shaping != 0 && watch.shape_len == ALL {
        watch.shape_start = watch.shape_start.min(start);
    } else {
        watch.shape_start = start;
        watch.shape_len = len;
    }
    watch.shaping = 1;
    mark(watch, NOTE_TOUCHED | NOTE_EARLY);
}

/// Something happened to the file that an operation announced before may have done. It is over at the
/// latest when nobody holds the lock; `is_unlock` is the event of letting go of it.
#[inline(always)]
pub fn step(inode: Object, watch: &mut Watch, is_unlock: bool) {
    if watch.shaping == 0 {
        return;
    }
    let holder = inode::lock_holder(inode);
    if holder == Holder::Nobody || (is_unlock && holder == Holder::Unknown) {
        watch.shaping = 0;
    }
    // Write-back and others that do not hold the lock do not shape.
    if is_unlock || holder == Holder::Current {
        mark(watch, NOTE_TOUCHED);
    }
}

/// The file has another size than the watch knows of.
#[inline(always)]
pub fn resized(inode: Object, watch: &mut Watch) {
    let size = inode::size(inode);
    if size == watch.size {
        return;
    }
    Marker::with(watch.slot, |marker| {
        if size < watch.size {
            marker.span(NOTE_TOUCHED, size, u64::MAX);
        } else {
            marker.note(NOTE_TOUCHED);
        }
        watch.size = size;
    });
}

#[inline(always)]
fn mark(watch: &Watch, flags: u64) {
    Marker::with(watch.slot, |marker| {
        if watch.shape_len == ALL {
            return marker.span(flags, watch.shape_start, u64::MAX);
        }
        marker.note(flags);
        marker.bytes(watch.shape_start, watch.shape_len);
    });
}
