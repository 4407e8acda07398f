//! What the model remembers of each host between ticks.
//!
//! Invariant: at most [`super::HOSTS_MAX`] hosts are kept, since only hosts of the last few ticks stay.

use std::collections::BTreeMap;
use std::ops::Range;

use ndarray::{Array2, ArrayView1, ArrayViewMut1};
use understudy_common::id::HostId;

use super::{GAP_TICKS_MAX, HOSTS_MAX, Score};

struct Memory {
    tick: u64,
    /// Steps since the state was last zero.
    steps: u64,
    /// All state tensors' rows, one after the other.
    state: Box<[f32]>,
    score: Option<Score>,
    /// Calls of [`Hosts::forget_silent`] since the last beacon.
    silent: u64,
}

pub(super) struct Hosts {
    /// Where each tensor's row lies in the state.
    tensors: Vec<Range<usize>>,
    memory: BTreeMap<HostId, Memory>,
}

impl Hosts {
    pub(super) fn new(widths: &[usize]) -> Self {
        let mut end = 0;
        let tensors = widths.iter().map(|width| {
            end += width;
            end - width..end
        });
        Self {
            tensors: tensors.collect(),
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
        let state = vec![0.0; self.tensors.last().map_or(0, |last| last.end)].into();
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
        let range = self.tensors[tensor].clone();
        let mut batch = Array2::zeros((rows.len(), range.len()));
        for (mut row, host) in batch.rows_mut().into_iter().zip(rows) {
            if let Some(memory) = self.memory.get(host) {
                row.assign(&ArrayView1::from(&memory.state[range.clone()]));
            }
        }
        batch
    }

    /// Takes one row of each state tensor.
    pub(super) fn keep(&mut self, host: HostId, next: &[Array2<f32>], row: usize, score: Score) {
        if let Some(memory) = self.memory.get_mut(&host) {
            for (range, tensor) in self.tensors.iter().zip(next) {
                ArrayViewMut1::from(&mut memory.state[range.clone()]).assign(&tensor.row(row));
            }
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
