//! How long each freeze lasted.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use understudy_agent::workload::{CgroupFreezer, FreezeError, Freezer, Frozen, ThawGuard};

/// The guard ends a freeze that lasts longer.
const HARD_LIMIT: Duration = Duration::from_secs(2);
/// More than a run makes; further ones are not timed, and counted.
const FREEZES_MAX: usize = 1 << 20;

/// Those since they were last taken.
#[derive(Debug, Default, Serialize)]
pub(super) struct Lasted {
    /// From the request until the workload was told to go on, those that timed out among them.
    us: Vec<u64>,
    timed_out: u64,
    untimed: u64,
}

/// Freezes a cgroup and notes how long.
pub(super) struct Timed {
    inner: CgroupFreezer,
    lasted: Arc<Mutex<Lasted>>,
}

impl Timed {
    pub(super) fn new(cgroup: PathBuf) -> Self {
        let guard = Arc::new(ThawGuard::of_this_program());
        Self {
            inner: CgroupFreezer::new(cgroup, guard).with_hard_limit(HARD_LIMIT),
            lasted: Arc::default(),
        }
    }

    pub(super) fn take(&self) -> Lasted {
        std::mem::take(&mut *lock(&self.lasted))
    }
}

impl Freezer for Timed {
    fn freeze(&self, limit: Duration) -> Result<Frozen, FreezeError> {
        let begun = Instant::now();
        let frozen = self.inner.freeze(limit).inspect_err(|error| {
            if matches!(error, FreezeError::TimedOut { .. }) {
                let mut lasted = lock(&self.lasted);
                lasted.timed_out += 1;
                lasted.note(begun.elapsed());
            }
        })?;
        let lasted = Arc::clone(&self.lasted);
        let thaw = move || {
            drop(frozen);
            lock(&lasted).note(begun.elapsed());
        };
        Ok(Frozen::new(thaw).until(begun + HARD_LIMIT))
    }
}

impl Lasted {
    fn note(&mut self, took: Duration) {
        if self.us.len() < FREEZES_MAX {
            self.us.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        } else {
            self.untimed += 1;
        }
    }
}

fn lock(lasted: &Mutex<Lasted>) -> MutexGuard<'_, Lasted> {
    lasted.lock().unwrap_or_else(PoisonError::into_inner)
}
