//! What a run found.

use std::collections::BTreeMap;

use serde::Serialize;

use super::inject::InForce;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// From 1; 0 is before the first.
    pub round: u64,
    /// What went on then.
    pub faults: String,
    pub what: String,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub seed: u64,
    /// Repeats the run.
    pub command: String,
    pub seconds: f64,
    pub rounds: u64,
    pub exercise_violations: u64,
    pub violations: Vec<Violation>,
    /// How often each kind was done.
    pub faults: BTreeMap<&'static str, u64>,
    pub double_failures: u64,
    pub in_force: InForce,
    /// Epochs granted after the first one, and how many of them by a planned move.
    pub moves: u64,
    pub planned_moves: u64,
    pub acknowledged: u64,
    /// Appends that the ledger could not make, as on a full disk.
    pub refused: u64,
    /// Answered appends that a takeover after a crash lost, all of them after the cut of the generation that it
    /// started from; and the longest time that such appends spanned.
    pub lost_after_the_cut: u64,
    pub loss_window_ms_max: f64,
    pub answers_checked: u64,
    /// Longest time without an answer to the client, by the fault that was being done; doubles count for neither.
    pub outage_ms_max: BTreeMap<&'static str, f64>,
    /// Longest times from the end of the faults until the client was served, and until the cluster was whole.
    pub served_again_s_max: f64,
    pub whole_again_s_max: f64,
    /// Programs that ended by themselves, which only a full or a dead disk allows.
    pub programs_ended: u64,
    /// Warnings by their reason.
    pub expected_warnings: BTreeMap<&'static str, u64>,
}

impl Report {
    pub fn held(&self) -> bool {
        self.violations.is_empty()
    }

    pub(super) fn widest_outage(&mut self, kind: &'static str, ns: u64) {
        let ms = self.outage_ms_max.entry(kind).or_default();
        *ms = ms.max(ns as f64 / 1e6);
    }
}
