//! Results and start stamps.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray};
use understudy_common::abi::telemetry::{BUCKETS, Histogram, Metrics, bucket_of};

/// All results of this CPU.
#[map]
static METRICS: PerCpuArray<Metrics> = PerCpuArray::with_max_entries(1, 0);

/// When a task in scope became runnable, by thread id.
#[map]
pub static RUNNABLE_SINCE: HashMap<u32, u64> = HashMap::with_max_entries(16_384, 0);

/// When a task in scope began to reclaim memory.
#[map]
pub static RECLAIM_SINCE: HashMap<u32, u64> = HashMap::with_max_entries(4_096, 0);

/// When a task began a file sync on a device in scope.
#[map]
pub static SYNC_SINCE: HashMap<u32, u64> = HashMap::with_max_entries(4_096, 0);

pub fn metrics() -> Option<*mut Metrics> {
    METRICS.get_ptr_mut(0)
}

/// Adds to a field of [`Metrics`]. Atomic, because an interrupt may run another program on this CPU in between.
macro_rules! count {
    ($field:ident, $by:expr) => {{
        let metrics = $crate::maps::metrics()?;
        $crate::maps::add(unsafe { &raw mut (*metrics).$field }, $by);
        Some(())
    }};
}
pub(crate) use count;

/// Adds a duration to a histogram of [`Metrics`].
macro_rules! observe {
    ($field:ident, $ns:expr) => {{
        let metrics = $crate::maps::metrics()?;
        $crate::maps::bump(unsafe { &raw mut (*metrics).$field }, $ns);
        Some(())
    }};
}
pub(crate) use observe;

#[inline(always)]
pub fn add(counter: *mut u64, by: u64) {
    // SAFETY: the pointer is into a map value of this program.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, by) };
}

#[inline(always)]
pub fn bump(histogram: *mut Histogram, ns: u64) {
    let bucket = bucket_of(ns) & (BUCKETS - 1);
    // SAFETY: the index is below BUCKETS.
    add(
        unsafe { (&raw mut (*histogram).buckets).cast::<u64>().add(bucket) },
        1,
    );
}

/// Remembers now as the start of something that thread `id` does.
#[inline(always)]
pub fn stamp(map: &HashMap<u32, u64>, id: u32) -> Option<()> {
    if map.insert(id, now_ns(), 0).is_err() {
        return count!(stamps_lost, 1);
    }
    Some(())
}

/// Nanoseconds since the stamp of thread `id`, which is taken away; `None` without one.
#[inline(always)]
pub fn elapsed(map: &HashMap<u32, u64>, id: u32) -> Option<u64> {
    // SAFETY: the value is copied at once; only this thread's own start and end touch its key.
    let since = unsafe { *map.get(id)? };
    let _ = map.remove(id);
    Some(now_ns().saturating_sub(since))
}

#[inline(always)]
fn now_ns() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}
