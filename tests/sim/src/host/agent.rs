//! The agent's loop over its machines, step by step as in the agent itself.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use understudy_agent::lease::LeaseClient;
use understudy_agent::observe::Observer;
use understudy_agent::service::{Action, Event, Machine};
use understudy_common::abi::gate::GateEntry;
use understudy_common::domain::Domain;
use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::lease::LeaseTimes;
use understudy_common::units::BootTime;
use understudy_common::wire::{
    Basis, Hello, HostReport, Inventory, Order, PromiseRequest, Promised, Refusal, Renewed, Request,
    Response, ServiceReport,
};

use super::driver::{Driver, Fault};
use super::engine::Frame;
use super::store::Store;
use super::{Host, Out, Step};
use crate::clock::MS;

/// The longest time between two reports. Longer than the agent's own beat, for speed.
const BEAT: Duration = Duration::from_millis(200);
const TIMES: LeaseTimes = LeaseTimes::DEFAULT;
const HELLO_EVERY: Duration = Duration::from_millis(300);

pub struct Agent {
    pub lease: LeaseClient,
    pub services: BTreeMap<ServiceId, Known>,
    pub observer: Observer,
    report_sequence: u64,
    reported: Vec<ServiceReport>,
    reported_at: Option<BootTime>,
    hello_due: bool,
    hello_at: BootTime,
}

pub struct Known {
    pub machine: Machine,
    pub driver: Driver,
}

impl Known {
    fn new(service: ServiceId, step: &Step<'_>) -> Self {
        let mut machine = Machine::new(service);
        machine.set_fault(step.fault.and_then(Fault::of_machine));
        Self {
            machine,
            driver: Driver::default(),
        }
    }
}

impl Agent {
    pub fn new(id: HostId, now: BootTime) -> Self {
        Self {
            lease: LeaseClient::new(id, TIMES, now),
            services: BTreeMap::new(),
            observer: Observer::default(),
            report_sequence: now.0,
            reported: Vec::new(),
            reported_at: None,
            hello_due: true,
            hello_at: BootTime::ZERO,
        }
    }

    fn timeout(&self, stores: &BTreeMap<ServiceId, Store>) -> Option<BootTime> {
        let machines = self
            .services
            .values()
            .filter_map(|known| known.machine.poll_timeout());
        let engines = self
            .services
            .iter()
            .filter_map(|(id, known)| known.driver.engine.timeout(stores.get(id)?));
        let beat = self.reported_at.map(|at| at + BEAT);
        let hello = self.hello_due.then_some(self.hello_at);
        machines
            .chain(engines)
            .chain(self.lease.poll_timeout())
            .chain(beat)
            .chain(hello)
            .min()
    }
}

/// What the running agent knows of the service; nothing when it does not run.
fn known(agent: &mut Option<Agent>, service: ServiceId) -> Option<&mut Known> {
    agent.as_mut()?.services.get_mut(&service)
}

impl Host {
    /// When the agent has something to do by itself.
    pub fn timeout(&self) -> Option<BootTime> {
        self.agent.as_ref()?.timeout(&self.stores)
    }

    pub fn handle_order(&mut self, step: &mut Step<'_>, order: Order) -> Result<(), String> {
        let other_boot = order.check_boot(self.boot).is_err();
        if other_boot && step.fault != Some(Fault::ObeysOtherBoots) {
            step.tally.count("order for another boot");
            return Ok(());
        }
        let (id, service) = (self.id, order.service);
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        let store = self.stores.entry(service).or_default();
        let known = agent
            .services
            .entry(service)
            .or_insert_with(|| Known::new(service, step));
        let told = order.epoch;
        // Pinned before it is obeyed.
        let newest = store.kernel.gate.apply_seen(order.epoch.0, order.revision);
        let taken = newest || step.fault.is_some_and(Fault::is_about_epochs);
        if taken && known.machine.order() != Some(&order) && known.machine.handle_order(order.clone()).is_ok()
        {
            agent.lease.handle_order(&order, true);
            step.tell(|| {
                format!(
                    "obeys {service} {} r{} {:?}",
                    order.epoch, order.revision, order.role
                )
            });
            let after = step.rng.between(MS / 20, step.disk_ms_max * MS);
            let order = Box::new(order);
            step.out.push(Out::Keep { order, after });
        }
        let obeyed = known.machine.order().map_or(Epoch(0), |order| order.epoch);
        step.invariants
            .orders
            .obeyed(id, self.boot, service, told, obeyed, step.tally)?;
        self.turn(step)
    }

    /// The order is on disk, unless a newer one was written before.
    pub fn handle_kept(&mut self, order: Order) {
        let age = |order: &Order| (order.epoch, order.revision);
        let known = self.kept.get(&order.service);
        if !self.disk_full && known.is_none_or(|known| age(known) < age(&order)) {
            self.kept.insert(order.service, order);
        }
    }

    /// What an agent of this boot kept is obeyed before any coordinator speaks.
    pub fn adopt(&mut self, step: &mut Step<'_>) -> Result<(), String> {
        self.kept.retain(|_, order| order.check_boot(self.boot).is_ok());
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        for (service, order) in &self.kept {
            let gate = &self.stores.entry(*service).or_default().kernel.gate;
            if order.epoch < Epoch(gate.seen) {
                continue;
            }
            let newest = order.revision >= gate.revision;
            let mut known = Known::new(*service, step);
            if known.machine.handle_order(order.clone()).is_ok() {
                agent.lease.handle_order(order, newest);
                agent.services.insert(*service, known);
                step.tally.count("kept order adopted");
            }
        }
        self.turn(step)
    }

    /// Promises what can be promised. It is pinned before it is said.
    pub fn handle_ask(
        &mut self,
        step: &mut Step<'_>,
        from: HostId,
        request: &PromiseRequest,
    ) -> Result<(), String> {
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        let now = step.now;
        let until = now + TIMES.promise();
        let mut leases = Vec::new();
        for (service, epoch) in &request.leases {
            let Some(known) = agent.services.get_mut(service) else {
                continue;
            };
            if from != request.host || !known.machine.follows(request.host, *epoch) {
                continue;
            }
            let Some(store) = self.stores.get_mut(service) else {
                continue;
            };
            if step.fault == Some(Fault::ForgetsPromises) {
                leases.push((*service, *epoch));
            } else if store.kernel.gate.apply_promise(now.0, epoch.0, until.0) {
                leases.push((*service, *epoch));
                known.machine.handle_event(now, barred(&store.kernel.gate));
            }
        }
        let sequence = request.sequence;
        step.out.push(Out::Promised {
            to: from,
            promised: Promised { sequence, leases },
        });
        self.turn(step)
    }

    pub fn handle_promised(
        &mut self,
        step: &mut Step<'_>,
        from: HostId,
        promised: &Promised,
    ) -> Result<(), String> {
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        agent.lease.handle_promised(step.now, from, promised);
        self.turn(step)
    }

    pub fn handle_renewed(&mut self, step: &mut Step<'_>, renewed: &Renewed) -> Result<(), String> {
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        agent.lease.handle_renewed(step.now, renewed);
        self.turn(step)
    }

    pub fn handle_response(
        &mut self,
        step: &mut Step<'_>,
        hello: bool,
        response: &Response,
    ) -> Result<(), String> {
        let Some(agent) = &mut self.agent else {
            return Ok(());
        };
        match response {
            Response::Renewed(renewed) => return self.handle_renewed(step, renewed),
            Response::Done if hello => agent.hello_due = false,
            Response::Refused(Refusal::Unknown(_)) if !agent.hello_due => {
                agent.hello_due = true;
                agent.hello_at = step.now + HELLO_EVERY;
            }
            _ => {}
        }
        Ok(())
    }

    pub fn handle_frame(
        &mut self,
        step: &mut Step<'_>,
        from: HostId,
        service: ServiceId,
        frame: Frame,
    ) -> Result<(), String> {
        let Some(known) = known(&mut self.agent, service) else {
            return Ok(());
        };
        let Some(store) = self.stores.get_mut(&service) else {
            return Ok(());
        };
        known.driver.frame(step, self.id, from, service, store, frame)
    }

    pub fn handle_acked(
        &mut self,
        step: &mut Step<'_>,
        from: HostId,
        service: ServiceId,
        generation: GenerationId,
    ) -> Result<(), String> {
        if let Some(known) = known(&mut self.agent, service) {
            known.driver.acked(from, generation);
        }
        self.turn(step)
    }

    pub fn handle_sealed(&mut self, step: &mut Step<'_>, service: ServiceId) -> Result<(), String> {
        let full = self.disk_full;
        let Some(known) = known(&mut self.agent, service) else {
            return Ok(());
        };
        let Some(store) = self.stores.get_mut(&service) else {
            return Ok(());
        };
        known.driver.sealed(step, self.id, service, store, full);
        self.turn(step)
    }

    pub fn handle_job(&mut self, step: &mut Step<'_>, service: ServiceId, number: u64) -> Result<(), String> {
        let broken = self.broken;
        let (id, Some(agent)) = (self.id, &mut self.agent) else {
            return Ok(());
        };
        let (Some(known), Some(store)) = (agent.services.get_mut(&service), self.stores.get_mut(&service))
        else {
            return Ok(());
        };
        if let Some(result) = known.driver.job_done(step, id, service, store, number, broken)? {
            step.tell(|| {
                format!(
                    "ends {service}'s job {result:?}: files {:?}, sealed {:?}",
                    store.files, store.sealed
                )
            });
            known.machine.handle_event(step.now, Event::Finished(result));
        }
        self.turn(step)
    }

    /// Everything that is to be done now.
    pub fn turn(&mut self, step: &mut Step<'_>) -> Result<(), String> {
        self.engines(step);
        self.act(step);
        self.renew(step);
        self.open(step);
        self.act(step);
        self.say(step);
        Ok(())
    }

    /// Renewals, epochs that are given up, promises that are asked for.
    fn renew(&mut self, step: &mut Step<'_>) {
        let Self { agent, stores, .. } = self;
        let Some(agent) = agent else { return };
        let now = step.now;
        agent.lease.handle_tick(now);
        while let Some(renew) = agent.lease.poll_renew() {
            step.out.push(Out::Request(Rc::new(Request::Renew(renew))));
        }
        while let Some((service, epoch)) = agent.lease.poll_forfeit() {
            let (Some(known), Some(store)) = (agent.services.get_mut(&service), stores.get_mut(&service))
            else {
                continue;
            };
            store.kernel.gate.apply_fence(epoch.0);
            agent.lease.fence(service, epoch);
            known.machine.handle_event(now, Event::Fenced { epoch });
            step.tally.count("epoch given up");
        }
        for (service, known) in &mut agent.services {
            let lost = agent.lease.is_lost(*service);
            known.machine.handle_event(now, Event::Lost(lost));
        }
        while let Some(ask) = agent.lease.poll_ask() {
            step.out.push(Out::Ask {
                to: ask.to,
                request: ask.request,
            });
        }
    }

    fn act(&mut self, step: &mut Step<'_>) {
        let closed_until = self.up_since + TIMES.promise();
        let Self { agent, stores, .. } = self;
        let Some(agent) = agent else { return };
        let now = step.now;
        for (id, known) in &mut agent.services {
            let Some(store) = stores.get_mut(id) else { continue };
            while let Some(action) = known.machine.poll_action(now) {
                let event = match action {
                    Action::Guard => {
                        let gate = &mut store.kernel.gate;
                        gate.apply_forgotten(now.0, closed_until.0);
                        let floor = Epoch(gate.floor);
                        agent.lease.fence(*id, floor);
                        known.machine.handle_event(now, barred(gate));
                        Some(Event::Guarded { floor })
                    }
                    Action::Fence { epoch } => {
                        step.tell(|| format!("fences {id} {epoch}"));
                        store.kernel.gate.apply_fence(epoch.0);
                        agent.lease.fence(*id, epoch);
                        Some(Event::Fenced { epoch })
                    }
                    Action::Hold { epoch } => Some(match agent.lease.hold(*id, epoch) {
                        Ok(()) => {
                            let gate = &store.kernel.gate;
                            if gate.epoch == epoch.0 && gate.is_open(now.0) {
                                let deadline = BootTime(gate.deadline_ns);
                                agent.lease.adopt(*id, epoch, deadline);
                                known.machine.handle_event(now, Event::Opened { epoch, deadline });
                                step.tally.count("lease adopted");
                            }
                            Event::Held { epoch }
                        }
                        Err(error) => Event::HoldRefused {
                            why: error.to_string(),
                        },
                    }),
                    Action::Sustain { epoch, on } => {
                        agent.lease.set_read_only(*id, epoch, on);
                        None
                    }
                    Action::Do(job) => {
                        step.tell(|| format!("begins {id} {job:?}"));
                        known.driver.give(step, *id, job);
                        None
                    }
                    Action::Interrupt => known.driver.interrupt(store).map(Event::Finished),
                };
                if let Some(event) = event {
                    known.machine.handle_event(now, event);
                }
            }
        }
    }

    /// Lets the engines go on, and tells the machines where they stand.
    fn engines(&mut self, step: &mut Step<'_>) {
        let Self { agent, stores, .. } = self;
        let Some(agent) = agent else { return };
        for (id, known) in &mut agent.services {
            let Some(store) = stores.get_mut(id) else { continue };
            if let Some(result) = known.driver.go_on(step, *id, store) {
                known.machine.handle_event(step.now, Event::Finished(result));
            }
            if let Some(status) = known.driver.news(store) {
                known.machine.handle_event(step.now, Event::Sync(status));
            }
        }
    }

    /// Puts extended leases into the gate.
    fn open(&mut self, step: &mut Step<'_>) {
        let Self {
            agent, stores, id, ..
        } = self;
        let Some(agent) = agent else { return };
        while let Some(change) = agent.lease.poll_gate() {
            let (Some(known), Some(store)) = (
                agent.services.get_mut(&change.service),
                stores.get_mut(&change.service),
            ) else {
                continue;
            };
            let (epoch, deadline) = (change.epoch, change.deadline);
            if store.kernel.gate.apply_open(epoch.0, deadline.0) {
                known
                    .machine
                    .handle_event(step.now, Event::Opened { epoch, deadline });
                step.invariants.gates.opened(*id, change.service);
                match change.basis {
                    Basis::Lease => {}
                    Basis::Promises => step.tally.count("gates: extended by promises"),
                    Basis::Policy => step.tally.count("gates: extended by policy"),
                }
            }
        }
    }

    /// Hello while it is due; a report when anything changed, and at least every beat.
    fn say(&mut self, step: &mut Step<'_>) {
        let (id, boot) = (self.id, self.boot);
        let Some(agent) = &mut self.agent else { return };
        let now = step.now;
        if agent.hello_due && now >= agent.hello_at {
            agent.hello_at = now + HELLO_EVERY;
            let hello = hello(id, boot, self.program);
            step.out.push(Out::Request(Rc::new(Request::Hello(hello))));
        }
        let report = |(service, known): (&ServiceId, &Known)| {
            let mut report = known.machine.report(now)?;
            (report.basis, report.apart) = agent.lease.basis(*service);
            Some(report)
        };
        let services: Vec<_> = agent.services.iter().filter_map(report).collect();
        let due = agent.reported_at.is_none_or(|at| now >= at + BEAT);
        if !due && !is_news(&agent.reported, &services) {
            return;
        }
        agent.reported_at = Some(now);
        agent.report_sequence += 1;
        agent.reported.clone_from(&services);
        step.out.push(Out::Request(Rc::new(Request::Report(HostReport {
            host: id,
            boot,
            sequence: agent.report_sequence,
            services,
            at: now,
            evidence: agent.observer.evidence(),
        }))));
    }
}

/// Whether a coordinator may decide something because of it. Progress of generations waits for the beat.
fn is_news(before: &[ServiceReport], now: &[ServiceReport]) -> bool {
    let same = |(before, now): (&ServiceReport, &ServiceReport)| {
        before.revision == now.revision
            && before.serving == now.serving
            && before.fenced == now.fenced
            && before.final_cut == now.final_cut
            && before.copy == now.copy
            && before.acked.len() == now.acked.len()
            && before.failure == now.failure
            && before.basis == now.basis
    };
    before.len() != now.len() || !before.iter().zip(now).all(same)
}

/// What the gate's entry promises, for the machine.
fn barred(gate: &GateEntry) -> Event {
    Event::Barred {
        epoch: Epoch(gate.promised),
        until: BootTime(gate.promised_until_ns),
    }
}

fn hello(id: HostId, boot: u128, program: u32) -> Hello {
    Hello {
        host: id,
        name: format!("h{}", id.0),
        boot,
        addr: ([10, 0, 0, u8::try_from(id.0).expect("few hosts")], 7401).into(),
        version: format!("sim-{program}"),
        inventory: Inventory::default(),
        domain: Domain::default(),
    }
}
