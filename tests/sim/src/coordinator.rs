//! A coordinator: a real replica over a simulated disk and clocks.

use std::collections::{BTreeMap, BTreeSet};

use understudy_common::id::CoordinatorId;
use understudy_common::identity::Principal;
use understudy_common::units::{BasisPoints, BootTime};
use understudy_coordinator::replica::{Fault, Replica, RequestId, Settings};
use understudy_coordinator::state::COMMAND_VERSION;

use crate::clock::Clock;
use crate::disk::Disk;

/// Risk from which hosts count as failing, in the simulation.
pub const THRESHOLD: BasisPoints = BasisPoints(6_000);

pub struct Coordinator {
    pub id: CoordinatorId,
    pub clock: Clock,
    /// How far its wall clock is off, in milliseconds.
    pub wall_off_ms: i64,
    /// It was not there when the cluster began.
    joins: bool,
    /// It was removed and is shut down for good.
    pub retired: bool,
    /// The newest command version that its program applies.
    pub version: u32,
    pub replica: Option<Replica>,
    pub disk: Disk,
    /// The power goes in the middle of the next write.
    pub dies_writing: bool,
    /// The replica was told that the disk is full.
    pub told_full: bool,
    /// Rises with every start, so that events of an earlier process are told apart.
    pub incarnation: u64,
    /// True time of the wake-up that counts.
    pub wake_at: u64,
    /// Whose request each name stands for, and whether it was a hello.
    pub requests: BTreeMap<RequestId, (Principal, bool)>,
    next_request: u64,
    pub scored_at: u64,
    pub checked: Checked,
}

/// Up to where the invariants have looked at it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checked {
    pub applied: u64,
    pub committed: u64,
}

impl Coordinator {
    pub fn founding(id: CoordinatorId, clock: Clock, version: u32) -> Self {
        Self {
            joins: false,
            version,
            ..Self::joining(id, clock)
        }
    }

    pub fn joining(id: CoordinatorId, clock: Clock) -> Self {
        Self {
            id,
            clock,
            wall_off_ms: 0,
            joins: true,
            retired: false,
            version: COMMAND_VERSION,
            replica: None,
            disk: Disk::default(),
            dies_writing: false,
            told_full: false,
            incarnation: 0,
            wake_at: u64::MAX,
            requests: BTreeMap::new(),
            next_request: 0,
            scored_at: 0,
            checked: Checked::default(),
        }
    }

    pub fn start(
        &mut self,
        founders: &BTreeSet<CoordinatorId>,
        now: BootTime,
        seed: u64,
        fault: Option<Fault>,
    ) -> Result<(), String> {
        let settings = Settings {
            threshold: Some(THRESHOLD),
            // Low, so that snapshots and lagging followers are part of every run.
            snapshot_every: 40,
            fault,
            joins: self.joins,
            command_version: self.version,
            ..Settings::new(
                self.id,
                if self.joins {
                    BTreeSet::new()
                } else {
                    founders.clone()
                },
            )
        };
        let durable = self.disk.durable().clone();
        let replica = Replica::new(settings, durable, now, seed)
            .map_err(|error| format!("commits: {} does not start from its own disk: {error}", self.id))?;
        self.replica = Some(replica);
        self.incarnation += 1;
        self.wake_at = u64::MAX;
        self.requests.clear();
        self.told_full = false;
        self.checked = Checked::default();
        Ok(())
    }

    pub fn stop(&mut self) {
        self.replica = None;
        self.incarnation += 1;
        self.requests.clear();
    }

    pub fn is_leader(&self) -> bool {
        self.replica.as_ref().is_some_and(Replica::is_leader)
    }

    pub fn request(&mut self, from: Principal, hello: bool) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.requests.insert(id, (from, hello));
        id
    }
}
