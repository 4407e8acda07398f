//! The bitmaps of the two epochs and the notes beside them.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_or, atomic_xadd, atomic_xchg};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use understudy_common::abi::dirty::{CHUNK_PAGES, ChunkKey, DirtyCounters, NOTE_LOST, Note};

/// Wider ranges, of more than 8 MiB, are noted by their two ends.
const CHUNKS_MAX: u64 = 32;
/// Tries to widen a note beside others that do; then the file is unknown.
const WIDEN_TRIES_MAX: u32 = 8;
const PAGE_SHIFT: u32 = 12;

/// The epoch in which marks are made; the agent flips its lowest bit.
#[map]
static EPOCH: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static COUNTERS: PerCpuArray<DirtyCounters> = PerCpuArray::with_max_entries(1, 0);
// The agent sizes the maps below.
#[map]
static MARKS_0: HashMap<ChunkKey, u64> = HashMap::with_max_entries(65_536, 0);
#[map]
static MARKS_1: HashMap<ChunkKey, u64> = HashMap::with_max_entries(65_536, 0);
#[map]
static NOTES_0: HashMap<u32, Note> = HashMap::with_max_entries(65_536, 0);
#[map]
static NOTES_1: HashMap<u32, Note> = HashMap::with_max_entries(65_536, 0);

/// Between `enter` and `leave`: the right to mark in one epoch.
pub struct Marker {
    counters: &'static mut DirtyCounters,
    odd: bool,
    slot: u32,
}

#[inline(always)]
fn count(counter: &mut u64) {
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
}

/// An exchange is a full barrier in eBPF; an addition is one on some machines only.
#[inline(always)]
fn barrier(counters: &mut DirtyCounters) {
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(&mut counters.barrier, 1) };
}

impl Marker {
    /// Runs `marks` for the file in `slot`.
    #[inline(always)]
    pub fn with(slot: u32, marks: impl FnOnce(&mut Self)) {
        let Some(counters) = COUNTERS.get_ptr_mut(0) else {
            return;
        };
        let counters = unsafe { &mut *counters };
        // The agent sees that this program is inside before the epoch is read here.
        count(&mut counters.entered);
        barrier(counters);
        let odd = match EPOCH.get_ptr(0) {
            Some(epoch) => (unsafe { epoch.read_volatile() } & 1) == 1,
            None => false,
        };
        let mut marker = Self { counters, odd, slot };
        marks(&mut marker);
        if odd {
            marker.counters.marked[1] += 1;
        } else {
            marker.counters.marked[0] += 1;
        }
        // What was marked is there before this program is seen to be outside.
        barrier(marker.counters);
        count(&mut marker.counters.left);
    }

    /// Orders the fields of a watch that two programs tell each other by.
    #[inline(always)]
    pub fn barrier(&mut self) {
        barrier(self.counters);
    }

    /// Marks the pages that `len` bytes from `offset` on touch.
    #[inline(always)]
    pub fn bytes(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let first = offset >> PAGE_SHIFT;
        let last = offset.saturating_add(len - 1) >> PAGE_SHIFT;
        let mut chunk = first / CHUNK_PAGES;
        let last_chunk = last / CHUNK_PAGES;
        if last_chunk - chunk >= CHUNKS_MAX || last_chunk > u64::from(u32::MAX) {
            return self.span(0, offset, offset.saturating_add(len));
        }
        let mut bits = u64::MAX << (first % CHUNK_PAGES);
        for _ in 0..CHUNKS_MAX {
            if chunk == last_chunk {
                bits &= u64::MAX >> (CHUNK_PAGES - 1 - last % CHUNK_PAGES);
                self.chunk(chunk as u32, bits);
                return;
            }
            self.chunk(chunk as u32, bits);
            bits = u64::MAX;
            chunk += 1;
        }
    }

    /// Adds flags.
    #[inline(always)]
    pub fn note(&mut self, flags: u64) {
        self.span(flags, u64::MAX, 0);
    }

    /// Adds flags and the bytes from `low` to before `high`.
    #[inline(always)]
    pub fn span(&mut self, flags: u64, low: u64, high: u64) {
        let known = if self.odd {
            NOTES_1.get_ptr_mut(&self.slot)
        } else {
            NOTES_0.get_ptr_mut(&self.slot)
        };
        if let Some(note) = known {
            return unsafe { merge(note, flags, low, high) };
        }
        let note = Note { flags, low, high };
        let stored = if self.odd {
            NOTES_1.insert(&self.slot, &note, u64::from(BPF_NOEXIST))
        } else {
            NOTES_0.insert(&self.slot, &note, u64::from(BPF_NOEXIST))
        };
        if stored.is_ok() {
            return;
        }
        // Another processor was faster, or there is no room.
        let known = if self.odd {
            NOTES_1.get_ptr_mut(&self.slot)
        } else {
            NOTES_0.get_ptr_mut(&self.slot)
        };
        match known {
            Some(note) => unsafe { merge(note, flags, low, high) },
            None => self.counters.lost_all += 1,
        }
    }

    #[inline(always)]
    fn chunk(&mut self, chunk: u32, bits: u64) {
        let key = ChunkKey {
            slot: self.slot,
            chunk,
        };
        let stored = if self.odd {
            store(&MARKS_1, &key, bits)
        } else {
            store(&MARKS_0, &key, bits)
        };
        if !stored {
            self.counters.lost += 1;
            self.note(NOTE_LOST);
        }
    }
}

/// # Safety
/// `note` points at an element of a notes map.
#[inline(always)]
unsafe fn merge(note: *mut Note, flags: u64, low: u64, high: u64) {
    unsafe {
        let widened = widen(&raw mut (*note).low, low, |now| low < now)
            && widen(&raw mut (*note).high, high, |now| high > now);
        let flags = if widened { flags } else { flags | NOTE_LOST };
        if (*note).flags & flags != flags {
            atomic_or::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*note).flags, flags);
        }
    }
}

/// Stores an end of a note unless what is there is as wide. Direct writes note theirs without the
/// inode's lock.
///
/// # Safety
/// `end` is a field of an element of a notes map.
#[inline(always)]
unsafe fn widen(end: *mut u64, to: u64, is_wider: impl Fn(u64) -> bool) -> bool {
    for _ in 0..WIDEN_TRIES_MAX {
        unsafe {
            let now = end.read_volatile();
            if !is_wider(now) {
                return true;
            }
            let (_, stored) =
                atomic_cxchg::<u64, { AtomicOrdering::Relaxed }, { AtomicOrdering::Relaxed }>(end, now, to);
            if stored {
                return true;
            }
        }
    }
    false
}

/// False when there is no room.
#[inline(always)]
fn store(marks: &HashMap<ChunkKey, u64>, key: &ChunkKey, bits: u64) -> bool {
    if or(marks, key, bits) {
        return true;
    }
    // A failed insertion means no room, or that another processor was faster.
    marks.insert(key, &bits, u64::from(BPF_NOEXIST)).is_ok() || or(marks, key, bits)
}

#[inline(always)]
fn or(marks: &HashMap<ChunkKey, u64>, key: &ChunkKey, bits: u64) -> bool {
    let Some(word) = marks.get_ptr_mut(key) else {
        return false;
    };
    unsafe {
        if *word & bits != bits {
            atomic_or::<u64, u64, { AtomicOrdering::Relaxed }>(word, bits);
        }
    }
    true
}
