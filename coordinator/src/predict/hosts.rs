//! What the model remembers of each host between ticks.
//!
//! Invariant: at most [`super::HOSTS_MAX`] hosts are kept, since only hosts of the last few ticks stay.

use std::collections::BTreeMap;

use ndarray::Array2;
use understudy_common::id::HostId;

use super::{GAP_TICKS_MAX, HOSTS_MAX, Score};

struct Memory {
    tick: u64,
    /// Steps since the state was last zero.
    steps: u64,
    state: Vec<Vec<f32>>,
    score: Option<Score>,
    /// Calls of [`Hosts::forget_silent`] since the last beacon.
    silent: u64,
}

pub(super) struct Hosts {
    widths: Vec<usize>,
    memory: BTreeMap<HostId, Memory>,
}

impl Hosts {
    pub(super) fn new(widths: Vec<usize>) -> Self {
        Self {
            widths,
            memory: BTreeMap::new(),
        }
    }

    /// Whether the beacon of this tick is to be stepped; begins a host anew after a gap or when its clock went back.
    pub(super) fn admit(&mut self, host: HostId, tick: u64) -> bool {
        if let Some(memory) = self.memory.get_mut(&host) {
            if memory.tick == tick {
                return false;
            }
            if tick > memory.tick && tick - memory.tick <= GAP_TICKS_MAX {
                memory.tick = tick;
                memory.silent = 0;
                return true;
            }
            self.memory.remove(&host);
        }
        if self.memory.len() >= HOSTS_MAX {
            self.forget_longest_silent();
        }
        let state = self.widths.iter().map(|width| vec![0.0; *width]).collect();
        self.memory.insert(
            host,
            Memory {
                tick,
                steps: 0,
                state,
                score: None,
                silent: 0,
            },
        );
        true
    }

    pub(super) fn gather(&self, rows: &[HostId], tensor: usize) -> Array2<f32> {
        let mut batch = Array2::zeros((rows.len(), self.widths[tensor]));
        for (row, host) in rows.iter().enumerate() {
            if let Some(memory) = self.memory.get(host) {
                for (slot, value) in batch.row_mut(row).iter_mut().zip(&memory.state[tensor]) {
                    *slot = *value;
                }
            }
        }
        batch
    }

    pub(super) fn keep(&mut self, host: HostId, state: Vec<Vec<f32>>, score: Score) {
        if let Some(memory) = self.memory.get_mut(&host) {
            memory.state = state;
            memory.steps += 1;
            memory.score = Some(score);
        }
    }

    pub(super) fn score(&self, host: HostId, warm_up_ticks: u64) -> Option<Score> {
        self.memory
            .get(&host)
            .filter(|memory| memory.steps > warm_up_ticks)
            .and_then(|memory| memory.score)
    }

    /// Ends a tick: hosts that sent nothing for longer than the gap would begin anew, so they are dropped.
    pub(super) fn forget_silent(&mut self) {
        self.memory.retain(|_, memory| {
            memory.silent += 1;
            memory.silent <= GAP_TICKS_MAX + 1
        });
    }

    pub(super) fn forget_all(&mut self) {
        self.memory.clear();
    }

    fn forget_longest_silent(&mut self) {
        if let Some(host) = self
            .memory
            .iter()
            .max_by_key(|(_, memory)| memory.silent)
            .map(|(host, _)| *host)
        {
            self.memory.remove(&host);
        }
    }
}
