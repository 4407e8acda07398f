//! A holder that its coordinators hear and its clients do not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{read, settle, write};
use crate::cluster::{ADDRESS, Cluster, PORT, SERVICE};

/// Three seconds of agreement, the end of the lease and a takeover, on a busy machine.
const TAKEOVER_MAX: Duration = Duration::from_secs(30);

/// Its clients' packets vanish on the holder; everything else of it works.
fn swallow(cluster: &Cluster, n: usize) -> Result<()> {
    let host = &cluster.hosts[n];
    for line in [
        "add table ip gray",
        "add chain ip gray in { type filter hook input priority 0 ; }",
        &format!("add rule ip gray in ip daddr {ADDRESS} tcp dport {PORT} drop"),
    ] {
        host.run(&["nft", line])?;
    }
    Ok(())
}

pub fn story(cluster: &Cluster) -> Result<()> {
    cluster.until_whole(0)?;
    write(cluster, "gray")?;
    settle(cluster)?;
    cluster.until("both observers to see the address answer", |status| {
        let seen = status["services"][0]["evidence"].as_array()?;
        let answers =
            |one: &&Value| one["address"]["reach"] == "answered" && one["agent"]["reach"] == "answered";
        (seen.iter().filter(answers).count() == 2).then_some(())
    })?;
    swallow(cluster, 0)?;
    let begun = Instant::now();
    let heir = cluster.until("another host to serve", |status| {
        let service = &status["services"][0];
        let holder = service["holder"].as_u64()?;
        (service["serving"] == true && holder != 1).then_some(holder)
    })?;
    let took = begun.elapsed();
    println!(
        "gray failure: host {heir} serves {took:?} after clients were cut off from a holder that is heard"
    );
    ensure!(took >= Duration::from_secs(3), "it did not wait for agreement");
    ensure!(took <= TAKEOVER_MAX, "it took {took:?}");
    read(cluster, "gray")?;

    let events: Value = serde_json::from_str(&cluster.ask(&["events", "--json"])?)?;
    let condemned = events["events"]
        .as_array()
        .and_then(|events| events.iter().find(|event| event["kind"] == "condemned"))
        .with_context(|| format!("nobody was condemned: {events:#}"))?;
    let text = condemned["text"].as_str().unwrap_or_default();
    for observer in [
        "b sees the address drop",
        "c sees the address drop",
        "its agent answer",
    ] {
        ensure!(text.contains(observer), "{text}");
    }
    ensure!(text.starts_with(SERVICE), "{text}");
    let errors = cluster.errors()?;
    ensure!(errors.is_empty(), "{}", errors.join("\n"));
    Ok(())
}
