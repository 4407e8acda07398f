//! What a replica must not forget, on disk: log entries, hard state and snapshot in one raft-engine log.
//!
//! Invariants: one [`Persist`] is one batch, so a crash leaves all of it or none. An error other than a
//! full disk means that nothing may be sent or voted for any more: the process must stop. The record
//! that was being written when the machine died is cut off at the next start; any other damage is an
//! error, and no damaged entry is ever given back.

mod disk;
mod files;
mod term;

use std::path::{Path, PathBuf};

use raft::eraftpb::{Entry, HardState, Snapshot};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use crate::replica::{Durable, Persist};

pub use disk::{Disk, DiskEvent};

/// The cluster has one raft group.
const GROUP: u64 = 1;
const HARD_STATE: &[u8] = b"hard-state";
const SNAPSHOT: &[u8] = b"snapshot";
/// Log files are this long; whole files are deleted once nothing in them is needed.
const FILE_BYTES: u64 = 8 << 20;
/// What the log takes at most while snapshots go on: files in use and those about to be deleted.
#[cfg(test)]
const DISK_BYTES_MAX: u64 = PURGE_BYTES + 3 * FILE_BYTES;
/// Kept free beside what is written: the engine begins files and rewrites old ones.
const SPARE_BYTES: u64 = 4 << 20;
/// Size from which files that hold little of use are rewritten.
const PURGE_BYTES: u64 = 32 << 20;

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("cannot use the data directory {path}: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error(
        "cannot open the raft log in {path}: {source}; if another coordinator runs on it, stop that one; if the disk damaged it, remove this coordinator from the cluster and add it again under a new number (`understudy coordinators`)"
    )]
    Open {
        path: PathBuf,
        source: raft_engine::Error,
    },
    #[error(
        "cannot read the raft log in {path}: {source}; remove this coordinator from the cluster and add it again under a new number (`understudy coordinators`)"
    )]
    Read {
        path: PathBuf,
        source: raft_engine::Error,
    },
    #[error(
        "cannot write the raft log in {path}: {source}; this coordinator stops, since it must not vote for what it cannot keep: replace the disk, then start it again"
    )]
    Write {
        path: PathBuf,
        source: raft_engine::Error,
    },
    #[error(
        "the raft log in {path} ends in term {found}, but this coordinator has voted in term {voted}: the disk lost what was written; remove this coordinator from the cluster and add it again under a new number (`understudy coordinators`)"
    )]
    LostVote { path: PathBuf, found: u64, voted: u64 },
    #[error(
        "the raft log in {path} is damaged at byte {at}: without it this coordinator would forget what it acknowledged; replace the disk, remove this coordinator from the cluster and add it again under a new number (`understudy coordinators`)"
    )]
    Damaged { path: PathBuf, at: usize },
    #[error(
        "no room for the raft log in {path}: {free} bytes are free and {needed} are needed; this coordinator acknowledges nothing until there is room"
    )]
    Full { path: PathBuf, free: u64, needed: u64 },
    #[error("cannot keep the term in {path}: {source}")]
    Term { path: PathBuf, source: std::io::Error },
}

impl StorageError {
    /// Whether the same write may succeed once there is room.
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

struct Entries;

impl MessageExt for Entries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

pub struct Storage {
    engine: Engine,
    data_dir: PathBuf,
    path: PathBuf,
    /// As on disk: a batch that clears the group writes it again.
    hard_state: HardState,
}

impl Storage {
    /// Opens the log under `data_dir`, or begins one.
    ///
    /// # Errors
    /// [`StorageError`] when the directory cannot be used or the log is damaged.
    pub fn open(data_dir: &Path) -> Result<(Self, Durable), StorageError> {
        let path = data_dir.join("raft");
        std::fs::create_dir_all(&path).map_err(|source| StorageError::Directory {
            path: path.clone(),
            source,
        })?;
        files::mend(&path)?;
        let config = Config {
            dir: path.display().to_string(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: 1,
            target_file_size: ReadableSize(FILE_BYTES),
            purge_threshold: ReadableSize(PURGE_BYTES),
            enable_log_recycle: false,
            ..Config::default()
        };
        let engine = Engine::open(config).map_err(|source| StorageError::Open {
            path: path.clone(),
            source,
        })?;
        let mut storage = Self {
            engine,
            data_dir: data_dir.to_owned(),
            path,
            hard_state: HardState::default(),
        };
        let durable = storage.restore().map_err(|source| {
            let path = storage.path.clone();
            StorageError::Read { path, source }
        })?;
        storage.hard_state = durable.hard_state.clone();
        let (found, voted) = (durable.hard_state.term, term::read(data_dir)?);
        if found < voted {
            let path = storage.path.clone();
            return Err(StorageError::LostVote { path, found, voted });
        }
        Ok((storage, durable))
    }

    fn restore(&self) -> raft_engine::Result<Durable> {
        let hard_state = self
            .engine
            .get_message::<HardState>(GROUP, HARD_STATE)?
            .unwrap_or_default();
        let snapshot = self.engine.get_message::<Snapshot>(GROUP, SNAPSHOT)?;
        let mut entries = Vec::new();
        if let (Some(first), Some(last)) = (self.engine.first_index(GROUP), self.engine.last_index(GROUP)) {
            self.engine
                .fetch_entries_to::<Entries>(GROUP, first, last + 1, None, &mut entries)?;
        }
        Ok(Durable {
            hard_state,
            snapshot,
            entries,
        })
    }

    /// Writes it as one batch and waits for the disk.
    ///
    /// # Errors
    /// [`StorageError`]: stop the process, unless it [is full](StorageError::is_full): then nothing was
    /// written, and the same may be tried again.
    pub fn persist(&mut self, persist: &Persist) -> Result<(), StorageError> {
        let term = self.hard_state.term;
        self.check_room(persist)?;
        match self.try_persist(persist) {
            Ok(()) => {}
            Err(source) if is_no_space(&source) => return Err(self.full(0)),
            Err(source) => {
                let path = self.path.clone();
                return Err(StorageError::Write { path, source });
            }
        }
        if self.hard_state.term > term {
            term::write(&self.data_dir, self.hard_state.term)?;
        }
        if persist.snapshot.is_some() {
            self.purge()?;
        }
        Ok(())
    }

    /// The engine begins a new file whenever it finds no room in one: it is not asked before there is.
    fn check_room(&self, persist: &Persist) -> Result<(), StorageError> {
        let entries: usize = persist.entries.iter().map(|entry| entry.data.len() + 64).sum();
        let snapshot = persist
            .snapshot
            .as_ref()
            .map_or(0, |snapshot| snapshot.data.len());
        let needed = SPARE_BYTES + (entries + snapshot) as u64;
        let free = self.free()?;
        if free < needed {
            return Err(self.full(needed));
        }
        Ok(())
    }

    fn free(&self) -> Result<u64, StorageError> {
        let stat = nix::sys::statvfs::statvfs(&self.path).map_err(|error| StorageError::Directory {
            path: self.path.clone(),
            source: error.into(),
        })?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    fn full(&self, needed: u64) -> StorageError {
        StorageError::Full {
            path: self.path.clone(),
            free: self.free().unwrap_or(0),
            needed: needed.max(SPARE_BYTES),
        }
    }

    /// Deletes files of which nothing is needed. One that finds no room for it is tried again after
    /// the next snapshot.
    fn purge(&self) -> Result<(), StorageError> {
        match self.engine.purge_expired_files() {
            Ok(_) => Ok(()),
            Err(error) if is_no_space(&error) => {
                tracing::warn!(%error, "no room to tidy the raft log up");
                Ok(())
            }
            Err(source) => Err(StorageError::Write {
                path: self.path.clone(),
                source,
            }),
        }
    }

    fn try_persist(&mut self, persist: &Persist) -> raft_engine::Result<()> {
        let mut batch = LogBatch::default();
        let hard_state = persist.hard_state.as_ref().unwrap_or(&self.hard_state).clone();
        // A snapshot of the leader replaces the log, its tail of another history included.
        let replaces_log = persist.snapshot.is_some() && persist.compact_to.is_none();
        if replaces_log {
            batch.add_command(GROUP, Command::Clean);
        }
        if replaces_log || persist.hard_state.is_some() {
            batch.put_message(GROUP, HARD_STATE.to_vec(), &hard_state)?;
        }
        if let Some(snapshot) = &persist.snapshot {
            batch.put_message(GROUP, SNAPSHOT.to_vec(), snapshot)?;
        }
        batch.add_entries::<Entries>(GROUP, &persist.entries)?;
        if let Some(index) = persist.compact_to {
            batch.add_command(GROUP, Command::Compact { index });
        }
        self.engine.write(&mut batch, true)?;
        self.hard_state = hard_state;
        Ok(())
    }
}

fn is_no_space(error: &raft_engine::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error {
        raft_engine::Error::Io(error) => matches!(error.kind(), StorageFull | QuotaExceeded),
        // What the engine says after it found no room twice.
        raft_engine::Error::TryAgain(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
