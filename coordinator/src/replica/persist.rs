//! Draining raft: what becomes durable, what leaves at once, what waits, what is applied.

use std::collections::VecDeque;

use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};
use understudy_common::id::{CoordinatorId, Epoch};
use understudy_common::units::BootTime;

use super::{Fault, Leading, Output, Persist, Replica};
use crate::state::{Change, Command, GrantReason, Outcome, State};

/// Entries kept behind a snapshot for followers that are a little late.
const TAIL: u64 = 512;

/// Readies that raft has given out and that are not durable yet. Each costs some bytes: a replica whose
/// disk has taken nothing for hours goes silent.
const READIES_MAX: u64 = 1 << 18;
/// Messages that wait for one write; the oldest go first, since raft sends again what matters.
const WAITING_MAX: usize = 4_096;

/// A write that is wanted or under way, and what waits for it.
pub(super) struct Flight {
    /// The last of raft's readies that are durable with it.
    number: u64,
    persist: Persist,
    /// It makes a term or a vote durable.
    votes: bool,
    /// Sent once it is durable.
    messages: VecDeque<Message>,
}

impl Flight {
    /// What has to be durable before raft does anything.
    pub(super) const fn first(persist: Persist) -> Self {
        Self {
            number: 0,
            persist,
            votes: true,
            messages: VecDeque::new(),
        }
    }

    fn wait(&mut self, number: u64, messages: Vec<Message>) {
        self.number = number;
        self.messages.extend(messages);
        let over = self.messages.len().saturating_sub(WAITING_MAX);
        self.messages.drain(..over);
    }
}

/// Writes in the order in which they have to become durable.
#[derive(Default)]
pub(super) struct Flights {
    queue: VecDeque<Flight>,
    /// How many of the first the shell writes as one.
    taken: usize,
    /// The last ready that is durable.
    durable: u64,
}

impl Flights {
    pub(super) fn new(first: Option<Persist>) -> Self {
        Self {
            queue: first.map(Flight::first).into_iter().collect(),
            ..Self::default()
        }
    }

    fn votes(&self) -> bool {
        self.queue.iter().any(|flight| flight.votes)
    }
}

impl Replica {
    /// The next thing to make durable: everything that waits, as one. Nothing more comes before
    /// [`Self::handle_persisted`].
    pub fn poll_persist(&mut self) -> Option<Persist> {
        if self.flights.taken > 0 {
            return None;
        }
        let mut flights = self.flights.queue.iter_mut();
        let mut all = std::mem::take(&mut flights.next()?.persist);
        let mut taken = 1;
        // A snapshot replaces what is there: it is written alone.
        while all.snapshot.is_none()
            && let Some(next) = flights.next().filter(|flight| flight.persist.snapshot.is_none())
        {
            append(&mut all, std::mem::take(&mut next.persist));
            taken += 1;
        }
        self.flights.taken = taken;
        Some(all)
    }

    /// The last [`Persist`] taken is durable.
    pub fn handle_persisted(&mut self, now: BootTime) {
        for _ in 0..std::mem::take(&mut self.flights.taken) {
            if let Some(flight) = self.flights.queue.pop_front() {
                self.landed(flight.number, flight.messages);
            }
        }
        self.drive(now);
    }

    /// Lets raft go as far as it can without the disk, and follows what came of it.
    pub(super) fn drive(&mut self, now: BootTime) {
        while self.halted.is_none() && self.may_turn() && self.node.has_ready() {
            self.turn(now);
        }
        self.follow_leadership(now);
        self.follow_transfer(now);
        self.send_orders(now);
    }

    fn may_turn(&self) -> bool {
        let last = self.flights.queue.back().map_or(0, |flight| flight.number);
        last.saturating_sub(self.flights.durable) < READIES_MAX
    }

    fn turn(&mut self, now: BootTime) {
        let mut ready = self.node.ready();
        let number = ready.number();
        let votes = ready.hs().is_some_and(|new| {
            let known = self.node.store().hard_state();
            new.term != known.term || new.vote != known.vote
        });
        let mut persist = Persist {
            entries: ready.take_entries(),
            ..Persist::default()
        };
        let mut after = ready.take_persisted_messages();
        let mut at_once = ready.take_messages();
        if votes || self.flights.votes() {
            // Nothing tells of a term or a vote that could be forgotten.
            after.append(&mut at_once);
        } else {
            // That a follower is alive waits for no entry: a slow disk ends no lease.
            let (alive, rest) = after
                .into_iter()
                .partition(|message| message.get_msg_type() == MessageType::MsgHeartbeatResponse);
            after = rest;
            at_once.extend::<Vec<_>>(alive);
        }
        if self.settings.fault == Some(Fault::SendBeforePersist) {
            at_once.append(&mut after);
        }
        for message in at_once {
            self.send(message);
        }
        for read in ready.take_read_states() {
            self.confirmed(now, &read.request_ctx);
        }
        let committed = ready.take_committed_entries();
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            self.install(&snapshot);
            self.node.mut_store().install(snapshot.clone());
            persist.snapshot = Some(snapshot);
        }
        self.node.mut_store().append(&persist.entries);
        if let Some(hard_state) = ready.hs() {
            let hard_state = hard_state.clone();
            self.node.mut_store().set_hard_state(hard_state);
        }
        self.node.advance_append_async(ready);
        self.apply(now, &committed);
        self.compact(&mut persist);
        // How far the log is committed is not worth a write of its own: a leader says it again.
        let writes = votes || !persist.entries.is_empty() || persist.snapshot.is_some();
        if writes {
            persist.hard_state = Some(self.node.store().hard_state().clone());
            self.flights.queue.push_back(Flight {
                number,
                persist,
                votes,
                messages: after.into(),
            });
        } else if let Some(last) = self.flights.queue.back_mut() {
            last.wait(number, after);
        } else {
            self.landed(number, after);
        }
    }

    fn landed(&mut self, number: u64, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            self.send(message);
        }
        self.flights.durable = number;
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
                match self.settings.fault {
                    Some(fault) => self.apply_with(fault, entry),
                    None => self.state.apply(entry.index, &entry.data),
                }
            } else {
                self.apply_members(entry)
            };
            self.settle(entry, &outcome);
        }
        self.node.advance_apply_to(last.index);
        self.observe(now);
    }

    /// `apply` with a known bug put back in.
    fn apply_with(&mut self, fault: Fault, entry: &Entry) -> Outcome {
        let Ok(mut command) = Command::decode(&entry.data) else {
            return self.state.apply(entry.index, &entry.data);
        };
        if fault == Fault::ApplyReadsClock {
            command.at_ms = self.wall_ms;
        }
        let outcome = self.state.apply(entry.index, &command.encode());
        if let (Fault::HandoverKeepsEpoch, Outcome::Applied, Change::Grant { service, reason, .. }) =
            (fault, &outcome, &command.change)
            && *reason == GrantReason::Handover
            && let Some(service) = self.state.services.get_mut(service)
        {
            service.epoch = Epoch(service.epoch.0 - 1);
        }
        outcome
    }

    /// The leader's snapshot replaces the state.
    fn install(&mut self, snapshot: &Snapshot) {
        // It was read once when the message arrived; a replica that cannot read it now must not go on.
        self.state =
            State::from_snapshot(snapshot.get_data()).expect("a snapshot that was readable stays so");
        // raft looks for what is not applied before it starts an election, and would look in vain for
        // entries that the snapshot stands for.
        let log = &mut self.node.raft.raft_log;
        log.applied = log.applied.max(snapshot.get_metadata().index);
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

/// One write after another, as one.
fn append(all: &mut Persist, next: Persist) {
    if let Some(first) = next.entries.first() {
        let at = all.entries.partition_point(|entry| entry.index < first.index);
        all.entries.truncate(at);
        all.entries.extend(next.entries);
    }
    all.hard_state = next.hard_state.or(all.hard_state.take());
}
