//! Replicas that applied the same index are equal, byte for byte.

use std::collections::BTreeMap;

use understudy_common::id::CoordinatorId;
use understudy_coordinator::state::State;

use crate::tally::Tally;

#[derive(Default)]
pub struct Replicas {
    /// Digest of the state after each index that some replica stopped at.
    states: BTreeMap<u64, u64>,
}

impl Replicas {
    pub fn applied(&mut self, id: CoordinatorId, state: &State, tally: &mut Tally) -> Result<(), String> {
        let digest = crate::trace::digest(&state.to_snapshot());
        match self.states.insert(state.index, digest) {
            Some(known) if known != digest => Err(format!(
                "replicas: {id} differs from another one at {}",
                state.index
            )),
            Some(_) => {
                tally.count("replicas: two were compared");
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub fn highest(&self) -> u64 {
        self.states.keys().next_back().copied().unwrap_or(0)
    }
}
