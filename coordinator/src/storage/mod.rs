//! What a replica must not forget, on disk: log entries, hard state and snapshot in one raft-engine log.
//!
//! Invariants: one [`Persist`] is one batch, so a crash leaves all of it or none. An error means that
//! nothing may be sent or voted for any more: the process must stop. A record that was being written
//! when the machine died is cut off at the next start, damage in an older file is an error, and no
//! damaged entry is ever given back.

mod drain;
mod term;

use std::path::{Path, PathBuf};

use raft::eraftpb::{Entry, HardState, Snapshot};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use crate::replica::{Durable, Persist};

pub use drain::drain;

/// The cluster has one raft group.
const GROUP: u64 = 1;
const HARD_STATE: &[u8] = b"hard-state";
const SNAPSHOT: &[u8] = b"snapshot";
/// Log files are this long; whole files are deleted once nothing in them is needed.
const FILE_BYTES: u64 = 8 << 20;
/// Size from which files that hold little of use are rewritten.
const PURGE_BYTES: u64 = 32 << 20;

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("cannot use the data directory {path}: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error(
        "cannot open the raft log in {path}: {source}; if another coordinator runs on it, stop that one; if the disk damaged it, remove the directory and let this coordinator catch up from the others"
    )]
    Open {
        path: PathBuf,
        source: raft_engine::Error,
    },
    #[error(
        "cannot read the raft log in {path}: {source}; remove the directory and let this coordinator catch up from the others"
    )]
    Read {
        path: PathBuf,
        source: raft_engine::Error,
    },
    #[error(
        "cannot write the raft log in {path}: {source}; this coordinator stops, since it must not vote for what it cannot keep: make room or replace the disk, then start it again"
    )]
    Write {
        path: PathBuf,
        source: raft_engine::Error,
    },
    #[error(
        "the raft log in {path} ends in term {found}, but this coordinator has voted in term {voted}: the disk lost what was written; remove the data directory and let this coordinator catch up from the others"
    )]
    LostVote { path: PathBuf, found: u64, voted: u64 },
    #[error("cannot keep the term in {path}: {source}")]
    Term { path: PathBuf, source: std::io::Error },
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

    /// Writes it as one batch and, when asked to, waits for the disk.
    ///
    /// # Errors
    /// [`StorageError`]: stop the process.
    pub fn persist(&mut self, persist: &Persist) -> Result<(), StorageError> {
        let term = self.hard_state.term;
        self.try_persist(persist).map_err(|source| StorageError::Write {
            path: self.path.clone(),
            source,
        })?;
        if self.hard_state.term > term {
            term::write(&self.data_dir, self.hard_state.term)?;
        }
        Ok(())
    }

    fn try_persist(&mut self, persist: &Persist) -> raft_engine::Result<()> {
        let mut batch = LogBatch::default();
        if let Some(hard_state) = &persist.hard_state {
            self.hard_state = hard_state.clone();
        }
        // A snapshot of the leader replaces the log, its tail of another history included.
        let replaces_log = persist.snapshot.is_some() && persist.compact_to.is_none();
        if replaces_log {
            batch.add_command(GROUP, Command::Clean);
        }
        if replaces_log || persist.hard_state.is_some() {
            batch.put_message(GROUP, HARD_STATE.to_vec(), &self.hard_state)?;
        }
        if let Some(snapshot) = &persist.snapshot {
            batch.put_message(GROUP, SNAPSHOT.to_vec(), snapshot)?;
        }
        batch.add_entries::<Entries>(GROUP, &persist.entries)?;
        if let Some(index) = persist.compact_to {
            batch.add_command(GROUP, Command::Compact { index });
        }
        self.engine
            .write(&mut batch, persist.must_sync || persist.snapshot.is_some())?;
        if persist.snapshot.is_some() {
            self.engine.purge_expired_files()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        let data = vec![u8::try_from(index % 251).unwrap(); 100].into();
        Entry {
            index,
            term,
            data,
            ..Entry::default()
        }
    }

    fn hard_state(term: u64, commit: u64) -> HardState {
        HardState {
            term,
            commit,
            ..HardState::default()
        }
    }

    fn snapshot(index: u64, term: u64) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.set_data(vec![7; 64].into());
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = term;
        snapshot
    }

    fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Persist {
        Persist {
            entries: range.map(|index| entry(index, term)).collect(),
            must_sync: true,
            ..Persist::default()
        }
    }

    fn indices(durable: &Durable) -> Vec<(u64, u64)> {
        durable
            .entries
            .iter()
            .map(|entry| (entry.index, entry.term))
            .collect()
    }

    #[test]
    fn everything_persisted_is_restored_and_a_new_history_replaces_the_old() {
        let dir = tempfile::tempdir().unwrap();
        let (mut storage, durable) = Storage::open(dir.path()).unwrap();
        assert!(durable.entries.is_empty() && durable.snapshot.is_none());
        storage.persist(&entries(1..=5, 1)).unwrap();
        storage
            .persist(&Persist {
                hard_state: Some(hard_state(2, 3)),
                ..entries(4..=4, 2)
            })
            .unwrap();
        drop(storage);
        let (_, durable) = Storage::open(dir.path()).unwrap();
        assert_eq!(indices(&durable), [(1, 1), (2, 1), (3, 1), (4, 2)]);
        assert_eq!(durable.entries[3].data, entry(4, 2).data);
        assert_eq!(durable.hard_state, hard_state(2, 3));
    }

    #[test]
    fn compaction_keeps_the_snapshot_and_the_tail() {
        let dir = tempfile::tempdir().unwrap();
        let (mut storage, _) = Storage::open(dir.path()).unwrap();
        storage.persist(&entries(1..=20, 1)).unwrap();
        let compaction = Persist {
            snapshot: Some(snapshot(18, 1)),
            compact_to: Some(15),
            ..Persist::default()
        };
        storage.persist(&compaction).unwrap();
        drop(storage);
        let (_, durable) = Storage::open(dir.path()).unwrap();
        assert_eq!(durable.snapshot, Some(snapshot(18, 1)));
        assert_eq!(indices(&durable).first(), Some(&(15, 1)));
        assert_eq!(indices(&durable).last(), Some(&(20, 1)));
    }

    #[test]
    fn a_snapshot_of_the_leader_replaces_the_log_but_not_the_vote() {
        let dir = tempfile::tempdir().unwrap();
        let (mut storage, _) = Storage::open(dir.path()).unwrap();
        let voted = Persist {
            hard_state: Some(hard_state(3, 2)),
            ..entries(1..=10, 1)
        };
        storage.persist(&voted).unwrap();
        storage
            .persist(&Persist {
                snapshot: Some(snapshot(6, 2)),
                ..Persist::default()
            })
            .unwrap();
        storage.persist(&entries(7..=8, 3)).unwrap();
        drop(storage);
        let (_, durable) = Storage::open(dir.path()).unwrap();
        assert_eq!(indices(&durable), [(7, 3), (8, 3)]);
        assert_eq!(durable.hard_state, hard_state(3, 2));
        assert_eq!(durable.snapshot, Some(snapshot(6, 2)));
    }

    #[test]
    fn a_log_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (_storage, _) = Storage::open(dir.path()).unwrap();
        let error = Storage::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("another coordinator"), "{error}");
    }

    fn log_file(dir: &Path) -> PathBuf {
        let mut files: Vec<_> = std::fs::read_dir(dir.join("raft"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "raftlog"))
            .collect();
        files.sort();
        files.pop().unwrap()
    }

    /// Ten batches of one entry each; the file without what was allocated ahead, and the log's end.
    fn ten_entries(dir: &Path) -> (PathBuf, Vec<u8>) {
        let (mut storage, _) = Storage::open(dir).unwrap();
        for index in 1..=10 {
            storage.persist(&entries(index..=index, 1)).unwrap();
        }
        drop(storage);
        let file = log_file(dir);
        let mut bytes = std::fs::read(&file).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        bytes.truncate(end);
        (file, bytes)
    }

    #[test]
    fn a_log_cut_off_at_any_byte_gives_back_a_whole_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let (file, bytes) = ten_entries(dir.path());
        let mut seen = 10;
        for end in (0..=bytes.len()).rev().step_by(37) {
            std::fs::write(&file, &bytes[..end]).unwrap();
            match Storage::open(dir.path()) {
                Ok((storage, durable)) => {
                    let found = durable.entries.len();
                    assert!(found <= seen, "cutting more off gave back more");
                    seen = found;
                    for (at, entry_found) in (1..).zip(&durable.entries) {
                        assert_eq!(entry_found, &entry(at, 1));
                    }
                    drop(storage);
                }
                Err(error) => assert!(error.to_string().contains("raft log"), "{error}"),
            }
        }
        assert!(seen < 10);
    }

    #[test]
    fn a_damaged_byte_is_an_error_or_cuts_the_log_and_never_changes_an_entry() {
        let dir = tempfile::tempdir().unwrap();
        let (file, bytes) = ten_entries(dir.path());
        for at in (0..bytes.len()).step_by(53) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            std::fs::write(&file, &damaged).unwrap();
            if let Ok((_, durable)) = Storage::open(dir.path()) {
                for (index, entry_found) in (1..).zip(&durable.entries) {
                    assert_eq!(entry_found, &entry(index, 1), "byte {at}");
                }
            }
        }
    }
}
