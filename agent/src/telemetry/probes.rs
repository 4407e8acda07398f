//! The attached telemetry programs, and what they counted.
//!
//! Invariant: what is not attached is named with its reason.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::Ebpf;
use aya::maps::PerCpuArray;
use aya_log::EbpfLogger;
use understudy_common::abi::telemetry::Metrics;
use understudy_common::beacon::{Feature, Source};

use super::attach::{self, ProbeError, chain};
use super::exits::Exits;
use super::family::{FAMILIES, Family};
use super::fold::{Sample, Signal};
use super::histogram::accumulate;
use super::scope::Scope;
use crate::btf::Btf;

/// The kernel's record as aya reads it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Record(Metrics);

// SAFETY: `Metrics` is `repr(C)`, all `u64`, without padding: every bit pattern is a value.
unsafe impl aya::Pod for Record {}

/// The attached programs. Dropping it detaches them.
pub struct Probes {
    ebpf: Ebpf,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    stats: Option<OwnedFd>,
    attached: Vec<&'static Family>,
    programs: Vec<&'static str>,
    refused: Vec<(String, String)>,
    lost: (u64, u64),
}

pub struct ProbeOptions {
    pub stats: bool,
    pub log: bool,
}

impl Probes {
    /// # Errors
    /// [`ProbeError`] when nothing can be loaded at all: no permission, or no BTF.
    pub fn attach(scope: Option<&Scope>, options: &ProbeOptions) -> Result<Self, ProbeError> {
        let types = Btf::load()?;
        let btf = aya::Btf::from_sys_fs().map_err(attach::refused("the kernel's BTF"))?;
        let offsets = attach::offsets(&types);
        let mut ebpf = attach::load(&offsets, scope, options.log)?;

        let mut probes_refused = Vec::new();
        let (mut attached, mut programs) = (Vec::new(), Vec::new());
        for family in &FAMILIES {
            let done = attach::usable(family, &types, &offsets, scope)
                .and_then(|()| attach::attach_family(&mut ebpf, family, &types, &btf, &mut programs));
            match done {
                Ok(()) => attached.push(family),
                Err(error) => probes_refused.push((family.name.to_owned(), chain(&error))),
            }
        }
        if attached.is_empty()
            && let Some((what, why)) = probes_refused.first().cloned()
        {
            return Err(ProbeError::None { what, why });
        }
        let logger = if options.log {
            EbpfLogger::init(&mut ebpf).ok()
        } else {
            None
        };
        let stats = options
            .stats
            .then(|| aya::sys::enable_stats(aya::sys::Stats::RunTime));
        let stats = stats.and_then(|enabled| {
            enabled
                .map_err(|error| probes_refused.push(("bpf_stats".to_owned(), chain(&error))))
                .ok()
        });
        Ok(Self {
            ebpf,
            logger,
            stats,
            attached,
            programs,
            refused: probes_refused,
            lost: (0, 0),
        })
    }

    /// Attached programs.
    pub fn programs(&self) -> &[&'static str] {
        &self.programs
    }

    /// What is not attached, and why.
    pub fn refused(&self) -> &[(String, String)] {
        &self.refused
    }

    pub fn gives(&self, feature: Feature) -> bool {
        self.attached
            .iter()
            .any(|family| family.features.contains(&feature))
    }

    /// Reads the record of all CPUs with one system call.
    pub fn scrape(&mut self, sample: &mut Sample) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        let Some(metrics) = self.read() else { return };
        for (feature, value, scale) in [
            (Feature::BlockErrorsPerSecond, metrics.block_errors, 1.0),
            (Feature::FsyncsPerSecond, metrics.fsync.buckets.iter().sum(), 1.0),
            (Feature::ReclaimStallsPerSecond, metrics.reclaim_stalls, 1.0),
            (Feature::ReclaimStallMicros, metrics.reclaim_ns, 1e-3),
            (Feature::OomKillsPerSecond, metrics.oom_kills, 1.0),
            (Feature::TcpRetransmitsPerSecond, metrics.tcp_retransmits, 1.0),
            (Feature::ExitsPerSecond, metrics.exits, 1.0),
            (Feature::ExitsBySignalPerSecond, metrics.exits_by_signal, 1.0),
        ] {
            if self.gives(feature) {
                sample.put(feature, Source::TpBtf, Signal::Total { value, scale });
            }
        }
        if let Some(ns) = self.run_time_ns() {
            let share = Signal::Total {
                value: ns,
                scale: 1e-9,
            };
            sample.put(Feature::BpfCpuShare, Source::TpBtf, share);
        }
        self.lost = (metrics.stamps_lost, metrics.exits_lost);
        sample.metrics = Some(metrics);
    }

    /// Durations that could not be measured because a map was full, and ends of processes that could not be
    /// pushed, as of the last scrape.
    pub const fn lost(&self) -> (u64, u64) {
        self.lost
    }

    /// The ends of services' processes, once; none where that program is not attached.
    pub fn exits(&mut self) -> Option<Exits> {
        if !self.programs.contains(&"workload_exit") {
            return None;
        }
        Exits::new(self.ebpf.take_map("EXITS")?, self.ebpf.take_map("WATCHED")?)
    }

    /// Sum of the CPUs' records since the programs were attached.
    fn read(&self) -> Option<Box<Metrics>> {
        let map = PerCpuArray::<_, Record>::try_from(self.ebpf.map("METRICS")?).ok()?;
        let mut sum = Box::new(Metrics::EMPTY);
        for cpu in map.get(&0, 0).ok()?.iter() {
            accumulate(&mut sum, &cpu.0);
        }
        Some(sum)
    }

    /// Time that the attached programs ran since they were attached; `None` while the kernel does not measure it.
    pub fn run_time_ns(&self) -> Option<u64> {
        if self.stats.is_none() && !stats_are_on() {
            return None;
        }
        let mut sum = 0_u64;
        for name in &self.programs {
            let fd = self.ebpf.program(name)?.fd().ok()?.as_fd().as_raw_fd();
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            let line = info.lines().find_map(|line| line.strip_prefix("run_time_ns:"))?;
            sum = sum.saturating_add(line.trim().parse().ok()?);
        }
        Some(sum)
    }
}

fn stats_are_on() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|on| on.trim() == "1")
}
