//! Coordinators, leases and gates in one thread, from one seed.
//!
//! The replicas, their planner and the lease client are the real ones; hosts obey orders as agents
//! do. After every event: at most one open gate per service, epochs only rise, replicas that
//! applied the same index are equal, committed entries stay. Then everything is repaired and must
//! serve again within a bound.

#[path = "sim/chaos.rs"]
mod chaos;
#[path = "sim/check.rs"]
mod check;
#[path = "sim/clock.rs"]
mod clock;
#[path = "sim/coordinator.rs"]
mod coordinator;
#[path = "sim/host.rs"]
mod host;
#[path = "sim/net.rs"]
mod net;
#[path = "sim/rng.rs"]
mod rng;
#[path = "sim/world.rs"]
mod world;

use chaos::Chaos;
use clock::MS;
use understudy_common::id::ServiceId;
use understudy_coordinator::replica::Fault;
use understudy_coordinator::state::Phase;
use world::World;

const SEEDS: u64 = 1_000;
/// How many seeds one test runs; nextest runs the tests side by side.
const SHARE: u64 = SEEDS / 4;
const CALM: u64 = 4_000 * MS;
const STORM: u64 = 16_000 * MS;
/// After everything is repaired, served again within this.
const SERVES_WITHIN: u64 = 30_000 * MS;
/// And with every host a ready shadow within this: safe mode alone lasts 30 s.
const WHOLE_WITHIN: u64 = 90_000 * MS;
const STEP: u64 = 250 * MS;

const DECLARATIONS: [&str; 2] = [
    r#"
name = "kv"
paths = ["/srv/kv"]
address = "10.0.9.1/24"
interface = "eth0"
hosts = [1, 2, 3]
workload = { start = ["/bin/kv"], stop_timeout_ms = 1000, start_timeout_ms = 2000, health = { tcp = "127.0.0.1:1" } }
"#,
    r#"
name = "files"
paths = ["/srv/files"]
address = "10.0.9.2/24"
interface = "eth0"
hosts = [3, 2, 1]
workload = { start = ["/bin/files"], stop_timeout_ms = 1000, start_timeout_ms = 2000, health = { tcp = "127.0.0.1:2" } }
"#,
];

struct Ran {
    trace: u64,
    events: u64,
    moves: u64,
}

fn run(seed: u64, fault: Option<Fault>) -> Result<Ran, String> {
    let mut world = World::new(seed, fault);
    // Declared again until it is heard: the same declaration twice is harmless.
    for again in 0..3 {
        for toml in DECLARATIONS {
            world.at((1_500 + again * 500) * MS, Chaos::Declare(toml));
        }
    }
    world.at(CALM, Chaos::Next { until: CALM + STORM });
    world.run_until(CALM + STORM)?;
    repair(&mut world);
    let repaired = world.truth;
    await_condition(&mut world, repaired + SERVES_WITHIN, serves)?;
    await_condition(&mut world, repaired + WHOLE_WITHIN, whole)?;
    Ok(Ran {
        trace: world.trace(),
        events: world.events,
        moves: world.checker.moves,
    })
}

fn repair(world: &mut World) {
    world.net = net::Net::calm();
    world.disk_ms_max = 3;
    world.risks.clear();
    world.resume_all();
    for id in world::COORDINATORS {
        world.start_coordinator(id);
    }
    for id in world.hosts.keys().copied().collect::<Vec<_>>() {
        world.start_host(id);
    }
    for host in world.hosts.values_mut() {
        host.broken = false;
    }
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
                let state = world.leader().and_then(|id| {
                    let replica = world.coordinators[&id].replica.as_ref()?;
                    Some(
                        replica
                            .status(world.coordinators[&id].clock.read(world.truth))
                            .to_string(),
                    )
                });
                let state = state.unwrap_or_default();
                let hosts: Vec<_> = world
                    .hosts
                    .iter()
                    .map(|(id, host)| format!("{id}: {:?} {:?}", host.slots, host.lease))
                    .collect();
                return Err(format!(
                    "not repaired in time: {why}\n{state}\n{}",
                    hosts.join("\n")
                ));
            }
            Err(_) => {}
        }
    }
}

/// Every service is served behind an open gate.
fn serves(world: &World) -> Result<(), String> {
    for service in [ServiceId(1), ServiceId(2)] {
        if !world.hosts.values().any(|host| host.serves(service, world.truth)) {
            return Err(format!("nobody serves {service}"));
        }
    }
    Ok(())
}

/// All replicas have all that was ever committed, and every service has all its shadows again.
fn whole(world: &World) -> Result<(), String> {
    serves(world)?;
    let committed = world.checker.committed_max();
    for node in world.coordinators.values() {
        let replica = node.replica.as_ref().ok_or("a coordinator is down")?;
        if replica.applied() < committed {
            return Err(format!(
                "{} applied {} of {committed}",
                node.id,
                replica.applied()
            ));
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
            return Err(format!("{} counted garbage", node.id));
        }
    }
    Ok(())
}

fn seeds(share: u64) -> Vec<u64> {
    match std::env::var("UNDERSTUDY_SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("UNDERSTUDY_SIM_SEED is a number")],
        Err(_) => (share * SHARE..(share + 1) * SHARE).collect(),
    }
}

fn hold_invariants(share: u64) {
    let (mut events, mut moves) = (0, 0);
    let mut failures = Vec::new();
    for seed in seeds(share) {
        match run(seed, None) {
            Ok(ran) => {
                events += ran.events;
                moves += ran.moves;
            }
            Err(why) => failures.push(format!(
                "seed {seed}: {why}\nagain: UNDERSTUDY_SIM_SEED={seed} cargo nextest run -p understudy-testbed --test sim seeds_1"
            )),
        }
    }
    println!("{events} events, {moves} grants");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn seeds_1_keep_every_invariant_and_recover() {
    hold_invariants(0);
}

#[test]
fn seeds_2_keep_every_invariant_and_recover() {
    hold_invariants(1);
}

#[test]
fn seeds_3_keep_every_invariant_and_recover() {
    hold_invariants(2);
}

#[test]
fn seeds_4_keep_every_invariant_and_recover() {
    hold_invariants(3);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 77] {
        let first = run(seed, None).expect("a good run").trace;
        assert_eq!(run(seed, None).expect("a good run").trace, first, "seed {seed}");
    }
}

#[test]
fn renewals_without_the_read_index_round_are_caught() {
    let caught = (0..SEEDS).find_map(|seed| {
        let why = run(seed, Some(Fault::RenewWithoutReadIndex)).err()?;
        why.contains("two open gates")
            .then(|| format!("seed {seed}: {why}"))
    });
    println!("{}", caught.expect("no seed caught the broken build"));
}
