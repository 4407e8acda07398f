//! A coordinator's disk: it loses what was not synced, or is full.

use understudy_coordinator::replica::{Durable, Persist};

use crate::rng::Rng;
use crate::tally::Tally;

#[derive(Default)]
pub struct Disk {
    durable: Durable,
    /// Being written and synced, as a whole or not at all: the log cuts off a torn batch.
    writing: Option<Persist>,
    pub full: bool,
}

impl Disk {
    pub fn write(&mut self, persist: Persist) {
        assert!(self.writing.is_none(), "one write at a time");
        self.writing = Some(persist);
    }

    /// The write has ended, unless there is no room for it: then it is tried again.
    pub fn written(&mut self) -> bool {
        if self.full {
            return false;
        }
        let persist = self.writing.take().expect("a write was under way");
        apply(&mut self.durable, persist);
        true
    }

    /// The process or the power is gone; what was being written is there or torn.
    pub fn crash(&mut self, rng: &mut Rng, tally: &mut Tally) {
        let Some(persist) = self.writing.take() else {
            return;
        };
        if self.full || rng.chance(500) {
            tally.count("write to a coordinator's log torn");
        } else {
            tally.count("write to a coordinator's log landed unheard");
            apply(&mut self.durable, persist);
        }
    }

    pub const fn durable(&self) -> &Durable {
        &self.durable
    }
}

fn apply(durable: &mut Durable, persist: Persist) {
    if let Some(snapshot) = persist.snapshot {
        // One of the leader replaces the log, its tail of another history included.
        if persist.compact_to.is_none() {
            durable.entries.clear();
        }
        durable.snapshot = Some(snapshot);
    }
    if let Some(first) = persist.entries.first() {
        let kept = durable.entries.partition_point(|entry| entry.index < first.index);
        durable.entries.truncate(kept);
        durable.entries.extend(persist.entries);
    }
    if let Some(hard_state) = persist.hard_state {
        durable.hard_state = hard_state;
    }
    if let Some(index) = persist.compact_to {
        let dropped = durable.entries.partition_point(|entry| entry.index < index);
        durable.entries.drain(..dropped);
    }
}
