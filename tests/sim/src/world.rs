//! One thread, one seed, one order of events: coordinators, hosts, clients, network, disks and clocks.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use understudy_common::id::{CoordinatorId, HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::units::{BasisPoints, BootTime};
use understudy_common::wire::{Operate, Order, Refusal, Request, Response};
use understudy_coordinator::replica::Output;

use crate::chaos::Chaos;
use crate::client::{Client, Happening};
use crate::clock::{Clock, MS};
use crate::content::Contents;
use crate::coordinator::Coordinator;
use crate::host::{Host, Out, Step};
use crate::invariants::Invariants;
use crate::membership::Wish;
use crate::net::{Net, Packet};
use crate::queue::Queue;
use crate::rng::Rng;
use crate::scenario::{Fault, Scenario, service_name};
use crate::tally::Tally;
use crate::trace::Trace;

/// How often the leader's model speaks.
/// A write that found no room is tried again after this.
const DISK_AGAIN: u64 = 500 * MS;
/// A snapshot that does not arrive is given up after this.
const SNAPSHOT_MAX: u64 = 1_000 * MS;
const SCORE_EVERY: u64 = 1_000 * MS;
pub const CALM_DISK_MS: u64 = 3;
/// Orders that come a second time, much later, while packets are duplicated.
const LATE_PER_MILLE: u64 = 300;

pub enum Event {
    Deliver {
        from: Principal,
        to: Principal,
        packet: Packet,
    },
    Wake(Principal),
    Written {
        id: CoordinatorId,
        incarnation: u64,
    },
    Job {
        host: HostId,
        incarnation: u64,
        service: ServiceId,
        number: u64,
    },
    Sealing {
        host: HostId,
        incarnation: u64,
        service: ServiceId,
    },
    Kept {
        host: HostId,
        incarnation: u64,
        order: Box<Order>,
    },
    Gone {
        at: CoordinatorId,
        host: HostId,
    },
    /// What became of a snapshot that was sent.
    SnapshotSent {
        id: CoordinatorId,
        incarnation: u64,
        to: CoordinatorId,
        arrived: bool,
    },
    Observe {
        host: HostId,
        incarnation: u64,
    },
    Client(usize, Happening),
    Chaos(Chaos),
}

pub struct World {
    pub truth: u64,
    pub rng: Rng,
    pub net: Net,
    pub disk_ms_max: u64,
    pub founders: BTreeSet<CoordinatorId>,
    /// A change of the coordinators that is under way.
    pub wish: Option<Wish>,
    pub coordinators: BTreeMap<CoordinatorId, Coordinator>,
    pub hosts: BTreeMap<HostId, Host>,
    pub clients: Vec<Client>,
    pub risks: BTreeMap<HostId, BasisPoints>,
    pub contents: Contents,
    pub invariants: Invariants,
    pub tally: Tally,
    /// Nodes that stand still, and what waits for them.
    paused: BTreeMap<Principal, Vec<Event>>,
    queue: Queue<Event>,
    fault: Option<Fault>,
    seed: u64,
    trace: Trace,
    pub events: u64,
    /// Tells what happens as it happens.
    pub verbose: bool,
}

impl World {
    pub fn new(seed: u64, fault: Option<Fault>, verbose: bool) -> Result<Self, String> {
        let mut rng = Rng::new(seed);
        let Scenario {
            coordinators,
            hosts,
            services,
            version,
        } = Scenario::draw(&mut rng);
        let mut clock = || Clock::new(0, i64::try_from(rng.between(0, 1_000)).expect("small") - 500);
        let coordinators: BTreeMap<_, _> = (1..=coordinators)
            .map(|id| {
                (
                    CoordinatorId(id),
                    Coordinator::founding(CoordinatorId(id), clock(), version),
                )
            })
            .collect();
        let clocks: Vec<Clock> = (0..hosts).map(|_| clock()).collect();
        let hosts: BTreeMap<_, _> = (1..)
            .zip(clocks)
            .map(|(id, clock)| (HostId(id), Host::new(HostId(id), clock, u128::from(rng.next()))))
            .collect();
        let mut world = Self {
            truth: 0,
            rng,
            net: Net::calm(),
            disk_ms_max: CALM_DISK_MS,
            founders: coordinators.keys().copied().collect(),
            wish: None,
            coordinators,
            hosts,
            clients: Vec::new(),
            risks: BTreeMap::new(),
            contents: Contents::default(),
            invariants: Invariants::default(),
            tally: Tally::default(),
            paused: BTreeMap::new(),
            queue: Queue::default(),
            fault,
            seed,
            trace: Trace::default(),
            events: 0,
            verbose,
        };
        for id in world.founders.clone() {
            world.start_coordinator(id)?;
        }
        for id in world.hosts.keys().copied().collect::<Vec<_>>() {
            world.wake_host(id);
            world.observe_soon(id);
        }
        for (number, toml) in (1..).zip(services) {
            world.at(1_500 * MS, Chaos::Declare(ServiceId(number), toml));
            world.clients.push(Client::new(ServiceId(number)));
            world.clients.push(Client::new(ServiceId(number)));
        }
        for client in 0..world.clients.len() {
            world.client_in(2_500 * MS, client, Happening::Next);
        }
        Ok(world)
    }

    pub const fn trace(&self) -> u64 {
        self.trace.value()
    }

    pub const fn note(&mut self, word: u64) {
        self.trace.note(word);
    }

    /// A line of the trace for people.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{:>10.3} ms  {}", self.truth as f64 / MS as f64, what());
        }
    }

    pub fn nodes(&self) -> Vec<Principal> {
        let coordinators = self.coordinators.keys().copied().map(Principal::Coordinator);
        coordinators
            .chain(self.hosts.keys().copied().map(Principal::Host))
            .collect()
    }

    pub fn leader(&self) -> Option<CoordinatorId> {
        let term = |node: &&Coordinator| node.replica.as_ref().map(|replica| replica.term());
        let leaders = self.coordinators.values().filter(|node| node.is_leader());
        leaders.max_by_key(term).map(|node| node.id)
    }

    pub fn services(&self) -> BTreeSet<ServiceId> {
        self.clients.iter().map(|client| client.service).collect()
    }

    /// Whether a declaration was heard, by its name: the numbers are given out in the order of hearing.
    pub fn is_declared(&self, service: ServiceId) -> bool {
        let name = service_name(service.0);
        let state = self.newest_state();
        state.is_some_and(|state| state.services.values().any(|known| known.spec.name == name))
    }

    /// The hosts that the service's declaration names.
    pub fn named(&self, service: ServiceId) -> Vec<HostId> {
        let state = self.newest_state();
        let known = state.and_then(|state| state.services.get(&service));
        known.map_or_else(Vec::new, |known| known.spec.hosts.clone())
    }

    pub fn holder(&self, service: ServiceId) -> Option<HostId> {
        self.hosts
            .iter()
            .find(|(_, host)| host.is_open(service, self.truth))
            .map(|(id, _)| *id)
    }

    pub fn at(&mut self, delay: u64, chaos: Chaos) {
        self.schedule(delay, Event::Chaos(chaos));
    }

    pub fn schedule(&mut self, delay: u64, event: Event) {
        self.queue.push(self.truth + delay, event);
    }

    /// Runs until `end`, checking every invariant after every event.
    pub fn run_until(&mut self, end: u64) -> Result<(), String> {
        while let Some((at, event)) = self.queue.pop(end) {
            self.truth = at;
            self.events += 1;
            self.note(at);
            self.handle(event)
                .and_then(|()| {
                    self.invariants
                        .gates
                        .check(&self.hosts, self.truth, &mut self.tally)
                })
                .map_err(|why| format!("at {} ms: {why}", self.truth / MS))?;
        }
        self.truth = end;
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        let node = match &event {
            Event::Deliver { to, .. } => Some(*to),
            Event::Wake(node) => Some(*node),
            Event::Written { id, .. } | Event::Gone { at: id, .. } | Event::SnapshotSent { id, .. } => {
                Some(Principal::Coordinator(*id))
            }
            Event::Job { host, .. } | Event::Sealing { host, .. } | Event::Observe { host, .. } => {
                Some(Principal::Host(*host))
            }
            // The thread that writes orders is not the loop.
            Event::Kept { .. } | Event::Client(..) | Event::Chaos(_) => None,
        };
        if !self.paused.is_empty()
            && let Some(stash) = node.and_then(|node| self.paused.get_mut(&node))
        {
            stash.push(event);
            return Ok(());
        }
        match event {
            Event::Deliver { from, to, packet } => self.deliver(from, to, packet),
            Event::Wake(Principal::Coordinator(id)) => self.tick_coordinator(id),
            Event::Wake(Principal::Host(id)) => self.tick_host(id),
            Event::Wake(Principal::Operator | Principal::Newcomer) => Ok(()),
            Event::Written { id, incarnation } => self.written(id, incarnation),
            Event::Job {
                host,
                incarnation,
                service,
                number,
            } => self.host(host, Some(incarnation), |host, step| {
                host.handle_job(step, service, number)
            }),
            Event::Sealing {
                host,
                incarnation,
                service,
            } => self.host(host, Some(incarnation), |host, step| {
                host.handle_sealed(step, service)
            }),
            Event::Kept {
                host,
                incarnation,
                order,
            } => {
                let host = self.hosts.get_mut(&host).expect("a host");
                if host.incarnation == incarnation {
                    host.handle_kept(*order);
                }
                Ok(())
            }
            Event::Gone { at, host } => {
                let now = self.now(at);
                let node = self.coordinators.get_mut(&at).expect("a coordinator");
                if let Some(replica) = &mut node.replica {
                    replica.handle_host_gone(now, host);
                }
                self.drain(at)
            }
            Event::SnapshotSent {
                id,
                incarnation,
                to,
                arrived,
            } => {
                let now = self.now(id);
                let node = self.coordinators.get_mut(&id).expect("a coordinator");
                match &mut node.replica {
                    Some(replica) if node.incarnation == incarnation && arrived => {
                        replica.handle_snapshot_delivered(now, to);
                    }
                    Some(replica) if node.incarnation == incarnation => {
                        replica.handle_undelivered(now, to, true);
                    }
                    _ => return Ok(()),
                }
                self.drain(id)
            }
            Event::Observe { host, incarnation } => {
                self.observe(host, incarnation);
                Ok(())
            }
            Event::Client(client, happening) => self.client(client, happening),
            Event::Chaos(chaos) => chaos.strike(self),
        }
    }

    pub fn now(&self, id: CoordinatorId) -> BootTime {
        self.coordinators[&id].clock.read(self.truth)
    }

    fn wall_ms(&self, id: CoordinatorId) -> u64 {
        (1_700_000_000_000 + self.truth / MS).saturating_add_signed(self.coordinators[&id].wall_off_ms)
    }

    fn deliver(&mut self, from: Principal, to: Principal, packet: Packet) -> Result<(), String> {
        match to {
            Principal::Coordinator(id) => self.deliver_to_coordinator(id, from, packet),
            Principal::Host(id) => self.deliver_to_host(id, from, packet),
            Principal::Operator | Principal::Newcomer => Ok(()),
        }
    }

    fn deliver_to_coordinator(
        &mut self,
        id: CoordinatorId,
        from: Principal,
        packet: Packet,
    ) -> Result<(), String> {
        let (now, wall_ms) = (self.now(id), self.wall_ms(id));
        let node = self.coordinators.get_mut(&id).expect("a coordinator");
        let Some(replica) = &mut node.replica else {
            return Ok(());
        };
        match (packet, from) {
            (Packet::Raft(message), Principal::Coordinator(from)) => {
                replica.handle_message(now, from, *message);
            }
            // Who does not lead only says so.
            (Packet::Request(request), _)
                if matches!(*request, Request::Report(_)) && !replica.is_leader() =>
            {
                return Ok(());
            }
            (Packet::Request(request), from) => {
                if self.hosts.values().any(|host| is_vouched_wrongly(&request, host)) {
                    // Whoever vouched sees it come back and takes the word back.
                    return Ok(());
                }
                let name = node.request(from, matches!(*request, Request::Hello(_)));
                let request = Rc::unwrap_or_clone(request);
                if let Some(replica) = &mut node.replica {
                    replica.handle_request(now, wall_ms, from, name, request);
                }
            }
            _ => {}
        }
        self.drain(id)
    }

    fn deliver_to_host(&mut self, id: HostId, from: Principal, packet: Packet) -> Result<(), String> {
        match (packet, from) {
            (Packet::Order(order, incarnation), Principal::Coordinator(_)) => {
                self.note(order.epoch.0 ^ order.revision << 20);
                self.host(id, Some(incarnation), |host, step| {
                    host.handle_order(step, *order)
                })
            }
            (Packet::Response { hello, response }, _) => self.host(id, None, |host, step| {
                host.handle_response(step, hello, &response)
            }),
            (Packet::Frame(service, frame), Principal::Host(primary)) => self.host(id, None, |host, step| {
                host.handle_frame(step, primary, service, frame)
            }),
            (Packet::Ask(request), Principal::Host(holder)) => {
                self.note(request.sequence);
                self.host(id, None, |host, step| host.handle_ask(step, holder, &request))
            }
            (Packet::Promised(promised), Principal::Host(shadow)) => self.host(id, None, |host, step| {
                host.handle_promised(step, shadow, &promised)
            }),
            (Packet::Acked(service, generation), Principal::Host(shadow)) => {
                self.host(id, None, |host, step| {
                    host.handle_acked(step, shadow, service, generation)
                })
            }
            _ => Ok(()),
        }
    }

    pub fn send(&mut self, from: Principal, to: Principal, packet: Packet) {
        if matches!(packet, Packet::Order(..))
            && self.net.duplicates_per_mille > 0
            && self.rng.chance(LATE_PER_MILLE)
        {
            let delay = self.rng.between(500 * MS, 6_000 * MS);
            let packet = packet.clone();
            self.schedule(delay, Event::Deliver { from, to, packet });
        }
        let [first, again] = self.net.deliveries(&mut self.rng, &mut self.tally, from, to);
        if let (Packet::Raft(message), Principal::Coordinator(id), Principal::Coordinator(to)) =
            (&packet, from, to)
            && message.has_snapshot()
        {
            let incarnation = self.coordinators[&id].incarnation;
            let event = Event::SnapshotSent {
                id,
                incarnation,
                to,
                arrived: first.is_some(),
            };
            self.schedule(first.map_or(SNAPSHOT_MAX, |delay| delay + MS), event);
        }
        if let Some(delay) = again {
            let packet = packet.clone();
            self.schedule(delay, Event::Deliver { from, to, packet });
        }
        if let Some(delay) = first {
            self.schedule(delay, Event::Deliver { from, to, packet });
        }
    }

    /// Sends a request to all coordinators.
    fn request(&mut self, from: Principal, request: Rc<Request>) {
        for id in self.coordinators.keys().copied().collect::<Vec<_>>() {
            self.send(
                from,
                Principal::Coordinator(id),
                Packet::Request(Rc::clone(&request)),
            );
        }
    }

    pub fn operate(&mut self, operate: Operate) {
        self.request(Principal::Operator, Rc::new(Request::Operate(operate)));
    }

    fn tick_coordinator(&mut self, id: CoordinatorId) -> Result<(), String> {
        let (now, wall_ms, truth) = (self.now(id), self.wall_ms(id), self.truth);
        let node = self.coordinators.get_mut(&id).expect("a coordinator");
        if node.wake_at > truth {
            return Ok(());
        }
        node.wake_at = u64::MAX;
        let Some(replica) = &mut node.replica else {
            return Ok(());
        };
        replica.handle_tick(now, wall_ms);
        if replica.is_leader() && truth >= node.scored_at + SCORE_EVERY {
            node.scored_at = truth;
            let score = |host: &HostId| (*host, self.risks.get(host).copied().unwrap_or(BasisPoints(120)));
            let scores: Vec<_> = self.hosts.keys().map(score).collect();
            replica.handle_scores(now, wall_ms, &scores);
        }
        self.drain(id)
    }

    fn written(&mut self, id: CoordinatorId, incarnation: u64) -> Result<(), String> {
        let now = self.now(id);
        let node = self.coordinators.get_mut(&id).expect("a coordinator");
        if node.incarnation != incarnation {
            return Ok(());
        }
        let Some(replica) = &mut node.replica else {
            return Ok(());
        };
        if node.disk.written() {
            if std::mem::take(&mut node.told_full) {
                replica.handle_disk_full(now, false);
            }
            replica.handle_persisted(now);
        } else {
            if !std::mem::replace(&mut node.told_full, true) {
                self.tally.count("write met a coordinator's full disk");
                replica.handle_disk_full(now, true);
            }
            self.schedule(DISK_AGAIN, Event::Written { id, incarnation });
        }
        self.drain(id)
    }

    /// Takes everything out of a replica, and checks it.
    pub fn drain(&mut self, id: CoordinatorId) -> Result<(), String> {
        let from = Principal::Coordinator(id);
        let Self {
            coordinators,
            hosts,
            invariants,
            tally,
            truth,
            ..
        } = self;
        let node = coordinators.get_mut(&id).expect("a coordinator");
        let incarnation = node.incarnation;
        let Some(replica) = &mut node.replica else {
            return Ok(());
        };
        let mut sends = Vec::new();
        while let Some(output) = replica.poll_output() {
            match output {
                Output::Send { to, message } => {
                    sends.push((Principal::Coordinator(to), Packet::Raft(Box::new(message))));
                }
                Output::Order { host, order } => {
                    let incarnation = hosts.get(&host).map_or(0, |host| host.incarnation);
                    sends.push((Principal::Host(host), Packet::Order(Box::new(order), incarnation)));
                }
                Output::Reply { id: name, response } => {
                    let Some((to, hello)) = node.requests.remove(&name) else {
                        return Err(format!("{id} answered a request twice"));
                    };
                    if matters(hello, &response) {
                        let response = Rc::new(response);
                        sends.push((to, Packet::Response { hello, response }));
                    }
                }
            }
        }
        let persist = replica.poll_persist();
        let wake = replica
            .poll_timeout()
            .map(|at| node.clock.truth(at).max(*truth + 1));
        let wake = wake.filter(|at| *at < node.wake_at);
        if let Some(at) = wake {
            node.wake_at = at;
        }
        let writes = persist.map(|persist| node.disk.write(persist)).is_some();
        invariants.coordinator(node, tally)?;
        for (to, packet) in sends {
            self.send(from, to, packet);
        }
        if writes {
            let delay = self.rng.between(MS / 20, self.disk_ms_max * MS);
            self.schedule(delay, Event::Written { id, incarnation });
            let node = self.coordinators.get_mut(&id).expect("a coordinator");
            if std::mem::take(&mut node.dies_writing) {
                self.at(delay / 2, Chaos::CrashCoordinator(id));
            }
        }
        if let Some(at) = wake {
            self.schedule(at - self.truth, Event::Wake(from));
        }
        Ok(())
    }

    /// Lets a host do something, and carries on what comes of it.
    fn host(
        &mut self,
        id: HostId,
        incarnation: Option<u64>,
        act: impl FnOnce(&mut Host, &mut Step<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let host = self.hosts.get_mut(&id).expect("a host");
        if host.agent.is_none() || incarnation.is_some_and(|known| known != host.incarnation) {
            return Ok(());
        }
        let mut step = Step {
            now: host.clock.read(self.truth),
            rng: &mut self.rng,
            contents: &mut self.contents,
            tally: &mut self.tally,
            invariants: &mut self.invariants,
            disk_ms_max: self.disk_ms_max,
            fault: self.fault.and_then(Fault::of_host),
            out: Vec::new(),
            told: self.verbose.then_some((id, self.truth)),
        };
        act(host, &mut step)?;
        let (out, incarnation, me) = (step.out, host.incarnation, Principal::Host(id));
        for out in out {
            match out {
                Out::Request(request) => self.request(me, request),
                Out::Frame { to, service, frame } => {
                    self.send(me, Principal::Host(to), Packet::Frame(service, frame));
                }
                Out::Acked {
                    to,
                    service,
                    generation,
                } => {
                    self.send(me, Principal::Host(to), Packet::Acked(service, generation));
                }
                Out::Ask { to, request } => {
                    self.send(me, Principal::Host(to), Packet::Ask(Rc::new(request)));
                }
                Out::Promised { to, promised } => {
                    self.send(me, Principal::Host(to), Packet::Promised(Rc::new(promised)));
                }
                Out::Keep { order, after } => self.schedule(
                    after,
                    Event::Kept {
                        host: id,
                        incarnation,
                        order,
                    },
                ),
                Out::Job {
                    service,
                    number,
                    after,
                } => self.schedule(
                    after,
                    Event::Job {
                        host: id,
                        incarnation,
                        service,
                        number,
                    },
                ),
                Out::Sealing { service, after } => {
                    let event = Event::Sealing {
                        host: id,
                        incarnation,
                        service,
                    };
                    self.schedule(after, event);
                    let host = self.hosts.get_mut(&id).expect("a host");
                    if std::mem::take(&mut host.dies_writing) {
                        self.at(after / 2, Chaos::CutPower(id));
                    }
                }
            }
        }
        self.wake_host(id);
        Ok(())
    }

    /// Schedules the host's next wake-up, if it is sooner than the one that is.
    pub fn wake_host(&mut self, id: HostId) {
        let host = self.hosts.get_mut(&id).expect("a host");
        let Some(due) = host.timeout() else { return };
        // No timer is more exact than this.
        let at = host.clock.truth(due).max(self.truth + MS / 10);
        if at < host.wake_at {
            host.wake_at = at;
            self.schedule(at - self.truth, Event::Wake(Principal::Host(id)));
        }
    }

    fn tick_host(&mut self, id: HostId) -> Result<(), String> {
        let host = self.hosts.get_mut(&id).expect("a host");
        if host.wake_at > self.truth {
            return Ok(());
        }
        host.wake_at = u64::MAX;
        self.host(id, None, Host::turn)
    }

    pub fn stands_still(&self, node: Principal) -> bool {
        self.paused.contains_key(&node)
    }

    pub fn pause(&mut self, node: Principal) {
        self.paused.entry(node).or_default();
    }

    pub fn resume(&mut self, node: Principal) {
        for event in self.paused.remove(&node).unwrap_or_default() {
            self.schedule(0, event);
        }
    }

    pub fn resume_all(&mut self) {
        for node in self.paused.keys().copied().collect::<Vec<_>>() {
            self.resume(node);
        }
    }

    pub fn start_coordinator(&mut self, id: CoordinatorId) -> Result<(), String> {
        let (now, seed) = (self.now(id), self.seed);
        let fault = self.fault.and_then(Fault::of_replica);
        let node = self.coordinators.get_mut(&id).expect("a coordinator");
        if node.replica.is_some() || node.retired {
            return Ok(());
        }
        node.start(&self.founders, now, seed, fault)?;
        node.wake_at = self.truth;
        self.schedule(0, Event::Wake(Principal::Coordinator(id)));
        Ok(())
    }

    pub fn crash_coordinator(&mut self, id: CoordinatorId) {
        let node = self.coordinators.get_mut(&id).expect("a coordinator");
        node.stop();
        node.disk.crash(&mut self.rng, &mut self.tally);
    }

    /// The agent, or with it the whole machine, stops.
    pub fn stop_host(&mut self, id: HostId, power: bool) {
        let host = self.hosts.get_mut(&id).expect("a host");
        if power {
            host.power_off(&mut self.rng, &self.contents, &mut self.tally);
        } else {
            host.crash(&mut self.tally);
        }
        for at in self.coordinators.keys().copied().collect::<Vec<_>>() {
            // A closed link is noticed sometimes.
            if self.rng.chance(500) {
                let delay = self.rng.between(MS, 50 * MS);
                self.schedule(delay, Event::Gone { at, host: id });
            }
        }
    }

    pub fn start_host(&mut self, id: HostId) -> Result<(), String> {
        let boot = u128::from(self.rng.next());
        let host = self.hosts.get_mut(&id).expect("a host");
        if host.agent.is_some() {
            return Ok(());
        }
        host.start(self.truth, boot);
        host.wake_at = u64::MAX;
        self.observe_soon(id);
        self.host(id, None, Host::adopt)
    }
}

/// An operator says that a host is dead that has power.
fn is_vouched_wrongly(request: &Request, host: &Host) -> bool {
    match request {
        Request::Operate(Operate::ConfirmDead { host: name }) => {
            host.powered && *name == format!("h{}", host.id.0)
        }
        _ => false,
    }
}

/// What an agent does something with.
const fn matters(hello: bool, response: &Response) -> bool {
    match response {
        Response::Renewed(_) | Response::Refused(Refusal::Unknown(_)) => true,
        Response::Done => hello,
        _ => false,
    }
}
