//! Everything at one instant.

use std::collections::BTreeSet;

use understudy_common::id::Epoch;
use understudy_common::units::BootTime;
use understudy_coordinator::lease::LeaseTable;

use super::host::{Host, Role, SERVICE};
use super::log::{Grant, Hosts, Log};
use super::times::{self, TIMES};
use super::{Broken, Protocol, Slice};

/// A coordinator: what it believes the log says, and the real table of leases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    pub view: Log,
    pub table: LeaseTable,
    /// Renewals that wait for a read-index round, and when they arrived.
    pub waiting: BTreeSet<(Renewal, BootTime)>,
    /// Appended, not committed.
    pub proposal: Option<Grant>,
}

/// A renewal on its way, or its answer: the holder's send time is told by the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Renewal {
    pub host: usize,
    pub sequence: u64,
    pub epoch: u64,
    pub sent: BootTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub time: u64,
    /// Which clocks are slow.
    pub slow: u8,
    pub log: Log,
    /// The log before its last change: orders of it may still be on their way.
    pub late: Log,
    pub leaders: [Leader; 2],
    /// Whom a quorum follows.
    pub reigns: usize,
    pub elections: u8,
    pub hosts: Vec<Host>,
    pub restarts: u8,
    pub reboots: u8,
    pub renewals: BTreeSet<(Renewal, usize)>,
    pub answers: BTreeSet<Renewal>,
    /// The newest renewal of each later holder, answered at once or not at all.
    pub sequences: [u64; 3],
    /// Asked of whom and promised by whom, for the holder's last stamp.
    pub asks: Hosts,
    pub promises: Hosts,
    /// Who has the final cut.
    pub cut_on: Hosts,
    /// Writes that clients were told of.
    pub acknowledged: u8,
    // What has happened, for the properties.
    pub lost: bool,
    pub planned: bool,
    pub kept_by_promises: bool,
    pub in_doubt: bool,
    pub refused_by_promise: bool,
}

impl State {
    pub fn first(model: &Protocol, slow: u8) -> Self {
        let slice = &model.slice;
        let log = Log::first();
        let mut table = LeaseTable::new(model.leader_times(), BootTime::ZERO);
        table.observe(BootTime::ZERO, SERVICE, Epoch(log.epoch));
        let leader = Leader {
            view: log,
            table,
            waiting: BTreeSet::new(),
            proposal: None,
        };
        let mut hosts: Vec<Host> = (0..slice.hosts).map(Host::new).collect();
        for host in &mut hosts {
            host.epoch = log.epoch;
            host.revision = log.revision;
            host.role = if host.id == log.holder {
                Role::Serve
            } else {
                Role::Shadow
            };
            if host.role == Role::Shadow {
                host.gate.apply_fence(log.epoch);
            }
        }
        hosts[0].list = log.list();
        hosts[0].hold(BootTime::ZERO);
        let mut first = Self {
            time: 0,
            slow,
            log,
            late: log,
            leaders: [leader.clone(), leader],
            reigns: 0,
            elections: 0,
            hosts,
            restarts: 0,
            reboots: 0,
            renewals: BTreeSet::new(),
            answers: BTreeSet::new(),
            sequences: [0; 3],
            asks: Hosts(0),
            promises: Hosts(0),
            cut_on: Hosts(0),
            acknowledged: 0,
            lost: false,
            planned: false,
            kept_by_promises: false,
            in_doubt: false,
            refused_by_promise: false,
        };
        first.renew(slice);
        first
    }

    pub fn clock(&self, host: usize) -> BootTime {
        times::host_clock(self.slow, host, self.time)
    }

    pub fn leader_clock(&self, leader: usize) -> BootTime {
        times::leader_clock(self.slow, leader, self.time)
    }

    pub fn is_open(&self, host: usize) -> bool {
        self.hosts[host].is_open(self.clock(host))
    }

    pub fn open_gates(&self) -> usize {
        (0..self.hosts.len()).filter(|host| self.is_open(*host)).count()
    }

    /// Time goes on: messages that are of no use any more are gone, holders renew.
    pub fn tick(&mut self, slice: &Slice) {
        self.time += 1;
        let (slow, time) = (self.slow, self.time);
        let useful =
            |renewal: &Renewal| times::host_clock(slow, renewal.host, time) < renewal.sent + TIMES.lease;
        self.renewals.retain(|(renewal, _)| useful(renewal));
        self.answers.retain(useful);
        for leader in &mut self.leaders {
            leader.waiting.retain(|(renewal, _)| useful(renewal));
        }
        self.renew(slice);
    }

    fn renew(&mut self, slice: &Slice) {
        for id in 0..self.hosts.len() {
            let now = self.clock(id);
            let host = &mut self.hosts[id];
            host.hold(now);
            host.client.handle_tick(now);
            let Some(renew) = host.client.poll_renew() else {
                continue;
            };
            if id != 0 {
                // Only the first holder's renewals take time: one adversary is enough.
                self.sequences[id] = renew.sequence;
                continue;
            }
            let renewal = Renewal {
                host: id,
                sequence: renew.sequence,
                epoch: renew.leases[0].1.0,
                sent: now,
            };
            if self.time > slice.renewals_until {
                continue;
            }
            for leader in 0..if slice.elections > 0 { 2 } else { 1 } {
                // One to each coordinator is on its way: the newest.
                self.renewals
                    .retain(|(known, to)| known.host != id || *to != leader);
                self.renewals.insert((renewal, leader));
            }
        }
    }

    /// The quorum follows the other one, which may or may not have the last proposal.
    pub fn elect(&mut self, model: &Protocol, with_proposal: bool) {
        let proposal = self.leaders[self.reigns].proposal.take();
        self.reigns = 1 - self.reigns;
        self.elections += 1;
        if let Some(grant) = proposal.filter(|_| with_proposal) {
            self.in_doubt = true;
            self.granted(grant);
        }
        let now = self.leader_clock(self.reigns);
        let leader = &mut self.leaders[self.reigns];
        let since = if model.is(Broken::NewLeaderDoesNotWait) {
            BootTime::ZERO
        } else {
            now
        };
        leader.table = LeaseTable::new(model.leader_times(), since);
        leader.waiting.clear();
        leader.proposal = None;
        self.committed(since);
    }

    /// The log has changed, and its leader has applied that.
    pub fn committed(&mut self, now: BootTime) {
        let log = self.log;
        let leader = &mut self.leaders[self.reigns];
        leader.view = log;
        leader.table.observe(now, SERVICE, Epoch(log.epoch));
        if log.is_fenced() {
            leader.table.fence(SERVICE, Epoch(log.epoch));
        }
    }

    pub fn granted(&mut self, grant: Grant) {
        self.late = self.log;
        self.log.grant(grant);
        if self.log == self.late {
            return;
        }
        let promoted = &self.hosts[grant.to];
        if grant.planned {
            self.planned = true;
            self.lost |= promoted.data < self.acknowledged;
        }
        self.acknowledged = promoted.data;
        self.cut_on = Hosts(0);
    }
}
