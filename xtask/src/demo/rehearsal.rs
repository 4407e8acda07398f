//! The client, the probes and the power cut on hosts where an address is moved by hand: what the
//! demo measures with must be right without anything to measure.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use understudy_testbed::{Host, HostSpec, Process, Testbed, boot_ns, skip_without_testbed, wait_for};

use super::client::Client;
use super::figures::{self, Ack};
use super::probe::{Probes, Target};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const PORT: u16 = 6379;
const PATIENCE: Duration = Duration::from_secs(60);
const ENOUGH: usize = 500;

fn serve(bed: &Testbed, host: &Host) -> Result<Process> {
    let mut command = host.command("/usr/bin/redis-server")?;
    let dir = bed.disk_mount_point().display().to_string();
    command.args([
        "--port",
        &PORT.to_string(),
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
    ]);
    command.args([
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
        "--save",
        "",
        "--dir",
        &dir,
    ]);
    let redis = host.spawn("redis", command)?;
    host.run(&[
        "ip",
        "addr",
        "add",
        &format!("{ADDRESS}/24"),
        "dev",
        host.interface(),
    ])?;
    Ok(redis)
}

#[test]
fn the_client_and_the_probes_see_who_serves_and_what_a_power_cut_loses() -> Result<()> {
    skip_without_testbed!();
    if !std::path::Path::new("/usr/bin/redis-server").exists() {
        println!("skipped: redis-server is not installed");
        return Ok(());
    }
    let mut bed = Testbed::start("rehearsal")?;
    let at = |last| Ipv4Addr::new(10, 77, 0, last);
    let client_host = bed.add(HostSpec::new("client", at(50)))?;
    let mut hosts: Vec<Arc<Host>> = Vec::new();
    let mut targets = Vec::new();
    for (name, last) in [("a", 11), ("b", 12)] {
        let host = bed.add(HostSpec::new(name, at(last)).disk_mib(64))?;
        let from = bed.add(HostSpec::new(&format!("probe{name}"), at(last + 50)))?;
        from.pin_neighbour(ADDRESS, &host.mac())?;
        targets.push(Target {
            from,
            own: host.address(),
        });
        hosts.push(host);
    }
    let service = SocketAddr::from((ADDRESS, PORT));
    let redis = serve(&bed, &hosts[0])?;
    let mut probes = Probes::start(targets, service);
    let mut client = Client::start(&client_host, service);
    wait_for("writes to be answered", PATIENCE, || {
        (client.count() >= ENOUGH).then_some(())
    })?;
    wait_for("the probe of a to be answered", PATIENCE, || {
        (probes.accepts()[0].len() >= ENOUGH / 10).then_some(())
    })?;
    assert!(probes.accepts()[1].is_empty(), "nobody serves on b");
    let cut = boot_ns();
    hosts[0].cut_power()?;
    drop(redis);
    let _redis = serve(&bed, &hosts[1])?;
    client_host.run(&["ip", "neigh", "flush", "all"])?;
    probes.watch_for_stale();
    wait_for("b to answer the client", PATIENCE, || {
        (client.last_ok_ns() > cut + 500_000_000).then_some(())
    })?;
    wait_for("b to answer its probe", PATIENCE, || {
        (!probes.accepts()[1].is_empty()).then_some(())
    })?;
    let acks = client.acks();
    let gap = figures::widest_gap(&acks, cut - 1_000_000_000, boot_ns());
    let (last, first) = gap.expect("there was an outage");
    assert!(last < cut + 200_000_000 && first > cut, "{last} {cut} {first}");
    let numbers: Vec<u64> = acks.iter().map(|ack| ack.number).collect();
    let present = client.read_back(&numbers)?;
    let held = |number: u64| {
        numbers
            .iter()
            .position(|other| *other == number)
            .is_some_and(|index| present[index])
    };
    let before: Vec<Ack> = acks.iter().copied().filter(|ack| ack.ok_ns <= last).collect();
    let loss = figures::loss(&before, held);
    assert_eq!(loss.lost.len(), before.len(), "b began with nothing");
    assert!(
        acks.iter()
            .filter(|ack| ack.ok_ns >= first)
            .all(|ack| held(ack.number))
    );
    wait_for("probes to read the mark", PATIENCE, || {
        (probes.stale().1 > 10).then_some(())
    })?;
    probes.stop();
    client.stop();
    assert_eq!(probes.stale().0, 0);
    assert_eq!(figures::shared_slots(&probes.accepts()), 0);
    Ok(())
}
