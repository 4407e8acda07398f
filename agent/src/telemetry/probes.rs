//! Loads the telemetry programs and reads what they counted.
//!
//! Invariants: a program is loaded only when every field it reads was found in the kernel's BTF and its tracepoint has
//! the arguments it expects; a family of programs that is not complete is not attached at all; what is not attached is
//! named with its reason.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::maps::PerCpuArray;
use aya::programs::BtfTracePoint;
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use understudy_common::abi::telemetry::Metrics;
use understudy_common::beacon::{Feature, Source};

use super::family::{FAMILIES, FIELDS, Family, ProgramSpec, ScopeKind};
use super::fold::{Sample, Signal};
use super::histogram::accumulate;
use super::scope::Scope;
use crate::btf::{Btf, BtfError};
use crate::object;

/// Log levels of the programs, as `aya_log_common::Level` counts them.
const LOG_OFF: u8 = 0;
const LOG_DEBUG: u8 = 4;

/// The kernel's record as aya reads it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Record(Metrics);

// SAFETY: `Metrics` is `repr(C)`, all `u64`, without padding: every bit pattern is a value.
unsafe impl aya::Pod for Record {}

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Types(#[from] BtfError),
    #[error("{what}: {why}")]
    Refused { what: &'static str, why: String },
    #[error("nothing could be attached; {what}: {why}")]
    None { what: String, why: String },
    #[error("telemetry.scope.{0} is not set, so this cannot be told apart")]
    Unscoped(&'static str),
}

/// The attached programs. Dropping it detaches them.
pub struct Probes {
    ebpf: Ebpf,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    stats: Option<OwnedFd>,
    attached: Vec<&'static Family>,
    programs: Vec<&'static str>,
    refused: Vec<(String, String)>,
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
        let btf = aya::Btf::from_sys_fs().map_err(refused("the kernel's BTF"))?;
        let mut offsets = BTreeMap::new();
        for (global, structure, fields) in FIELDS {
            let found = fields
                .iter()
                .find_map(|field| types.offset(structure, field).ok());
            offsets.extend(found.map(|offset| (*global, offset)));
        }
        let mut ebpf = load(&offsets, scope, options)?;

        let mut probes_refused = Vec::new();
        let (mut attached, mut programs) = (Vec::new(), Vec::new());
        for family in &FAMILIES {
            let done = usable(family, &types, &offsets, scope)
                .and_then(|()| attach_family(&mut ebpf, family, &types, &btf, &mut programs));
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
        sample.metrics = Some(metrics);
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

fn load(
    offsets: &BTreeMap<&'static str, u32>,
    scope: Option<&Scope>,
    options: &ProbeOptions,
) -> Result<Ebpf, ProbeError> {
    let cgroup = scope.and_then(|scope| scope.cgroup.as_ref());
    let (cgroup_id, level) = cgroup.map_or((0, 0), |cgroup| (cgroup.id, cgroup.level));
    let netns = scope.and_then(|scope| scope.netns).unwrap_or(0);
    let devices = scope.map_or(&[][..], |scope| &scope.devices);
    let device: [u32; 4] = std::array::from_fn(|n| devices.get(n).map_or(0, |device| device.kernel()));
    let level_of_log = if options.log { LOG_DEBUG } else { LOG_OFF };

    let mut loader = EbpfLoader::new();
    for (name, offset) in offsets {
        loader.override_global(name, offset, true);
    }
    loader
        .override_global("SCOPE_CGROUP", &cgroup_id, true)
        .override_global("SCOPE_LEVEL", &level, true)
        .override_global("SCOPE_NETNS", &netns, true)
        .override_global("SCOPE_DEVICE_0", &device[0], true)
        .override_global("SCOPE_DEVICE_1", &device[1], true)
        .override_global("SCOPE_DEVICE_2", &device[2], true)
        .override_global("SCOPE_DEVICE_3", &device[3], true)
        .override_global(aya_log::LEVEL, &level_of_log, true);
    loader
        .load(object::TELEMETRY)
        .map_err(refused("loading the telemetry object"))
}

fn usable(
    family: &Family,
    types: &Btf,
    offsets: &BTreeMap<&'static str, u32>,
    scope: Option<&Scope>,
) -> Result<(), ProbeError> {
    let scoped = match (scope, family.scope) {
        (None, _) => &[][..],
        (Some(scope), ScopeKind::Tasks) if scope.cgroup.is_none() => {
            return Err(ProbeError::Unscoped("cgroup"));
        }
        (Some(scope), ScopeKind::Devices | ScopeKind::Files) if scope.devices.is_empty() => {
            return Err(ProbeError::Unscoped("devices"));
        }
        (Some(scope), ScopeKind::Sockets) if scope.netns.is_none() => {
            return Err(ProbeError::Unscoped("netns"));
        }
        (Some(_), kind) => kind.fields(),
    };
    for global in family.fields.iter().chain(scoped) {
        if !offsets.contains_key(global) {
            return Err(missing_field(global).into());
        }
    }
    for program in family.programs.iter().filter(|program| !program.optional) {
        tracepoint(program, types)?;
    }
    Ok(())
}

fn missing_field(global: &str) -> BtfError {
    let field = FIELDS.iter().find(|(name, ..)| *name == global);
    BtfError::Missing {
        kind: "field",
        name: field.map_or_else(
            || global.to_owned(),
            |(_, of, names)| format!("{of}.{}", names[0]),
        ),
    }
}

/// Attaches all programs of a family, or none.
fn attach_family(
    ebpf: &mut Ebpf,
    family: &'static Family,
    types: &Btf,
    btf: &aya::Btf,
    programs: &mut Vec<&'static str>,
) -> Result<(), ProbeError> {
    let before = programs.len();
    for spec in family.programs {
        let at = match tracepoint(spec, types) {
            Err(_) if spec.optional => continue,
            found => found,
        };
        if let Err(error) = at.and_then(|at| attach_program(ebpf, spec.name, at, btf)) {
            for name in programs.drain(before..) {
                if let Ok(program) = program(ebpf, name) {
                    // It was loaded a moment ago; unloading it detaches it.
                    let _ = program.unload();
                }
            }
            return Err(error);
        }
        programs.push(spec.name);
    }
    Ok(())
}

/// The best of a program's tracepoints that this kernel has with the expected arguments.
fn tracepoint(spec: &ProgramSpec, types: &Btf) -> Result<&'static str, ProbeError> {
    let mut error = None;
    for name in spec.tracepoints {
        match types.check_tracepoint(name, spec.arguments) {
            Ok(()) => return Ok(name),
            Err(found) => error = error.or(Some(found)),
        }
    }
    let missing = || BtfError::Missing {
        kind: "tracepoint",
        name: spec.name.to_owned(),
    };
    Err(error.unwrap_or_else(missing).into())
}

fn attach_program(ebpf: &mut Ebpf, name: &str, tracepoint: &str, btf: &aya::Btf) -> Result<(), ProbeError> {
    let program = program(ebpf, name)?;
    program
        .load(tracepoint, btf)
        .map_err(refused("loading the program"))?;
    program.attach().map_err(refused("attaching the program"))?;
    Ok(())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint, ProbeError> {
    let program = ebpf.program_mut(name).ok_or_else(|| ProbeError::Refused {
        what: "the telemetry object",
        why: format!("it has no program {name}"),
    })?;
    program.try_into().map_err(refused("the telemetry object"))
}

fn refused<E: std::error::Error>(what: &'static str) -> impl FnOnce(E) -> ProbeError {
    move |error| ProbeError::Refused {
        what,
        why: chain(&error),
    }
}

/// An error with its sources on one line; the verifier's log is cut to its end.
fn chain(error: &dyn std::error::Error) -> String {
    const TAIL: usize = 400;
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    let start = text.len().saturating_sub(TAIL);
    let start = (start..=text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text[start..].trim().to_owned()
}
