//! One coordinator's configuration, and a certificate for whoever is needed.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use time::OffsetDateTime;
use understudy_common::id::CoordinatorId;
use understudy_common::identity::{Credentials, Principal};
use understudy_coordinator::authority::{Authority, CA_DAYS_MIN, Pair, Validity};

pub(super) const COORDINATOR: CoordinatorId = CoordinatorId(1);

pub(super) struct Cluster {
    authority: Authority,
    validity: Validity,
}

impl Cluster {
    /// Writes `coordinator.toml` and what it names. Who starts the coordinator may add to it.
    pub(super) fn create(dir: &Path, listen: SocketAddr) -> Result<Self> {
        let validity = Validity::days_from(OffsetDateTime::now_utc(), CA_DAYS_MIN);
        let authority = Authority::new(validity)?;
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let Pair { certificate, key } = authority.issue(Principal::Coordinator(COORDINATOR), validity)?;
        let id = COORDINATOR.0;
        let config = format!(
            "id = {id}\ndata_dir = \"data\"\nlisten = \"{listen}\"\n\n[identity]\nca = \"ca.pem\"\ncert = \"coordinator.pem\"\nkey = \"coordinator.key\"\n\n[[members]]\nid = {id}\naddr = \"{listen}\"\n"
        );
        for (name, text) in [
            ("ca.pem", &authority.pair().certificate),
            ("coordinator.pem", &certificate),
            ("coordinator.key", &key),
            ("coordinator.toml", &config),
        ] {
            std::fs::write(dir.join(name), text).with_context(|| dir.join(name).display().to_string())?;
        }
        Ok(Self { authority, validity })
    }

    pub(super) fn credentials(&self, principal: Principal) -> Result<Credentials> {
        let Pair { certificate, key } = self.authority.issue(principal, self.validity)?;
        let ca = self.authority.pair().certificate.as_bytes();
        Ok(Credentials::from_pem(ca, certificate.as_bytes(), key.as_bytes())?)
    }
}
