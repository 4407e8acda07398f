//! The record that the telemetry programs fill: one per CPU, read whole by the agent.

/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = 128;

/// Width of the finest bucket as a power of two, in nanoseconds.
const FINEST_SHIFT: u32 = 8;

/// Durations by log2 with four sub-buckets: no bucket is wider than a quarter of its lower edge, from 1 us up to
/// 10 minutes and beyond.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    pub buckets: [u64; BUCKETS],
}

/// Everything that the programs count. All fields only rise.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    pub run_queue: Histogram,
    pub block_read: Histogram,
    pub block_write: Histogram,
    pub fsync: Histogram,
    pub block_errors: u64,
    pub reclaim_stalls: u64,
    pub reclaim_ns: u64,
    pub tcp_retransmits: u64,
    pub oom_kills: u64,
    pub exits: u64,
    pub exits_by_signal: u64,
    /// Start stamps that found their map full: that many durations were not measured.
    pub stamps_lost: u64,
    /// Ends of watched processes that found the ring full.
    pub exits_lost: u64,
}

/// Cgroups whose processes' ends are pushed.
pub const WATCHED_MAX: u32 = 256;
/// Victims of the out-of-memory killer that have not ended yet.
pub const VICTIMS_MAX: u32 = 256;
/// Size of the ring that ends are pushed into.
pub const EXIT_BYTES_MAX: u32 = 1 << 16;

/// The end of a process in a watched cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The cgroup2 directory that it was in.
    pub cgroup: u64,
    /// When, on the kernel's boot clock.
    pub boot_ns: u64,
    pub process: u32,
    /// As `wait` gives it: the exit code in the second byte, or the signal in the first.
    pub code: u32,
    /// 1 when the out-of-memory killer chose it.
    pub out_of_memory: u32,
    pub padding: u32,
}

const _: () = assert!(size_of::<Exit>() == 32);

impl Exit {
    /// None when the bytes are not one record.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; size_of::<Self>()] = bytes.try_into().ok()?;
        let (long, short) = (
            |at: usize| u64::from_ne_bytes(core::array::from_fn(|n| bytes[at + n])),
            |at: usize| u32::from_ne_bytes(core::array::from_fn(|n| bytes[at + n])),
        );
        Some(Self {
            cgroup: long(0),
            boot_ns: long(8),
            process: short(16),
            code: short(20),
            out_of_memory: short(24),
            padding: short(28),
        })
    }
}

const _: () = assert!(size_of::<Histogram>() == 1024);
const _: () = assert!(size_of::<Metrics>() == 4 * 1024 + 9 * 8);

impl Histogram {
    pub const EMPTY: Self = Self {
        buckets: [0; BUCKETS],
    };
}

impl Metrics {
    pub const EMPTY: Self = Self {
        run_queue: Histogram::EMPTY,
        block_read: Histogram::EMPTY,
        block_write: Histogram::EMPTY,
        fsync: Histogram::EMPTY,
        block_errors: 0,
        reclaim_stalls: 0,
        reclaim_ns: 0,
        tcp_retransmits: 0,
        oom_kills: 0,
        exits: 0,
        exits_by_signal: 0,
        stamps_lost: 0,
        exits_lost: 0,
    };
}

/// The bucket that counts a duration.
#[inline(always)]
pub const fn bucket_of(ns: u64) -> usize {
    let units = ns >> FINEST_SHIFT;
    if units < 4 {
        return units as usize;
    }
    let top = 63 - units.leading_zeros();
    let sub = (units >> (top - 2)) & 3;
    let bucket = ((top - 1) * 4) as usize + sub as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The shortest duration, in nanoseconds, that [`bucket_of`] counts in `bucket`.
pub const fn bucket_floor_ns(bucket: usize) -> u64 {
    let units = if bucket < 4 {
        bucket as u64
    } else {
        let top = bucket as u32 / 4 + 1;
        (4 + (bucket as u64 & 3)) << (top - 2)
    };
    units << FINEST_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_begins_where_the_one_before_it_ends() {
        for bucket in 1..BUCKETS {
            let floor = bucket_floor_ns(bucket);
            assert_eq!(bucket_of(floor), bucket);
            assert_eq!(bucket_of(floor - 1), bucket - 1);
        }
    }

    #[test]
    fn the_longest_durations_fall_into_the_last_bucket() {
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert!(bucket_floor_ns(BUCKETS - 1) > 600_000_000_000);
    }

    #[test]
    fn no_bucket_above_a_microsecond_is_wider_than_a_quarter_of_its_floor() {
        for bucket in 4..BUCKETS - 1 {
            let (floor, next) = (bucket_floor_ns(bucket), bucket_floor_ns(bucket + 1));
            assert!((next - floor) * 4 <= floor, "bucket {bucket}: {floor}..{next}");
        }
    }
}
