//! `coordinator.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use time::Duration;
use understudy_common::id::CoordinatorId;
use understudy_common::identity::{Credentials, Principal};

use super::{ConfigError, File, Member, RawIdentity, RawMember, read_text};
use crate::authority::{self, Authority, Pair};
use crate::issuer::Issuer;

/// Certificates are renewed in their last third: less leaves no time for failures. Below a day there is
/// also little room for wall clocks that differ; it is for tests.
const VALID_S_MIN: u64 = 20;
const VALID_S_MAX: u64 = 36_500 * 86_400;

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    id: u64,
    data_dir: PathBuf,
    listen: String,
    identity: RawIdentity,
    members: Vec<RawMember>,
    #[serde(default)]
    joins: bool,
    prediction: Option<Prediction>,
    issuer: Option<RawIssuer>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIssuer {
    cert: PathBuf,
    key: PathBuf,
    first_host: u32,
    #[serde(default = "default_valid_s")]
    valid_s: u64,
}

/// 90 days: a host may be off for three weeks and still renew.
const fn default_valid_s() -> u64 {
    90 * 86_400
}

#[derive(Debug)]
pub struct CoordinatorConfig {
    pub id: CoordinatorId,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub credentials: Credentials,
    /// Where its certificate is, and renewed ones go.
    pub certificate: PathBuf,
    /// All voters of a new cluster, this one included; of one that runs, those that are known.
    pub members: Vec<Member>,
    /// It joins a cluster that runs.
    pub joins: bool,
    /// None: reactive only.
    pub prediction: Option<Prediction>,
    /// None: it admits no new hosts.
    pub issuer: Option<Issuer>,
}

#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    pub model: PathBuf,
    pub card: PathBuf,
    /// None: where the system's loader finds `libonnxruntime.so`.
    pub onnxruntime: Option<PathBuf>,
}

impl CoordinatorConfig {
    /// # Errors
    /// [`ConfigError`] naming the file and the key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let (file, raw) = File::read::<Raw>(path)?;
        let id = CoordinatorId(raw.id);
        let members = file.members("members", &raw.members)?;
        let named = members.iter().any(|member| member.id == id);
        if !named && !raw.joins {
            let rule = format!(
                "{} is not among the members; one that was added to a cluster that runs has `joins = true`",
                raw.id
            );
            return Err(file.refuse("id", rule));
        }
        if named && raw.joins {
            let rule = format!("{} is among the members of the cluster that it joins", raw.id);
            return Err(file.refuse("joins", rule));
        }
        let credentials = file.credentials(&raw.identity)?;
        if credentials.principal() != Principal::Coordinator(id) {
            let rule = format!("a certificate of {id}, not that of {}", credentials.principal());
            return Err(file.refuse("identity.cert", rule));
        }
        let prediction = raw.prediction.map(|prediction| Prediction {
            model: file.resolve(&prediction.model),
            card: file.resolve(&prediction.card),
            onnxruntime: prediction.onnxruntime.map(|path| file.resolve(&path)),
        });
        Ok(Self {
            id,
            data_dir: file.resolve(&raw.data_dir),
            listen: file.addr("listen", &raw.listen)?,
            credentials,
            certificate: file.resolve(&raw.identity.cert),
            members,
            joins: raw.joins,
            prediction,
            issuer: raw
                .issuer
                .map(|raw_issuer| issuer(&file, &raw.identity, &raw_issuer))
                .transpose()?,
        })
    }
}

fn issuer(file: &File<'_>, identity: &RawIdentity, raw: &RawIssuer) -> Result<Issuer, ConfigError> {
    if raw.first_host == 0 {
        return Err(file.refuse("issuer.first_host", "a number from 1"));
    }
    if !(VALID_S_MIN..=VALID_S_MAX).contains(&raw.valid_s) {
        let rule = format!("{VALID_S_MIN} to {VALID_S_MAX}");
        return Err(file.refuse("issuer.valid_s", rule));
    }
    let pair = Pair {
        certificate: read_text(&file.resolve(&raw.cert))?,
        key: read_text(&file.resolve(&raw.key))?,
    };
    let ends = authority::end_of(&pair.certificate).map_err(|why| file.refuse("issuer.cert", why))?;
    Ok(Issuer {
        authority: Authority::issuer_from_pair(pair)
            .map_err(|error| file.refuse("issuer", format!("{error}")))?,
        ca: read_text(&file.resolve(&identity.ca))?,
        valid: Duration::seconds(i64::try_from(raw.valid_s).unwrap_or(i64::MAX)),
        ends,
        first_host: raw.first_host,
    })
}
