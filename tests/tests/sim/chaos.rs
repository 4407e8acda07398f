//! What goes wrong, when, and how it ends.

use understudy_common::id::{CoordinatorId, HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::units::BasisPoints;
use understudy_common::wire::Operate;

use super::clock::MS;
use super::world::{COORDINATORS, World};

pub enum Chaos {
    /// Draws what goes wrong next, and when to draw again.
    Next {
        until: u64,
    },
    Heal(Principal, Principal),
    Weather {
        loss: u64,
        duplicates: u64,
        delay_ms_max: u64,
        disk_ms_max: u64,
    },
    Resume(Principal),
    StartCoordinator(CoordinatorId),
    StartHost(HostId),
    Risk(HostId, BasisPoints),
    Broken(HostId, bool),
    Declare(&'static str),
}

impl Chaos {
    pub fn strike(self, world: &mut World) {
        match self {
            Self::Next { until } => {
                if world.truth < until {
                    something(world);
                    let pause = world.rng.between(50, 1_500) * MS;
                    world.at(pause, Self::Next { until });
                }
            }
            Self::Heal(from, to) => {
                world.net.cuts.remove(&(from, to));
            }
            Self::Weather {
                loss,
                duplicates,
                delay_ms_max,
                disk_ms_max,
            } => {
                world.net.loss_per_mille = loss;
                world.net.duplicates_per_mille = duplicates;
                world.net.delay_ms_max = delay_ms_max;
                world.disk_ms_max = disk_ms_max;
            }
            Self::Resume(node) => world.resume(node),
            Self::StartCoordinator(id) => world.start_coordinator(id),
            Self::StartHost(id) => world.start_host(id),
            Self::Risk(host, risk) => {
                world.risks.insert(host, risk);
            }
            Self::Broken(id, broken) => {
                if let Some(host) = world.hosts.get_mut(&id) {
                    host.broken = broken;
                }
            }
            Self::Declare(toml) => world.operate(Operate::ApplyService {
                toml: toml.to_owned(),
            }),
        }
    }

    pub const fn fair_weather() -> Self {
        Self::Weather {
            loss: 0,
            duplicates: 0,
            delay_ms_max: 3,
            disk_ms_max: 3,
        }
    }
}

fn something(world: &mut World) {
    let nodes = world.nodes();
    let hosts: Vec<HostId> = world.hosts.keys().copied().collect();
    let host = match world.holder(ServiceId(1)) {
        Some(holder) if world.rng.chance(500) => holder,
        _ => world.rng.pick(&hosts),
    };
    let coordinator = match world.leader() {
        Some(leader) if world.rng.chance(500) => leader,
        _ => world.rng.pick(&COORDINATORS),
    };
    let short = world.rng.between(50, 800) * MS;
    let long = world.rng.between(500, 4_000) * MS;
    match world.rng.between(0, 13) {
        0 => {
            let (from, to) = (world.rng.pick(&nodes), world.rng.pick(&nodes));
            cut(world, from, to, long);
        }
        1 => isolate(world, Principal::Host(host), &nodes, long),
        2 => isolate(world, Principal::Coordinator(coordinator), &nodes, long),
        3 => pause(world, Principal::Coordinator(coordinator), long),
        4 => pause(world, Principal::Host(host), short),
        5 => pause(world, Principal::Host(host), long),
        6 => {
            world.crash_coordinator(coordinator);
            world.at(short, Chaos::StartCoordinator(coordinator));
        }
        7 => {
            world.stop_host(host, false);
            world.at(short, Chaos::StartHost(host));
        }
        8 => {
            world.stop_host(host, true);
            world.at(long, Chaos::StartHost(host));
        }
        9 => {
            let weather = Chaos::Weather {
                loss: world.rng.between(0, 200),
                duplicates: world.rng.between(0, 200),
                delay_ms_max: world.rng.between(3, 60),
                disk_ms_max: world.rng.between(3, 60),
            };
            world.at(0, weather);
            world.at(long, Chaos::fair_weather());
        }
        10 => {
            world.at(0, Chaos::Risk(host, BasisPoints(9_000)));
            world.at(long + 4_000 * MS, Chaos::Risk(host, BasisPoints(100)));
        }
        11 => {
            world.at(0, Chaos::Broken(host, true));
            world.at(long, Chaos::Broken(host, false));
            let to = world.rng.chance(500).then(|| format!("h{}", host.0));
            let service = "kv".to_owned();
            world.operate(Operate::Handover { service, to });
        }
        _ => forgotten_leader(world, long.max(2_000 * MS)),
    }
}

/// The leader stands still while the others elect another one that the holder cannot reach. When it
/// goes on it finds renewals that were sent a moment ago.
fn forgotten_leader(world: &mut World, duration: u64) {
    let (Some(leader), Some(holder)) = (world.leader(), world.holder(ServiceId(1))) else {
        return;
    };
    pause(world, Principal::Coordinator(leader), duration);
    for other in COORDINATORS.into_iter().filter(|other| *other != leader) {
        let (other, holder) = (Principal::Coordinator(other), Principal::Host(holder));
        cut(world, holder, other, duration + 1_000 * MS);
        cut(world, other, holder, duration + 1_000 * MS);
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
