//! The real programs in a test bed: what a cluster goes through when its processes die.

mod apart;
mod certificates;
mod cluster;
mod gray;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use cluster::{Cluster, PATIENCE, REDIS, SERVICE};
use understudy_testbed::{skip_without_testbed, wait_for};

const KEYS: u32 = 40;

fn write(cluster: &Cluster, round: &str) -> Result<()> {
    (0..KEYS).try_for_each(|n| cluster.set(&format!("{round}:{n}"), &n.to_string()))
}

fn read(cluster: &Cluster, round: &str) -> Result<()> {
    for n in 0..KEYS {
        let found = cluster.get(&format!("{round}:{n}"))?;
        ensure!(found == n.to_string(), "{round}:{n} is {found:?}");
    }
    Ok(())
}

/// Waits until everything written so far is on both shadows: the generation after the next one is.
fn settle(cluster: &Cluster) -> Result<()> {
    let generation = |status: &serde_json::Value, of: &str| -> Option<u64> {
        let text = status.pointer(of)?.as_str()?;
        text.split('.').nth(1)?.parse().ok()
    };
    let cut = cluster.until("a generation", |status| {
        generation(status, "/services/0/generation")
    })?;
    let mut filler = 0;
    cluster.until("two more generations on both shadows", |status| {
        filler += 1;
        let _ = cluster.set("filler", &filler.to_string());
        let done = |n: u32| {
            generation(status, &format!("/services/0/shadows/{n}/generation")).is_some_and(|at| at >= cut + 2)
        };
        (done(0) && done(1)).then_some(())
    })
}

#[test]
fn a_service_outlives_every_process_that_keeps_it() -> Result<()> {
    tell("process", story)
}

#[test]
fn a_holder_that_clients_cannot_reach_loses_its_lease_with_the_evidence() -> Result<()> {
    tell("gray", |cluster| gray::story(cluster))
}

#[test]
fn a_holder_outlives_its_agent() -> Result<()> {
    tell("restart", apart::restart)
}

#[test]
fn promises_of_all_shadows_stand_in_for_the_coordinators_and_those_of_some_do_not() -> Result<()> {
    tell("apart", apart::without_coordinators)
}

#[test]
fn a_holder_that_may_serve_by_policy_goes_on_without_coordinators_and_promises() -> Result<()> {
    let start = |area: &str| Cluster::start_with(area, &apart::policy("serve"));
    tell_on("serve", start, |cluster| {
        apart::by_policy(cluster, apart::Writes::Taken)
    })
}

#[test]
fn a_holder_that_may_only_be_read_goes_on_without_writes() -> Result<()> {
    let start = |area: &str| Cluster::start_with(area, &apart::policy("read-only"));
    tell_on("readonly", start, |cluster| {
        apart::by_policy(cluster, apart::Writes::Refused)
    })
}

#[test]
fn certificates_renew_under_a_service_and_who_is_revoked_is_shut_out() -> Result<()> {
    tell_on("certs", certificates::cluster, certificates::story)
}

/// Runs a story on a cluster of its own; the logs and copies of one that failed are kept.
fn tell(area: &str, story: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    tell_on(area, Cluster::start, story)
}

fn tell_on(
    area: &str,
    start: impl FnOnce(&str) -> Result<Cluster>,
    story: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    skip_without_testbed!();
    if !Path::new(REDIS).exists() {
        println!("skipped: {REDIS} is not installed");
        return Ok(());
    }
    let mut cluster = start(area)?;
    let outcome = story(&mut cluster);
    if outcome.is_err() {
        let logs = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../target/process-logs")
            .join(area);
        match cluster.keep(&logs) {
            Ok(()) => eprintln!("the logs and the copies are in {}", logs.display()),
            Err(error) => eprintln!("not all could be kept in {}: {error:#}", logs.display()),
        }
    }
    outcome
}

fn story(cluster: &mut Cluster) -> Result<()> {
    cluster.until_whole(0)?;
    write(cluster, "first")?;

    // The leader dies: another one leads, and the holder's lease goes on.
    let leader = cluster.leader()?;
    cluster.kill_coordinator(leader);
    write(cluster, "leaderless")?;
    let next = cluster.until("another leader", |status| {
        let all = status["coordinators"].as_array()?;
        let led = all.iter().find(|one| one["role"] == "leader")?["id"].as_u64()?;
        (led != leader as u64 + 1).then_some(led)
    })?;
    ensure!(next > 0, "coordinators are numbered from 1");
    cluster.start_coordinator(leader)?;
    cluster.until_whole(0)?;

    // A shadow's agent dies while generations arrive, and finds its place again.
    cluster.kill_agent(1);
    cluster.until_silent(1)?;
    write(cluster, "alone")?;
    cluster.start_agent(1)?;
    cluster.until_whole(0)?;

    // A planned move loses nothing.
    write(cluster, "planned")?;
    settle(cluster)?;
    cluster.ask(&["handover", SERVICE, "--to", "b"])?;
    cluster.until("b to serve", |status| {
        let service = &status["services"][0];
        (service["serving"] == true && service["holder"] == 2).then_some(())
    })?;
    for round in ["first", "leaderless", "alone", "planned"] {
        read(cluster, round)?;
    }
    cluster.until_whole(1)?;

    // The holder's agent dies: its Redis lives on and can be reached by nobody.
    write(cluster, "crash")?;
    settle(cluster)?;
    cluster.kill_agent(1);
    let heir = cluster.until("another host to serve", |status| {
        let service = &status["services"][0];
        let holder = service["holder"].as_u64()?;
        (service["serving"] == true && holder != 2).then_some(holder as usize - 1)
    })?;
    read(cluster, "crash")?;
    ensure!(cluster.workload_lives(1)?, "the workload died with its agent");
    ensure!(cluster.redis_on(1, "PING").is_none(), "a fenced workload answers");
    write(cluster, "after")?;

    // It comes back as a shadow and gives up what it held.
    cluster.start_agent(1)?;
    cluster.until_whole(heir)?;
    wait_for("b's Redis to be stopped", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(100));
        let procs = cluster.hosts[1]
            .cgroups()
            .unified()
            .join(SERVICE)
            .join("cgroup.procs");
        std::fs::read_to_string(procs).ok()?.is_empty().then_some(())
    })?;
    read(cluster, "after")?;
    let errors = cluster.errors()?;
    ensure!(errors.is_empty(), "{}", errors.join("\n"));
    Ok(())
}
