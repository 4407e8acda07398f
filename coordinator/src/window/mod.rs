//! The last ticks of every host's beacons. Every coordinator keeps them, so that a new leader
//! predicts at once.
//!
//! Invariants: bounded in hosts and ticks; a host's beacons are in the order of their ticks; the newest is exact,
//! older ones are kept to one part in a thousand (`packed`).

mod packed;

use std::collections::{BTreeMap, VecDeque};

use understudy_common::beacon::Beacon;
use understudy_common::id::HostId;

use packed::Packed;

/// Ticks kept of each host: what the longest horizon looks back on.
pub const TICKS_MAX: usize = 300;
/// Hosts kept; beacons of further ones are refused.
pub const HOSTS_MAX: usize = crate::state::HOSTS_MAX;

#[derive(Debug, Default)]
pub struct Window {
    hosts: BTreeMap<HostId, History>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("beacons of {HOSTS_MAX} hosts are kept already; {0} is one more")]
pub struct WindowFull(pub HostId);

impl Window {
    /// Takes a beacon in. One that is not newer than the last says that the host booted: what was
    /// before it is forgotten.
    ///
    /// # Errors
    /// [`WindowFull`] for a host over the bound.
    pub fn push(&mut self, beacon: Beacon) -> Result<(), WindowFull> {
        if let Some(history) = self.hosts.get_mut(&beacon.host) {
            history.push(beacon);
            return Ok(());
        }
        if self.hosts.len() == HOSTS_MAX {
            return Err(WindowFull(beacon.host));
        }
        self.hosts.insert(beacon.host, History::of(beacon));
        Ok(())
    }

    pub fn hosts(&self) -> impl Iterator<Item = (HostId, &History)> {
        self.hosts.iter().map(|(host, history)| (*host, history))
    }
}

/// One host's beacons.
#[derive(Debug)]
pub struct History {
    newest: Beacon,
    /// Before it, oldest first.
    past: VecDeque<Packed>,
}

impl History {
    fn of(beacon: Beacon) -> Self {
        Self {
            newest: beacon,
            // Never grows: growing would double it.
            past: VecDeque::with_capacity(TICKS_MAX - 1),
        }
    }

    fn push(&mut self, beacon: Beacon) {
        if beacon.tick == self.newest.tick {
            return;
        }
        if beacon.tick < self.newest.tick {
            self.past.clear();
        } else {
            if self.past.len() == TICKS_MAX - 1 {
                self.past.pop_front();
            }
            self.past.push_back(Packed::of(&self.newest));
        }
        self.newest = beacon;
    }

    pub const fn newest(&self) -> &Beacon {
        &self.newest
    }

    /// The beacons of all ticks after this one, or of all, oldest first.
    pub fn after(&self, tick: Option<u64>) -> Vec<Beacon> {
        let newer = |at: u64| tick.is_none_or(|tick| at > tick);
        let past = self
            .past
            .iter()
            .rev()
            .take_while(|packed| newer(packed.tick(self.newest.tick)))
            .count();
        let mut all: Vec<_> = self
            .past
            .iter()
            .skip(self.past.len() - past)
            .map(|packed| packed.unpack(&self.newest))
            .collect();
        all.extend(newer(self.newest.tick).then_some(self.newest));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beacon(host: u32, tick: u64) -> Beacon {
        Beacon::new(HostId(host), tick, tick)
    }

    fn ticks(window: &Window) -> Vec<(u32, Vec<u64>)> {
        window
            .hosts()
            .map(|(host, history)| (host.0, history.after(None).iter().map(|b| b.tick).collect()))
            .collect()
    }

    #[test]
    fn only_the_newest_ticks_are_kept() {
        let mut window = Window::default();
        for tick in 1..=400 {
            window.push(beacon(1, tick)).unwrap();
        }
        let (_, kept) = &ticks(&window)[0];
        assert_eq!((kept.len(), kept[0], kept[TICKS_MAX - 1]), (TICKS_MAX, 101, 400));
    }

    #[test]
    fn only_ticks_after_the_asked_one_are_given() {
        let mut window = Window::default();
        for tick in [3, 5, 6, 9] {
            window.push(beacon(1, tick)).unwrap();
        }
        let (_, history) = window.hosts().next().unwrap();
        let after = |tick| {
            history
                .after(tick)
                .iter()
                .map(|beacon| beacon.tick)
                .collect::<Vec<_>>()
        };
        assert_eq!(after(Some(5)), [6, 9]);
        assert_eq!(after(Some(9)), [0; 0]);
        assert_eq!(after(None), [3, 5, 6, 9]);
    }

    #[test]
    fn a_boot_begins_a_new_history_and_a_repeated_tick_is_passed_over() {
        let mut window = Window::default();
        for (host, tick) in [(1, 8), (1, 9), (1, 9), (2, 5), (1, 2), (1, 3)] {
            window.push(beacon(host, tick)).unwrap();
        }
        assert_eq!(ticks(&window), [(1, vec![2, 3]), (2, vec![5])]);
    }

    #[test]
    fn a_host_over_the_bound_is_refused_and_known_ones_go_on() {
        let mut window = Window::default();
        for host in 0..u32::try_from(HOSTS_MAX).unwrap() {
            window.push(beacon(host, 1)).unwrap();
        }
        let one_more = HostId(u32::try_from(HOSTS_MAX).unwrap());
        assert_eq!(window.push(beacon(one_more.0, 1)), Err(WindowFull(one_more)));
        window.push(beacon(7, 2)).unwrap();
    }
}
