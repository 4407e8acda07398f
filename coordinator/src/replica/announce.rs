//! The version gate: every replica says which commands it can apply, and none is proposed that a
//! member cannot apply.
//!
//! Invariant: a replica that meets a command of a newer version stops; it never passes one over.

use std::time::Duration;

use raft::eraftpb::{Entry, Message, MessageType, Snapshot};
use understudy_common::id::CoordinatorId;
use understudy_common::units::BootTime;
use understudy_common::wire::{self, Refusal};

use super::{Output, Replica, ReplicaError};
use crate::state::{Change, SNAPSHOT_VERSION, State};

/// Ticks between two attempts to be heard.
const AGAIN_TICKS: u64 = 10;
/// How long a full disk is believed in after it was said; it is said every 500 ms.
const FULL_FOR: Duration = Duration::from_millis(1_500);
const SOFTWARE: &str = env!("CARGO_PKG_VERSION");

/// What a replica tells the leader about itself, in the entry of a `MsgPropose`.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Word {
    version: u32,
    software: String,
    disk_full: bool,
}

impl Replica {
    /// Tells the leader which commands this replica can apply, until the state says so, and that its
    /// disk is full, for as long as it is.
    pub(super) fn announce(&mut self) {
        let (id, version) = (self.settings.id, self.settings.command_version);
        let Some(known) = self.state.coordinators.members.get(&id) else {
            return;
        };
        if self.ticks < self.announce_at {
            return;
        }
        let is_known = known.version == Some(version) && known.software == SOFTWARE;
        if self.is_settled() {
            if !is_known {
                self.announce_at = self.ticks + AGAIN_TICKS;
                // What finds no room now is tried again.
                let _ = self.propose(announcement(id, version, SOFTWARE.to_owned()), "");
            }
        } else if let Some(leader) = self.leader().filter(|leader| *leader != id) {
            if is_known && !self.disk_full {
                return;
            }
            self.announce_at = self.ticks + AGAIN_TICKS;
            let word = Word {
                version,
                software: SOFTWARE.to_owned(),
                disk_full: self.disk_full,
            };
            let entry = Entry {
                data: wire::encode(&word).into_vec().into(),
                ..Entry::default()
            };
            let mut message = Message {
                from: id.0,
                to: leader.0,
                ..Message::default()
            };
            message.set_msg_type(MessageType::MsgPropose);
            message.set_entries(vec![entry].into());
            self.push(Output::Send { to: leader, message });
        }
    }

    /// Another replica says how it is. It speaks only for itself.
    pub(super) fn heard(&mut self, now: BootTime, from: CoordinatorId, message: &Message) {
        let [entry] = message.get_entries() else { return };
        let Ok(word) = wire::decode::<Word>(&entry.data) else {
            return;
        };
        let Some(leading) = &mut self.leading else { return };
        if word.disk_full && leading.full.insert(from, now).is_none() {
            tracing::warn!(%from, "its disk is full");
        }
        let known = self.state.coordinators.members.get(&from);
        let is_news =
            known.is_some_and(|known| known.version != Some(word.version) || known.software != word.software);
        if is_news && self.is_settled() {
            // It says so again when there is no room now.
            let _ = self.propose(announcement(from, word.version, word.software), "");
        }
    }

    /// Whether the disk of this or another coordinator is full, as far as the leader heard lately.
    pub(super) fn has_full_disk(&self, now: BootTime, id: CoordinatorId) -> bool {
        if id == self.settings.id {
            return self.disk_full;
        }
        let said = self.leading.as_ref().and_then(|leading| leading.full.get(&id));
        said.is_some_and(|at| now.since(*at) < FULL_FOR)
    }

    /// # Errors
    /// A refusal that names the members which cannot apply the change.
    pub(super) fn check_version(&self, change: &Change) -> Result<(), Refusal> {
        let version = change.version();
        let older: Vec<_> = self
            .state
            .coordinators
            .older_than(version)
            .map(|id| id.to_string())
            .collect();
        if older.is_empty() {
            return Ok(());
        }
        Err(Refusal::Invalid(format!(
            "this needs command version {version}, which {} cannot apply: upgrade all coordinators first",
            older.join(" and ")
        )))
    }

    /// Whether this program can read the snapshot. Without one that is newer it never catches up: it
    /// stops.
    pub(super) fn can_read(&mut self, snapshot: &Snapshot) -> bool {
        let version = State::snapshot_version(snapshot.get_data());
        if let Some(version) = version.filter(|version| *version > SNAPSHOT_VERSION) {
            self.halted
                .get_or_insert(ReplicaError::SnapshotTooNew { version });
        }
        State::from_snapshot(snapshot.get_data()).is_ok()
    }

    /// Whether this program can apply the entry; if not, it stops here.
    pub(super) fn knows(&mut self, entry: &Entry) -> bool {
        let (needs, knows) = (version_of(entry), self.settings.command_version);
        if needs > knows && self.halted.is_none() {
            let index = entry.index;
            self.halted = Some(ReplicaError::TooOld { index, needs, knows });
        }
        needs <= knows
    }
}

const fn announcement(coordinator: CoordinatorId, version: u32, software: String) -> Change {
    Change::Announce {
        coordinator,
        version,
        software,
    }
}

/// The context of a command's entry.
pub(super) fn context(change: &Change) -> Vec<u8> {
    change.version().to_le_bytes().to_vec()
}

fn version_of(entry: &Entry) -> u32 {
    // An entry that says nothing holds no command: a new leader's.
    <[u8; 4]>::try_from(&entry.context[..]).map_or(0, u32::from_le_bytes)
}
