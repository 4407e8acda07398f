//! What this host sees of the holders of its services from its own side: evidence for the
//! coordinators, who act only on what observers agree on (DESIGN §5).
//!
//! Invariants: decides nothing and runs beside the agent's loop. Each target is asked at most once in
//! [`EVERY`], with at most [`PROBES_MAX`] questions open at once, and each question ends within
//! [`PROBE_MAX`]. *Refused* and *dropped* are told apart: a fenced host that is alive refuses, a dead
//! or cut-off one says nothing. What fails on this host itself is no evidence about another.

mod probe;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch as shared};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use understudy_common::wire::Evidence;

use crate::clock::boot_time;
pub use probe::{PROBE_MAX, reach};
pub use watch::{Observer, Probe, Target};

/// Between two questions to one target.
pub const EVERY: Duration = Duration::from_secs(1);
/// Questions open at once.
const PROBES_MAX: usize = 32;

/// Watches the targets for as long as somebody gives them, and tells what is seen whenever that changes.
pub async fn observe(mut targets: shared::Receiver<Vec<Target>>, evidence: shared::Sender<Vec<Evidence>>) {
    let mut observer = Observer::default();
    let mut interval = tokio::time::interval(EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let room = Arc::new(Semaphore::new(PROBES_MAX));
    targets.mark_changed();
    loop {
        interval.tick().await;
        match targets.has_changed() {
            Ok(true) => observer.handle_targets(targets.borrow_and_update().clone()),
            Ok(false) => {}
            Err(_) => return,
        }
        let mut asked = JoinSet::new();
        for probe in observer.probes() {
            let room = Arc::clone(&room);
            asked.spawn(async move {
                // Closed by nobody.
                let _place = room.acquire_owned().await;
                (probe, reach(probe).await)
            });
        }
        while let Some(answered) = asked.join_next().await {
            let Ok((probe, reach)) = answered else { continue };
            observer.handle_reach(boot_time(), probe, reach);
        }
        let seen = observer.evidence();
        evidence.send_if_modified(|known| {
            let news = *known != seen;
            *known = seen;
            news
        });
    }
}
