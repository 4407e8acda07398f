//! A coordinator: a real replica, and a disk that loses what was not synced.

use std::collections::{BTreeMap, BTreeSet};

use understudy_common::id::CoordinatorId;
use understudy_common::identity::Principal;
use understudy_common::units::{BasisPoints, BootTime};
use understudy_coordinator::replica::{Durable, Fault, Persist, Replica, RequestId, Settings};

use super::clock::Clock;

/// Risk from which hosts count as failing, in the simulation.
pub const THRESHOLD: BasisPoints = BasisPoints(6_000);

pub struct Coordinator {
    pub id: CoordinatorId,
    pub clock: Clock,
    pub replica: Option<Replica>,
    pub disk: Disk,
    /// Rises with every start, so that events of an earlier process are told apart.
    pub incarnation: u64,
    pub wake_at: u64,
    /// Whose request each name stands for.
    pub requests: BTreeMap<RequestId, (Principal, u64)>,
    pub next_request: u64,
    pub scored_at: u64,
    /// State digest and commit index last looked at.
    pub checked: (u64, u64),
}

#[derive(Default)]
pub struct Disk {
    durable: Durable,
    /// Being written and synced.
    writing: Option<Persist>,
}

impl Disk {
    pub fn write(&mut self, persist: Persist) {
        assert!(self.writing.is_none(), "one write at a time");
        self.writing = Some(persist);
    }

    pub fn written(&mut self) {
        let persist = self.writing.take().expect("a write was under way");
        apply(&mut self.durable, persist);
    }

    /// Power is lost; what was being written may or may not have got there.
    pub fn crash(&mut self, landed: bool) {
        if let Some(persist) = self.writing.take().filter(|_| landed) {
            apply(&mut self.durable, persist);
        }
    }

    pub fn durable(&self) -> &Durable {
        &self.durable
    }
}

fn apply(durable: &mut Durable, persist: Persist) {
    if let Some(snapshot) = persist.snapshot {
        let index = snapshot.get_metadata().index;
        let last = durable.entries.last().map_or(0, |entry| entry.index);
        if last < index {
            durable.entries.clear();
        }
        durable.snapshot = Some(snapshot);
    }
    if let Some(first) = persist.entries.first() {
        durable.entries.retain(|entry| entry.index < first.index);
        durable.entries.extend(persist.entries);
    }
    if let Some(hard_state) = persist.hard_state {
        durable.hard_state = hard_state;
    }
    if let Some(index) = persist.compact_to {
        durable.entries.retain(|entry| entry.index >= index);
    }
}

impl Coordinator {
    pub fn new(id: CoordinatorId, clock: Clock) -> Self {
        Self {
            id,
            clock,
            replica: None,
            disk: Disk::default(),
            incarnation: 0,
            wake_at: 0,
            requests: BTreeMap::new(),
            next_request: 0,
            scored_at: 0,
            checked: (0, 0),
        }
    }

    pub fn start(
        &mut self,
        members: &BTreeSet<CoordinatorId>,
        now: BootTime,
        seed: u64,
        fault: Option<Fault>,
    ) {
        let settings = Settings {
            threshold: Some(THRESHOLD),
            // Low, so that snapshots and lagging followers are part of every run.
            snapshot_every: 40,
            fault,
            ..Settings::new(self.id, members.clone())
        };
        let durable = self.disk.durable().clone();
        let replica = Replica::new(settings, durable, now, seed).expect("the disk gives back what it took");
        self.replica = Some(replica);
        self.incarnation += 1;
        self.requests.clear();
        self.checked = (0, 0);
    }

    pub fn crash(&mut self, landed: bool) {
        self.replica = None;
        self.incarnation += 1;
        self.requests.clear();
        self.disk.crash(landed);
    }

    pub fn request(&mut self, from: Principal, rpc: u64) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.requests.insert(id, (from, rpc));
        id
    }
}
