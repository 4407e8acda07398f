//! A fleet of hosts that send a beacon each second to one coordinator, as agents do: a link, a hello, a beacon stream.
//!
//! The first hosts have a socket each; the others share a few, and reach the coordinator as encrypted datagrams of
//! connections of their own all the same. Commands are lines on standard input, each answered by one JSON line:
//! `link N` opens links until there are N, `start` lets those that are silent say hello and send beacons,
//! `measure SECONDS` counts beacons for a while and asks the coordinator what it received.

mod cluster;
mod host;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use understudy_common::identity::Principal;
use understudy_common::wire::{Operate, Request, Response};
use understudy_transport::{Endpoint, Link};

use cluster::{COORDINATOR, Cluster};
use host::{Counts, Host};

/// Handshakes under way at once: as many as hosts that come back after a cut would have backed off to.
const HANDSHAKES_MAX: usize = 32;
/// Sockets that hosts without one of their own share.
const SHARED: usize = 16;
const CALL_MAX: Duration = Duration::from_secs(10);
/// Until every beacon sent has been received, once no more are sent.
const SETTLE_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to write the coordinator's configuration; new
    #[arg(long)]
    dir: PathBuf,
    /// Where the coordinator listens
    #[arg(long)]
    listen: SocketAddr,
    /// Hosts that get a socket of their own
    #[arg(long, default_value_t = 3_000)]
    sockets: usize,
    /// From one beacon of a host to the next
    #[arg(long, default_value_t = 1_000)]
    every_ms: u64,
}

struct Fleet {
    cluster: Cluster,
    listen: SocketAddr,
    sockets: usize,
    every: Duration,
    operator: Endpoint,
    shared: Vec<Endpoint>,
    counts: Arc<Counts>,
    linked: Vec<Host>,
    hosts: usize,
    beaconing: JoinSet<()>,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let cluster = Cluster::create(&args.dir, args.listen)?;
    println!("{}", json!({ "config": args.dir.join("coordinator.toml") }));
    let any = "127.0.0.1:0".parse()?;
    let operator = Endpoint::bind(any, &cluster.credentials(Principal::Operator)?)?;
    let mut shared = Vec::new();
    for _ in 0..SHARED {
        shared.push(Endpoint::bind(any, &cluster.credentials(Principal::Operator)?)?);
    }
    let mut fleet = Fleet {
        cluster,
        listen: args.listen,
        sockets: args.sockets,
        every: Duration::from_millis(args.every_ms),
        operator,
        shared,
        counts: Arc::default(),
        linked: Vec::new(),
        hosts: 0,
        beaconing: JoinSet::new(),
    };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = fleet.obey(&line).await.with_context(|| line.clone())?;
        println!("{answer}");
    }
    Ok(())
}

impl Fleet {
    async fn obey(&mut self, line: &str) -> Result<Value> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("link", hosts) => self.link(hosts.parse()?).await,
            ("start", "") => self.start().await,
            ("measure", seconds) => self.measure(Duration::from_secs(seconds.parse()?)).await,
            _ => bail!("link N, start or measure SECONDS"),
        }
    }

    async fn link(&mut self, wanted: usize) -> Result<Value> {
        let began = Instant::now();
        let mut dials = JoinSet::new();
        while self.hosts < wanted || !dials.is_empty() {
            if self.hosts < wanted && dials.len() < HANDSHAKES_MAX {
                self.hosts += 1;
                let id = u32::try_from(self.hosts)?;
                let credentials = self.cluster.credentials(host::principal(id))?;
                let shared = (self.hosts > self.sockets).then(|| self.shared[self.hosts % SHARED].clone());
                dials.spawn(Host::dial(id, credentials, self.listen, shared));
            } else if let Some(dialled) = dials.join_next().await {
                self.linked.push(dialled??);
            }
        }
        Ok(json!({ "hosts": self.hosts, "seconds": began.elapsed().as_secs_f64() }))
    }

    async fn start(&mut self) -> Result<Value> {
        let began = Instant::now();
        let mut greetings = JoinSet::new();
        let mut silent = std::mem::take(&mut self.linked).into_iter();
        loop {
            let next = (greetings.len() < HANDSHAKES_MAX)
                .then(|| silent.next())
                .flatten();
            if let Some(host) = next {
                greetings.spawn(host.greet());
            } else if let Some(greeted) = greetings.join_next().await {
                let host = greeted??;
                self.beaconing
                    .spawn(host.beacons(self.every, Arc::clone(&self.counts)));
            } else {
                break;
            }
        }
        Ok(json!({ "hosts": self.hosts, "seconds": began.elapsed().as_secs_f64() }))
    }

    async fn measure(&mut self, length: Duration) -> Result<Value> {
        let link = self
            .operator
            .dial(self.listen, Principal::Coordinator(COORDINATOR))
            .await?;
        let before = self.counts.sent.load(Ordering::Relaxed);
        let late_before = self.counts.late.load(Ordering::Relaxed);
        sleep(length).await;
        let sent = self.counts.sent.load(Ordering::Relaxed) - before;
        let late = self.counts.late.load(Ordering::Relaxed) - late_before;
        let beacons = self.settled(&link).await?;
        link.close("measured");
        let ended = std::iter::from_fn(|| self.beaconing.try_join_next()).count();
        ensure!(ended == 0, "{ended} hosts lost their link");
        Ok(json!({
            "hosts": self.hosts,
            "seconds": length.as_secs_f64(),
            "sent": sent,
            "late": late,
            "sent_ever": self.counts.sent.load(Ordering::Relaxed),
            "coordinator": beacons,
        }))
    }

    /// What the coordinator knows once everything that was sent has reached it, or has had the time to.
    async fn settled(&self, link: &Link) -> Result<Value> {
        self.counts.held.store(true, Ordering::Relaxed);
        let until = Instant::now() + SETTLE_MAX;
        let beacons = loop {
            let beacons = beacons(link).await?;
            if beacons["received"] == self.counts.sent.load(Ordering::Relaxed) || Instant::now() >= until {
                break beacons;
            }
            sleep(POLL).await;
        };
        self.counts.held.store(false, Ordering::Relaxed);
        Ok(beacons)
    }
}

async fn beacons(link: &Link) -> Result<Value> {
    match link.call(&Request::Operate(Operate::Status), CALL_MAX).await? {
        Response::Document(document) => {
            let mut status: Value = serde_json::from_str(&document)?;
            ensure!(
                status["prediction"]["state"] == "lstm-onnx",
                "the coordinator does not predict: {}",
                status["prediction"]
            );
            Ok(status["beacons"].take())
        }
        other => bail!("no status: {other:?}"),
    }
}
