//! What must hold after every event: one file per invariant.
//!
//! | file | what holds |
//! |---|---|
//! | `gates` | at most one gate of a service is open |
//! | `epochs` | epochs only rise |
//! | `orders` | no order of an old epoch is obeyed |
//! | `commits` | what was committed stays |
//! | `replicas` | replicas that applied the same index are equal |
//! | `generations` | a promoted shadow has every generation that it acknowledged |
//! | `histories` | clients see one history; a planned move keeps it, a failover a prefix of it |
//! | `recovery` | once repaired, everything serves within a bound |
//!
//! Each counts how often its premise came true: one that never does proves nothing.

pub mod commits;
pub mod epochs;
pub mod gates;
pub mod generations;
pub mod histories;
pub mod orders;
pub mod recovery;
pub mod replicas;

use understudy_common::id::{Epoch, HostId, ServiceId};

use crate::content::{Content, Contents};
use crate::coordinator::Coordinator;
use crate::tally::Tally;

/// What the run has shown so far; every later instant is held against it.
#[derive(Default)]
pub struct Invariants {
    pub gates: gates::Gates,
    pub epochs: epochs::Epochs,
    pub orders: orders::Orders,
    pub commits: commits::Commits,
    pub replicas: replicas::Replicas,
    pub generations: generations::Generations,
    pub histories: histories::Histories,
}

impl Invariants {
    /// A replica may have applied or committed something.
    pub fn coordinator(&mut self, node: &mut Coordinator, tally: &mut Tally) -> Result<(), String> {
        let Some(replica) = &node.replica else {
            return Ok(());
        };
        if let Some(why) = replica.halted() {
            return Err(format!("replicas: {} stopped for good: {why}", node.id));
        }
        let index = replica.applied();
        if index != node.checked.applied {
            self.replicas.applied(node.id, replica.state(), tally)?;
            self.epochs.applied(replica.state(), tally)?;
            node.checked.applied = index;
        }
        self.commits.persisted(node, tally)
    }

    /// A host has made a service's files its own.
    pub fn owned(
        &mut self,
        host: HostId,
        service: ServiceId,
        epoch: Epoch,
        start: Content,
        contents: &Contents,
        tally: &mut Tally,
    ) -> Result<(), String> {
        self.generations.promoted(host, service, start, contents, tally)?;
        let planned = self.epochs.is_planned(service, epoch);
        self.histories
            .began(service, epoch, start, planned, contents, tally)
    }
}
