//! Which faults there are, and which of them a seed deals. Pure.
//!
//! Invariant: what is dealt depends on the seed and nothing else; every fault comes up once before any comes
//! up again.

use serde::Serialize;

use crate::fault::Seeded;

/// Whom a fault hits, found out when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    Holder,
    Shadow,
    Leader,
    Follower,
}

/// From whom a machine is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// The cable is pulled.
    Everybody,
    Coordinators,
    Hosts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Both,
    /// It is heard, but hears nothing.
    In,
    /// It hears, but is not heard.
    Out,
}

/// A step of a planned move, by the change that the leader proposes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Begun,
    HolderFenced,
    FinalCut,
    Grant,
    Served,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL to the agent or the coordinator.
    Kill(Who),
    /// SIGSTOP to the agent or the coordinator.
    Stop(Who),
    KillWorkload,
    StopWorkload,
    /// All processes die, the cable goes dead, the disk forgets what was not synced.
    PowerCut(Who),
    Partition {
        who: Who,
        from: From,
        way: Way,
    },
    /// Its packets queue up behind a slow link.
    Delay(Who),
    /// Packets are dropped at random in both directions.
    Loss(Who),
    DiskFull(Who),
    SlowDisk(Who),
    /// The wall clock of the process jumps, and jumps back.
    ClockStep(Who),
    /// A planned move, and no fault.
    Move,
    /// The leader is killed in this step of a planned move.
    LeaderKilledIn(Step),
}

impl Fault {
    /// As it is counted.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Stop(_) => "stop",
            Self::KillWorkload => "kill_workload",
            Self::StopWorkload => "stop_workload",
            Self::PowerCut(_) => "power_cut",
            Self::Partition { way: Way::Both, .. } => "partition",
            Self::Partition { .. } => "one_way_partition",
            Self::Delay(_) => "delay",
            Self::Loss(_) => "loss",
            Self::DiskFull(_) => "disk_full",
            Self::SlowDisk(_) => "slow_disk",
            Self::ClockStep(_) => "clock_step",
            Self::Move => "move",
            Self::LeaderKilledIn(_) => "leader_killed_in_move",
        }
    }
}

const fn cut(who: Who, from: From, way: Way) -> Fault {
    Fault::Partition { who, from, way }
}

pub const ALL: [Fault; 54] = [
    Fault::Kill(Who::Holder),
    Fault::Kill(Who::Shadow),
    Fault::Kill(Who::Leader),
    Fault::Kill(Who::Follower),
    Fault::Stop(Who::Holder),
    Fault::Stop(Who::Shadow),
    Fault::Stop(Who::Leader),
    Fault::Stop(Who::Follower),
    Fault::KillWorkload,
    Fault::StopWorkload,
    Fault::PowerCut(Who::Holder),
    Fault::PowerCut(Who::Shadow),
    Fault::PowerCut(Who::Leader),
    Fault::PowerCut(Who::Follower),
    cut(Who::Holder, From::Everybody, Way::Both),
    cut(Who::Holder, From::Coordinators, Way::Both),
    cut(Who::Holder, From::Coordinators, Way::In),
    cut(Who::Holder, From::Coordinators, Way::Out),
    cut(Who::Holder, From::Hosts, Way::Both),
    cut(Who::Shadow, From::Everybody, Way::Both),
    cut(Who::Shadow, From::Coordinators, Way::Both),
    cut(Who::Shadow, From::Hosts, Way::In),
    cut(Who::Shadow, From::Hosts, Way::Out),
    cut(Who::Leader, From::Everybody, Way::Both),
    cut(Who::Leader, From::Coordinators, Way::Both),
    cut(Who::Leader, From::Coordinators, Way::In),
    cut(Who::Leader, From::Coordinators, Way::Out),
    cut(Who::Leader, From::Hosts, Way::Both),
    cut(Who::Leader, From::Hosts, Way::In),
    cut(Who::Follower, From::Everybody, Way::Both),
    cut(Who::Follower, From::Coordinators, Way::Out),
    Fault::Delay(Who::Holder),
    Fault::Delay(Who::Leader),
    Fault::Loss(Who::Holder),
    Fault::Loss(Who::Shadow),
    Fault::Loss(Who::Leader),
    Fault::DiskFull(Who::Holder),
    Fault::DiskFull(Who::Shadow),
    Fault::DiskFull(Who::Leader),
    Fault::DiskFull(Who::Follower),
    Fault::SlowDisk(Who::Holder),
    Fault::SlowDisk(Who::Shadow),
    Fault::SlowDisk(Who::Leader),
    Fault::SlowDisk(Who::Follower),
    Fault::ClockStep(Who::Holder),
    Fault::ClockStep(Who::Shadow),
    Fault::ClockStep(Who::Leader),
    Fault::ClockStep(Who::Follower),
    Fault::Move,
    Fault::LeaderKilledIn(Step::Begun),
    Fault::LeaderKilledIn(Step::HolderFenced),
    Fault::LeaderKilledIn(Step::FinalCut),
    Fault::LeaderKilledIn(Step::Grant),
    Fault::LeaderKilledIn(Step::Served),
];

/// One fault, or two at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Round {
    pub first: Fault,
    /// And how long after the first it begins.
    pub second: Option<(Fault, u64)>,
    /// How long both last, from the beginning of the last.
    pub hold_ms: u64,
    /// For what is drawn when a fault begins: rates, and which of several.
    pub seed: u64,
}

const HOLD_MS: std::ops::RangeInclusive<u64> = 300..=5_000;
const SECOND_AFTER_MS: std::ops::RangeInclusive<u64> = 0..=1_500;
/// Of so many rounds one has two faults.
const DOUBLE_EVERY: u64 = 4;

/// Deals rounds for ever.
pub struct Deal {
    seeded: Seeded,
    deck: Vec<Fault>,
}

impl Deal {
    pub fn new(seed: u64) -> Self {
        Self {
            seeded: Seeded::new(seed),
            deck: Vec::new(),
        }
    }

    pub fn round(&mut self) -> Round {
        let first = self.fault();
        let double = self.seeded.draw().is_multiple_of(DOUBLE_EVERY);
        let second = double.then(|| {
            let fault = self.fault();
            (fault, self.seeded.within(&SECOND_AFTER_MS))
        });
        Round {
            first,
            second,
            hold_ms: self.seeded.within(&HOLD_MS),
            seed: self.seeded.draw(),
        }
    }

    fn fault(&mut self) -> Fault {
        if self.deck.is_empty() {
            self.deck = ALL.to_vec();
        }
        let at = self.seeded.within(&(0..=self.deck.len() as u64 - 1));
        self.deck.swap_remove(at as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_deals_the_same_rounds_and_another_seed_others() {
        let deal = |seed| {
            let mut deal = Deal::new(seed);
            (0..100).map(|_| deal.round()).collect::<Vec<_>>()
        };
        assert_eq!(deal(7), deal(7));
        assert_ne!(deal(7), deal(8));
    }

    #[test]
    fn every_fault_comes_up_before_one_comes_up_again() {
        let mut deal = Deal::new(3);
        let mut dealt = Vec::new();
        while dealt.len() < ALL.len() {
            let round = deal.round();
            dealt.push(round.first);
            dealt.extend(round.second.map(|(fault, _)| fault));
        }
        for fault in ALL {
            let times = dealt[..ALL.len()].iter().filter(|one| **one == fault).count();
            assert_eq!(times, 1, "{fault:?}");
        }
    }
}
