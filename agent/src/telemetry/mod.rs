//! What the host feels, once a second: the kernel programs, control groups and `/proc`, folded into beacons.
//!
//! Invariants: a signal that cannot be had, or not told apart within the scope, is masked and never zero; without the
//! kernel programs the same vector comes from what is left; nothing here decides anything.
//!
//! | module | is |
//! |---|---|
//! | `scope` | configuration and the checked scope |
//! | `family`, `attach`, `probes` | what programs give and need, loading and reading them |
//! | `cgroup`, `host`, `disk`, `memory` | readers |
//! | `exits` | ends of services' processes, as the kernel pushes them |
//! | `fold`, `histogram` | pure: samples to one vector per tick |
//! | `inventory`, `record` | what the machine is; the `record` subcommand |

mod attach;
mod cgroup;
mod disk;
mod exits;
mod family;
mod fold;
mod histogram;
mod host;
mod inventory;
mod memory;
mod probes;
mod processes;
mod record;
mod scope;

use std::collections::BTreeMap;

use nix::time::{ClockId, clock_gettime};
use procfs::{Current, CurrentSI, KernelStats, Meminfo};
use understudy_common::beacon::{Beacon, FEATURES, Feature, Source};
use understudy_common::id::HostId;
use understudy_common::units::BootTime;
use understudy_common::wire::Inventory;

use cgroup::{CpuGroup, MemoryGroup};
use disk::Disks;
use fold::{Fold, Sample, Signal};
use host::Pressure;
use probes::{ProbeOptions, Probes};

pub use exits::{ExitStream, ExitWatch, Exits, ProcessExit};
pub use processes::heaviest;
pub use record::{RecordConfig, RecordError, record};
pub use scope::{DEVICES_MAX, Scope, ScopeConfig, ScopeError, TelemetryConfig};

/// How often [`Telemetry::sample`] wants to be called.
pub const SAMPLE_INTERVAL_MS: u64 = 100;

/// Beacons between two lines about the own cost in the log.
const COST_EVERY: u64 = 10;

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error("/proc cannot be read: {0}")]
    Proc(#[from] procfs::ProcError),
}

/// Where the signals come from now.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SourceReport {
    /// Attached kernel programs.
    pub programs: u32,
    /// The best source in use: `tp_btf` or `procfs`.
    pub source: &'static str,
    /// Each feature with its source; `None` is masked.
    pub signals: Vec<(&'static str, Option<Source>)>,
    /// Probe families that are not attached, and why.
    pub refused: Vec<(String, String)>,
}

/// What the telemetry itself costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnCost {
    /// CPU time spent in [`Telemetry::sample`] since it was opened.
    pub sample_ns: u64,
    /// CPU time of the whole process since it started.
    pub process_ns: u64,
    /// Run time of the kernel programs since they were attached; `None` while the kernel does not measure it.
    pub bpf_ns: Option<u64>,
    /// Durations that the kernel programs could not measure because a map was full.
    pub stamps_lost: u64,
    /// Ends of services' processes that the kernel programs could not push: their causes are not known.
    pub exits_lost: u64,
}

/// The watcher of one host or scope. [`sample`](Self::sample) reads files and makes system calls for well under a
/// millisecond; it never waits for anything.
pub struct Telemetry {
    scope: Option<Scope>,
    probes: Option<Probes>,
    refused: Vec<(String, String)>,
    memory: Option<MemoryGroup>,
    cpu: Option<CpuGroup>,
    pressure: Option<Pressure>,
    disks: Option<Disks>,
    fold: Fold,
    sources: Vec<Option<Source>>,
    sample_ns: u64,
}

impl Telemetry {
    /// Checks the scope and attaches the kernel programs. Programs that the kernel refuses are no error: see
    /// [`sources`](Self::sources).
    ///
    /// # Errors
    /// [`TelemetryError`] when the configuration does not fit the machine.
    pub fn open(host: HostId, config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let scope = config.scope.as_ref().map(Scope::resolve).transpose()?;
        let mut refused = Vec::new();
        let probes = if config.bpf {
            let options = ProbeOptions {
                stats: config.bpf_stats,
                log: config.bpf_log,
            };
            Probes::attach(scope.as_ref(), &options)
                .map_err(|error| refused.push(("all".to_owned(), error.to_string())))
                .ok()
        } else {
            refused.push(("all".to_owned(), "telemetry.bpf is false".to_owned()));
            None
        };
        refused.extend(probes.iter().flat_map(|probes| probes.refused().to_vec()));
        for (what, why) in &refused {
            tracing::info!(what, why, "no kernel programs for these signals");
        }
        if probes.is_none() && config.bpf {
            tracing::warn!("no kernel programs: signals come from procfs and control groups alone");
        }

        let host_bytes = Meminfo::current()?.mem_total;
        let host_cpus = KernelStats::current()?.cpu_time.len() as u32;
        let (memory, cpu, pressure, disks) = match &scope {
            None => (None, None, Some(Pressure::of_host()), Some(Disks::physical())),
            Some(scope) => (
                scope.memory.clone().map(|dir| MemoryGroup::new(dir, host_bytes)),
                Some(CpuGroup {
                    usage: scope.cgroup.as_ref().map(|cgroup| cgroup.path.clone()),
                    quota: scope.cpu.clone(),
                    host_cpus,
                }),
                scope
                    .cgroup
                    .as_ref()
                    .map(|cgroup| Pressure::of_cgroup(&cgroup.path)),
                Some(Disks::named(&scope.devices)).filter(|_| !scope.devices.is_empty()),
            ),
        };
        Ok(Self {
            scope,
            probes,
            refused,
            memory,
            cpu,
            pressure,
            disks,
            fold: Fold::new(host),
            sources: vec![None; FEATURES.len()],
            sample_ns: 0,
        })
    }

    /// The ends of services' processes, once; none where the kernel does not push them.
    pub fn exits(&mut self) -> Option<Exits> {
        self.probes.as_mut()?.exits()
    }

    /// Takes a sample; call it every [`SAMPLE_INTERVAL_MS`]. Returns the beacon of the tick that it closes.
    pub fn sample(&mut self, now: BootTime) -> Option<Beacon> {
        let before = cpu_ns(ClockId::CLOCK_THREAD_CPUTIME_ID);
        let beacon = self.take_sample(now);
        let after = cpu_ns(ClockId::CLOCK_THREAD_CPUTIME_ID);
        self.sample_ns += before
            .zip(after)
            .map_or(0, |(before, after)| after.saturating_sub(before));
        if beacon.is_some_and(|beacon| beacon.sequence % COST_EVERY == 0) {
            let cost = self.cost();
            tracing::debug!(
                target: "understudy_agent::cost",
                sample_ns = cost.sample_ns,
                process_ns = cost.process_ns,
                bpf_ns = cost.bpf_ns,
                stamps_lost = cost.stamps_lost,
                exits_lost = cost.exits_lost,
                "own cost so far"
            );
        }
        beacon
    }

    fn take_sample(&mut self, now: BootTime) -> Option<Beacon> {
        let all = self.fold.wants_all(now);
        let mut sample = Sample::default();
        // First the programs, the best source; readers fill in what is missing.
        if all && let Some(probes) = &mut self.probes {
            probes.scrape(&mut sample);
        }
        if let Some(disks) = &mut self.disks {
            disks.sample(all, &mut sample);
        }
        if let Some(memory) = &self.memory {
            memory.sample(all, &mut sample);
        }
        if self.scope.is_none() {
            host::load(&mut sample);
            host::memory(&mut sample);
        }
        if all {
            self.sample_rest(&mut sample);
            self.note_sources(&sample);
        }
        self.fold.take(now, sample)
    }

    /// What is read once per tick.
    fn sample_rest(&self, sample: &mut Sample) {
        if let Some(pressure) = &self.pressure {
            pressure.sample(sample);
        }
        if let Some(cpu) = &self.cpu {
            cpu.sample(sample);
        }
        if self.scope.is_none() {
            host::cpu(sample);
            host::memory_events(sample);
        }
        if self.scope.as_ref().is_none_or(|scope| scope.netns.is_some()) {
            host::network(sample);
        }
        if let Some(ns) = cpu_ns(ClockId::CLOCK_PROCESS_CPUTIME_ID) {
            let share = Signal::Total {
                value: ns,
                scale: 1e-9,
            };
            sample.put(Feature::AgentCpuShare, Source::Syscall, share);
        }
    }

    fn note_sources(&mut self, sample: &Sample) {
        let before = self.sources.clone();
        for (spec, known) in FEATURES.iter().zip(&mut self.sources) {
            let probed = self
                .probes
                .as_ref()
                .is_some_and(|probes| probes.gives(spec.feature));
            let source = sample.source(spec.feature).or(probed.then_some(Source::TpBtf));
            if *known != source {
                tracing::debug!(signal = spec.name, from = ?known, to = ?source, "source changed");
                *known = source;
            }
        }
        if self.sources != before {
            self.say_sources();
        }
    }

    /// One line for people: which signals come from where, and which are masked.
    fn say_sources(&self) {
        let mut named: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (spec, source) in FEATURES.iter().zip(&self.sources) {
            named
                .entry(source.map_or("masked", Source::name))
                .or_default()
                .push(spec.name);
        }
        tracing::info!(sources = ?named, "signals");
    }

    /// Detaches the kernel programs. From the next beacon on, what only they give is masked.
    pub fn detach_bpf(&mut self) {
        if self.probes.take().is_some() {
            self.refused = vec![("all".to_owned(), "detached".to_owned())];
        }
    }

    /// Sources as of the last full sample.
    pub fn sources(&self) -> SourceReport {
        let programs = self.probes.as_ref().map_or(0, |probes| probes.programs().len());
        SourceReport {
            programs: programs as u32,
            source: if programs > 0 {
                Source::TpBtf.name()
            } else {
                Source::Procfs.name()
            },
            signals: FEATURES
                .iter()
                .zip(&self.sources)
                .map(|(spec, source)| (spec.name, *source))
                .collect(),
            refused: self.refused.clone(),
        }
    }

    pub fn cost(&self) -> OwnCost {
        OwnCost {
            sample_ns: self.sample_ns,
            process_ns: cpu_ns(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap_or(0),
            bpf_ns: self.probes.as_ref().and_then(Probes::run_time_ns),
            stamps_lost: self.probes.as_ref().map_or(0, |probes| probes.lost().0),
            exits_lost: self.probes.as_ref().map_or(0, |probes| probes.lost().1),
        }
    }

    /// What the machine is, for `Hello`.
    pub fn inventory(&self) -> Inventory {
        let sources = self.sources();
        inventory::of_machine(sources.programs, sources.source)
    }
}

fn cpu_ns(clock: ClockId) -> Option<u64> {
    let time = clock_gettime(clock).ok()?;
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
}

// The event loop may run it on any worker thread.
const _: fn() = || {
    fn sendable<T: Send>() {}
    sendable::<Telemetry>();
};
