//! The last ticks of every host's beacons. Every coordinator keeps them, so that a new leader
//! predicts at once.
//!
//! Invariants: bounded in hosts and ticks; a host's beacons are in the order of their ticks.

use std::collections::{BTreeMap, VecDeque};

use understudy_common::beacon::Beacon;
use understudy_common::id::HostId;

/// Ticks kept of each host: what the longest horizon looks back on.
pub const TICKS_MAX: usize = 300;
/// Hosts kept; beacons of further ones are refused.
pub const HOSTS_MAX: usize = 4_096;

#[derive(Debug, Default)]
pub struct Window {
    hosts: BTreeMap<HostId, VecDeque<Beacon>>,
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
        if !self.hosts.contains_key(&beacon.host) && self.hosts.len() == HOSTS_MAX {
            return Err(WindowFull(beacon.host));
        }
        let ticks = self.hosts.entry(beacon.host).or_default();
        match ticks.back() {
            Some(last) if last.tick == beacon.tick => return Ok(()),
            Some(last) if last.tick > beacon.tick => ticks.clear(),
            _ => {}
        }
        if ticks.len() == TICKS_MAX {
            ticks.pop_front();
        }
        ticks.push_back(beacon);
        Ok(())
    }

    /// Each host's beacons, oldest first.
    pub fn hosts(&self) -> impl Iterator<Item = (HostId, &VecDeque<Beacon>)> {
        self.hosts.iter().map(|(host, ticks)| (*host, ticks))
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
            .map(|(host, ticks)| (host.0, ticks.iter().map(|b| b.tick).collect()))
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
        assert_eq!(window.push(beacon(9_999, 1)), Err(WindowFull(HostId(9_999))));
        window.push(beacon(7, 2)).unwrap();
    }
}
