//! A host: the real lease client and the gate's rule, and the promises around them.

use understudy_agent::lease::LeaseClient;
use understudy_common::abi::gate::GateEntry;
use understudy_common::id::{Epoch, HostId, ServiceId};
use understudy_common::units::BootTime;
use understudy_common::wire::Renewed;

use super::log::{Hosts, Log, Step};
use super::times::TIMES;
use super::{Broken, Protocol};

pub const SERVICE: ServiceId = ServiceId(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Unknown,
    Serve,
    Release,
    Shadow,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    pub id: usize,
    pub boot: u8,
    // Pinned: survives the agent, not the machine.
    pub gate: GateEntry,
    /// No service of a newer epoch is held before this, on this host's clock.
    pub promised: BootTime,
    // In the agent's memory.
    pub client: LeaseClient,
    pub epoch: u64,
    pub revision: u8,
    pub role: Role,
    /// The shadows that the obeyed order names.
    pub list: Hosts,
    /// When promises were last asked for, and who gave theirs.
    pub asked: Option<(BootTime, Hosts)>,
    /// Until when promises, and not a lease, hold the gate open.
    pub kept_until: BootTime,
    // On disk. Each write is one more.
    pub data: u8,
    /// The final cut of a handover.
    pub cut: Option<u8>,
}

impl Host {
    pub fn new(id: usize) -> Self {
        Self {
            id,
            boot: 0,
            gate: GateEntry::default(),
            promised: BootTime::ZERO,
            client: client(id, BootTime::ZERO),
            epoch: 0,
            revision: 0,
            role: Role::Unknown,
            list: Hosts(0),
            asked: None,
            kept_until: BootTime::ZERO,
            data: 0,
            cut: None,
        }
    }

    /// Whether it can say that nothing of its epoch is served here again.
    pub fn is_fenced(&self, model: &Protocol) -> bool {
        let closed = self.gate.deadline_ns == 0 && self.role != Role::Serve;
        self.gate.floor >= self.epoch || (model.is(Broken::FenceNotKept) && closed)
    }

    pub fn is_open(&self, now: BootTime) -> bool {
        self.gate.is_open(now.0)
    }

    /// Obeys the order that follows from this log.
    pub fn obey(&mut self, model: &Protocol, now: BootTime, log: &Log) {
        if log.epoch < self.epoch || (log.epoch, log.revision) <= (self.epoch, self.revision) {
            return;
        }
        let holds = log.holder == self.id && !log.holder_rebooted();
        let serves = holds && log.step == Step::Steady;
        // Hosts that have promised nothing must not become promotable while promises hold the gate open.
        let grows = !self.list.covers(log.list());
        if serves && grows && now < self.kept_until && !model.is(Broken::ListGrowsUnderPromises) {
            return;
        }
        (self.epoch, self.revision) = (log.epoch, log.revision);
        self.asked = None;
        if serves {
            self.role = Role::Serve;
            self.list = log.list();
            self.hold(now);
            return;
        }
        self.role = if holds { Role::Release } else { Role::Shadow };
        if model.is(Broken::CutsBeforeFence) && self.role == Role::Release {
            self.cut = Some(self.data);
            return;
        }
        self.fence(model);
    }

    pub fn fence(&mut self, model: &Protocol) {
        let epoch = self.epoch;
        if model.is(Broken::FenceNotKept) {
            self.gate.deadline_ns = 0;
            return;
        }
        self.gate.apply_fence(epoch);
        self.client.fence(SERVICE, Epoch(epoch));
    }

    /// Begins to renew what the order names, once no promise forbids it.
    pub fn hold(&mut self, now: BootTime) {
        if self.role == Role::Serve && now >= self.promised {
            // Refused when it is fenced here.
            let _ = self.client.hold(SERVICE, Epoch(self.epoch));
        }
    }

    pub fn renewed(&mut self, model: &Protocol, now: BootTime, sequence: u64, epoch: u64) {
        let leases = vec![(SERVICE, Epoch(epoch))];
        self.client.handle_renewed(now, &Renewed { sequence, leases });
        while let Some(change) = self.client.poll_gate() {
            let deadline = if model.is(Broken::DeadlineFromReceipt) {
                now + TIMES.lease
            } else {
                change.deadline
            };
            self.gate.apply_open(change.epoch.0, deadline.0);
        }
    }

    /// A primary asks: the answer is whether this host promises not to be promoted for a while.
    pub fn promise(&mut self, model: &Protocol, now: BootTime, epoch: u64) -> bool {
        let newer = self.epoch > epoch && !model.is(Broken::PromisesAfterNewerEpoch);
        if newer || self.role == Role::Unknown {
            return false;
        }
        let kept = if model.is(Broken::PromiseKeptTooShort) {
            TIMES.lease
        } else {
            TIMES.wait_out()
        };
        self.promised = self.promised.max(now + kept);
        true
    }

    /// A shadow promised: with the promises of all of them the gate stays open.
    pub fn promised_by(&mut self, model: &Protocol, now: BootTime, shadow: usize) {
        let Some((sent, from)) = &mut self.asked else {
            return;
        };
        *from = from.with(Hosts::of(shadow));
        let enough = from.covers(self.list) || model.is(Broken::SubsetOfPromises);
        if !enough || self.role != Role::Serve {
            return;
        }
        let since = if model.is(Broken::PromiseFromReceipt) {
            now
        } else {
            *sent
        };
        let deadline = since + TIMES.lease;
        // A promise is worth nothing for an epoch that never had a lease here.
        if self.gate.epoch == self.epoch && self.gate.apply_open(self.epoch, deadline.0) {
            self.kept_until = self.kept_until.max(deadline);
        }
    }

    /// The agent starts anew; what is pinned stays.
    pub fn restart(&mut self, now: BootTime) {
        let fresh = Self::new(self.id);
        *self = Self {
            boot: self.boot,
            gate: self.gate,
            promised: self.promised,
            data: self.data,
            client: client(self.id, now),
            kept_until: self.kept_until,
            ..fresh
        };
        self.client.fence(SERVICE, Epoch(self.gate.floor));
    }

    /// The machine starts anew: only the disk stays, and what was promised is not known any more.
    pub fn reboot(&mut self, model: &Protocol, now: BootTime) {
        self.restart(now);
        self.boot += 1;
        self.gate = GateEntry::default();
        self.kept_until = BootTime::ZERO;
        self.promised = if model.is(Broken::RebootForgetsPromise) {
            BootTime::ZERO
        } else {
            now + TIMES.wait_out()
        };
    }
}

fn client(id: usize, now: BootTime) -> LeaseClient {
    LeaseClient::new(HostId(u32::try_from(id).expect("few hosts")), TIMES, now)
}
