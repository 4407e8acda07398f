//! Many seeds on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::scenario::Fault;
use crate::tally::Tally;
use crate::{Ran, run};

/// What many seeds came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub seeds: u64,
    /// Over the traces of all seeds, whatever order they ended in.
    pub trace: u64,
    pub events: u64,
    pub grants: u64,
    pub simulated_ms: u64,
    /// The fewest faults that struck in one seed, and the shortest run.
    pub faults_min: u64,
    pub simulated_ms_min: u64,
    pub tally: Tally,
    /// Seed and violation, in order.
    pub violations: Vec<(u64, String)>,
}

impl Summary {
    fn add(&mut self, seed: u64, ran: Ran) {
        let faults = crate::fault_kinds().map(|kind| ran.tally.get(kind)).sum();
        let first = self.seeds == 0;
        self.faults_min = if first {
            faults
        } else {
            self.faults_min.min(faults)
        };
        self.simulated_ms_min = if first {
            ran.simulated_ms
        } else {
            self.simulated_ms_min.min(ran.simulated_ms)
        };
        self.seeds += 1;
        self.trace = self.trace.wrapping_add(crate::trace::digest(
            &[seed.to_le_bytes(), ran.trace.to_le_bytes()].concat(),
        ));
        self.events += ran.events;
        self.grants += ran.grants;
        self.simulated_ms += ran.simulated_ms;
        self.tally.add(&ran.tally);
        if let Some(why) = ran.violation {
            self.violations.push((seed, why));
            self.violations.sort();
        }
    }
}

/// Runs `count` seeds from `first` on, until `stop` says that the last one was enough.
pub fn run_seeds(
    first: u64,
    count: u64,
    threads: usize,
    fault: Option<Fault>,
    stop: impl Fn(u64, &Ran) -> bool + Sync,
) -> Summary {
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count {
                        return;
                    }
                    let seed = first + at;
                    let ran = run(seed, fault, false);
                    if stop(seed, &ran) {
                        next.store(count, Ordering::Relaxed);
                    }
                    summary.lock().expect("no thread panicked").add(seed, ran);
                }
            });
        }
    });
    summary.into_inner().expect("no thread panicked")
}

/// Runs a build that is broken in a known way until the invariant catches it: the seed, and what it said.
pub fn catch(invariant: &str, fault: Fault, seeds: u64, threads: usize) -> Result<(u64, String), Summary> {
    let caught = |why: &str| why.starts_with(invariant) || why.contains(&format!(" {invariant}: "));
    let stop = |_, ran: &Ran| ran.violation.as_deref().is_some_and(caught);
    let summary = run_seeds(0, seeds, threads, Some(fault), stop);
    let found = summary.violations.iter().find(|(_, why)| caught(why));
    found.cloned().ok_or(summary)
}

impl Summary {
    /// Of one seed alone.
    pub fn of(seed: u64, ran: Ran) -> Self {
        let mut summary = Self::default();
        summary.add(seed, ran);
        summary
    }
}
