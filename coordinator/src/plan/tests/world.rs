//! A small cluster in memory: a state made by commands, and what its leader has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use understudy_common::domain::Domain;
use understudy_common::id::{CoordinatorId, Epoch, GenerationId, HostId, ServiceId};
use understudy_common::lease::LeaseTimes;
use understudy_common::spec::{CoordinatorLoss, Domains, RawServiceSpec};
use understudy_common::units::{BasisPoints, BootTime};
use understudy_common::wire::{
    Apart, Basis, CopyState, Evidence, FinalCut, HostReport, Inventory, Reach, ServiceReport, Sight,
    SyncFigures,
};

use crate::lease::LeaseTable;
use crate::plan::{Facts, OVER_TICKS, PlanDocument, Seen, plan};
use crate::state::{Change, Command, Coordinators, GrantReason, MoveReason, Outcome, State};

pub const KV: ServiceId = ServiceId(1);
pub const WEB: ServiceId = ServiceId(2);
const THRESHOLD: BasisPoints = BasisPoints(8_000);
const CALM: BasisPoints = BasisPoints(100);
const RISKY: BasisPoints = BasisPoints(9_100);

#[derive(Clone)]
pub struct World {
    pub state: State,
    seen: BTreeMap<HostId, Seen>,
    leases: LeaseTable,
    now: BootTime,
    /// How long the leader has seen everything as it is.
    since_ms: u64,
    wall_ms: u64,
    failed: BTreeMap<ServiceId, u32>,
}

impl World {
    /// Hosts a, b and c; the service kv is served by a, and b and c may take over.
    pub fn steady() -> Self {
        let mut world = Self::hosts();
        world.serve("kv", KV, 1);
        world
    }

    /// kv on a, web on b.
    pub fn two_services() -> Self {
        let mut world = Self::steady();
        world.serve("web", WEB, 2);
        world
    }

    /// kv and web on a.
    pub fn two_on_one() -> Self {
        let mut world = Self::steady();
        world.serve("web", WEB, 1);
        world
    }

    fn hosts() -> Self {
        let now = BootTime::from_ms(1_000_000);
        let mut world = Self {
            state: State::default(),
            seen: BTreeMap::new(),
            leases: LeaseTable::new(LeaseTimes::DEFAULT, now),
            now,
            since_ms: 0,
            wall_ms: 1_700_000_000_000,
            failed: BTreeMap::new(),
        };
        for (host, name) in (1..).zip(["a", "b", "c"]) {
            world.commit(Change::RegisterHost {
                host: HostId(host),
                name: name.to_owned(),
                boot: 1,
                addr: ([10, 0, 0, host as u8], 7401).into(),
                version: "1".to_owned(),
                inventory: Inventory::default(),
                domain: Domain::default(),
            });
            let report = HostReport {
                host: HostId(host),
                boot: 1,
                sequence: 1,
                at: BootTime::from_ms(500_000),
                ..HostReport::default()
            };
            let seen = Seen {
                report: Some(report),
                arrived: now,
                ..Seen::default()
            };
            world.seen.insert(HostId(host), seen);
        }
        let calm = (1..=3).map(|host| (HostId(host), CALM)).collect();
        world.commit(Change::Risks(calm));
        world
    }

    fn serve(&mut self, name: &str, service: ServiceId, holder: u32) {
        let n = service.0;
        let toml = format!(
            "name = \"{name}\"\npaths = [\"/srv/{name}\"]\naddress = \"10.0.9.{n}/24\"\ninterface = \"eth0\"\n\
             hosts = [1, 2, 3]\nworkload = {{ start = [\"/bin/{name}\"], health = {{ tcp = \"127.0.0.1:80\" }} }}"
        );
        let raw: RawServiceSpec = toml::from_str(&toml).expect("a declaration");
        self.commit(Change::ApplyService(raw.try_into().expect("a valid one")));
        self.take_over(service, holder, GrantReason::First);
    }

    /// The next epoch goes to `holder`, and the two others become ready shadows.
    fn take_over(&mut self, service: ServiceId, holder: u32, reason: GrantReason) {
        let epoch = self.state.services[&service].epoch.next();
        self.commit(Change::Grant {
            service,
            epoch,
            holder: HostId(holder),
            boot: 1,
            from: None,
            reason,
        });
        self.commit(Change::Served { service, epoch });
        for host in (1..=3).map(HostId).filter(|host| host.0 != holder) {
            if !self.state.services[&service].shadows.contains(&host) {
                self.commit(Change::SafeMode { host, on: false });
                self.commit(Change::AddShadow { service, host });
                self.commit(Change::ShadowReady { service, epoch, host });
            }
        }
        self.leases.observe(self.now, service, epoch);
        for host in (1..=3).map(HostId) {
            let served = (host.0 == holder).then_some(epoch);
            let revision = self.state.index;
            let report = self.report_of(host, service);
            report.epoch = epoch;
            report.revision = revision;
            report.serving = served;
            report.copy = if served.is_some() {
                CopyState::Cold
            } else {
                CopyState::Ready
            };
            report.generation = Some(GenerationId { epoch, n: 5 });
        }
        *self = self.clone().claimed(60_000);
    }

    fn commit(&mut self, change: Change) {
        let command = Command::new(self.wall_ms, change).encode();
        let outcome = self.state.apply(self.state.index + 1, &command);
        assert_eq!(outcome, Outcome::Applied);
    }

    pub fn apply(mut self, change: Change) -> Self {
        self.commit(change);
        self
    }

    /// kv went from a to b in a planned move, and a is a shadow again.
    pub fn moved(mut self, reason: MoveReason) -> Self {
        let (service, epoch, to) = (KV, Epoch(1), HostId(2));
        let cut = FinalCut {
            epoch,
            generation: GenerationId { epoch, n: 6 },
            acked_by: vec![to],
        };
        self.commit(Change::BeginHandover {
            service,
            epoch,
            to,
            reason,
        });
        self.commit(Change::HolderFenced { service, epoch });
        self.commit(Change::FinalCut { service, epoch, cut });
        self.take_over(service, to.0, GrantReason::Handover);
        self
    }

    /// The racks that a, b and c stand in; an empty one is not named.
    pub fn racks(mut self, racks: [&str; 3]) -> Self {
        for (host, rack) in (1..).map(HostId).zip(racks) {
            let known = self.state.hosts[&host].clone();
            self.commit(Change::RegisterHost {
                host,
                name: known.name,
                boot: known.boot,
                addr: known.addr,
                version: known.version,
                inventory: known.inventory,
                domain: Domain {
                    rack: Some(rack.to_owned()).filter(|rack| !rack.is_empty()),
                    ..Domain::default()
                },
            });
        }
        self
    }

    /// kv as if it had been declared with another policy.
    pub fn anywhere(mut self) -> Self {
        let service = self.state.services.get_mut(&KV).expect("kv");
        service.spec.policy.domains = Domains::Any;
        self
    }

    /// One of the coordinators has not said yet that it applies more than the first commands.
    pub fn older_coordinator(mut self) -> Self {
        self.state.coordinators = Coordinators::first([(CoordinatorId(1), None)], 1);
        self
    }

    /// The host lost its power and came back: it reports what it reported before, of another boot.
    pub fn rebooted(mut self, host: u32) -> Self {
        let host = HostId(host);
        let known = self.state.hosts[&host].clone();
        let boot = known.boot + 1;
        self.commit(Change::RegisterHost {
            host,
            name: known.name,
            boot,
            addr: known.addr,
            version: known.version,
            inventory: known.inventory,
            domain: known.domain,
        });
        let seen = self.seen.get_mut(&host).expect("a host");
        seen.report.as_mut().expect("a report").boot = boot;
        self
    }

    /// The lease of a ended while c was not heard of, and b went on from the generation that it had.
    pub fn failed_over(mut self, n: u64) -> Self {
        let (service, epoch, before) = (KV, Epoch(2), Epoch(1));
        self.commit(Change::Grant {
            service,
            epoch,
            holder: HostId(2),
            boot: 1,
            from: Some(GenerationId { epoch: before, n }),
            reason: GrantReason::LeaseEnded,
        });
        self.commit(Change::Served { service, epoch });
        self.leases.observe(self.now, service, epoch);
        let revision = self.state.index;
        let report = self.report_of(HostId(3), service);
        (report.epoch, report.revision) = (epoch, revision);
        self
    }

    pub fn sealed(mut self, host: u32, epoch: u64, n: u64) -> Self {
        let epoch = Epoch(epoch);
        self.report_of(HostId(host), KV).generation = Some(GenerationId { epoch, n });
        self
    }

    /// kv is on its way from a to b, and a reports its fence and a last cut.
    pub fn released(mut self) -> Self {
        let (service, epoch, to) = (KV, Epoch(1), HostId(2));
        let reason = MoveReason::Operator;
        self.commit(Change::BeginHandover {
            service,
            epoch,
            to,
            reason,
        });
        let report = self.report_of(HostId(1), service);
        report.serving = None;
        report.fenced = epoch;
        self
    }

    pub fn no_shadow(self, host: u32) -> Self {
        self.apply(Change::RemoveShadow {
            service: KV,
            host: HostId(host),
        })
    }

    /// The host has seen the address of the service at this place like this for so long; before that
    /// it answered. It sees the agent of the holder the same way.
    pub fn sees(self, host: u32, place: usize, reach: Reach, ms: u64) -> Self {
        self.sees_after(true, host, place, reach, ms)
    }

    pub fn sees_after(mut self, answered: bool, host: u32, place: usize, reach: Reach, ms: u64) -> Self {
        let (service, known) = self.state.services.iter().nth(place).expect("a service");
        let (service, epoch) = (*service, known.epoch);
        let holder = known.holder.expect("a holder").host;
        let seen = self.seen.get_mut(&HostId(host)).expect("a host");
        let report = seen.report.as_mut().expect("a report");
        let sight = Sight {
            reach,
            since: BootTime(report.at.0 - ms * 1_000_000),
            answered,
            asked: BootTime(report.at.0 - 500_000_000),
            times: u32::try_from(ms / 1_000).expect("short"),
        };
        report.evidence.push(Evidence {
            service,
            epoch,
            holder,
            agent: sight,
            address: Some(sight),
        });
        self
    }

    /// The observer has asked nobody for so long, or has asked only so often.
    pub fn asked(mut self, host: u32, ms_ago: u64, times: u32) -> Self {
        let seen = self.seen.get_mut(&HostId(host)).expect("a host");
        let report = seen.report.as_mut().expect("a report");
        for evidence in &mut report.evidence {
            let sight = evidence.address.as_mut().expect("an address");
            sight.asked = BootTime(report.at.0 - ms_ago * 1_000_000);
            sight.times = times;
        }
        self
    }

    /// Holders say that they serve since so long ago.
    pub fn claimed(mut self, ms: u64) -> Self {
        let since = BootTime(self.now.0 - ms * 1_000_000);
        for (service, known) in &self.state.services {
            let holder = known.holder.expect("a holder").host;
            let seen = self.seen.entry(holder).or_default();
            seen.serving.insert(*service, (known.epoch, since));
        }
        self
    }

    pub fn risky(self, host: u32) -> Self {
        self.over(host, OVER_TICKS)
    }

    pub fn over(mut self, host: u32, ticks: u32) -> Self {
        self.commit(Change::Risks(vec![(HostId(host), RISKY)]));
        self.seen.entry(HostId(host)).or_default().over = ticks;
        self
    }

    pub fn silent(mut self, host: u32) -> Self {
        self.seen.entry(HostId(host)).or_default().gone = true;
        self
    }

    /// The first service's holder may go on without the coordinators, by this policy.
    pub fn going_on(mut self, loss: CoordinatorLoss) -> Self {
        let service = self.state.services.get_mut(&KV).expect("the service");
        service.spec.policy.coordinator_loss = loss;
        self
    }

    /// The lease of the service at this place ended just now, after everybody's last report.
    pub fn lease_ended(mut self, place: usize) -> Self {
        self.now = self.now + Duration::from_millis(1);
        let (service, known) = self.state.services.iter().nth(place).expect("a service");
        self.leases.suppose_ended(*service, known.epoch, self.now);
        self
    }

    /// This leader has seen the services in their steps for so much longer.
    pub fn older(mut self, ms: u64) -> Self {
        self.since_ms += ms;
        self
    }

    /// The holder of the first service says that it served so.
    pub fn apart(mut self, apart: Apart, basis: Basis) -> Self {
        let report = self.report_of(HostId(1), KV);
        report.apart = Some(apart);
        report.basis = basis;
        self
    }

    pub fn later(mut self, ms: u64) -> Self {
        self.now = self.now + Duration::from_millis(ms);
        for seen in self.seen.values_mut().filter(|seen| !seen.gone) {
            seen.arrived = self.now;
        }
        self
    }

    pub fn wall(mut self, ms: u64) -> Self {
        self.wall_ms += ms;
        self
    }

    /// The host reports now, and of every service this generation.
    pub fn reported(mut self, host: u32, n: u64) -> Self {
        let now = self.now;
        let seen = self.seen.entry(HostId(host)).or_default();
        seen.arrived = now;
        let report = seen.report.as_mut().expect("a report");
        for service in &mut report.services {
            service.generation = Some(GenerationId {
                epoch: service.epoch,
                n,
            });
        }
        self
    }

    pub fn copy(mut self, host: u32, copy: CopyState) -> Self {
        self.report_of(HostId(host), KV).copy = copy;
        self
    }

    pub fn unready(mut self, host: u32) -> Self {
        self.commit(Change::ShadowUnready {
            service: KV,
            host: HostId(host),
        });
        self
    }

    pub fn failing(mut self, host: u32, why: &str) -> Self {
        let report = self.report_of(HostId(host), KV);
        report.serving = None;
        report.failure = Some(why.to_owned());
        self
    }

    /// The first service did not start so many times in a row.
    pub fn failed_times(mut self, times: u32) -> Self {
        self.failed.insert(KV, times);
        self
    }

    pub fn report(&self, host: u32) -> HostReport {
        let report = self.seen.get(&HostId(host)).and_then(|seen| seen.report.clone());
        report.expect("a report")
    }

    fn report_of(&mut self, host: HostId, service: ServiceId) -> &mut ServiceReport {
        let report = self.seen.get_mut(&host).and_then(|seen| seen.report.as_mut());
        let services = &mut report.expect("a report").services;
        let at = services
            .iter()
            .position(|known| known.service == service)
            .unwrap_or_else(|| {
                services.push(ServiceReport {
                    service,
                    epoch: Epoch(0),
                    revision: 0,
                    serving: None,
                    fenced: Epoch(0),
                    final_cut: None,
                    copy: CopyState::Cold,
                    generation: None,
                    acked: Vec::new(),
                    failure: None,
                    sync: SyncFigures::default(),
                    basis: Basis::Lease,
                    apart: None,
                });
                services.len() - 1
            });
        &mut services[at]
    }

    pub fn with_facts<T>(&self, ask: impl FnOnce(&State, &Facts<'_>) -> T) -> T {
        let since = self.now - Duration::from_millis(self.since_ms);
        let since = self.state.services.keys().map(|id| (*id, since)).collect();
        let facts = Facts {
            now: self.now,
            wall_ms: self.wall_ms,
            threshold: Some(THRESHOLD),
            seen: &self.seen,
            leases: &self.leases,
            since: &since,
            busy: &BTreeSet::new(),
            failed: &self.failed,
        };
        ask(&self.state, &facts)
    }

    pub fn printed(&self) -> String {
        self.with_facts(|state, facts| PlanDocument::of(&plan(state, facts), state, Vec::new()).to_string())
    }
}
