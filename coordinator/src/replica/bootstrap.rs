//! How a replica begins: every voter of a new cluster from one and the same first snapshot, one that
//! joins from nothing.
//!
//! Invariant: the first snapshot is a function of the configured members alone. Since the log begins
//! after it, whoever joins later begins with a snapshot that names the members, too.

use raft::eraftpb::{HardState, Snapshot};

use super::{Durable, Persist, ReplicaError, Settings};
use crate::state::{Coordinators, State};

/// Index and term of the first snapshot.
const FIRST: u64 = 1;

/// What to begin with, and what has to be made durable before anything else.
pub(super) fn begin(
    settings: &Settings,
    durable: Durable,
) -> Result<(Durable, Option<Persist>), ReplicaError> {
    if durable.snapshot.is_some() || settings.joins {
        return Ok((durable, None));
    }
    if !durable.entries.is_empty() || durable.hard_state != HardState::default() {
        let why = "it has no snapshot to begin with".to_owned();
        return Err(ReplicaError::Corrupt { why });
    }
    let first = Persist {
        hard_state: Some(HardState {
            term: FIRST,
            commit: FIRST,
            ..HardState::default()
        }),
        snapshot: Some(first_snapshot(settings)),
        ..Persist::default()
    };
    let durable = Durable {
        hard_state: first.hard_state.clone().unwrap_or_default(),
        snapshot: first.snapshot.clone(),
        entries: Vec::new(),
    };
    Ok((durable, Some(first)))
}

fn first_snapshot(settings: &Settings) -> Snapshot {
    let voters = settings
        .members
        .iter()
        .map(|id| (*id, settings.addrs.get(id).copied()));
    let state = State {
        index: FIRST,
        coordinators: Coordinators::first(voters, FIRST),
        ..State::default()
    };
    let mut snapshot = Snapshot::default();
    snapshot.set_data(state.to_snapshot().into());
    let meta = snapshot.mut_metadata();
    meta.index = FIRST;
    meta.term = FIRST;
    meta.mut_conf_state()
        .set_voters(settings.members.iter().map(|id| id.0).collect());
    snapshot
}
