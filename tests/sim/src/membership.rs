//! Coordinators come, go and are upgraded, as an operator would see to it.

use std::collections::BTreeMap;

use understudy_common::id::CoordinatorId;
use understudy_common::wire::Operate;
use understudy_coordinator::replica::Replica;
use understudy_coordinator::state::{COMMAND_VERSION, Standing, State};

use crate::chaos::Chaos;
use crate::clock::{Clock, MS};
use crate::coordinator::Coordinator;
use crate::world::World;

/// An operator asks again after this.
const ASKS_AGAIN: u64 = 1_000 * MS;
/// As many coordinators are kept at least, and at most.
const FEWEST: usize = 3;
const MOST: usize = 5;

/// A change of the coordinators that an operator sees through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Add(CoordinatorId),
    Remove(CoordinatorId),
}

impl Wish {
    fn is_fulfilled(self, state: &State) -> bool {
        let member = |id| state.coordinators.members.get(&id);
        match self {
            Self::Add(id) => member(id).is_some_and(|member| member.standing == Standing::Voter),
            // The state of one that has just begun knows nobody.
            Self::Remove(id) => state.index > 1 && member(id).is_none(),
        }
    }
}

impl World {
    /// Those that were not removed and shut down.
    pub fn present(&self) -> Vec<CoordinatorId> {
        let nodes = self.coordinators.values();
        nodes.filter(|node| !node.retired).map(|node| node.id).collect()
    }

    /// The state of the replica that has applied the most.
    pub fn newest_state(&self) -> Option<&State> {
        let replicas = self
            .coordinators
            .values()
            .filter_map(|node| node.replica.as_ref());
        replicas
            .max_by_key(|replica| replica.applied())
            .map(Replica::state)
    }

    /// A new one joins; false while another change is under way, or when there are enough.
    pub fn add_coordinator(&mut self) -> Result<bool, String> {
        if self.wish.is_some() || self.present().len() >= MOST {
            return Ok(false);
        }
        let last = self.coordinators.keys().next_back().map_or(0, |id| id.0);
        let id = CoordinatorId(last + 1);
        let drift = i64::try_from(self.rng.between(0, 1_000)).expect("small") - 500;
        let node = Coordinator::joining(id, Clock::new(0, drift));
        self.coordinators.insert(id, node);
        self.start_coordinator(id)?;
        self.wish = Some(Wish::Add(id));
        self.follow_wish();
        Ok(true)
    }

    /// One leaves; false while another change is under way, or when there are too few.
    pub fn remove_coordinator(&mut self, id: CoordinatorId) -> bool {
        if self.wish.is_some() || self.present().len() <= FEWEST || !self.present().contains(&id) {
            return false;
        }
        self.wish = Some(Wish::Remove(id));
        self.follow_wish();
        true
    }

    /// Asks for what is wished until it is so.
    pub fn follow_wish(&mut self) {
        let Some(wish) = self.wish else { return };
        if self.newest_state().is_some_and(|state| wish.is_fulfilled(state)) {
            self.wish = None;
            if let Wish::Remove(id) = wish {
                let pause = self.rng.between(200, 3_000) * MS;
                self.at(pause, Chaos::Retire(id));
            }
            return;
        }
        self.operate(match wish {
            Wish::Add(id) => {
                let number = u8::try_from(id.0).expect("few coordinators");
                let addr = ([10, 0, 1, number], 7400).into();
                Operate::AddCoordinator { id, addr }
            }
            Wish::Remove(id) => Operate::RemoveCoordinator { id },
        });
        self.at(ASKS_AGAIN, Chaos::Wish);
    }

    /// A coordinator that was removed is shut down.
    pub fn retire(&mut self, id: CoordinatorId) {
        self.crash_coordinator(id);
        if let Some(node) = self.coordinators.get_mut(&id) {
            node.retired = true;
        }
    }

    /// One that runs an older program gets the newest; false if there is none.
    pub fn upgrade_coordinator(&mut self) -> Option<CoordinatorId> {
        let older: BTreeMap<_, _> = self
            .coordinators
            .iter()
            .filter(|(_, node)| !node.retired && node.version < COMMAND_VERSION)
            .collect();
        let ids: Vec<_> = older.into_keys().copied().collect();
        if ids.is_empty() {
            return None;
        }
        let id = self.rng.pick(&ids);
        self.crash_coordinator(id);
        if let Some(node) = self.coordinators.get_mut(&id) {
            node.version = COMMAND_VERSION;
        }
        Some(id)
    }
}
