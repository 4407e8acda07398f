//! Where beacons wait for the next tick, and how much the ticks cost.
//!
//! Invariants: bounded, what does not fit is dropped and counted; taking a beacon in wakes nobody.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use understudy_common::beacon::Beacon;

use crate::state::HOSTS_MAX;

/// Two ticks of the largest fleet; more are dropped.
const WAITING_MAX: usize = 2 * HOSTS_MAX;
/// Ticks whose cost is remembered: a minute.
const TICKS_REMEMBERED: usize = 60;

#[derive(Debug, Default)]
pub struct Inbox {
    waiting: Mutex<Vec<Beacon>>,
    received: AtomicU64,
    dropped: AtomicU64,
    hosts: AtomicU64,
}

impl Inbox {
    pub fn push(&self, beacon: Beacon) {
        self.received.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.lock();
        if waiting.len() < WAITING_MAX {
            waiting.push(beacon);
        } else {
            self.drop_one();
        }
    }

    /// What came since the last call, in the order it came in.
    pub(super) fn take(&self) -> Vec<Beacon> {
        std::mem::take(&mut *self.lock())
    }

    /// Counts a beacon that was received and is of no use.
    pub(super) fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_hosts(&self, hosts: usize) {
        self.hosts.store(hosts as u64, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Beacon>> {
        // Pushing and taking leave it whole at every step.
        self.waiting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// For people, with what the ticks cost.
    pub fn figures(&self, ticks: &TickCosts) -> Value {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "hosts": count(&self.hosts),
            "received": count(&self.received),
            "dropped": count(&self.dropped),
            "tick_us_p50": ticks.quantile_us(50),
            "tick_us_p99": ticks.quantile_us(99),
        })
    }
}

/// What the ticks of the last minute cost: from taking the beacons in to having handled their scores.
#[derive(Debug, Default)]
pub struct TickCosts(VecDeque<Duration>);

impl TickCosts {
    pub fn push(&mut self, cost: Duration) {
        if self.0.len() == TICKS_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(cost);
    }

    fn quantile_us(&self, percent: usize) -> Option<u64> {
        let mut sorted: Vec<_> = self.0.iter().collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100);
        let cost = sorted.get(rank.checked_sub(1)?)?;
        Some(u64::try_from(cost.as_micros()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_common::id::HostId;

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let inbox = Inbox::default();
        for n in 0..=WAITING_MAX as u64 {
            inbox.push(Beacon::new(HostId(1), n, n));
        }
        assert_eq!(inbox.take().len(), WAITING_MAX);
        inbox.push(Beacon::new(HostId(1), 0, 0));
        assert_eq!(inbox.take().len(), 1);
        let figures = inbox.figures(&TickCosts::default());
        assert_eq!(figures["received"], WAITING_MAX + 2);
        assert_eq!(figures["dropped"], 1);
    }

    #[test]
    fn costs_are_those_of_the_last_minute() {
        let mut costs = TickCosts::default();
        assert_eq!(costs.quantile_us(99), None);
        for ms in 0..100 {
            costs.push(Duration::from_millis(ms));
        }
        assert_eq!(costs.quantile_us(50), Some(69_000));
        assert_eq!(costs.quantile_us(99), Some(99_000));
    }
}
