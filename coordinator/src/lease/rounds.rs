//! Read-index rounds: one serves every renewal that arrived before it started.
//!
//! Invariant: a renewal is answered only by a round that began after it arrived, and rounds begin
//! at most once every [`ROUND_EVERY`].

use std::collections::VecDeque;
use std::time::Duration;

use understudy_common::units::BootTime;
use understudy_common::wire::Renew;

pub const ROUND_EVERY: Duration = Duration::from_millis(50);
/// Renewals that wait for a round; more are answered `Busy`.
pub const PENDING_MAX: usize = 4_096;
/// Rounds under way; the next one waits for one of them.
pub const ROUNDS_MAX: usize = 16;

/// A renewal that waits for a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending<Id> {
    pub id: Id,
    /// When it arrived here, on this leader's clock.
    pub arrived: BootTime,
    pub renew: Renew,
}

#[derive(Clone, Debug)]
pub struct Rounds<Id> {
    waiting: Vec<Pending<Id>>,
    running: VecDeque<(u64, Vec<Pending<Id>>)>,
    pending: usize,
    last_number: u64,
    next_start: BootTime,
}

impl<Id> Default for Rounds<Id> {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            running: VecDeque::new(),
            pending: 0,
            last_number: 0,
            next_start: BootTime::ZERO,
        }
    }
}

impl<Id> Rounds<Id> {
    /// # Errors
    /// Gives the renewal back when [`PENDING_MAX`] wait already.
    pub fn push(&mut self, pending: Pending<Id>) -> Result<(), Pending<Id>> {
        if self.pending == PENDING_MAX {
            return Err(pending);
        }
        self.pending += 1;
        self.waiting.push(pending);
        Ok(())
    }

    /// Starts a round if one is due, and gives its number, which never repeats.
    pub fn start(&mut self, now: BootTime) -> Option<u64> {
        if self.waiting.is_empty() || now < self.next_start || self.running.len() == ROUNDS_MAX {
            return None;
        }
        self.next_start = now + ROUND_EVERY;
        self.last_number += 1;
        self.running
            .push_back((self.last_number, std::mem::take(&mut self.waiting)));
        Some(self.last_number)
    }

    /// The round was confirmed, and with it all that began before it.
    pub fn finish(&mut self, number: u64) -> Vec<Pending<Id>> {
        let mut served = Vec::new();
        while self.running.front().is_some_and(|(began, _)| *began <= number) {
            served.extend(
                self.running
                    .pop_front()
                    .into_iter()
                    .flat_map(|(_, pending)| pending),
            );
        }
        self.pending -= served.len();
        served
    }

    /// Everything that waits; nothing does afterwards. Rounds under way are forgotten.
    pub fn drain(&mut self) -> Vec<Pending<Id>> {
        let mut all: Vec<_> = self.running.drain(..).flat_map(|(_, pending)| pending).collect();
        all.append(&mut self.waiting);
        self.pending = 0;
        all
    }

    /// Takes out renewals that arrived before `horizon`: their answer would extend nothing.
    pub fn expire(&mut self, horizon: BootTime) -> Vec<Pending<Id>> {
        let mut old: Vec<_> = self
            .waiting
            .extract_if(.., |pending| pending.arrived < horizon)
            .collect();
        for (_, round) in &mut self.running {
            old.extend(round.extract_if(.., |pending| pending.arrived < horizon));
        }
        self.running.retain(|(_, round)| !round.is_empty());
        self.pending -= old.len();
        old
    }

    /// When the next round is due.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        (!self.waiting.is_empty() && self.running.len() < ROUNDS_MAX).then_some(self.next_start)
    }
}
