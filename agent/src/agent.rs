//! The agent: one loop that owns every decision of this host, and the tasks around it.
//!
//! Invariants: only the loop changes a machine, the leases or the gate. It never waits for a disk, a
//! workload or a peer: what takes time is a driver's or a link's. When it stands still, leases end and
//! the gate closes by itself.

mod apart;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use understudy_common::beacon::Beacon;
use understudy_common::id::{Epoch, ServiceId};
use understudy_common::lease::LeaseTimes;
use understudy_common::spec::ServiceSpec;
use understudy_common::units::BootTime;
use understudy_common::wire::{Evidence, Hello, HostReport, Order, Refusal, Renew};
use understudy_transport::{Endpoint, TransportError};

use crate::boot;
use crate::clock::{self, ClockError, boot_time};
use crate::config::AgentConfig;
use crate::gate::{Gate as _, GateError, Guard, KernelGate};
use crate::lease::{LeaseClient, SERVICES_MAX};
use crate::net::{self, Asked, Inbox, LISTS_MAX, Peers, RENEWALS_MAX, Said};
use crate::observe::{Target, observe};
use crate::service::{Action, Driver, DriverSettings, Event, KeptOrders, Machine, Registry};
use crate::sync;
use crate::telemetry::{ExitWatch, SAMPLE_INTERVAL_MS, Telemetry, TelemetryError};
use crate::workload::{Cgroup, ThawGuard};
use apart::barred;

/// How often the loop turns though nothing happens; also the longest time between two reports.
const BEAT: Duration = Duration::from_millis(100);
/// A closed gate answers RST for so long after the loop's last turn.
const ALIVE: Duration = Duration::from_secs(1);
/// How often the gate's pins and attachments are looked at.
const REPAIR_EVERY: Duration = Duration::from_secs(1);
/// Orders and answers that wait for the loop; links wait when it is full.
const ASKED_MAX: usize = 64;
/// Drivers' events that wait for the loop; drivers wait when it is full.
const EVENTS_MAX: usize = 256;
/// Beacons that a slow link may be behind.
const BEACONS_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Clock(#[from] ClockError),
    #[error("cannot {what} below {}", state_dir.display())]
    State {
        what: &'static str,
        state_dir: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Runs the agent until the returned future is dropped. Workloads go on without it; their leases end.
///
/// # Errors
/// [`AgentError`] when it cannot start.
pub async fn run(config: AgentConfig) -> Result<(), AgentError> {
    clock::calibrate()?;
    let failed = |what| {
        let state_dir = config.state_dir.clone();
        move |source| AgentError::State {
            what,
            state_dir,
            source,
        }
    };
    let pins_survived = config.pin_dir.join("GATE").exists();
    let boot = boot::current(&config.state_dir, pins_survived, boot_time())
        .map_err(failed("keep the number of this boot"))?;
    let gate = KernelGate::load(&config.pin_dir)?;
    let (kept, orders) = KeptOrders::open(&config.state_dir, boot.number).map_err(failed("keep orders"))?;
    let endpoint = Endpoint::bind(config.listen, &config.credentials)?;
    endpoint.keep_revocations(config.state_dir.join("revoked"))?;
    let hellos = watch::Sender::new(None);
    tracing::info!(host = %config.host, name = config.name, boot = format!("{:032x}", boot.number), "starts");

    let (asked, inbox) = mpsc::channel(ASKED_MAX);
    let (beacons, _) = broadcast::channel(BEACONS_MAX);
    let (renewals, _) = broadcast::channel(RENEWALS_MAX);
    let (lists, named) = mpsc::channel(LISTS_MAX);
    let report = HostReport {
        host: config.host,
        boot: boot.number,
        // Rises across restarts of the agent within one boot.
        sequence: boot_time().0,
        ..HostReport::default()
    };
    let reports = watch::Sender::new(report);
    let said = Said {
        hello: hellos.subscribe(),
        reports: reports.subscribe(),
        beacons: beacons.clone(),
        renewals: renewals.clone(),
        asked: asked.clone(),
        lists,
        endpoint: endpoint.clone(),
        open: watch::Sender::default(),
    };
    let renewal = net::keep_renewed(
        endpoint.clone(),
        config.certificate.clone(),
        said.open.subscribe(),
    );
    let registry = Registry::default();
    // Dropped with this future, which ends them all.
    let mut tasks = JoinSet::new();
    tasks.spawn(renewal);
    tasks.spawn(net::follow(
        endpoint.clone(),
        config.state_dir.clone(),
        config.coordinators.clone(),
        said,
        named,
    ));
    let from_hosts = Inbox {
        registry: registry.clone(),
        asked: asked.clone(),
    };
    tasks.spawn(net::accept(endpoint.clone(), from_hosts));
    let exits = ExitWatch::default();
    // The kernel takes most of a second to check all the programs: a lease would not wait for that.
    let watched = watch_host(config.clone(), boot.number, hellos, exits.clone(), beacons);
    let (targets, evidence) = (watch::Sender::default(), watch::Sender::default());
    let seen = evidence.subscribe();
    tasks.spawn(observe(targets.subscribe(), evidence));
    let (events, happened) = mpsc::channel(EVENTS_MAX);
    let times = LeaseTimes::DEFAULT;
    let mut agent = Agent {
        peers: Peers::new(endpoint.clone(), asked),
        closed_until: boot.since + times.promise(),
        kept,
        times,
        boot: boot.number,
        lease: LeaseClient::new(config.host, times, boot_time()),
        thaw_guard: Arc::new(ThawGuard::of_this_program()),
        services: BTreeMap::new(),
        repair_at: BootTime::ZERO,
        reported_at: BootTime::ZERO,
        config,
        gate,
        endpoint,
        registry,
        events,
        renewals,
        reports,
        targets,
        seen,
        exits,
    };
    agent.adopt(orders);
    agent.watch_holders();
    tokio::select! {
        () = agent.run(inbox, happened) => Ok(()),
        failed = watched => failed,
    }
}

/// Says what this host is, passes on how processes of services ended, samples the host and hands a beacon
/// a second to the links. Returns when the telemetry cannot be opened.
async fn watch_host(
    config: AgentConfig,
    boot: u128,
    hellos: watch::Sender<Option<Arc<Hello>>>,
    exits: ExitWatch,
    beacons: broadcast::Sender<Beacon>,
) -> Result<(), AgentError> {
    let host = config.host;
    let opened = tokio::task::spawn_blocking(move || {
        Telemetry::open(host, &config.telemetry).map(|telemetry| (telemetry, config))
    });
    let Ok(opened) = opened.await else {
        // Only when the agent stops.
        return Ok(());
    };
    let (mut telemetry, config) = opened?;
    hellos.send_replace(Some(Arc::new(Hello {
        host,
        name: config.name,
        boot,
        addr: config.listen,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        inventory: telemetry.inventory(),
        domain: config.domain,
    })));
    // Dropped with this future, which ends it.
    let mut forwarding = JoinSet::new();
    if let Some(told) = telemetry.exits() {
        let forwarded = told.forward(exits);
        forwarding.spawn(async move {
            if let Err(error) = forwarded.await {
                tracing::warn!(%error, "the kernel no longer tells how services' processes end");
            }
        });
    }
    let mut interval = tokio::time::interval(Duration::from_millis(SAMPLE_INTERVAL_MS));
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        if let Some(beacon) = telemetry.sample(boot_time()) {
            // Nobody listens while no coordinator is connected.
            let _ = beacons.send(beacon);
        }
    }
}

struct Service {
    machine: Machine,
    spec: ServiceSpec,
    /// From the first guard on: the driver needs the cgroup.
    driver: Option<Driver>,
}

struct Agent {
    config: AgentConfig,
    boot: u128,
    gate: KernelGate,
    /// What was promised here before this boot is over then.
    closed_until: BootTime,
    times: LeaseTimes,
    lease: LeaseClient,
    peers: Peers,
    kept: KeptOrders,
    services: BTreeMap<ServiceId, Service>,
    thaw_guard: Arc<ThawGuard>,
    endpoint: Endpoint,
    registry: Registry,
    events: mpsc::Sender<(ServiceId, Event)>,
    renewals: broadcast::Sender<Renew>,
    reports: watch::Sender<HostReport>,
    /// Holders that this host watches, and what it sees of them.
    targets: watch::Sender<Vec<Target>>,
    seen: watch::Receiver<Vec<Evidence>>,
    /// Where the kernel pushes ends of processes, once it does.
    exits: ExitWatch,
    repair_at: BootTime,
    reported_at: BootTime,
}

impl Agent {
    async fn run(
        mut self,
        mut asked: mpsc::Receiver<Asked>,
        mut happened: mpsc::Receiver<(ServiceId, Event)>,
    ) {
        loop {
            let now = boot_time();
            self.turn(now);
            let pause = self.timeout(now).since(boot_time());
            tokio::select! {
                Some(asked) = asked.recv() => self.asked(asked),
                Some((service, event)) = happened.recv() => {
                    if let Some(known) = self.services.get_mut(&service) {
                        known.machine.handle_event(boot_time(), event);
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn asked(&mut self, asked: Asked) {
        match asked {
            Asked::Order { order, answer } => {
                let result = self.order(*order);
                // The link is gone; the order stands.
                let _ = answer.send(result);
            }
            Asked::Renewed(renewed) => self.lease.handle_renewed(boot_time(), &renewed),
            Asked::Promise { request, answer } => {
                let promised = self.promise(boot_time(), &request);
                // Whoever asked is gone; the promise stands.
                let _ = answer.send(promised);
            }
            Asked::Promised { from, promised } => self.lease.handle_promised(boot_time(), from, &promised),
        }
    }

    fn order(&mut self, order: Order) -> Result<(), Refusal> {
        order.check_boot(self.boot)?;
        if !self.services.contains_key(&order.service) && self.services.len() >= SERVICES_MAX {
            return Err(Refusal::Busy(format!(
                "services of this host, which knows {SERVICES_MAX}"
            )));
        }
        let known = self.services.entry(order.service).or_insert_with(|| Service {
            machine: Machine::new(order.service),
            spec: order.spec.clone(),
            driver: None,
        });
        if known.spec != order.spec {
            return Err(Refusal::Invalid(format!(
                "{} was declared differently before",
                known.spec.name
            )));
        }
        // Pinned before it is obeyed, so that an agent that starts again knows what this one reported.
        let address = known.spec.address;
        match self.gate.see(address, order.epoch, order.revision) {
            Ok(true) => {}
            Ok(false) => return self.outdated(&order),
            Err(error) => return Err(Refusal::Busy(format!("gates: {}", sync::chain(&error)))),
        }
        if known.machine.order() != Some(&order) {
            known.machine.handle_order(order.clone())?;
            self.lease.handle_order(&order, true);
            self.kept.keep(order);
            self.watch_holders();
        }
        Ok(())
    }

    /// Tells the observers when an order named another holder.
    fn watch_holders(&self) {
        let machines = self.services.values().map(|known| &known.machine);
        let targets: Vec<_> = machines
            .filter_map(|machine| machine.target(self.config.host))
            .collect();
        self.targets.send_if_modified(|known| {
            let news = *known != targets;
            *known = targets;
            news
        });
    }

    /// Everything that is to be done now.
    fn turn(&mut self, now: BootTime) {
        if let Err(error) = self.gate.keep_alive(now + ALIVE) {
            tracing::error!(
                error = sync::chain(&error),
                "the gate does not take a sign of life"
            );
        }
        self.repair(now);
        self.act(now);
        self.lease.handle_tick(now);
        while let Some(renew) = self.lease.poll_renew() {
            // Nobody listens while no coordinator is connected.
            let _ = self.renewals.send(renew);
        }
        self.forfeit(now);
        self.lose(now);
        self.ask();
        self.open(now);
        // An open gate may be what an address waited for.
        self.act(now);
        self.report(now);
    }

    fn timeout(&self, now: BootTime) -> BootTime {
        let machines = self
            .services
            .values()
            .filter_map(|known| known.machine.poll_timeout());
        let due = machines.chain(self.lease.poll_timeout()).min();
        due.map_or(now + BEAT, |due| due.min(now + BEAT))
    }

    fn act(&mut self, now: BootTime) {
        let ids: Vec<ServiceId> = self.services.keys().copied().collect();
        for id in ids {
            while let Some(action) = self.next_action(id, now) {
                if let Some(event) = self.perform(id, action)
                    && let Some(known) = self.services.get_mut(&id)
                {
                    known.machine.handle_event(now, event);
                }
            }
        }
    }

    fn next_action(&mut self, id: ServiceId, now: BootTime) -> Option<Action> {
        self.services.get_mut(&id)?.machine.poll_action(now)
    }

    fn perform(&mut self, id: ServiceId, action: Action) -> Option<Event> {
        let known = self.services.get_mut(&id)?;
        let address = known.spec.address;
        match action {
            Action::Guard => Some(match self.guard(id) {
                Ok(floor) => Event::Guarded { floor },
                Err(why) => {
                    tracing::error!(service = %id, why, "the gate is not in force");
                    Event::Unguarded { why }
                }
            }),
            Action::Fence { epoch } => Some(match self.gate.fence(address, epoch) {
                Ok(()) => {
                    self.lease.fence(id, epoch);
                    tracing::info!(service = %id, %epoch, "fenced");
                    Event::Fenced { epoch }
                }
                Err(error) => {
                    let why = sync::chain(&error);
                    tracing::error!(service = %id, %epoch, why, "the gate cannot be closed");
                    Event::FenceFailed { why }
                }
            }),
            Action::Hold { epoch } => Some(match self.lease.hold(id, epoch) {
                Ok(()) => {
                    self.adopt_lease(id, epoch);
                    Event::Held { epoch }
                }
                Err(error) => {
                    let why = error.to_string();
                    tracing::error!(service = %id, %epoch, why, "the lease cannot be held");
                    Event::HoldRefused { why }
                }
            }),
            Action::Sustain { epoch, on } => {
                self.lease.set_read_only(id, epoch, on);
                None
            }
            Action::Do(job) => match &mut known.driver {
                Some(driver) => driver.give(job).err().map(|why| Event::Finished(Err(why))),
                // Before the first guard nothing of it runs that this agent could reach.
                None => Some(Event::Finished(Err("the gate is not in force".to_owned()))),
            },
            Action::Interrupt => {
                if let Some(driver) = &known.driver {
                    driver.interrupt();
                }
                None
            }
        }
    }

    /// Puts the gate in force; what it was fenced at before counts.
    fn guard(&mut self, id: ServiceId) -> Result<Epoch, String> {
        let known = self.services.get_mut(&id).ok_or("it is not known")?;
        let spec = &known.spec;
        let cgroup =
            Cgroup::create(self.config.cgroup.join(&spec.name)).map_err(|error| sync::chain(&error))?;
        let guard = Guard {
            address: spec.address,
            interface: spec.interface.clone(),
            cgroup: cgroup.path().to_owned(),
        };
        self.gate.guard(&guard).map_err(|error| sync::chain(&error))?;
        let (address, now) = (spec.address, boot_time());
        let entry = self
            .gate
            .forgotten(address, now, self.closed_until)
            .and_then(|()| self.gate.entry(address))
            .map_err(|error| sync::chain(&error))?
            .unwrap_or_default();
        let floor = Epoch(entry.floor);
        self.lease.fence(id, floor);
        known.machine.handle_event(now, barred(&entry));
        if known.driver.is_none() {
            let settings = DriverSettings {
                service: id,
                host: self.config.host,
                spec: spec.clone(),
                state_dir: self.config.state_dir.clone(),
                scrub_bytes_s: self.config.scrub_bytes_s,
                cgroup,
                thaw_guard: Arc::clone(&self.thaw_guard),
                endpoint: self.endpoint.clone(),
                registry: self.registry.clone(),
                exits: self.exits.clone(),
                events: self.events.clone(),
            };
            known.driver = Some(Driver::start(settings).map_err(|error| sync::chain(&error))?);
        }
        Ok(floor)
    }

    /// Looks whether the gate still is in force everywhere, and puts back what is not.
    fn repair(&mut self, now: BootTime) {
        if now < self.repair_at || self.services.is_empty() {
            return;
        }
        self.repair_at = now + REPAIR_EVERY;
        match self.gate.repair() {
            Ok(repairs) => {
                for repair in repairs {
                    tracing::warn!(?repair, "the gate was put back");
                }
            }
            Err(error) => {
                tracing::error!(
                    error = sync::chain(&error),
                    "the gate cannot be put back everywhere"
                );
                self.unguard(now);
            }
        }
    }

    /// Nothing is served behind a gate that is not in force; the other services go on.
    fn unguard(&mut self, now: BootTime) {
        let ids: Vec<ServiceId> = self.services.keys().copied().collect();
        for id in ids {
            if let Err(why) = self.guard(id)
                && let Some(known) = self.services.get_mut(&id)
            {
                tracing::error!(service = %id, why, "the gate is not in force: it is not served here");
                known.machine.handle_event(now, Event::Unguarded { why });
            }
        }
    }

    /// Puts extended leases into the gate.
    fn open(&mut self, now: BootTime) {
        while let Some(change) = self.lease.poll_gate() {
            let Some(known) = self.services.get_mut(&change.service) else {
                continue;
            };
            let (epoch, deadline) = (change.epoch, change.deadline);
            match self.gate.open(known.spec.address, epoch, deadline) {
                Ok(true) => known.machine.handle_event(now, Event::Opened { epoch, deadline }),
                Ok(false) => {
                    tracing::warn!(service = %change.service, %epoch, "a renewal of an epoch that is fenced here");
                }
                Err(error) => {
                    tracing::error!(service = %change.service, error = sync::chain(&error), "the gate cannot be opened");
                }
            }
        }
    }

    /// Tells the links when anything changed, and at least every beat.
    fn report(&mut self, now: BootTime) {
        let report = |(id, known): (&ServiceId, &Service)| {
            let mut report = known.machine.report(now)?;
            (report.basis, report.apart) = self.lease.basis(*id);
            Some(report)
        };
        let services: Vec<_> = self.services.iter().filter_map(report).collect();
        let evidence = self.seen.borrow_and_update().clone();
        let changed = {
            let last = self.reports.borrow();
            services != last.services || evidence != last.evidence
        };
        if !changed && now.since(self.reported_at) < BEAT {
            return;
        }
        self.reported_at = now;
        self.reports.send_modify(|report| {
            report.sequence += 1;
            report.services = services;
            report.at = now;
            report.evidence = evidence;
        });
    }
}
