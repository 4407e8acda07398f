//! Loads the telemetry object and attaches its programs, family by family.
//!
//! Invariants: a program is loaded only when every field it reads was found in the kernel's BTF and its tracepoint has
//! the arguments it expects; a family of programs that is not complete is not attached at all.

use std::collections::BTreeMap;

use aya::programs::BtfTracePoint;
use aya::{Ebpf, EbpfLoader};

use super::family::{FIELDS, Family, ProgramSpec, ScopeKind};
use super::scope::{DEVICES_MAX, Scope};
use crate::btf::{Btf, BtfError};
use crate::object;

/// Log levels of the programs, as `aya_log_common::Level` counts them.
const LOG_OFF: u8 = 0;
const LOG_DEBUG: u8 = 4;

/// Offsets by the name of the global that holds them. What the kernel does not have is absent.
pub type Offsets = BTreeMap<&'static str, u32>;

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

pub fn offsets(types: &Btf) -> Offsets {
    let found = |(global, structure, fields): &(&'static str, &str, &[&str])| {
        let offset = fields
            .iter()
            .find_map(|field| types.offset(structure, field).ok())?;
        Some((*global, offset))
    };
    FIELDS.iter().filter_map(found).collect()
}

pub fn load(offsets: &Offsets, scope: Option<&Scope>, log: bool) -> Result<Ebpf, ProbeError> {
    let cgroup = scope.and_then(|scope| scope.cgroup.as_ref());
    let (cgroup_id, level) = cgroup.map_or((0, 0), |cgroup| (cgroup.id, cgroup.level));
    let netns = scope.and_then(|scope| scope.netns).unwrap_or(0);
    let devices = scope.map_or(&[][..], |scope| &scope.devices);
    let device: [u32; DEVICES_MAX] =
        std::array::from_fn(|n| devices.get(n).map_or(0, |device| device.kernel()));
    let level_of_log = if log { LOG_DEBUG } else { LOG_OFF };

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

pub fn usable(
    family: &Family,
    types: &Btf,
    offsets: &Offsets,
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
pub fn attach_family(
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

pub fn refused<E: std::error::Error>(what: &'static str) -> impl FnOnce(E) -> ProbeError {
    move |error| ProbeError::Refused {
        what,
        why: chain(&error),
    }
}

/// An error with its sources on one line; the verifier's log is cut to its end.
pub fn chain(error: &dyn std::error::Error) -> String {
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
