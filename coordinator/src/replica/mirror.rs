//! raft's view of its storage: an in-memory mirror of what the shell keeps on disk.
//!
//! Invariant: the mirror runs ahead of the disk only by the writes that are under way, and nothing
//! that depends on them leaves before they are on disk.

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::{Durable, ReplicaError};

#[derive(Debug, Default)]
pub(super) struct Mirror {
    members: ConfState,
    hard_state: HardState,
    snapshot: Snapshot,
    /// Index and term of the entry before the first one kept.
    before: (u64, u64),
    entries: Vec<Entry>,
}

impl Mirror {
    pub(super) fn restore(durable: Durable) -> Result<Self, ReplicaError> {
        let corrupt = |why: String| Err(ReplicaError::Corrupt { why });
        let snapshot = durable.snapshot.unwrap_or_default();
        let meta = snapshot.get_metadata();
        let (snap_index, snap_term) = (meta.index, meta.term);
        let mut entries = durable.entries;
        if entries.windows(2).any(|pair| pair[0].index + 1 != pair[1].index) {
            return corrupt("the log has a gap".to_owned());
        }
        let last = entries.last().map_or(0, |entry| entry.index);
        let mut before = (snap_index, snap_term);
        if last <= snap_index {
            entries.clear();
        } else if entries[0].index <= snap_index {
            // The oldest entry kept stands for the one before the log: only its term is needed.
            let first = entries.remove(0);
            before = (first.index, first.term);
        } else if entries[0].index != snap_index + 1 {
            return corrupt(format!(
                "the log begins at {} but the snapshot ends at {snap_index}",
                entries[0].index
            ));
        }
        let mut hard_state = durable.hard_state;
        // How far the log is committed is written along with other things only; a snapshot was.
        hard_state.commit = hard_state.commit.max(snap_index);
        let last = entries.last().map_or(before.0, |entry| entry.index);
        if hard_state.commit > last {
            return corrupt(format!(
                "entry {} is committed but the log ends at {last}",
                hard_state.commit
            ));
        }
        let members = snapshot.get_metadata().get_conf_state().clone();
        Ok(Self {
            members,
            hard_state,
            snapshot,
            before,
            entries,
        })
    }

    pub(super) const fn members(&self) -> &ConfState {
        &self.members
    }

    pub(super) fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    /// The members as of the last entry applied.
    pub(super) fn set_members(&mut self, members: ConfState) {
        self.members = members;
    }

    pub(super) const fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    pub(super) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Appends entries, which replace what is at or after the first of them.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        let keep = first.index.saturating_sub(self.before.0 + 1);
        self.entries.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        self.entries.extend_from_slice(entries);
    }

    /// The leader's snapshot replaces the log.
    pub(super) fn install(&mut self, snapshot: Snapshot) {
        let meta = snapshot.get_metadata();
        self.before = (meta.index, meta.term);
        self.members = meta.get_conf_state().clone();
        self.entries.clear();
        self.snapshot = snapshot;
    }

    /// A snapshot of this replica's own state; entries before `compact_to` are forgotten.
    pub(super) fn compact(&mut self, snapshot: Snapshot, compact_to: u64) {
        self.snapshot = snapshot;
        let Some(dropped) = compact_to.checked_sub(self.before.0 + 1).filter(|n| *n > 0) else {
            return;
        };
        let dropped = usize::try_from(dropped)
            .unwrap_or(usize::MAX)
            .min(self.entries.len());
        if let Some(last) = self.entries.drain(..dropped).next_back() {
            self.before = (last.index, last.term);
        }
    }

    fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }
}

impl Storage for Mirror {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.members.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.before.0 {
            return Err(StorageError::Compacted.into());
        }
        let at = |index: u64| {
            usize::try_from(index - self.before.0 - 1)
                .unwrap_or(usize::MAX)
                .min(self.entries.len())
        };
        let mut entries = self.entries[at(low)..at(high)].to_vec();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        if index < self.before.0 {
            return Err(StorageError::Compacted.into());
        }
        usize::try_from(index - self.before.0 - 1)
            .ok()
            .and_then(|at| self.entries.get(at))
            .map(|entry| entry.term)
            .ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let index = self.snapshot_index();
        let members = self.snapshot.get_metadata().get_conf_state();
        let named = [&members.voters, &members.voters_outgoing, &members.learners]
            .into_iter()
            .any(|ids| ids.contains(&to));
        // A replica does not take a snapshot in that does not name it.
        if index == 0 || index < request_index || !named {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        }
        Ok(self.snapshot.clone())
    }
}
