//! `cluster.toml`: whom the operator's CLI asks, and as whom.

use std::path::Path;

use understudy_common::identity::{Credentials, Principal};

use super::{ConfigError, File, Member, RawIdentity, RawMember};

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    identity: RawIdentity,
    coordinators: Vec<RawMember>,
}

#[derive(Clone, Debug)]
pub struct ClusterConfig {
    pub credentials: Credentials,
    pub coordinators: Vec<Member>,
}

impl ClusterConfig {
    /// # Errors
    /// [`ConfigError`] naming the file and the key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let (file, raw) = File::read::<Raw>(path)?;
        let credentials = file.credentials(&raw.identity)?;
        if credentials.principal() != Principal::Operator {
            let rule = format!(
                "an operator's certificate, not that of {}",
                credentials.principal()
            );
            return Err(file.refuse("identity.cert", rule));
        }
        Ok(Self {
            credentials,
            coordinators: file.members("coordinators", &raw.coordinators)?,
        })
    }
}
