//! Cuts and loss at the bridge, where no machine can tell them from a bad network, and delay by a queue before a
//! machine's cable.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use super::fault::Way;
use crate::{Host, Testbed};

/// Burst of the token bucket, and how long a packet may queue before it is dropped.
const BURST: &str = "1600";
const QUEUE_MS_MAX: u64 = 400;

/// Drops what the machine exchanges with `peers`, of which there is one at least.
pub fn cut(bed: &Testbed, host: &Host, peers: &[Ipv4Addr], way: Way) -> Result<()> {
    let list: Vec<String> = peers.iter().map(ToString::to_string).collect();
    let (list, port) = (list.join(", "), host.port());
    let mut rules = String::new();
    if way != Way::Out {
        rules += &format!("oifname \"{port}\" ip saddr {{ {list} }} counter drop\n");
    }
    if way != Way::In {
        rules += &format!("iifname \"{port}\" ip daddr {{ {list} }} counter drop\n");
    }
    filter(bed, host, &rules)
}

/// Drops this share of the packets that come to the machine, and of those that leave it unless `way` is in.
pub fn lose(bed: &Testbed, host: &Host, percent: u64, way: Way) -> Result<()> {
    let mut rules = String::new();
    for (word, wanted) in [("oifname", way != Way::Out), ("iifname", way != Way::In)] {
        if wanted {
            let port = format!("{word} \"{}\"", host.port());
            rules += &format!("{port} counter\n{port} numgen random mod 100 < {percent} counter drop\n");
        }
    }
    filter(bed, host, &rules)
}

fn table(host: &Host) -> String {
    format!("bridge exercise_{}", host.port())
}

fn filter(bed: &Testbed, host: &Host, rules: &str) -> Result<()> {
    let table = table(host);
    nft(
        bed,
        &format!("table {table} {{\nchain forward {{\ntype filter hook forward priority 0\n{rules}}}\n}}\n"),
    )
}

/// Packets that a filter let pass or dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    /// Those that were dropped at random included; cuts do not count them.
    pub seen: u64,
    pub dropped: u64,
}

impl std::ops::Add for Packets {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            seen: self.seen + other.seen,
            dropped: self.dropped + other.dropped,
        }
    }
}

/// Ends cuts and loss; returns what they did.
pub fn heal(bed: &Testbed, host: &Host) -> Result<Packets> {
    let table = table(host);
    let mut list = bed.at_the_bridge("nft");
    let output = list.args(["list", "table"]).args(table.split(' ')).output()?;
    let packets = packets(&String::from_utf8_lossy(&output.stdout));
    nft(bed, &format!("delete table {table}\n"))?;
    Ok(packets)
}

/// Sums of `counter packets N bytes M` with and without `drop`.
fn packets(listing: &str) -> Packets {
    let mut sums = Packets::default();
    for line in listing.lines() {
        let Some((_, rest)) = line.split_once("counter packets ") else {
            continue;
        };
        let count: u64 = rest
            .split(' ')
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        if rest.contains(" drop") {
            sums.dropped += count;
        } else {
            sums.seen += count;
        }
    }
    sums
}

fn nft(bed: &Testbed, script: &str) -> Result<()> {
    let mut command = bed.at_the_bridge("nft");
    command
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("starting nft (package nftables)")?;
    if let Some(stdin) = child.stdin.as_mut() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "nft: {}\n{script}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// All that the machine sends queues up behind a link of this rate.
pub fn delay(host: &Host, kbit_s: u64) -> Result<()> {
    let rate = format!("{kbit_s}kbit");
    let latency = format!("{QUEUE_MS_MAX}ms");
    host.run(&[
        "tc",
        "qdisc",
        "replace",
        "dev",
        host.interface(),
        "root",
        "tbf",
        "rate",
        &rate,
        "burst",
        BURST,
        "latency",
        &latency,
    ])
}

/// Ends the delay; returns how many packets had to wait.
pub fn hurry(host: &Host) -> Result<u64> {
    let mut show = host.command("tc")?;
    let output = show
        .args(["-s", "qdisc", "show", "dev", host.interface()])
        .output()?;
    let waited = overlimits(&String::from_utf8_lossy(&output.stdout));
    host.run(&["tc", "qdisc", "del", "dev", host.interface(), "root"])?;
    Ok(waited)
}

/// `… (dropped 0, overlimits 12 requeues 0)`
fn overlimits(listing: &str) -> u64 {
    let count = listing.split("overlimits ").nth(1);
    count
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_and_waits_are_counted() {
        let listing = "chain in { ip saddr 10.77.0.1 counter packets 12 bytes 900 drop }\n\
                       chain out { counter packets 30 bytes 900\n\
                       counter packets 3 bytes 90 drop }";
        let expected = Packets {
            seen: 30,
            dropped: 15,
        };
        assert_eq!(packets(listing), expected);
        assert_eq!(packets(""), Packets::default());
        let shown = "qdisc tbf 8001: root\n Sent 9 bytes 9 pkt (dropped 2, overlimits 41 requeues 0)";
        assert_eq!(overlimits(shown), 41);
    }
}
