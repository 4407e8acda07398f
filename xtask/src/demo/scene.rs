//! The stage: the cluster and everyone who looks at it, with bounded waits that keep the timeline
//! alive.

use std::fs;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use understudy_testbed::agent_log::{self, Sealed};
use understudy_testbed::boot_ns;

use super::client::Client;
use super::cluster::{Cluster, NAMES};
use super::cost;
use super::probe::{Probes, Target};
use super::report::Measured;
use super::timeline::Timeline;
use super::watch::{Seen, Watch};

const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);
/// The first copy of all data to two shadows, and a resync.
pub(super) const COPY_MAX: Duration = Duration::from_secs(120);
const COST_WINDOW: Duration = Duration::from_secs(6);
/// After this long the model has seen enough of the hosts to score them.
const WARM_UP: Duration = Duration::from_secs(20);

pub(super) struct Scene<'a> {
    pub(super) cluster: Cluster,
    pub(super) timeline: &'a mut Timeline,
    pub(super) measured: Measured,
    pub(super) watch: Watch,
    pub(super) client: Option<Client>,
    pub(super) probes: Option<Probes>,
    /// Resident bytes of the service on its first host, as last seen.
    pub(super) resident: u64,
    told: u64,
}

impl<'a> Scene<'a> {
    /// From nothing to a protected service with a client and, when all is steady, a warm model.
    pub(super) fn open(seed: u64, timeline: &'a mut Timeline) -> Result<Self> {
        timeline.note("three hosts, three coordinators, a client and the probes are plugged in");
        let mut cluster = Cluster::build(seed)?;
        timeline.note("Redis on a gets its 200,000 values of 1 KiB");
        cluster.load()?;
        cluster.start_coordinators()?;
        for index in 0..NAMES.len() {
            cluster.start_host(index)?;
        }
        let watch = Watch::start(cluster.operator().clone());
        let measured = Measured {
            seed,
            ..Measured::default()
        };
        Ok(Self {
            cluster,
            timeline,
            measured,
            watch,
            client: None,
            probes: None,
            resident: 0,
            told: 0,
        })
    }

    /// Protects the service and waits until it is steady.
    pub(super) fn protect(&mut self) -> Result<()> {
        self.until("all hosts to greet the coordinators", PATIENCE, |seen| {
            let alive = (1..=3).all(|id| seen.host(id)["alive"] == true);
            alive.then_some(())
        })?;
        self.note_probes();
        let pid = self.cluster.agent_pid(0).context("the agent of a runs")?;
        self.measured.telemetry_cpu_percent = Some(cost::percent(pid, COST_WINDOW)?);
        let at = self.cluster.service_address();
        let targets = self
            .cluster
            .probes
            .iter()
            .zip(self.cluster.hosts())
            .map(|(probe, host)| Target {
                from: Arc::clone(probe),
                own: host.address(),
            });
        self.probes = Some(Probes::start(targets.collect(), at));
        self.cluster.declare_service()?;
        self.until("a to serve", PATIENCE, |seen| {
            (seen.serving() == Some(1)).then_some(())
        })?;
        self.until("both shadows to hold a copy", COPY_MAX, |seen| {
            (seen.is_ready_shadow(2) && seen.is_ready_shadow(3)).then_some(())
        })?;
        self.measured.full_bytes = self.watch.seen().sync("full_bytes");
        self.client = Some(Client::start(&self.cluster.client, at));
        self.timeline.note("the client writes; everything is steady");
        self.hold(WARM_UP)
    }

    fn note_probes(&mut self) {
        let seen = self.watch.seen();
        let programs = (1..=3)
            .filter_map(|id| seen.host(id)["ebpf_programs"].as_u64())
            .min();
        let sources: Vec<&str> = (1..=3)
            .filter_map(|id| seen.host(id)["ebpf_source"].as_str())
            .collect();
        self.measured.ebpf_programs = programs;
        // One host that fell down the ladder speaks for all.
        let worst = sources
            .iter()
            .find(|source| **source != "tp_btf")
            .or(sources.first());
        self.measured.ebpf_source = worst.map(|source| (*source).to_owned());
    }

    /// Waits for a condition on what the coordinators say.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        at_most: Duration,
        mut condition: impl FnMut(&Seen) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + at_most;
        loop {
            let seen = self.tick()?;
            if let Some(value) = condition(&seen) {
                return Ok(value);
            }
            if Instant::now() >= end {
                let trouble = seen
                    .trouble
                    .map_or(String::new(), |trouble| format!(" ({trouble})"));
                bail!("waited {} s for {what}, in vain{trouble}", at_most.as_secs());
            }
            sleep(PAUSE);
        }
    }

    /// Lets time pass.
    pub(super) fn hold(&mut self, long: Duration) -> Result<()> {
        let end = Instant::now() + long;
        while Instant::now() < end {
            self.tick()?;
            sleep(PAUSE);
        }
        Ok(())
    }

    /// Waits until the client was answered for a while after `since`.
    pub(super) fn until_answered(&mut self, since: u64, at_most: Duration) -> Result<()> {
        const STEADY_NS: u64 = 1_000_000_000;
        let end = Instant::now() + at_most;
        while self.client()?.last_ok_ns() < since + STEADY_NS {
            if Instant::now() >= end {
                bail!(
                    "waited {} s for the client to be answered again, in vain",
                    at_most.as_secs()
                );
            }
            self.tick()?;
            sleep(PAUSE);
        }
        Ok(())
    }

    pub(super) fn client(&self) -> Result<&Client> {
        self.client.as_ref().context("the client has not started")
    }

    fn tick(&mut self) -> Result<Seen> {
        self.cluster.check_programs()?;
        let seen = self.watch.seen();
        for event in seen.events.iter().filter(|event| event.seq > self.told) {
            self.timeline.note(format_args!("> {}", event.text));
        }
        self.told = seen.events.last().map_or(self.told, |event| event.seq);
        if let Some(resident) = self.cluster.service_resident(0) {
            self.resident = resident;
        }
        self.timeline
            .live(&seen, self.client.as_ref().map_or(0, Client::count));
        Ok(seen)
    }

    /// The generation that a host last took over from.
    pub(super) fn promoted(&self, index: usize) -> Option<(u64, u64)> {
        let log = fs::read_to_string(self.cluster.agent_log(index)).ok()?;
        let last = log.lines().rev().find_map(agent_log::promotion)?;
        Some(last.generation)
    }

    /// What a host's agent logged about its generations.
    pub(super) fn sealed(&self, index: usize) -> Vec<Sealed> {
        let log = fs::read_to_string(self.cluster.agent_log(index)).unwrap_or_default();
        log.lines().filter_map(agent_log::sealed).collect()
    }
}

/// Milliseconds between two times of the boot clock.
pub(super) fn ms(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e6
}

/// How long until a time of the boot clock.
pub(super) fn until_ns(at_ns: u64) -> Duration {
    Duration::from_nanos(at_ns.saturating_sub(boot_ns()))
}
