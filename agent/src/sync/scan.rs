//! The change source of file systems without dirty ranges: size, times and inode numbers of every name.
//!
//! Invariant: a file that changed within a clock tick of a look stays suspect until a look finds it
//! quiet, because the times of two changes in one tick are the same. Stores through mmap into tmpfs
//! leave no trace in the times and are not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fs, io};

use super::tracker::{ChangeSource, ChangedName, DirtySet, InodeKey, TrackError, TrackerCounters};

/// Longer than the kernel's coarse clock tick (10 ms at most).
const TICK_NS: i128 = 30_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    key: InodeKey,
    len: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    /// Changed so shortly before the look that a later change may not show.
    fresh: bool,
}

#[derive(Debug)]
pub struct ScanSource {
    roots: Vec<PathBuf>,
    seen: BTreeMap<PathBuf, Stat>,
    watched: BTreeSet<InodeKey>,
    counters: TrackerCounters,
}

impl ScanSource {
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self::watching(roots, [])
    }

    /// Goes on with files that another source watched: its first swap calls them all unknown.
    pub fn watching(roots: Vec<PathBuf>, watched: impl IntoIterator<Item = InodeKey>) -> Self {
        Self {
            roots,
            seen: BTreeMap::new(),
            watched: watched.into_iter().collect(),
            counters: TrackerCounters::default(),
        }
    }

    fn walk(path: PathBuf, now_ns: i128, out: &mut BTreeMap<PathBuf, Stat>) -> io::Result<()> {
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let changed_ns = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        let stat = Stat {
            key: InodeKey {
                dev: meta.dev(),
                ino: meta.ino(),
            },
            len: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
            fresh: now_ns - changed_ns < TICK_NS,
        };
        if meta.is_dir() {
            match fs::read_dir(&path) {
                Ok(entries) => {
                    for entry in entries {
                        Self::walk(entry?.path(), now_ns, out)?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        out.insert(path, stat);
        Ok(())
    }
}

impl ChangeSource for ScanSource {
    fn watch(&mut self, key: InodeKey, _file: BorrowedFd<'_>) -> Result<bool, TrackError> {
        // A file that took the inode of another has other times, which makes it unknown anyway.
        Ok(self.watched.insert(key))
    }

    fn unwatch(&mut self, key: InodeKey) {
        self.watched.remove(&key);
    }

    fn swap(&mut self) -> Result<DirtySet, TrackError> {
        let now_ns = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(i128::MAX));
        let mut now = BTreeMap::new();
        for root in &self.roots {
            Self::walk(root.clone(), now_ns, &mut now).map_err(|source| TrackError::Io {
                what: "walking a service's paths",
                source,
            })?;
        }
        let mut dirty = DirtySet::default();
        let mut changed = |path: &PathBuf| {
            if let (Some(dir), Some(name)) = (path.parent(), path.file_name()) {
                dirty.names.entries.insert(ChangedName {
                    dir: dir.to_owned(),
                    name: name.to_owned(),
                });
            }
        };
        for (path, stat) in &now {
            let same = self.seen.get(path).is_some_and(|was| {
                Stat { fresh: false, ..*was }
                    == Stat {
                        fresh: false,
                        ..*stat
                    }
                    && !was.fresh
            });
            if !same {
                changed(path);
                if self.watched.contains(&stat.key) {
                    dirty.unknown.insert(stat.key);
                }
            }
        }
        self.seen
            .keys()
            .filter(|path| !now.contains_key(*path))
            .for_each(&mut changed);
        self.seen = now;
        self.counters.swaps += 1;
        self.counters.watched = self.watched.len() as u64;
        self.counters.names += dirty.names.entries.len() as u64;
        Ok(dirty)
    }

    fn pending(&mut self) -> bool {
        true
    }

    fn exact(&self) -> bool {
        false
    }

    fn counters(&self) -> TrackerCounters {
        self.counters
    }
}
