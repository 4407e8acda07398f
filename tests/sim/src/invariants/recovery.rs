//! Once everything is repaired, every service serves within a bound, and is whole within another.

use understudy_coordinator::state::{COMMAND_VERSION, Phase};

use crate::clock::MS;
use crate::net::Net;
use crate::world::{CALM_DISK_MS, World};
use understudy_common::wire::Operate;

/// After everything is repaired, served again within this.
const SERVES_WITHIN: u64 = 30_000 * MS;
/// And with every host a ready shadow within this: safe mode alone lasts 30 s.
const WHOLE_WITHIN: u64 = 90_000 * MS;
const STEP: u64 = 250 * MS;

/// Ends every fault, and waits until nothing is left of them.
pub fn await_recovery(world: &mut World) -> Result<(), String> {
    repair(world)?;
    let repaired = world.truth;
    // Most runs end safe mode by hand; the others wait for the risk to stay low.
    if world.rng.chance(850) {
        for host in world.hosts.keys().copied().collect::<Vec<_>>() {
            let host = format!("h{}", host.0);
            world.at(
                2_500 * MS,
                crate::chaos::Chaos::Operate(Operate::Restore { host }),
            );
        }
    }
    world.operate(Operate::Pause { on: false });
    await_condition(world, repaired + SERVES_WITHIN, serves)?;
    await_condition(world, repaired + WHOLE_WITHIN, whole)?;
    world.tally.count("recovery: whole after a repair");
    Ok(())
}

fn repair(world: &mut World) -> Result<(), String> {
    world.net = Net::calm();
    world.disk_ms_max = CALM_DISK_MS;
    world.risks.clear();
    world.resume_all();
    // Half of the time the upgrade is not seen through: both programs have to do.
    let upgrade = world.rng.chance(500);
    for id in world.present() {
        if let Some(node) = world.coordinators.get_mut(&id) {
            (node.disk.full, node.dies_writing) = (false, false);
            if upgrade && node.replica.is_none() {
                node.version = COMMAND_VERSION;
            }
        }
        world.start_coordinator(id)?;
    }
    for id in world.hosts.keys().copied().collect::<Vec<_>>() {
        world.start_host(id)?;
    }
    for host in world.hosts.values_mut() {
        (host.broken, host.disk_full, host.dies_writing) = (false, false, false);
    }
    Ok(())
}

fn await_condition(
    world: &mut World,
    end: u64,
    condition: fn(&World) -> Result<(), String>,
) -> Result<(), String> {
    loop {
        let next = world.truth + STEP;
        world.run_until(next)?;
        match condition(world) {
            Ok(()) => return Ok(()),
            Err(why) if world.truth >= end => {
                return Err(format!(
                    "recovery: not repaired in time: {why}\n{}",
                    picture(world)
                ));
            }
            Err(_) => {}
        }
    }
}

fn picture(world: &World) -> String {
    let leader = world.leader().and_then(|id| {
        let replica = world.coordinators[&id].replica.as_ref()?;
        Some(replica.status(world.now(id)).to_string())
    });
    let hosts = world.hosts.iter().map(|(id, host)| {
        let machines = host.agent.iter().flat_map(|agent| agent.services.values());
        let machines: Vec<_> = machines.map(|known| &known.machine).collect();
        format!("{id}: {:?} {machines:?}", host.stores)
    });
    let lines: Vec<_> = std::iter::once(leader.unwrap_or_default()).chain(hosts).collect();
    lines.join("\n")
}

/// Every service is served behind an open gate.
fn serves(world: &World) -> Result<(), String> {
    for service in world.services() {
        if !world.hosts.values().any(|host| host.serves(service, world.truth)) {
            return Err(format!("nobody serves {service}"));
        }
    }
    Ok(())
}

/// All replicas have all that was ever committed, and every service has all its shadows again.
fn whole(world: &World) -> Result<(), String> {
    serves(world)?;
    let committed = world
        .invariants
        .commits
        .highest()
        .max(world.invariants.replicas.highest());
    if let Some(wish) = world.wish {
        return Err(format!("the operator still waits for {wish:?}"));
    }
    let state = world.newest_state().ok_or("nobody leads")?;
    for id in state.coordinators.members.keys() {
        let replica = world.coordinators[id]
            .replica
            .as_ref()
            .ok_or("a coordinator is down")?;
        if replica.applied() < committed {
            return Err(format!("{id} applied {} of {committed}", replica.applied()));
        }
        for (id, service) in &replica.state().services {
            if service.phase != Phase::Steady || service.shadows.len() + 1 != service.spec.hosts.len() {
                return Err(format!(
                    "{id} is {:?} with shadows {:?}",
                    service.phase, service.shadows
                ));
            }
        }
        if replica.state().garbage > 0 {
            return Err(format!("{id} counted garbage"));
        }
    }
    Ok(())
}
