//! One thread, one seed, one order of events: coordinators, hosts, network, disks and clocks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use understudy_common::id::{CoordinatorId, HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::units::BasisPoints;
use understudy_common::wire::{Operate, Request, Response};
use understudy_coordinator::replica::{Fault, Output};

use super::chaos::Chaos;
use super::check::Checker;
use super::clock::{Clock, MS};
use super::coordinator::Coordinator;
use super::host::{self, Host, Sent};
use super::net::{Net, Packet};
use super::rng::Rng;

pub const COORDINATORS: [CoordinatorId; 3] = [CoordinatorId(1), CoordinatorId(2), CoordinatorId(3)];
/// How often the leader's model speaks.
const SCORE_EVERY: u64 = 1_000 * MS;

#[expect(clippy::large_enum_variant, reason = "a queue of a few of them in one test")]
enum Event {
    Deliver {
        from: Principal,
        to: Principal,
        packet: Packet,
    },
    Wake {
        node: Principal,
        incarnation: u64,
    },
    Written {
        id: CoordinatorId,
        incarnation: u64,
    },
    Gone {
        at: CoordinatorId,
        host: HostId,
    },
    Chaos(Chaos),
}

struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub struct World {
    pub truth: u64,
    pub rng: Rng,
    pub net: Net,
    pub disk_ms_max: u64,
    pub coordinators: BTreeMap<CoordinatorId, Coordinator>,
    pub hosts: BTreeMap<HostId, Host>,
    pub risks: BTreeMap<HostId, BasisPoints>,
    pub checker: Checker,
    /// Nodes that stand still, and what waits for them.
    paused: BTreeMap<Principal, Vec<Event>>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    next_rpc: u64,
    /// Requests of the operator that were answered with success.
    pub done: u64,
    fault: Option<Fault>,
    seed: u64,
    trace: u64,
    pub events: u64,
}

impl World {
    pub fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut rng = Rng::new(seed);
        let mut clock = || Clock::new(0, i64::try_from(rng.between(0, 1_000)).expect("small") - 500);
        let coordinators = COORDINATORS.map(|id| (id, Coordinator::new(id, clock())));
        let clocks: Vec<Clock> = (0..5).map(|_| clock()).collect();
        let count = rng.between(3, 6);
        let hosts = (1..).zip(clocks).take(usize::try_from(count).expect("small"));
        let hosts = hosts.map(|(id, clock)| {
            let boot = u128::from(rng.next());
            (HostId(id), Host::new(HostId(id), clock, boot, clock.read(0)))
        });
        let hosts: BTreeMap<_, _> = hosts.collect();
        let mut world = Self {
            truth: 0,
            rng,
            net: Net::calm(),
            disk_ms_max: 3,
            coordinators: coordinators.into(),
            hosts,
            risks: BTreeMap::new(),
            checker: Checker::default(),
            paused: BTreeMap::new(),
            queue: BinaryHeap::new(),
            order: 0,
            next_rpc: 0,
            done: 0,
            fault,
            seed,
            trace: 0xcbf2_9ce4_8422_2325,
            events: 0,
        };
        for id in COORDINATORS {
            world.start_coordinator(id);
        }
        for id in world.hosts.keys().copied().collect::<Vec<_>>() {
            world.wake_host(id);
        }
        world
    }

    /// Equal for equal runs.
    pub const fn trace(&self) -> u64 {
        self.trace
    }

    pub fn nodes(&self) -> Vec<Principal> {
        let coordinators = self.coordinators.keys().copied().map(Principal::Coordinator);
        coordinators
            .chain(self.hosts.keys().copied().map(Principal::Host))
            .collect()
    }

    pub fn leader(&self) -> Option<CoordinatorId> {
        let leads = |node: &&Coordinator| node.replica.as_ref().is_some_and(|replica| replica.is_leader());
        let term = |node: &&Coordinator| node.replica.as_ref().map(|replica| replica.term());
        self.coordinators
            .values()
            .filter(leads)
            .max_by_key(term)
            .map(|node| node.id)
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

    /// Runs until `end`, checking every invariant after every event.
    pub fn run_until(&mut self, end: u64) -> Result<(), String> {
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.at > end {
                break;
            }
            let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() else {
                break;
            };
            self.truth = at;
            self.events += 1;
            self.note(at);
            self.handle(event)?;
            self.checker.gates(&self.hosts, self.truth)?;
        }
        self.truth = end;
        Ok(())
    }

    fn note(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn schedule(&mut self, delay: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled {
            at: self.truth + delay,
            order: self.order,
            event,
        }));
    }

    fn handle(&mut self, event: Event) -> Result<(), String> {
        let node = match &event {
            Event::Deliver { to, .. } => Some(*to),
            Event::Wake { node, .. } => Some(*node),
            Event::Written { id, .. } | Event::Gone { at: id, .. } => Some(Principal::Coordinator(*id)),
            Event::Chaos(_) => None,
        };
        if let Some(stash) = node.and_then(|node| self.paused.get_mut(&node)) {
            stash.push(event);
            return Ok(());
        }
        match event {
            Event::Deliver { from, to, packet } => self.deliver(from, to, packet),
            Event::Wake { node, incarnation } => match node {
                Principal::Coordinator(id) => {
                    if self.coordinators[&id].incarnation == incarnation {
                        self.tick_coordinator(id)?;
                    }
                    Ok(())
                }
                Principal::Host(id) => {
                    if self.hosts[&id].incarnation == incarnation {
                        self.tick_host(id);
                    }
                    Ok(())
                }
                Principal::Operator | Principal::Newcomer => Ok(()),
            },
            Event::Written { id, incarnation } => {
                let now = self.now(id);
                let node = self.coordinators.get_mut(&id).expect("a coordinator");
                if node.incarnation != incarnation {
                    return Ok(());
                }
                node.disk.written();
                if let Some(replica) = &mut node.replica {
                    replica.handle_persisted(now);
                }
                self.drain(id)
            }
            Event::Gone { at, host } => {
                let now = self.now(at);
                let node = self.coordinators.get_mut(&at).expect("a coordinator");
                if let Some(replica) = &mut node.replica {
                    replica.handle_host_gone(now, host);
                }
                self.drain(at)
            }
            Event::Chaos(chaos) => {
                chaos.strike(self);
                Ok(())
            }
        }
    }

    fn now(&self, id: CoordinatorId) -> understudy_common::units::BootTime {
        self.coordinators[&id].clock.read(self.truth)
    }

    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + self.truth / MS
    }

    fn deliver(&mut self, from: Principal, to: Principal, packet: Packet) -> Result<(), String> {
        match (to, packet) {
            (Principal::Coordinator(id), packet) => self.deliver_to_coordinator(id, from, packet),
            (Principal::Host(id), packet) => self.deliver_to_host(id, from, packet),
            (Principal::Operator, Packet::Response { response, .. }) => {
                if let Response::Document(_) = response {
                    self.done += 1;
                }
                Ok(())
            }
            (Principal::Operator | Principal::Newcomer, _) => Ok(()),
        }
    }

    fn deliver_to_coordinator(
        &mut self,
        id: CoordinatorId,
        from: Principal,
        packet: Packet,
    ) -> Result<(), String> {
        let (now, wall_ms) = (self.now(id), self.wall_ms());
        let node = self.coordinators.get_mut(&id).expect("a coordinator");
        if node.replica.is_none() {
            return Ok(());
        }
        let request_id = match &packet {
            Packet::Request { rpc, .. } => Some(node.request(from, *rpc)),
            _ => None,
        };
        let Some(replica) = &mut node.replica else {
            return Ok(());
        };
        match (packet, from, request_id) {
            (Packet::Raft(message), Principal::Coordinator(from), _) => {
                replica.handle_message(now, from, *message);
            }
            (Packet::Request { request, .. }, from, Some(request_id)) => {
                replica.handle_request(now, wall_ms, from, request_id, request);
            }
            _ => {}
        }
        self.drain(id)
    }

    fn deliver_to_host(&mut self, id: HostId, from: Principal, packet: Packet) -> Result<(), String> {
        let truth = self.truth;
        let host = self.hosts.get_mut(&id).expect("a host");
        if !host.running {
            return Ok(());
        }
        let now = host.clock.read(truth);
        match (packet, from) {
            (
                Packet::Request {
                    request: Request::Order(order),
                    ..
                },
                Principal::Coordinator(_),
            ) => {
                self.note(order.epoch.0 ^ order.revision << 20);
                let host = self.hosts.get_mut(&id).expect("a host");
                host.handle_order(now, &mut self.rng, order)?;
            }
            (Packet::Response { rpc, response }, _) => {
                // The model's only distinction: hellos carry odd numbers.
                if rpc % 2 == 1 && response == Response::Done {
                    host.handle_welcome();
                } else {
                    host.handle_response(now, &response);
                }
            }
            (Packet::Generation { service, generation }, Principal::Host(primary)) => {
                if let Some(generation) = host.handle_generation(now, primary, service, generation) {
                    let packet = Packet::Acked { service, generation };
                    self.send(Principal::Host(id), from, packet);
                }
            }
            (Packet::Acked { service, generation }, Principal::Host(shadow)) => {
                host.handle_acked(shadow, service, generation);
            }
            _ => {}
        }
        Ok(())
    }

    fn send(&mut self, from: Principal, to: Principal, packet: Packet) {
        for delay in self.net.deliveries(&mut self.rng, from, to) {
            let packet = packet.clone();
            self.schedule(delay, Event::Deliver { from, to, packet });
        }
    }

    fn tick_coordinator(&mut self, id: CoordinatorId) -> Result<(), String> {
        let (now, wall_ms, truth) = (self.now(id), self.wall_ms(), self.truth);
        let scores: Vec<_> = self
            .hosts
            .keys()
            .map(|host| (*host, self.risks.get(host).copied().unwrap_or(BasisPoints(120))))
            .collect();
        let node = self.coordinators.get_mut(&id).expect("a coordinator");
        node.wake_at = u64::MAX;
        let Some(replica) = &mut node.replica else {
            return Ok(());
        };
        replica.handle_tick(now, wall_ms);
        if truth >= node.scored_at + SCORE_EVERY {
            node.scored_at = truth;
            replica.handle_scores(now, wall_ms, &scores);
        }
        self.drain(id)
    }

    /// Takes everything out of a replica, and checks it.
    fn drain(&mut self, id: CoordinatorId) -> Result<(), String> {
        let from = Principal::Coordinator(id);
        let truth = self.truth;
        let node = self.coordinators.get_mut(&id).expect("a coordinator");
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
                    let request = Request::Order(order);
                    sends.push((Principal::Host(host), Packet::Request { rpc: 0, request }));
                }
                Output::Reply { id, response } => {
                    let Some((to, rpc)) = node.requests.remove(&id) else {
                        return Err(format!("{id:?} was answered twice"));
                    };
                    sends.push((to, Packet::Response { rpc, response }));
                }
            }
        }
        let written = replica.poll_persist().map(|persist| {
            node.disk.write(persist);
            incarnation
        });
        let wake = replica
            .poll_timeout()
            .map(|at| node.clock.truth(at).max(truth + 1));
        let wake = wake.filter(|at| *at < node.wake_at);
        if let Some(at) = wake {
            node.wake_at = at;
        }
        self.checker.coordinator(node)?;
        for (to, packet) in sends {
            self.send(from, to, packet);
        }
        if let Some(incarnation) = written {
            let delay = self.rng.between(MS / 20, self.disk_ms_max * MS);
            self.schedule(delay, Event::Written { id, incarnation });
        }
        if let Some(at) = wake {
            let event = Event::Wake {
                node: from,
                incarnation,
            };
            self.schedule(at - truth, event);
        }
        Ok(())
    }

    fn wake_host(&mut self, id: HostId) {
        let host = &self.hosts[&id];
        let next = host.clock.truth(host.clock.read(self.truth) + host::TICK);
        let event = Event::Wake {
            node: Principal::Host(id),
            incarnation: host.incarnation,
        };
        self.schedule(next - self.truth, event);
    }

    fn tick_host(&mut self, id: HostId) {
        let truth = self.truth;
        let host = self.hosts.get_mut(&id).expect("a host");
        let now = host.clock.read(truth);
        let me = Principal::Host(id);
        for sent in host.handle_tick(now, truth) {
            let request = match sent {
                Sent::Generation {
                    to,
                    service,
                    generation,
                } => {
                    let packet = Packet::Generation { service, generation };
                    self.send(me, Principal::Host(to), packet);
                    continue;
                }
                Sent::Hello(hello) => Request::Hello(hello),
                Sent::Renew(renew) => Request::Renew(renew),
                Sent::Report(report) => Request::Report(report),
            };
            self.request(me, request);
        }
        self.wake_host(id);
    }

    /// Sends a request to all coordinators.
    fn request(&mut self, from: Principal, request: Request) {
        self.next_rpc += 2;
        let rpc = self.next_rpc + u64::from(matches!(request, Request::Hello(_)));
        for id in COORDINATORS {
            let packet = Packet::Request {
                rpc,
                request: request.clone(),
            };
            self.send(from, Principal::Coordinator(id), packet);
        }
    }

    pub fn operate(&mut self, operate: Operate) {
        self.request(Principal::Operator, Request::Operate(operate));
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

    pub fn start_coordinator(&mut self, id: CoordinatorId) {
        let members: BTreeSet<_> = COORDINATORS.into();
        let (now, seed, fault) = (self.now(id), self.seed, self.fault);
        let node = self.coordinators.get_mut(&id).expect("a coordinator");
        if node.replica.is_some() {
            return;
        }
        node.start(&members, now, seed, fault);
        let incarnation = node.incarnation;
        node.wake_at = self.truth;
        let event = Event::Wake {
            node: Principal::Coordinator(id),
            incarnation,
        };
        self.schedule(0, event);
    }

    pub fn crash_coordinator(&mut self, id: CoordinatorId) {
        let landed = self.rng.chance(500);
        let node = self.coordinators.get_mut(&id).expect("a coordinator");
        node.crash(landed);
    }

    /// The agent, or with it the whole machine, stops.
    pub fn stop_host(&mut self, id: HostId, power: bool) {
        let host = self.hosts.get_mut(&id).expect("a host");
        if power {
            host.power_off();
        } else {
            host.crash();
        }
        for at in COORDINATORS {
            // A closed link is noticed sometimes.
            if self.rng.chance(500) {
                let delay = self.rng.between(MS, 50 * MS);
                self.schedule(delay, Event::Gone { at, host: id });
            }
        }
    }

    pub fn start_host(&mut self, id: HostId) {
        let boot = u128::from(self.rng.next());
        let truth = self.truth;
        let host = self.hosts.get_mut(&id).expect("a host");
        if host.running {
            return;
        }
        host.start(truth, boot);
        self.wake_host(id);
    }
}
