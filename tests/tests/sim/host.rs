//! A host: the real lease client, the gate's rule as the kernel has it, and a model of how an agent
//! obeys orders and ships generations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use understudy_agent::lease::LeaseClient;
use understudy_common::abi::gate::GateEntry;
use understudy_common::domain::Domain;
use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::lease::LeaseTimes;
use understudy_common::units::BootTime;
use understudy_common::wire::{
    Basis, CopyState, FinalCut, Hello, HostReport, Inventory, Order, Refusal, Response, Role, ServiceReport,
    SyncFigures,
};

use super::clock::Clock;
use super::rng::Rng;

pub const TICK: Duration = Duration::from_millis(20);
const REPORT_EVERY: Duration = Duration::from_millis(100);
const HELLO_EVERY: Duration = Duration::from_millis(300);
const CUT_EVERY: Duration = Duration::from_millis(100);

pub struct Host {
    pub id: HostId,
    pub clock: Clock,
    pub boot: u128,
    /// Off means that the machine has no power.
    pub powered: bool,
    /// The agent's process runs.
    pub running: bool,
    pub incarnation: u64,
    /// Every start of the workload fails while set.
    pub broken: bool,
    pub slots: BTreeMap<ServiceId, Slot>,
    pub lease: LeaseClient,
    report_sequence: u64,
    reported_at: BootTime,
    report_now: bool,
    hello_due: bool,
    hello_at: BootTime,
}

/// Where the host stands with one service: what survives what is told by the group.
#[derive(Debug, Default)]
pub struct Slot {
    // On disk: survives everything.
    pub sealed: Option<GenerationId>,
    seen: Epoch,
    // In the kernel and the workload: survives the agent.
    pub gate: GateEntry,
    activated: Option<Epoch>,
    verified: bool,
    // In the agent's memory.
    order: Option<Order>,
    activate_at: Option<BootTime>,
    cut_at: BootTime,
    final_at: Option<BootTime>,
    final_cut: Option<FinalCut>,
    warm_at: Option<BootTime>,
    ready: bool,
    acked: BTreeMap<HostId, GenerationId>,
    failure: Option<String>,
}

/// What a host sends.
pub enum Sent {
    Hello(Hello),
    Renew(understudy_common::wire::Renew),
    Report(HostReport),
    Generation {
        to: HostId,
        service: ServiceId,
        generation: GenerationId,
    },
}

impl Host {
    pub fn new(id: HostId, clock: Clock, boot: u128, now: BootTime) -> Self {
        Self {
            id,
            clock,
            boot,
            powered: true,
            running: true,
            incarnation: 1,
            broken: false,
            slots: BTreeMap::new(),
            lease: LeaseClient::new(id, LeaseTimes::DEFAULT, now),
            report_sequence: 0,
            reported_at: BootTime::ZERO,
            report_now: true,
            hello_due: true,
            hello_at: BootTime::ZERO,
        }
    }

    /// The agent is gone; the kernel and the workload go on.
    pub fn crash(&mut self) {
        self.running = false;
        self.incarnation += 1;
    }

    /// Everything but the disk is gone.
    pub fn power_off(&mut self) {
        self.crash();
        self.powered = false;
        for slot in self.slots.values_mut() {
            *slot = Slot {
                sealed: slot.sealed,
                seen: slot.seen,
                ..Slot::default()
            };
        }
    }

    /// Starts the agent, after a reboot if the power was off.
    pub fn start(&mut self, truth: u64, boot: u128) {
        if !self.powered {
            self.powered = true;
            self.boot = boot;
            self.clock = self.clock.rebooted(truth);
            self.report_sequence = 0;
        }
        let now = self.clock.read(truth);
        self.running = true;
        self.incarnation += 1;
        self.hello_due = true;
        self.hello_at = BootTime::ZERO;
        self.report_now = true;
        self.lease = LeaseClient::new(self.id, LeaseTimes::DEFAULT, now);
        for (service, slot) in &mut self.slots {
            // The pinned map remembers the fence.
            self.lease.fence(*service, Epoch(slot.gate.floor));
            *slot = Slot {
                sealed: slot.sealed,
                seen: slot.seen,
                gate: slot.gate,
                activated: slot.activated,
                verified: slot.verified,
                ..Slot::default()
            };
        }
    }

    pub fn is_open(&self, service: ServiceId, truth: u64) -> bool {
        let now = self.clock.read(truth).0;
        self.slots
            .get(&service)
            .is_some_and(|slot| slot.gate.is_open(now))
    }

    pub fn serves(&self, service: ServiceId, truth: u64) -> bool {
        let slot = self.slots.get(&service);
        self.is_open(service, truth)
            && slot.is_some_and(|slot| slot.activated == Some(Epoch(slot.gate.epoch)))
    }

    pub fn handle_order(&mut self, now: BootTime, rng: &mut Rng, order: Order) -> Result<Response, String> {
        if let Err(refusal) = order.check_boot(self.boot) {
            return Ok(Response::Refused(refusal));
        }
        let slot = self.slots.entry(order.service).or_default();
        if order.epoch < slot.seen {
            let seen = slot.seen;
            let order = order.epoch;
            return Ok(Response::Refused(Refusal::StaleEpoch { order, seen }));
        }
        if slot
            .order
            .as_ref()
            .is_some_and(|known| known.revision >= order.revision)
        {
            return Ok(Response::Done);
        }
        self.report_now = true;
        slot.seen = order.epoch;
        let service = order.service;
        match &order.role {
            Role::Serve { from, .. } => {
                if from.is_some() && slot.sealed < *from {
                    return Err(format!(
                        "{} was promoted on {from:?} but has {:?}",
                        self.id, slot.sealed
                    ));
                }
                match self.lease.hold(service, order.epoch) {
                    Ok(()) => {
                        if slot.activated != Some(order.epoch) && slot.activate_at.is_none() {
                            slot.failure = None;
                            slot.activate_at = Some(now + Duration::from_millis(rng.between(30, 400)));
                        }
                    }
                    Err(error) => slot.failure = Some(error.to_string()),
                }
                slot.final_at = None;
                slot.final_cut = None;
            }
            Role::Release { .. } => {
                fence(slot, &mut self.lease, service, order.epoch);
                if slot.final_at.is_none() {
                    slot.final_at = Some(now + Duration::from_millis(rng.between(30, 400)));
                }
            }
            Role::Shadow { .. } | Role::Idle => {
                fence(slot, &mut self.lease, service, order.epoch);
                if slot.activated.take().is_some() {
                    // What it held as primary has to be checked against the new primary.
                    slot.verified = false;
                    slot.ready = false;
                    slot.warm_at = None;
                }
                slot.activate_at = None;
                slot.final_at = None;
                slot.final_cut = None;
                if order.role == Role::Idle {
                    slot.ready = false;
                }
            }
        }
        slot.order = Some(order);
        Ok(Response::Done)
    }

    pub fn handle_response(&mut self, now: BootTime, response: &Response) {
        match response {
            Response::Renewed(renewed) => self.lease.handle_renewed(now, renewed),
            Response::Refused(Refusal::Unknown(_)) => self.hello_due = true,
            _ => {}
        }
        self.drain_gate();
    }

    /// A hello was answered: no need to repeat it until somebody does not know this boot.
    pub fn handle_welcome(&mut self) {
        self.hello_due = false;
    }

    /// A generation arrived; what to acknowledge, if anything.
    pub fn handle_generation(
        &mut self,
        now: BootTime,
        from: HostId,
        service: ServiceId,
        generation: GenerationId,
    ) -> Option<GenerationId> {
        let slot = self.slots.get_mut(&service)?;
        let shadows = matches!(slot.order.as_ref()?.role, Role::Shadow { primary } if primary == from);
        if !shadows || generation.epoch < slot.seen {
            return None;
        }
        if !slot.ready {
            let patience = if slot.verified { 100 } else { 400 };
            let warm_at = *slot.warm_at.get_or_insert(now + Duration::from_millis(patience));
            if now < warm_at {
                return None;
            }
            slot.ready = true;
            slot.verified = true;
            self.report_now = true;
        }
        slot.sealed = slot.sealed.max(Some(generation));
        slot.sealed
    }

    pub fn handle_acked(&mut self, from: HostId, service: ServiceId, generation: GenerationId) {
        let Some(slot) = self.slots.get_mut(&service) else {
            return;
        };
        if slot.acked.insert(from, generation).is_none() {
            self.report_now = true;
        }
        if let Some(cut) = &mut slot.final_cut
            && generation >= cut.generation
            && !cut.acked_by.contains(&from)
        {
            cut.acked_by.push(from);
            self.report_now = true;
        }
    }

    pub fn handle_tick(&mut self, now: BootTime, truth: u64) -> Vec<Sent> {
        let mut sent = Vec::new();
        self.lease.handle_tick(now);
        if self.hello_due && now >= self.hello_at {
            self.hello_at = now + HELLO_EVERY;
            sent.push(Sent::Hello(self.hello()));
        }
        if let Some(renew) = self.lease.poll_renew() {
            sent.push(Sent::Renew(renew));
        }
        self.work(now, &mut sent);
        self.drain_gate();
        if self.report_now || now >= self.reported_at + REPORT_EVERY {
            self.report_now = false;
            self.reported_at = now;
            self.report_sequence += 1;
            sent.push(Sent::Report(self.report(truth)));
        }
        sent
    }

    /// Starts, cuts and ships.
    fn work(&mut self, now: BootTime, sent: &mut Vec<Sent>) {
        let broken = self.broken;
        for (service, slot) in &mut self.slots {
            let Some(order) = slot.order.clone() else { continue };
            if slot.activate_at.is_some_and(|at| now >= at) {
                slot.activate_at = None;
                self.report_now = true;
                if broken {
                    slot.failure = Some("the workload does not start".to_owned());
                } else {
                    slot.failure = None;
                    slot.activated = Some(order.epoch);
                    slot.ready = false;
                    slot.acked.clear();
                }
            }
            let peers: Vec<HostId> = match &order.role {
                Role::Serve { shadows, .. } | Role::Release { shadows } => {
                    shadows.iter().map(|peer| peer.host).collect()
                }
                _ => continue,
            };
            let named: BTreeSet<_> = peers.iter().copied().collect();
            slot.acked.retain(|host, _| named.contains(host));
            let open = slot.gate.is_open(now.0) && slot.activated == Some(order.epoch);
            if open && matches!(order.role, Role::Serve { .. }) && now >= slot.cut_at {
                slot.cut_at = now + CUT_EVERY;
                slot.sealed = Some(next(slot.sealed, order.epoch));
            }
            if slot.final_cut.is_none() && slot.final_at.is_some_and(|at| now >= at) {
                let generation = next(slot.sealed, order.epoch);
                slot.sealed = Some(generation);
                slot.final_cut = Some(FinalCut {
                    epoch: order.epoch,
                    generation,
                    acked_by: Vec::new(),
                });
                self.report_now = true;
            }
            let Some(generation) = slot.sealed.filter(|sealed| sealed.epoch == order.epoch) else {
                continue;
            };
            for to in peers {
                if slot.acked.get(&to).is_none_or(|acked| *acked < generation) {
                    sent.push(Sent::Generation {
                        to,
                        service: *service,
                        generation,
                    });
                }
            }
        }
    }

    fn drain_gate(&mut self) {
        while let Some(change) = self.lease.poll_gate() {
            let Some(slot) = self.slots.get_mut(&change.service) else {
                continue;
            };
            slot.gate.epoch = change.epoch.0;
            slot.gate.deadline_ns = change.deadline.0;
            self.report_now = true;
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            host: self.id,
            name: format!("h{}", self.id.0),
            boot: self.boot,
            addr: ([10, 0, 0, u8::try_from(self.id.0).expect("few hosts")], 7401).into(),
            version: "sim".to_owned(),
            inventory: Inventory::default(),
            domain: Domain::default(),
        }
    }

    fn report(&self, truth: u64) -> HostReport {
        HostReport {
            host: self.id,
            boot: self.boot,
            sequence: self.report_sequence,
            at: self.clock.read(truth),
            evidence: Vec::new(),
            services: self
                .slots
                .iter()
                .map(|(service, slot)| ServiceReport {
                    service: *service,
                    epoch: slot.seen,
                    revision: slot.order.as_ref().map_or(0, |order| order.revision),
                    serving: self.serves(*service, truth).then_some(Epoch(slot.gate.epoch)),
                    fenced: Epoch(slot.gate.floor),
                    final_cut: slot.final_cut.clone(),
                    copy: if slot.ready {
                        CopyState::Ready
                    } else if slot.warm_at.is_some() {
                        CopyState::Warming
                    } else {
                        CopyState::Cold
                    },
                    generation: slot.sealed,
                    acked: slot.acked.iter().map(|(host, id)| (*host, *id)).collect(),
                    failure: slot.failure.clone(),
                    sync: SyncFigures::default(),
                    basis: Basis::Lease,
                    apart: None,
                })
                .collect(),
        }
    }
}

fn fence(slot: &mut Slot, lease: &mut LeaseClient, service: ServiceId, epoch: Epoch) {
    slot.gate.floor = slot.gate.floor.max(epoch.0);
    lease.fence(service, epoch);
}

fn next(sealed: Option<GenerationId>, epoch: Epoch) -> GenerationId {
    let n = sealed
        .filter(|sealed| sealed.epoch == epoch)
        .map_or(0, |sealed| sealed.n);
    GenerationId { epoch, n: n + 1 }
}
