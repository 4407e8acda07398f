//! What must hold at every instant.

use std::collections::BTreeMap;

use understudy_common::id::{Epoch, HostId, ServiceId};

use super::coordinator::Coordinator;
use super::host::Host;

/// What the run has shown so far; every later instant is held against it.
#[derive(Default)]
pub struct Checker {
    /// Term and content of every entry that some replica knows to be committed and has on disk.
    committed: BTreeMap<u64, (u64, u64)>,
    /// Digest of the state after each index that some replica stopped at.
    states: BTreeMap<u64, u64>,
    /// Highest epoch seen in any replica's state, and the index it was seen at.
    epochs: BTreeMap<ServiceId, (u64, Epoch)>,
    pub moves: u64,
}

impl Checker {
    /// At most one holder whose gate is open, by true time.
    pub fn gates(&self, hosts: &BTreeMap<HostId, Host>, truth: u64) -> Result<(), String> {
        let mut open: BTreeMap<ServiceId, HostId> = BTreeMap::new();
        for (id, host) in hosts {
            for service in host.slots.keys().filter(|service| host.is_open(**service, truth)) {
                if let Some(other) = open.insert(*service, *id) {
                    return Err(format!("{service} has two open gates: {other} and {id}"));
                }
            }
        }
        Ok(())
    }

    pub fn coordinator(&mut self, node: &mut Coordinator) -> Result<(), String> {
        let Some(replica) = &node.replica else {
            return Ok(());
        };
        let state = replica.state();
        let (index, commits) = node.checked;
        // What the disk says: in memory a replica can know of a commit whose entry is still being
        // written over an older one.
        let on_disk = node.disk.durable().hard_state.commit;
        if state.index == index && on_disk == commits {
            return Ok(());
        }
        node.checked = (state.index, on_disk);
        if state.index != index {
            let digest = state.digest();
            let known = *self.states.entry(state.index).or_insert(digest);
            if known != digest {
                return Err(format!(
                    "{} differs from another replica at {}",
                    node.id, state.index
                ));
            }
            for (id, service) in &state.services {
                let (at, epoch) = self.epochs.entry(*id).or_default();
                let fell = (state.index >= *at && service.epoch < *epoch)
                    || (state.index <= *at && service.epoch > *epoch);
                if fell {
                    return Err(format!(
                        "the epoch of {id} fell from {epoch} to {}",
                        service.epoch
                    ));
                }
                if service.epoch > *epoch {
                    self.moves += 1;
                }
                if state.index > *at {
                    (*at, *epoch) = (state.index, service.epoch);
                }
            }
        }
        let durable = node.disk.durable();
        for entry in &durable.entries {
            if entry.index > commits && entry.index <= on_disk {
                let content = entry.data.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                    (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
                });
                let known = *self.committed.entry(entry.index).or_insert((entry.term, content));
                if known != (entry.term, content) {
                    return Err(format!(
                        "the committed entry {} was replaced on {}",
                        entry.index, node.id
                    ));
                }
            }
        }
        Ok(())
    }

    /// The highest index that some replica knew to be committed.
    pub fn committed_max(&self) -> u64 {
        let applied = self.states.keys().next_back().copied().unwrap_or(0);
        self.committed
            .keys()
            .next_back()
            .copied()
            .unwrap_or(0)
            .max(applied)
    }
}
