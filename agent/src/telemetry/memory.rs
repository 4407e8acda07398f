//! What memory features mean, for a cgroup and for a host alike.

use understudy_common::beacon::{Feature, Source};

use super::fold::{Sample, Signal};

/// One reading, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct MemoryUse {
    pub limit: u64,
    pub used: u64,
    /// Anonymous and shared memory: without swap only an exit gives it back.
    pub anon: u64,
    /// Page cache of files.
    pub file: u64,
    /// Page cache that reclaim may drop.
    pub droppable: u64,
    pub dirty: Option<u64>,
    pub writeback: Option<u64>,
}

impl MemoryUse {
    pub fn put(self, source: Source, sample: &mut Sample) {
        if self.limit == 0 {
            return;
        }
        let share = |bytes: u64| Signal::Level((bytes as f64 / self.limit as f64).min(1.0));
        let held = self.used.saturating_sub(self.droppable);
        sample.put(Feature::MemoryUsedShare, source, share(self.used));
        sample.put(Feature::MemoryAnonShare, source, share(self.anon));
        sample.put(Feature::MemoryFileShare, source, share(self.file));
        sample.put(
            Feature::MemoryAvailableShare,
            source,
            share(self.limit.saturating_sub(held)),
        );
        sample.put(Feature::MemoryAnonGrowth, source, Signal::Slope(self.anon as f64));
        for (feature, bytes) in [
            (Feature::DirtyBytes, self.dirty),
            (Feature::WritebackBytes, self.writeback),
        ] {
            if let Some(bytes) = bytes {
                sample.put(feature, source, Signal::Level(bytes as f64));
            }
        }
    }
}
