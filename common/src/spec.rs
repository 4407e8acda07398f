//! What an operator declares about a service: raw TOML as read, and the validated form.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::id::HostId;

/// A validated service declaration, as it stands in the replicated state and in orders.
#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct ServiceSpec {
    pub name: String,
    /// Absolute directories that hold the service's state. The same on every host.
    pub paths: Vec<String>,
    /// The virtual address and its prefix length.
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    /// Interface that carries the address on every host.
    pub interface: String,
    pub consistency: Consistency,
    pub freeze_ms_max: u32,
    pub ack: Ack,
    /// Hosts that may hold the service, in order of preference. The first is the first primary.
    pub hosts: Vec<HostId>,
    pub workload: Workload,
    pub policy: Policy,
}

/// What is to be done where there is a choice.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    pub domains: Domains,
    pub coordinator_loss: CoordinatorLoss,
}

/// Where shadows may stand.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Domains {
    /// None shares a rack, a power supply or a region with the primary.
    #[default]
    Spread,
    /// Anywhere among the service's hosts.
    Any,
}

#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    Freeze,
    Live,
}

/// What an acknowledgement of the service to its clients promises, so that reports can name the
/// loss that a crash may cause.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Ack {
    Memory,
    Written,
    Synced,
}

#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Workload {
    /// Program and arguments; it stays in the foreground.
    pub start: Vec<String>,
    /// SIGTERM is followed by SIGKILL after this long.
    pub stop_timeout: Duration,
    /// The service counts as started once this answers.
    pub health: Health,
    /// How long a start may take until it counts as failed.
    pub start_timeout: Duration,
    /// Makes the running program refuse writes, and take them again. Both or neither (empty); each
    /// exits 0 when it is so and is harmless to repeat.
    pub read_only: Vec<String>,
    pub read_write: Vec<String>,
}

/// What a holder does that has neither the coordinators nor the promises of all its shadows.
///
/// With anything but `Stop` the coordinators never take over from a holder because it is silent: it
/// may well be serving. They need evidence that it cannot.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum CoordinatorLoss {
    /// The gate closes when the lease ends.
    #[default]
    Stop,
    /// It goes on.
    Serve,
    /// It goes on once the workload's `read_only` command succeeded within the lease, else it stops.
    ReadOnly,
}

#[derive(
    Clone,
    Debug,
    PartialEq,
    Eq,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// A TCP connection to this address of the host is accepted.
    Tcp(SocketAddr),
    /// The command exits 0.
    Exec(Vec<String>),
}

/// The declaration as it stands in TOML, before validation.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawServiceSpec {
    pub name: String,
    pub paths: Vec<String>,
    /// `192.0.2.10/24`
    pub address: String,
    pub interface: String,
    #[serde(default = "default_consistency")]
    pub consistency: Consistency,
    #[serde(default = "default_freeze_ms_max")]
    pub freeze_ms_max: u32,
    #[serde(default = "default_ack")]
    pub ack: Ack,
    pub hosts: Vec<u32>,
    pub workload: RawWorkload,
    #[serde(default)]
    pub policy: Policy,
}

#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawWorkload {
    pub start: Vec<String>,
    #[serde(default = "default_stop_timeout_ms")]
    pub stop_timeout_ms: u64,
    #[serde(default = "default_start_timeout_ms")]
    pub start_timeout_ms: u64,
    pub health: Health,
    #[serde(default)]
    pub read_only: Vec<String>,
    #[serde(default)]
    pub read_write: Vec<String>,
}

const fn default_consistency() -> Consistency {
    Consistency::Freeze
}
const fn default_freeze_ms_max() -> u32 {
    50
}
const fn default_ack() -> Ack {
    Ack::Written
}
const fn default_stop_timeout_ms() -> u64 {
    5_000
}
const fn default_start_timeout_ms() -> u64 {
    30_000
}

/// One broken rule, with the path of the key that breaks it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {rule}")]
pub struct SpecError {
    pub key: &'static str,
    pub rule: String,
}

const PATHS_MAX: usize = 64;
const HOSTS_MAX: usize = 16;

impl TryFrom<RawServiceSpec> for ServiceSpec {
    type Error = SpecError;

    fn try_from(raw: RawServiceSpec) -> Result<Self, SpecError> {
        let fail = |key, rule: &str| {
            Err(SpecError {
                key,
                rule: rule.to_owned(),
            })
        };
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if raw.name.is_empty() || raw.name.len() > 32 || !raw.name.chars().all(named) {
            return fail("name", "1 to 32 lower-case letters, digits and hyphens");
        }
        if raw.paths.is_empty() || raw.paths.len() > PATHS_MAX {
            return fail("paths", "1 to 64 directories");
        }
        for path in &raw.paths {
            let clean = path.starts_with('/')
                && path.len() > 1
                && !path.ends_with('/')
                && path
                    .split('/')
                    .skip(1)
                    .all(|part| !matches!(part, "" | "." | ".."));
            if !clean {
                return fail("paths", &format!("`{path}` is not a plain absolute directory"));
            }
        }
        let (address, prefix_len) = raw
            .address
            .split_once('/')
            .and_then(|(ip, len)| Some((ip.parse::<Ipv4Addr>().ok()?, len.parse::<u8>().ok()?)))
            .filter(|(ip, len)| (1..=32).contains(len) && !ip.is_loopback() && !ip.is_unspecified())
            .ok_or_else(|| SpecError {
                key: "address",
                rule: format!(
                    "`{}` is not an IPv4 address with a prefix length, like 192.0.2.10/24",
                    raw.address
                ),
            })?;
        if raw.interface.is_empty() || raw.interface.len() > 15 {
            return fail("interface", "1 to 15 characters");
        }
        if !(1..=1_000).contains(&raw.freeze_ms_max) {
            return fail("freeze_ms_max", "1 to 1000 milliseconds");
        }
        let distinct: std::collections::BTreeSet<_> = raw.hosts.iter().collect();
        if raw.hosts.len() < 2
            || raw.hosts.len() > HOSTS_MAX
            || distinct.len() != raw.hosts.len()
            || distinct.contains(&0)
        {
            return fail("hosts", "2 to 16 different host numbers, from 1");
        }
        if raw.workload.start.is_empty() || !raw.workload.start[0].starts_with('/') {
            return fail(
                "workload.start",
                "the absolute path of a program, then its arguments",
            );
        }
        if matches!(&raw.workload.health, Health::Exec(command) if command.is_empty()) {
            return fail("workload.health.exec", "a program, then its arguments");
        }
        for (key, command) in [
            ("workload.read_only", &raw.workload.read_only),
            ("workload.read_write", &raw.workload.read_write),
        ] {
            if command.first().is_some_and(|program| !program.starts_with('/')) {
                return fail(key, "the absolute path of a program, then its arguments");
            }
        }
        if raw.workload.read_only.is_empty() != raw.workload.read_write.is_empty() {
            return fail(
                "workload.read_only",
                "together with workload.read_write, or neither",
            );
        }
        if raw.policy.coordinator_loss == CoordinatorLoss::ReadOnly && raw.workload.read_only.is_empty() {
            return fail(
                "policy.coordinator_loss",
                "`read-only` needs workload.read_only and workload.read_write",
            );
        }
        if !(1..=600_000).contains(&raw.workload.stop_timeout_ms) {
            return fail("workload.stop_timeout_ms", "1 to 600000 milliseconds");
        }
        if !(1..=3_600_000).contains(&raw.workload.start_timeout_ms) {
            return fail("workload.start_timeout_ms", "1 to 3600000 milliseconds");
        }
        Ok(Self {
            name: raw.name,
            paths: raw.paths,
            address,
            prefix_len,
            interface: raw.interface,
            consistency: raw.consistency,
            freeze_ms_max: raw.freeze_ms_max,
            ack: raw.ack,
            hosts: raw.hosts.into_iter().map(HostId).collect(),
            workload: Workload {
                start: raw.workload.start,
                stop_timeout: Duration::from_millis(raw.workload.stop_timeout_ms),
                health: raw.workload.health,
                start_timeout: Duration::from_millis(raw.workload.start_timeout_ms),
                read_only: raw.workload.read_only,
                read_write: raw.workload.read_write,
            },
            policy: raw.policy,
        })
    }
}
