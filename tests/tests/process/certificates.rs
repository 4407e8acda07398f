//! Certificates that run out under a service that is served, a host that joined, and one that is revoked.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use time::OffsetDateTime;
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::{Credentials, Principal};
use understudy_common::wire::{Operate, Request, StreamKind};
use understudy_coordinator::authority::{Authority, Pair, Validity};
use understudy_testbed::cluster::ClusterSpec;
use understudy_testbed::wait_for;
use understudy_transport::{Endpoint, TransportError};

use super::cluster::{Cluster, PATIENCE, SERVICE};
use super::{read, settle, write};

/// Of every certificate, from the first one on: the shortest that a coordinator signs.
const VALID_S: i64 = 20;
/// A host that serves renews its lease five times as often.
const SILENCE_MAX: Duration = Duration::from_secs(1);
const CALL_MAX: Duration = Duration::from_secs(5);
/// The machine without a place in what `init` made.
const NEWCOMER: usize = 2;
const REVOKED: usize = 1;

/// Three coordinators and two hosts, all with certificates that end soon, and a machine beside them.
pub fn cluster(area: &str) -> Result<Cluster> {
    Cluster::plug(&ClusterSpec {
        coordinator_more: format!("valid_s = {VALID_S}\n"),
        ..ClusterSpec::new(area)
    })
}

fn members() -> impl Iterator<Item = Principal> {
    let hosts = [1, 2].map(|n| Principal::Host(HostId(n)));
    let coordinators = [1, 2, 3].map(|n| Principal::Coordinator(CoordinatorId(n)));
    hosts.into_iter().chain(coordinators)
}

/// Replaces what `init` made by certificates that end soon.
fn shorten(config: &Path) -> Result<()> {
    let read = |name: &str| fs::read_to_string(config.join(name));
    let issuer = Authority::issuer_from_pair(Pair {
        certificate: read("issuer.pem")?,
        key: read("issuer.key")?,
    })?;
    let validity = Validity::from(OffsetDateTime::now_utc(), time::Duration::seconds(VALID_S));
    for who in members() {
        let pair = issuer.issue(who, validity)?;
        fs::write(config.join(format!("{who}.pem")), pair.certificate)?;
        fs::write(config.join(format!("{who}.key")), pair.key)?;
    }
    Ok(())
}

fn credentials(dir: &Path, who: Principal) -> Result<Credentials> {
    let read = |name: String| fs::read(dir.join(&name)).with_context(|| name);
    Ok(Credentials::from_pem(
        &read("ca.pem".to_owned())?,
        &read(format!("{who}.pem"))?,
        &read(format!("{who}.key"))?,
    )?)
}

fn ends(dir: &Path, who: Principal) -> Result<i64> {
    Ok(credentials(dir, who)?.certificate().lifetime.ends_s)
}

fn log(cluster: &Cluster, n: usize) -> Result<String> {
    let path = cluster.agent(n).context("its agent was started")?.log();
    Ok(fs::read_to_string(path)?)
}

pub fn story(cluster: &mut Cluster) -> Result<()> {
    let config = cluster.config().to_owned();
    shorten(&config)?;
    let mut first = Vec::new();
    for who in members() {
        first.push((config.clone(), who, ends(&config, who)?));
    }
    for n in 0..3 {
        cluster.start_coordinator(n)?;
    }
    for n in [0, REVOKED] {
        cluster.start_agent(n)?;
    }

    // A machine joins, and is given a service to shadow.
    cluster.join(NEWCOMER, "newcomer")?;
    let joined = Principal::Host(HostId(4));
    let joined_dir = cluster.host_config(NEWCOMER).parent().map(PathBuf::from);
    let joined_dir = joined_dir.context("a file is in a directory")?;
    first.push((joined_dir.clone(), joined, ends(&joined_dir, joined)?));
    cluster.start_agent(NEWCOMER)?;
    cluster.until_alive(3)?;
    cluster.declare_redis("1, 2, 4", "")?;
    cluster.until_whole(0)?;
    write(cluster, "before")?;
    settle(cluster)?;

    // All those certificates run out while it is served.
    let over = first.iter().map(|(_, _, ends)| *ends).max().unwrap_or_default();
    served_until(cluster, over + 1)?;
    for (dir, who, end) in &first {
        let now = ends(dir, *who)?;
        ensure!(now > *end, "{who} still has the certificate that ended");
    }
    told(cluster, &first)?;
    for n in [0, REVOKED, NEWCOMER] {
        let text = log(cluster, n)?;
        ensure!(!text.contains("disconnected"), "a link of host {n} ended: {text}");
    }
    for n in 0..3 {
        let path = cluster.coordinator(n).context("it was started")?.log();
        let text = fs::read_to_string(path)?;
        ensure!(
            !text.contains("the link ended"),
            "a link of coordinator {n} ended: {text}"
        );
    }

    // The host that joined takes over.
    write(cluster, "renewed")?;
    settle(cluster)?;
    cluster.ask(&["handover", SERVICE, "--to", "newcomer"])?;
    cluster.until("the newcomer to serve", |status| {
        let service = &status["services"][0];
        (service["serving"] == true && service["holder"] == 4).then_some(())
    })?;
    read(cluster, "before")?;
    read(cluster, "renewed")?;

    revoked(cluster, &config)?;
    write(cluster, "after")?;
    read(cluster, "after")?;
    let errors = cluster.errors()?;
    ensure!(errors.is_empty(), "{}", errors.join("\n"));
    Ok(())
}

/// Asks the service until that second of the wall clock.
fn served_until(cluster: &Cluster, second: i64) -> Result<()> {
    let (mut good, mut longest) = (Instant::now(), Duration::ZERO);
    while OffsetDateTime::now_utc().unix_timestamp() <= second {
        let answered = cluster.redis("PING").is_some();
        longest = longest.max(good.elapsed());
        if answered {
            good = Instant::now();
        }
    }
    println!("measured: longest time without an answer while certificates were renewed: {longest:?}");
    ensure!(
        longest < SILENCE_MAX,
        "the address did not answer for {longest:?}"
    );
    Ok(())
}

/// The leader knows of each renewal.
fn told(cluster: &Cluster, first: &[(PathBuf, Principal, i64)]) -> Result<()> {
    for (_, who, end) in first {
        let name = who.to_string();
        wait_for(&format!("{name}'s renewal in the table"), PATIENCE, || {
            let table = cluster.operator().document(&["certificates"]).ok()?;
            let rows = table["certificates"].as_array()?;
            let shown = &rows.iter().find(|row| row["principal"] == name.as_str())?["shown"];
            (shown["renewed_at_ms"].is_u64() && shown["not_after_s"].as_i64()? > *end).then_some(())
        })?;
    }
    Ok(())
}

/// A host is revoked: its links end, nobody takes it in any more, and it gets no new certificate.
fn revoked(cluster: &Cluster, config: &Path) -> Result<()> {
    let who = Principal::Host(HostId(2));
    cluster.ask(&["revoke", "b"])?;
    wait_for("the revoked host's links to end", PATIENCE, || {
        let text = log(cluster, REVOKED).ok()?;
        (text.matches("disconnected").count() >= 3).then_some(())
    })?;
    cluster.until_silent(1)?;

    // The list reached agents and coordinators alike.
    let shown = credentials(config, who)?;
    let mut peers = vec![
        (agent_at(cluster, 0), Principal::Host(HostId(1))),
        (agent_at(cluster, NEWCOMER), Principal::Host(HostId(4))),
    ];
    for (n, host) in (1..).zip(&cluster.coordinator_hosts) {
        let addr = SocketAddr::from((host.address(), 7400));
        peers.push((addr, Principal::Coordinator(CoordinatorId(n))));
    }
    for (addr, peer) in peers {
        for kind in [StreamKind::Rpc, StreamKind::Beacon, StreamKind::Sync] {
            let error = cluster.hosts[REVOKED].inside(|| speak(&shown, addr, peer, kind))?;
            ensure!(
                error.contains("certificate: Revoked"),
                "{peer}, {kind:?} of a revoked host: {error}"
            );
        }
    }

    // It goes on asking, in vain, and says so.
    wait_for("the revoked host to say that it renews in vain", PATIENCE, || {
        let text = log(cluster, REVOKED).ok()?;
        text.contains("the certificate cannot be renewed").then_some(())
    })?;
    let table = cluster.operator().document(&["certificates"])?;
    let rows = table["certificates"].as_array().context("the rows")?;
    let of = |name: &str| -> Option<&Value> { rows.iter().find(|row| row["principal"] == name) };
    ensure!(of("host-2").is_some_and(|row| row["revoked"] == true), "{table}");
    ensure!(of("host-4").is_some_and(|row| row["revoked"] == false), "{table}");
    let end = ends(config, who)?;
    ensure!(
        shown.certificate().lifetime.ends_s == end,
        "a revoked host got a new certificate"
    );
    Ok(())
}

fn agent_at(cluster: &Cluster, n: usize) -> SocketAddr {
    (cluster.hosts[n].address(), 7401).into()
}

/// What becomes of a stream of this kind to `addr`, in the words of the one who refused it.
fn speak(who: &Credentials, addr: SocketAddr, peer: Principal, kind: StreamKind) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let endpoint = Endpoint::bind(([0, 0, 0, 0], 0).into(), who)?;
        let link = match endpoint.dial(addr, peer).await {
            Ok(link) => link,
            Err(error) => return Ok(error.to_string()),
        };
        let outcome = match kind {
            StreamKind::Rpc => link
                .call(&Request::Operate(Operate::Status), CALL_MAX)
                .await
                .map(|_| ()),
            StreamKind::Beacon => {
                let mut sender = link.open_uni(kind).await?;
                sender.send(b"a beacon").await.ok();
                Err(TransportError::Closed(link.closed().await))
            }
            _ => {
                let (mut sender, mut receiver) = link.open_bi(kind).await?;
                sender.send(b"a generation").await.ok();
                if let Ok(Some(_)) = receiver.receive().await {
                    bail!("{peer} answered a revoked host");
                }
                Err(TransportError::Closed(link.closed().await))
            }
        };
        match outcome {
            Ok(()) => bail!("{peer} took a request of a revoked host"),
            Err(error) => Ok(error.to_string()),
        }
    })
}
