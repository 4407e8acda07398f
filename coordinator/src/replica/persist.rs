//! Draining raft: what becomes durable, what leaves at once, what waits, what is applied.

use raft::eraftpb::{Entry, EntryType, Message, Snapshot};
use understudy_common::id::CoordinatorId;
use understudy_common::units::BootTime;

use super::{Leading, Output, Persist, Replica};
use crate::state::State;

/// Entries kept behind a snapshot for followers that are a little late.
const TAIL: u64 = 512;

/// A write under way.
pub(super) struct Flight {
    number: u64,
    /// Sent once it is durable.
    messages: Vec<Message>,
    /// Taken by the shell once.
    persist: Option<Persist>,
}

impl Flight {
    /// What has to be durable before raft does anything.
    pub(super) const fn first(persist: Persist) -> Self {
        Self {
            number: 0,
            messages: Vec::new(),
            persist: Some(persist),
        }
    }
}

impl Replica {
    /// The next thing to make durable. Nothing more comes before [`Self::handle_persisted`].
    pub fn poll_persist(&mut self) -> Option<Persist> {
        self.flight.as_mut()?.persist.take()
    }

    /// The last [`Persist`] taken is durable.
    pub fn handle_persisted(&mut self, now: BootTime) {
        if self.flight.as_ref().is_none_or(|flight| flight.persist.is_some()) {
            return;
        }
        let Some(flight) = self.flight.take() else { return };
        self.landed(flight.number, flight.messages);
        self.drive(now);
    }

    /// Lets raft go as far as it can without the disk, and follows what came of it.
    pub(super) fn drive(&mut self, now: BootTime) {
        while self.flight.is_none() && self.halted.is_none() && self.node.has_ready() {
            self.turn(now);
        }
        self.follow_leadership(now);
        self.follow_transfer(now);
        self.answer_confirmed(now);
        self.send_orders(now);
    }

    fn turn(&mut self, now: BootTime) {
        let mut ready = self.node.ready();
        let number = ready.number();
        let mut persist = Persist {
            hard_state: ready.hs().cloned(),
            entries: ready.take_entries(),
            must_sync: ready.must_sync(),
            ..Persist::default()
        };
        for message in ready.take_messages() {
            self.send(message);
        }
        let after = ready.take_persisted_messages();
        for read in ready.take_read_states() {
            self.confirmed(read.index, &read.request_ctx);
        }
        let committed = ready.take_committed_entries();
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            self.install(&snapshot);
            self.node.mut_store().install(snapshot.clone());
            persist.snapshot = Some(snapshot);
        }
        self.node.mut_store().append(&persist.entries);
        if let Some(hard_state) = &persist.hard_state {
            self.node.mut_store().set_hard_state(hard_state.clone());
        }
        self.node.advance_append_async(ready);
        self.apply(now, &committed);
        self.compact(&mut persist);
        if persist.entries.is_empty() && persist.hard_state.is_none() && persist.snapshot.is_none() {
            self.landed(number, after);
        } else {
            self.flight = Some(Flight {
                number,
                messages: after,
                persist: Some(persist),
            });
        }
    }

    fn landed(&mut self, number: u64, messages: Vec<Message>) {
        for message in messages {
            self.send(message);
        }
        self.node.on_persist_ready(number);
    }

    fn send(&mut self, message: Message) {
        let to = CoordinatorId(message.to);
        self.push(Output::Send { to, message });
    }

    fn apply(&mut self, now: BootTime, committed: &[Entry]) {
        let Some(last) = committed.last() else { return };
        for entry in committed {
            let outcome = if entry.get_entry_type() == EntryType::EntryNormal {
                if !self.knows(entry) {
                    return;
                }
                self.state.apply(entry.index, &entry.data)
            } else {
                self.apply_members(entry)
            };
            self.settle(entry, &outcome);
        }
        self.node.advance_apply_to(last.index);
        self.observe(now);
    }

    /// The leader's snapshot replaces the state.
    fn install(&mut self, snapshot: &Snapshot) {
        // It was read once when the message arrived; a replica that cannot read it now must not go on.
        self.state =
            State::from_snapshot(snapshot.get_data()).expect("a snapshot that was readable stays so");
    }

    fn compact(&mut self, persist: &mut Persist) {
        let index = self.state.index;
        let done = self.node.store().snapshot_index();
        let due = index >= done + self.settings.snapshot_every || (self.snapshot_due && index > done);
        if persist.snapshot.is_some() || !due || self.halted.is_some() {
            return;
        }
        self.snapshot_due = false;
        let Ok(term) = self.node.raft.raft_log.term(index) else {
            return;
        };
        let mut snapshot = Snapshot::default();
        snapshot.set_data(self.state.to_snapshot().into());
        let meta = snapshot.mut_metadata();
        meta.index = index;
        meta.term = term;
        meta.set_conf_state(self.node.store().members().clone());
        let tail = TAIL.min(self.settings.snapshot_every);
        let compact_to = index.saturating_sub(tail).max(1);
        self.node.mut_store().compact(snapshot.clone(), compact_to);
        persist.snapshot = Some(snapshot);
        persist.compact_to = Some(compact_to);
        persist.must_sync = true;
    }

    /// Starts or ends what only a leader does.
    fn follow_leadership(&mut self, now: BootTime) {
        let term = self.is_leader().then(|| self.term());
        if self.leading.as_ref().map(|leading| leading.term) == term {
            return;
        }
        if let Some(leading) = self.leading.take() {
            tracing::info!(term = leading.term, "no longer the leader");
            self.dismiss(leading);
        }
        if let Some(term) = term {
            tracing::info!(term, "leads");
            self.leases.restart(now);
            self.leading = Some(Leading::new(term, now));
            self.observe(now);
        }
    }
}
