//! `agent.toml`: raw TOML, then validated. Every refusal names the file and the key's path.
//!
//! Invariants: nothing is clamped or guessed; paths are relative to the file that names them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use understudy_common::domain::Domain;
use understudy_common::id::{CoordinatorId, HostId};
use understudy_common::identity::{Credentials, IdentityError, Principal};
use understudy_common::key_path;

use crate::telemetry::TelemetryConfig;

/// More coordinators than this only slow commits down.
pub const COORDINATORS_MAX: usize = 7;
const NAME_MAX: usize = 64;
/// 8 GiB take four and a half hours.
const SCRUB_KIB_S: u64 = 512;
/// 1 GiB/s, more than one thread reads and hashes.
const SCRUB_KIB_S_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: {key}: {rule}", path.display())]
    Rule {
        path: PathBuf,
        key: String,
        rule: String,
    },
    #[error("{}", path.display())]
    Identity {
        path: PathBuf,
        #[source]
        source: IdentityError,
    },
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    host: u32,
    name: String,
    state_dir: PathBuf,
    listen: String,
    identity: RawIdentity,
    coordinators: Vec<RawCoordinator>,
    #[serde(default)]
    telemetry: TelemetryConfig,
    bpf: RawBpf,
    workload: RawWorkload,
    #[serde(default)]
    sync: RawSync,
    #[serde(default)]
    domain: Domain,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIdentity {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCoordinator {
    id: u64,
    addr: String,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBpf {
    pin_dir: PathBuf,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWorkload {
    cgroup: PathBuf,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSync {
    scrub_kib_s: u64,
}

impl Default for RawSync {
    fn default() -> Self {
        Self {
            scrub_kib_s: SCRUB_KIB_S,
        }
    }
}

/// A coordinator and where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coordinator {
    pub id: CoordinatorId,
    pub addr: SocketAddr,
}

#[derive(Clone, Debug)]
pub struct AgentConfig {
    pub host: HostId,
    pub name: String,
    /// On a disk of the host's own: the copies' journals are written here.
    pub state_dir: PathBuf,
    /// How fast the files of each service are read again to find what no mark told; 0 is never.
    pub scrub_bytes_s: u64,
    /// Where other hosts' agents reach this one; also told to the coordinators.
    pub listen: SocketAddr,
    pub credentials: Credentials,
    /// Where its certificate is, and renewed ones go.
    pub certificate: PathBuf,
    pub coordinators: Vec<Coordinator>,
    pub telemetry: TelemetryConfig,
    /// On a bpffs.
    pub pin_dir: PathBuf,
    /// On cgroup2; the parent of the services' cgroups.
    pub cgroup: PathBuf,
    /// What this host shares with others, and loses together with them.
    pub domain: Domain,
}

struct File<'a>(&'a Path);

impl File<'_> {
    fn refuse(&self, key: impl Into<String>, rule: impl Into<String>) -> ConfigError {
        ConfigError::Rule {
            path: self.0.to_owned(),
            key: key.into(),
            rule: rule.into(),
        }
    }

    fn resolve(&self, path: &Path) -> PathBuf {
        self.0.parent().unwrap_or(Path::new("")).join(path)
    }

    fn bytes(&self, path: &Path) -> Result<Vec<u8>, ConfigError> {
        let path = self.resolve(path);
        std::fs::read(&path).map_err(|source| ConfigError::Read { path, source })
    }

    fn addr(&self, key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
        let addr = text.parse::<SocketAddr>().ok().filter(|addr| addr.port() != 0);
        addr.ok_or_else(|| {
            self.refuse(
                key,
                format!("`{text}` is not an address with a port, like 192.0.2.11:7401"),
            )
        })
    }

    fn absolute(&self, key: &str, path: PathBuf) -> Result<PathBuf, ConfigError> {
        if path.is_absolute() {
            return Ok(path);
        }
        Err(self.refuse(key, format!("`{}` is not an absolute directory", path.display())))
    }

    fn coordinators(&self, raw: &[RawCoordinator]) -> Result<Vec<Coordinator>, ConfigError> {
        if raw.is_empty() || raw.len() > COORDINATORS_MAX {
            return Err(self.refuse("coordinators", format!("1 to {COORDINATORS_MAX} coordinators")));
        }
        let mut all: Vec<Coordinator> = Vec::new();
        for RawCoordinator { id, addr } in raw {
            let (id, addr) = (CoordinatorId(*id), self.addr("coordinators.addr", addr)?);
            if id.0 == 0 || all.iter().any(|known| known.id == id) {
                return Err(self.refuse("coordinators.id", "different numbers, from 1"));
            }
            if all.iter().any(|known| known.addr == addr) {
                return Err(self.refuse("coordinators.addr", format!("{addr} is there twice")));
            }
            all.push(Coordinator { id, addr });
        }
        Ok(all)
    }
}

impl AgentConfig {
    /// # Errors
    /// [`ConfigError`] naming the file and the key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let file = File(path);
        let raw: Raw = toml::from_str(&text)
            .map_err(|error| file.refuse(key_path::of(&text, error.span()), error.message()))?;
        let host = HostId(raw.host);
        if host.0 == 0 {
            return Err(file.refuse("host", "a number from 1"));
        }
        if raw.name.is_empty() || raw.name.len() > NAME_MAX || raw.name.chars().any(char::is_control) {
            return Err(file.refuse("name", format!("1 to {NAME_MAX} printable bytes")));
        }
        let listen = file.addr("listen", &raw.listen)?;
        if listen.ip().is_unspecified() {
            let rule = "the address at which other hosts reach this one, not the unspecified one";
            return Err(file.refuse("listen", rule));
        }
        raw.domain
            .check()
            .map_err(|(label, rule)| file.refuse(format!("domain.{label}"), rule))?;
        let identity = &raw.identity;
        let credentials = Credentials::from_pem(
            &file.bytes(&identity.ca)?,
            &file.bytes(&identity.cert)?,
            &file.bytes(&identity.key)?,
        )
        .map_err(|source| ConfigError::Identity {
            path: file.resolve(&identity.cert),
            source,
        })?;
        if credentials.principal() != Principal::Host(host) {
            let rule = format!("a certificate of {host}, not that of {}", credentials.principal());
            return Err(file.refuse("identity.cert", rule));
        }
        Ok(Self {
            host,
            name: raw.name,
            state_dir: file.absolute("state_dir", raw.state_dir)?,
            scrub_bytes_s: match raw.sync.scrub_kib_s {
                kib @ ..=SCRUB_KIB_S_MAX => kib << 10,
                _ => return Err(file.refuse("sync.scrub_kib_s", format!("0 to {SCRUB_KIB_S_MAX}"))),
            },
            listen,
            credentials,
            certificate: file.resolve(&identity.cert),
            coordinators: file.coordinators(&raw.coordinators)?,
            telemetry: raw.telemetry,
            pin_dir: file.absolute("bpf.pin_dir", raw.bpf.pin_dir)?,
            cgroup: file.absolute("workload.cgroup", raw.workload.cgroup)?,
            domain: raw.domain,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
host = 2
name = "b"
state_dir = "/srv/understudy"
listen = "192.0.2.12:7401"

[identity]
ca = "ca.pem"
cert = "host-2.pem"
key = "host-2.key"

[[coordinators]]
id = 1
addr = "192.0.2.1:7400"

[telemetry]
bpf = true

[bpf]
pin_dir = "/sys/fs/bpf/understudy/2"

[workload]
cgroup = "/sys/fs/cgroup/understudy"

[domain]
rack = "r1"
"#;

    /// A directory with the certificate of `host-2` in the files that [`GOOD`] names.
    fn cluster() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(params, &ca_key);
        let name = Principal::Host(HostId(2)).dns_name();
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(vec![name]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        for (file, text) in [
            ("ca.pem", ca.pem()),
            ("host-2.pem", leaf.pem()),
            ("host-2.key", key.serialize_pem()),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        dir
    }

    fn read(dir: &tempfile::TempDir, text: &str) -> Result<AgentConfig, ConfigError> {
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        AgentConfig::read(&path)
    }

    #[test]
    fn a_complete_file_is_read() {
        let config = read(&cluster(), GOOD).unwrap();
        assert_eq!((config.host, config.name.as_str()), (HostId(2), "b"));
        assert_eq!(config.coordinators.len(), 1);
        assert!(config.telemetry.bpf);
        assert_eq!(config.domain.rack.as_deref(), Some("r1"));
        assert_eq!(config.domain.power, None);
    }

    #[test]
    fn what_is_wrong_is_refused_by_its_key() {
        let dir = cluster();
        for (from, to, expected) in [
            ("listen = ", "listne = ", "listne"),
            ("bpf = true", "bfp = true", "telemetry.bfp"),
            ("192.0.2.12:7401", "192.0.2.12", "listen: `192.0.2.12`"),
            ("192.0.2.12:7401", "0.0.0.0:7401", "listen: the address at which"),
            ("/srv/understudy", "srv", "state_dir: `srv` is not"),
            ("host = 2", "host = 0", "host: a number from 1"),
            ("host = 2", "host = 3", "identity.cert: a certificate of host-3"),
            ("id = 1", "id = 0", "coordinators.id"),
            ("pin_dir = \"/", "pin_dir = \"", "bpf.pin_dir"),
            ("rack = \"r1\"", "rack = \"\"", "domain.rack: 1 to 64"),
            ("rack = ", "rakc = ", "domain.rakc"),
        ] {
            let error = read(&dir, &GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }

    #[test]
    fn a_missing_certificate_names_its_file() {
        let dir = cluster();
        std::fs::remove_file(dir.path().join("host-2.key")).unwrap();
        let error = read(&dir, GOOD).unwrap_err().to_string();
        assert!(error.contains("host-2.key"), "{error}");
    }
}
