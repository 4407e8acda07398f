//! The kernel's tracker, for the engine that follows it and for who asks what it costs.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use aya::sys::{Stats, enable_stats};
use serde_json::{Map, Value, json};
use understudy_agent::sync::tracker::{
    ChangeSource, DirtySet, InodeKey, KernelTracker, TrackError, TrackerCounters, TrackerLimits,
};

/// More than any bench makes.
const FILES_MAX: u32 = 1 << 18;

/// Clones are the same tracker.
#[derive(Clone)]
pub(super) struct Tracker(Arc<Mutex<KernelTracker>>);

impl Tracker {
    pub(super) fn open(root: &PathBuf) -> Result<Self, TrackError> {
        let limits = TrackerLimits {
            files_max: FILES_MAX,
            ..TrackerLimits::default()
        };
        let tracker = KernelTracker::open(std::slice::from_ref(root), limits)?;
        Ok(Self(Arc::new(Mutex::new(tracker))))
    }

    /// Nanoseconds that each kernel program took since statistics were kept, by its name.
    pub(super) fn run_time(&self) -> Result<Value> {
        let programs = self.lock().run_time()?;
        let each = programs
            .into_iter()
            .map(|(name, ns, runs)| (name, json!({ "ns": ns, "runs": runs })));
        Ok(Value::Object(each.collect::<Map<_, _>>()))
    }

    fn lock(&self) -> MutexGuard<'_, KernelTracker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChangeSource for Tracker {
    fn watch(&mut self, key: InodeKey, file: BorrowedFd<'_>) -> Result<bool, TrackError> {
        self.lock().watch(key, file)
    }

    fn unwatch(&mut self, key: InodeKey) {
        self.lock().unwatch(key);
    }

    fn swap(&mut self) -> Result<DirtySet, TrackError> {
        self.lock().swap()
    }

    fn pending(&mut self) -> bool {
        self.lock().pending()
    }

    fn exact(&self) -> bool {
        self.lock().exact()
    }

    fn counters(&self) -> TrackerCounters {
        self.lock().counters()
    }
}

/// The kernel times its programs while this is held. The machine's own setting stays as it is.
pub(super) struct Statistics {
    _held: OwnedFd,
}

impl Statistics {
    pub(super) fn keep() -> Result<Self> {
        Ok(Self {
            _held: enable_stats(Stats::RunTime)?,
        })
    }
}
