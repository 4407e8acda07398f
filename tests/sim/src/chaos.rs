//! What goes wrong, when, and how it ends.

use understudy_common::id::{CoordinatorId, HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::units::BasisPoints;
use understudy_common::wire::Operate;

use crate::clock::MS;
use crate::world::{CALM_DISK_MS, World};

#[derive(Debug)]
pub enum Chaos {
    /// Draws what goes wrong next, and when to draw again.
    Next {
        until: u64,
    },
    Heal(Principal, Principal),
    Weather(Weather),
    Resume(Principal),
    StartCoordinator(CoordinatorId),
    StartHost(HostId),
    Risk(HostId, BasisPoints),
    Broken(HostId, bool),
    HostDiskFull(HostId, bool),
    CoordinatorDiskFull(CoordinatorId, bool),
    Declare(ServiceId, String),
    Operate(Operate),
    CrashCoordinator(CoordinatorId),
    CutPower(HostId),
    /// An operator asks again for the change of the coordinators that is under way.
    Wish,
    /// A coordinator that was removed is shut down.
    Retire(CoordinatorId),
}

/// One property of the network or the disks changes, and back.
#[derive(Clone, Copy, Debug)]
pub enum Weather {
    Loss(u64),
    Duplicates(u64),
    DelayMs(u64),
    DiskMs(u64),
}

/// Every kind of fault, with how often it strikes: a weight.
const KINDS: [(&str, Kind, u64); 30] = [
    ("one-way cut", Kind::OneWayCut, 3),
    ("host cut off", Kind::HostCutOff, 3),
    ("coordinator cut off", Kind::CoordinatorCutOff, 3),
    ("coordinator paused", Kind::CoordinatorPaused, 2),
    ("agent paused", Kind::AgentPaused, 3),
    ("coordinator crashed", Kind::CoordinatorCrashed, 3),
    ("agent crashed", Kind::AgentCrashed, 3),
    ("host lost power", Kind::HostLostPower, 3),
    ("hosts lost power together", Kind::HostsLostPower, 2),
    ("coordinator lost power in a write", Kind::LogTorn, 2),
    ("shadow lost power in a write", Kind::JournalTorn, 3),
    ("all coordinators lost", Kind::CoordinatorsLost, 2),
    ("coordinator added", Kind::CoordinatorAdded, 3),
    ("coordinator removed", Kind::CoordinatorRemoved, 4),
    ("coordinator upgraded", Kind::CoordinatorUpgraded, 2),
    ("agent upgraded", Kind::AgentUpgraded, 2),
    ("dead host vouched for", Kind::VouchedDead, 2),
    ("loss", Kind::Loss, 2),
    ("duplication", Kind::Duplication, 2),
    ("delay", Kind::Delay, 2),
    ("slow disk", Kind::SlowDisk, 2),
    ("host disk full", Kind::HostDiskFull, 2),
    ("coordinator disk full", Kind::CoordinatorDiskFull, 2),
    ("wall clock jumped", Kind::WallJump, 2),
    ("risk rose", Kind::Risk, 2),
    ("workload broken", Kind::Broken, 2),
    ("operator moved a service", Kind::Handover, 4),
    ("operator paused and resumed", Kind::Pause, 1),
    ("leader forgotten", Kind::ForgottenLeader, 2),
    ("two things at once", Kind::Double, 2),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    OneWayCut,
    HostCutOff,
    CoordinatorCutOff,
    CoordinatorPaused,
    AgentPaused,
    CoordinatorCrashed,
    AgentCrashed,
    HostLostPower,
    HostsLostPower,
    LogTorn,
    JournalTorn,
    CoordinatorsLost,
    CoordinatorAdded,
    CoordinatorRemoved,
    CoordinatorUpgraded,
    AgentUpgraded,
    VouchedDead,
    Loss,
    Duplication,
    Delay,
    SlowDisk,
    HostDiskFull,
    CoordinatorDiskFull,
    WallJump,
    Risk,
    Broken,
    Handover,
    Pause,
    ForgottenLeader,
    Double,
}

/// The names of all kinds of faults, for whoever counts them.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|(name, ..)| *name)
}

impl Chaos {
    pub fn strike(self, world: &mut World) -> Result<(), String> {
        match self {
            Self::Next { until } => {
                if world.truth < until {
                    something(world)?;
                    let pause = world.rng.between(100, 3_000) * MS;
                    world.at(pause, Self::Next { until });
                }
            }
            Self::Heal(from, to) => {
                world.net.cuts.remove(&(from, to));
            }
            Self::Weather(weather) => weather.set_in(world),
            Self::Resume(node) => world.resume(node),
            Self::StartCoordinator(id) => world.start_coordinator(id)?,
            Self::StartHost(id) => world.start_host(id)?,
            Self::Risk(host, risk) => {
                world.risks.insert(host, risk);
            }
            Self::Broken(id, broken) => {
                if let Some(host) = world.hosts.get_mut(&id) {
                    host.broken = broken;
                }
            }
            Self::HostDiskFull(id, full) => {
                if let Some(host) = world.hosts.get_mut(&id) {
                    host.disk_full = full;
                }
            }
            Self::CoordinatorDiskFull(id, full) => {
                if let Some(node) = world.coordinators.get_mut(&id) {
                    node.disk.full = full;
                }
            }
            Self::Declare(service, toml) => {
                // As operators do, until it is heard: the same declaration twice is harmless.
                if !world.is_declared(service) {
                    world.operate(Operate::ApplyService { toml: toml.clone() });
                    world.at(500 * MS, Self::Declare(service, toml));
                }
            }
            Self::Operate(operate) => world.operate(operate),
            Self::CrashCoordinator(id) => {
                world.crash_coordinator(id);
                let down = world.rng.between(50, 800) * MS;
                world.at(down, Self::StartCoordinator(id));
            }
            Self::CutPower(id) => {
                world.stop_host(id, true);
                let off = world.rng.between(500, 3_000) * MS;
                world.at(off, Self::StartHost(id));
            }
            Self::Wish => world.follow_wish(),
            Self::Retire(id) => world.retire(id),
        }
        Ok(())
    }
}

impl Weather {
    const CALM: [Self; 4] = [
        Self::Loss(0),
        Self::Duplicates(0),
        Self::DelayMs(3),
        Self::DiskMs(CALM_DISK_MS),
    ];

    const fn set_in(self, world: &mut World) {
        match self {
            Self::Loss(per_mille) => world.net.loss_per_mille = per_mille,
            Self::Duplicates(per_mille) => world.net.duplicates_per_mille = per_mille,
            Self::DelayMs(max) => world.net.delay_ms_max = max,
            Self::DiskMs(max) => world.disk_ms_max = max,
        }
    }
}

/// Nodes that a fault is about, preferring those that matter.
struct Targets {
    nodes: Vec<Principal>,
    host: HostId,
    coordinator: CoordinatorId,
    service: ServiceId,
}

impl Targets {
    fn draw(world: &mut World) -> Self {
        let hosts: Vec<HostId> = world.hosts.keys().copied().collect();
        let coordinators = world.present();
        let services: Vec<ServiceId> = world.services().into_iter().collect();
        let service = world.rng.pick(&services);
        let host = match world.holder(service) {
            Some(holder) if world.rng.chance(500) => holder,
            _ => world.rng.pick(&hosts),
        };
        let coordinator = match world.leader() {
            Some(leader) if world.rng.chance(500) => leader,
            _ => world.rng.pick(&coordinators),
        };
        Self {
            nodes: world.nodes(),
            host,
            coordinator,
            service,
        }
    }
}

/// Draws until something can strike.
fn something(world: &mut World) -> Result<(), String> {
    let weights: u64 = KINDS.iter().map(|(.., weight)| weight).sum();
    loop {
        let mut drawn = world.rng.between(0, weights);
        let (name, kind, _) = KINDS
            .into_iter()
            .find(|(.., weight)| {
                let found = drawn < *weight;
                drawn = drawn.saturating_sub(*weight);
                found
            })
            .expect("a weight below their sum");
        if strike(world, kind)? {
            world.tally.count(name);
            return Ok(());
        }
    }
}

/// False if there is nothing that it could strike now.
fn strike(world: &mut World, kind: Kind) -> Result<bool, String> {
    let Targets {
        nodes,
        host,
        coordinator,
        service,
    } = Targets::draw(world);
    let short = world.rng.between(50, 800) * MS;
    let long = world.rng.between(500, 5_000) * MS;
    world.tell(|| format!("fault: {kind:?} ({host}, {coordinator}, {service})"));
    match kind {
        Kind::OneWayCut => {
            let (from, to) = (world.rng.pick(&nodes), world.rng.pick(&nodes));
            cut(world, from, to, long);
        }
        Kind::HostCutOff => isolate(world, Principal::Host(host), &nodes, long),
        Kind::CoordinatorCutOff => isolate(world, Principal::Coordinator(coordinator), &nodes, long),
        Kind::CoordinatorPaused => pause(world, Principal::Coordinator(coordinator), long),
        Kind::AgentPaused => {
            let duration = if world.rng.chance(500) { short } else { long };
            pause(world, Principal::Host(host), duration);
        }
        Kind::CoordinatorCrashed => {
            world.crash_coordinator(coordinator);
            world.at(short, Chaos::StartCoordinator(coordinator));
        }
        Kind::AgentCrashed => {
            world.stop_host(host, false);
            world.at(short, Chaos::StartHost(host));
        }
        Kind::HostLostPower => {
            world.stop_host(host, true);
            world.at(long, Chaos::StartHost(host));
        }
        Kind::HostsLostPower => {
            let named = world.named(service);
            for host in named {
                if world.rng.chance(600) {
                    let off = world.rng.between(500, 5_000) * MS;
                    world.stop_host(host, true);
                    world.at(off, Chaos::StartHost(host));
                }
            }
        }
        Kind::LogTorn => match world.coordinators.get_mut(&coordinator) {
            Some(node) => node.dies_writing = true,
            None => return Ok(false),
        },
        Kind::JournalTorn => {
            // Often the primary goes with it, so that what is torn is what is promoted.
            let holder = world.holder(service).filter(|_| world.rng.chance(500));
            let named = world.named(service);
            for host in named {
                if Some(host) != holder
                    && let Some(host) = world.hosts.get_mut(&host)
                {
                    host.dies_writing = true;
                }
            }
            if let Some(holder) = holder {
                let soon = world.rng.between(100, 400) * MS;
                world.at(soon, Chaos::CutPower(holder));
            }
        }
        Kind::CoordinatorsLost => {
            for id in world.present() {
                let down = long + world.rng.between(0, 500) * MS;
                world.crash_coordinator(id);
                world.at(down, Chaos::StartCoordinator(id));
            }
        }
        Kind::CoordinatorAdded => return world.add_coordinator(),
        Kind::CoordinatorRemoved => return Ok(world.remove_coordinator(coordinator)),
        Kind::CoordinatorUpgraded => match world.upgrade_coordinator() {
            Some(id) => world.at(short, Chaos::StartCoordinator(id)),
            None => return Ok(false),
        },
        Kind::AgentUpgraded => {
            world.stop_host(host, false);
            if let Some(host) = world.hosts.get_mut(&host) {
                host.program += 1;
            }
            world.at(short, Chaos::StartHost(host));
        }
        Kind::VouchedDead => {
            world.stop_host(host, true);
            let vouch = world.rng.between(1_200, 2_500) * MS;
            let host_name = format!("h{}", host.0);
            world.at(vouch, Chaos::Operate(Operate::ConfirmDead { host: host_name }));
            world.at(vouch + long, Chaos::StartHost(host));
        }
        Kind::Loss => weather(world, Weather::Loss, (20, 250), long),
        Kind::Duplication => weather(world, Weather::Duplicates, (20, 250), long),
        Kind::Delay => weather(world, Weather::DelayMs, (10, 80), long),
        Kind::SlowDisk => weather(world, Weather::DiskMs, (10, 120), long),
        Kind::HostDiskFull => {
            world.at(0, Chaos::HostDiskFull(host, true));
            world.at(long, Chaos::HostDiskFull(host, false));
        }
        Kind::CoordinatorDiskFull => {
            world.at(0, Chaos::CoordinatorDiskFull(coordinator, true));
            world.at(long, Chaos::CoordinatorDiskFull(coordinator, false));
        }
        Kind::WallJump => {
            let off = i64::try_from(world.rng.between(0, 7_200_000)).expect("two hours") - 3_600_000;
            if let Some(node) = world.coordinators.get_mut(&coordinator) {
                node.wall_off_ms = off;
            }
        }
        Kind::Risk => {
            world.at(0, Chaos::Risk(host, BasisPoints(9_000)));
            world.at(long + 4_000 * MS, Chaos::Risk(host, BasisPoints(100)));
        }
        Kind::Broken => {
            world.at(0, Chaos::Broken(host, true));
            world.at(long, Chaos::Broken(host, false));
            handover(world, service, None);
        }
        Kind::Handover => {
            let to = world.rng.chance(300).then_some(host);
            handover(world, service, to);
        }
        Kind::Pause => {
            world.operate(Operate::Pause { on: true });
            world.at(long, Chaos::Operate(Operate::Pause { on: false }));
        }
        Kind::ForgottenLeader => forgotten_leader(world, service, long.max(2_000 * MS)),
        Kind::Double => {
            for _ in 0..2 {
                let (name, kind, _) = world.rng.pick(&KINDS);
                if kind != Kind::Double && strike(world, kind)? {
                    world.tally.count(name);
                }
            }
        }
    }
    Ok(true)
}

fn handover(world: &mut World, service: ServiceId, to: Option<HostId>) {
    world.operate(Operate::Handover {
        service: format!("s{}", service.0),
        to: to.map(|host| format!("h{}", host.0)),
    });
}

/// The leader stands still while the others elect another one that the holder cannot reach. When it
/// goes on it finds renewals that were sent a moment ago.
fn forgotten_leader(world: &mut World, service: ServiceId, duration: u64) {
    let (Some(leader), Some(holder)) = (world.leader(), world.holder(service)) else {
        return;
    };
    pause(world, Principal::Coordinator(leader), duration);
    let others: Vec<_> = world
        .coordinators
        .keys()
        .copied()
        .filter(|other| *other != leader)
        .collect();
    for other in others {
        let (other, holder) = (Principal::Coordinator(other), Principal::Host(holder));
        cut(world, holder, other, duration + 1_000 * MS);
        cut(world, other, holder, duration + 1_000 * MS);
    }
}

fn weather(world: &mut World, which: fn(u64) -> Weather, (low, high): (u64, u64), duration: u64) {
    let strength = world.rng.between(low, high);
    which(strength).set_in(world);
    for calm in Weather::CALM {
        if std::mem::discriminant(&calm) == std::mem::discriminant(&which(0)) {
            world.at(duration, Chaos::Weather(calm));
        }
    }
}

fn cut(world: &mut World, from: Principal, to: Principal, duration: u64) {
    world.net.cuts.insert((from, to));
    world.at(duration, Chaos::Heal(from, to));
}

fn isolate(world: &mut World, node: Principal, others: &[Principal], duration: u64) {
    world.net.isolate(node, others.iter().copied());
    for other in others {
        world.at(duration, Chaos::Heal(node, *other));
        world.at(duration, Chaos::Heal(*other, node));
    }
}

fn pause(world: &mut World, node: Principal, duration: u64) {
    world.pause(node);
    world.at(duration, Chaos::Resume(node));
}
