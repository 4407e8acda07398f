//! A whole cluster in one thread, from one seed.
//!
//! Replicas, planner, lease client and the agent's machines are the real ones; network, disks, clocks,
//! workloads and clients are simulated. After every event the `invariants` hold; then everything is
//! repaired and must serve again within a bound.
//!
//! Invariants: chance comes from the seed alone, and nothing here reads a clock, so that a seed gives
//! the same run every time; what a run decides is decided by the product.

mod chaos;
mod client;
mod clock;
mod content;
mod coordinator;
mod disk;
mod fleet;
mod host;
mod invariants;
mod membership;
mod net;
mod observe;
mod queue;
mod rng;
mod scenario;
mod tally;
mod trace;
mod world;

use std::any::Any;
use std::panic::catch_unwind;

use clock::MS;

pub use chaos::kinds as fault_kinds;
pub use fleet::{Summary, catch, run_seeds};
pub use scenario::Fault;
pub use tally::Tally;

/// Every service is declared and has its first holder by then.
const CALM: u64 = 4_000 * MS;
/// Faults strike until then.
const STORM: u64 = 52_000 * MS;
/// A run lasts at least this long.
const LASTS: u64 = 60_000 * MS;

/// The premises that must come true, one or more for each invariant.
pub const PREMISES: [&str; 10] = [
    "gates: another epoch's gate opened",
    "epochs: an epoch rose",
    "orders: one of an old epoch arrived",
    "commits: a committed entry was found on another disk",
    "replicas: two were compared",
    "generations: one was acknowledged",
    "generations: a shadow that acknowledged some was promoted",
    "histories: a planned move of answered writes",
    "histories: a failover of a service with writes",
    "recovery: whole after a repair",
];

/// What faults do to what they strike.
pub const EFFECTS: [&str; 13] = [
    "packet lost",
    "packet duplicated",
    "packet met a cut",
    "write to a coordinator's log torn",
    "write met a coordinator's full disk",
    "journal of a shadow torn",
    "generation met a full disk",
    "unsynced write lost",
    "order for another boot",
    "kept order adopted",
    "lease adopted",
    "gates: extended by promises",
    "gates: extended by policy",
];

/// What one seed came to.
#[derive(Clone, Debug)]
pub struct Ran {
    pub trace: u64,
    pub events: u64,
    pub grants: u64,
    pub simulated_ms: u64,
    pub tally: Tally,
    /// The invariant that was violated, and how.
    pub violation: Option<String>,
}

/// Runs one seed; with a fault, a build that is broken in a known way.
pub fn run(seed: u64, fault: Option<Fault>, verbose: bool) -> Ran {
    catch_unwind(|| drive(seed, fault, verbose)).unwrap_or_else(|panic| Ran {
        trace: 0,
        events: 0,
        grants: 0,
        simulated_ms: 0,
        tally: Tally::default(),
        violation: Some(stopped(panic.as_ref())),
    })
}

/// A replica stops its process rather than go on without what was committed: raft looks for that itself.
fn stopped(panic: &(dyn Any + Send)) -> String {
    let what = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it does not say why");
    if what.contains("to_commit") || what.contains("not find entry") {
        format!("commits: raft stopped a replica: {what}")
    } else {
        format!("a panic: {what}")
    }
}

fn drive(seed: u64, fault: Option<Fault>, verbose: bool) -> Ran {
    let mut world = match world::World::new(seed, fault, verbose) {
        Ok(world) => world,
        Err(why) => {
            return Ran {
                trace: 0,
                events: 0,
                grants: 0,
                simulated_ms: 0,
                tally: Tally::default(),
                violation: Some(why),
            };
        }
    };
    world.at(CALM, chaos::Chaos::Next { until: STORM });
    let result = world
        .run_until(STORM)
        .and_then(|()| invariants::recovery::await_recovery(&mut world))
        .and_then(|()| {
            let end = world.truth.max(LASTS);
            world.run_until(end)
        });
    Ran {
        trace: world.trace(),
        events: world.events,
        grants: world.invariants.epochs.grants_seen,
        simulated_ms: world.truth / MS,
        tally: world.tally,
        violation: result.err(),
    }
}
