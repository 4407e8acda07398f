//! Configuration files: raw TOML, then validated. Every refusal names the file and the key's path.
//!
//! Invariants: nothing is clamped or guessed; paths are relative to the file that names them.

mod cluster;
mod coordinator;

use std::path::{Path, PathBuf};

use understudy_common::identity::{Credentials, IdentityError};
use understudy_common::key_path;

pub use cluster::ClusterConfig;
pub use coordinator::{CoordinatorConfig, Prediction};

/// A voter and where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: understudy_common::id::CoordinatorId,
    pub addr: std::net::SocketAddr,
}

/// Voters of one cluster.
pub const MEMBERS_MAX: usize = crate::state::VOTERS_MAX;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {key}: {rule}")]
    Rule {
        path: PathBuf,
        key: String,
        rule: String,
    },
    #[error("{path}: {source}")]
    Identity { path: PathBuf, source: IdentityError },
}

#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawIdentity {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawMember {
    id: u64,
    addr: String,
}

/// One file while it is being validated.
struct File<'a> {
    path: &'a Path,
}

impl<'a> File<'a> {
    fn read<T: serde::de::DeserializeOwned>(path: &'a Path) -> Result<(Self, T), ConfigError> {
        let text = read_text(path)?;
        let raw = toml::from_str(&text).map_err(|error| ConfigError::Rule {
            path: path.to_owned(),
            key: key_path::of(&text, error.span()),
            rule: error.message().to_owned(),
        })?;
        Ok((Self { path }, raw))
    }

    fn refuse(&self, key: impl Into<String>, rule: impl Into<String>) -> ConfigError {
        ConfigError::Rule {
            path: self.path.to_owned(),
            key: key.into(),
            rule: rule.into(),
        }
    }

    fn resolve(&self, path: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    fn credentials(&self, raw: &RawIdentity) -> Result<Credentials, ConfigError> {
        let read = |path: &Path| read_bytes(&self.resolve(path));
        Credentials::from_pem(&read(&raw.ca)?, &read(&raw.cert)?, &read(&raw.key)?).map_err(|source| {
            ConfigError::Identity {
                path: self.resolve(&raw.cert),
                source,
            }
        })
    }

    fn addr(&self, key: &str, text: &str) -> Result<std::net::SocketAddr, ConfigError> {
        text.parse().map_err(|_| {
            self.refuse(
                key,
                format!("`{text}` is not an address with a port, like 192.0.2.1:7400"),
            )
        })
    }

    fn members(&self, key: &str, raw: &[RawMember]) -> Result<Vec<Member>, ConfigError> {
        if raw.is_empty() || raw.len() > MEMBERS_MAX {
            return Err(self.refuse(key, format!("1 to {MEMBERS_MAX} coordinators")));
        }
        let mut members: Vec<Member> = Vec::new();
        for member in raw {
            let addr = self.addr(&format!("{key}.addr"), &member.addr)?;
            let id = understudy_common::id::CoordinatorId(member.id);
            if member.id == 0 || members.iter().any(|m| m.id == id) {
                return Err(self.refuse(format!("{key}.id"), "different numbers, from 1"));
            }
            if members.iter().any(|m| m.addr == addr) {
                return Err(self.refuse(format!("{key}.addr"), format!("{addr} is there twice")));
            }
            members.push(Member { id, addr });
        }
        Ok(members)
    }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}
