//! The version gate: every replica says which commands it can apply, and none is proposed that a
//! member cannot apply.
//!
//! Invariant: a replica that meets a command of a newer version stops; it never passes one over.

use raft::eraftpb::{Entry, Message, MessageType};
use understudy_common::id::CoordinatorId;
use understudy_common::wire::Refusal;

use super::{Output, Replica, ReplicaError};
use crate::state::{Change, Command};

/// Ticks between two attempts to be heard.
const AGAIN_TICKS: u64 = 10;
const SOFTWARE: &str = env!("CARGO_PKG_VERSION");

impl Replica {
    /// Tells the leader which commands this replica can apply, until the state says so.
    pub(super) fn announce(&mut self) {
        let (id, version) = (self.settings.id, self.settings.command_version);
        let Some(known) = self.state.coordinators.members.get(&id) else {
            return;
        };
        let is_known = known.version == Some(version) && known.software == SOFTWARE;
        if is_known || self.ticks < self.announce_at {
            return;
        }
        self.announce_at = self.ticks + AGAIN_TICKS;
        let change = Change::Announce {
            coordinator: id,
            version,
            software: SOFTWARE.to_owned(),
        };
        if self.is_settled() {
            // What finds no room now is tried again.
            let _ = self.propose(change, "");
        } else if let Some(leader) = self.leader().filter(|leader| *leader != id) {
            let command = Command::new(self.wall_ms, change);
            let entry = Entry {
                data: command.encode().into(),
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

    /// Another replica says which commands it can apply. It proposes nothing else, and speaks only
    /// for itself.
    pub(super) fn announced(&mut self, from: CoordinatorId, message: &Message) {
        let [entry] = message.get_entries() else { return };
        let Ok(Command { change, .. }) = Command::decode(&entry.data) else {
            return;
        };
        let Change::Announce {
            coordinator,
            version,
            software,
        } = &change
        else {
            return;
        };
        let news = self
            .state
            .coordinators
            .members
            .get(&from)
            .is_some_and(|known| known.version != Some(*version) || known.software != *software);
        if *coordinator == from && news && self.is_settled() {
            // It says so again when there is no room now.
            let _ = self.propose(change, "");
        }
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

/// The context of a command's entry.
pub(super) fn context(change: &Change) -> Vec<u8> {
    change.version().to_le_bytes().to_vec()
}

fn version_of(entry: &Entry) -> u32 {
    // An entry that says nothing holds no command: a new leader's.
    <[u8; 4]>::try_from(&entry.context[..]).map_or(0, u32::from_le_bytes)
}
