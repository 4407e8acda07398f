//! A service whose agent dies and comes back, and one whose coordinators are all gone.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use understudy_testbed::wait_for;

use super::cluster::{Cluster, PATIENCE, PORT};

/// A lease's length.
const LEASE: Duration = Duration::from_secs(1);
/// What a busy test machine may add to a bound of the product.
const SLACK: Duration = Duration::from_millis(500);
/// How long the service is watched without any coordinator and without all promises.
const BY_POLICY: Duration = Duration::from_secs(5);
/// How long the service is watched without any coordinator.
const APART: Duration = Duration::from_secs(12);

/// Asks again and again, and keeps the longest time between two good answers.
struct Watch {
    good: Instant,
    longest: Duration,
}

impl Watch {
    fn begin(cluster: &Cluster) -> Result<Self> {
        wait_for("a good answer", PATIENCE, || cluster.redis("PING"))?;
        Ok(Self {
            good: Instant::now(),
            longest: Duration::ZERO,
        })
    }

    fn ask(&mut self, cluster: &Cluster) -> bool {
        let good = cluster.redis("PING").is_some();
        let now = Instant::now();
        self.longest = self.longest.max(now - self.good);
        if good {
            self.good = now;
        }
        good
    }

    fn ask_for(&mut self, cluster: &Cluster, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.ask(cluster);
        }
    }
}

fn epoch(cluster: &Cluster) -> Result<u64> {
    cluster.until("the epoch", |status| status["services"][0]["epoch"].as_u64())
}

/// The agent of the holder is killed and started again: nobody notices, and nobody takes over.
pub fn restart(cluster: &mut Cluster) -> Result<()> {
    cluster.until_whole(0)?;
    let before = epoch(cluster)?;
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        let mut watch = Watch::begin(cluster)?;
        cluster.kill_agent(0);
        cluster.start_agent(0)?;
        watch.ask_for(cluster, 3 * LEASE);
        longest = longest.max(watch.longest);
        cluster.until_whole(0)?;
    }
    println!("measured: longest time without an answer over 3 restarts of the agent: {longest:?}");
    ensure!(longest < SLACK, "the address did not answer for {longest:?}");
    ensure!(epoch(cluster)? == before, "it was moved");
    errors(cluster)
}

/// All coordinators die, then a shadow as well; both come back.
pub fn without_coordinators(cluster: &mut Cluster) -> Result<()> {
    cluster.until_whole(0)?;
    let before = epoch(cluster)?;
    cluster.set("before", "1")?;
    let mut watch = Watch::begin(cluster)?;
    (0..3).for_each(|n| cluster.kill_coordinator(n));
    watch.ask_for(cluster, APART);
    println!(
        "measured: longest time without an answer in {APART:?} without coordinators: {:?}",
        watch.longest
    );
    ensure!(
        watch.longest < SLACK,
        "promises did not carry it: no answer for {:?}",
        watch.longest
    );

    // One shadow less: not all of them promise.
    cluster.kill_agent(1);
    let killed = Instant::now();
    wait_for("the gate to close", PATIENCE, || {
        (!watch.ask(cluster)).then_some(())
    })?;
    let served = watch.good.saturating_duration_since(killed);
    println!("measured: served for {served:?} after a shadow was gone");
    ensure!(
        served < LEASE + SLACK,
        "it was served for {served:?} without all promises"
    );

    // It comes back, knows whom it follows, and promises again.
    cluster.start_agent(1)?;
    wait_for("a good answer", PATIENCE, || watch.ask(cluster).then_some(()))?;

    (0..3).try_for_each(|n| cluster.start_coordinator(n))?;
    cluster.until_whole(0)?;
    ensure!(epoch(cluster)? == before, "it was moved");
    ensure!(cluster.get("before")? == "1", "what was acknowledged is lost");
    wait_for("an event about it", PATIENCE, || {
        let events: Value = serde_json::from_str(&cluster.ask(&["events", "--json"]).ok()?).ok()?;
        let told = |event: &Value| event["kind"] == "served-apart";
        events["events"].as_array()?.iter().any(told).then_some(())
    })?;
    errors(cluster)
}

/// What a service does with writes that goes on by policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    Taken,
    Refused,
}

/// The rest of a declaration: how its Redis refuses writes, and what it does without coordinators.
pub fn policy(loss: &str) -> String {
    let switch = |replicas: u8| {
        let words = ["config", "set", "min-replicas-to-write"].map(|word| format!("\"{word}\""));
        format!(
            "[\"/usr/bin/redis-cli\", \"-e\", \"-p\", \"{PORT}\", {}, \"{replicas}\"]",
            words.join(", ")
        )
    };
    format!(
        "read_only = {}\nread_write = {}\n[policy]\ncoordinator_loss = \"{loss}\"\n",
        switch(1),
        switch(0)
    )
}

/// A shadow's agent and all coordinators die; all come back.
pub fn by_policy(cluster: &mut Cluster, writes: Writes) -> Result<()> {
    cluster.until_whole(0)?;
    let before = epoch(cluster)?;
    cluster.set("before", "1")?;
    let mut watch = Watch::begin(cluster)?;
    cluster.kill_agent(1);
    (0..3).for_each(|n| cluster.kill_coordinator(n));
    watch.ask_for(cluster, BY_POLICY);
    println!(
        "measured: longest time without an answer in {BY_POLICY:?} by policy: {:?}",
        watch.longest
    );
    ensure!(
        watch.longest < SLACK,
        "the policy did not carry it: no answer for {:?}",
        watch.longest
    );
    let answer = cluster.redis("SET apart 1").unwrap_or_default();
    let taken = answer == "+OK";
    ensure!(
        taken == (writes == Writes::Taken) && (taken || answer.starts_with("-NOREPLICAS")),
        "a write was answered with {answer:?}"
    );
    ensure!(cluster.get("before")? == "1", "it can be read");

    cluster.start_agent(1)?;
    (0..3).try_for_each(|n| cluster.start_coordinator(n))?;
    cluster.until_whole(0)?;
    ensure!(epoch(cluster)? == before, "it was moved");
    cluster.set("after", "1")?;
    if taken {
        ensure!(cluster.get("apart")? == "1", "what was served by policy is lost");
    }
    errors(cluster)
}

fn errors(cluster: &Cluster) -> Result<()> {
    let errors = cluster.errors()?;
    ensure!(errors.is_empty(), "{}", errors.join("\n"));
    Ok(())
}
