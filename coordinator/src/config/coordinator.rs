//! `coordinator.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use understudy_common::id::CoordinatorId;
use understudy_common::identity::{Credentials, Principal};

use super::{ConfigError, File, Member, RawIdentity, RawMember};

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    id: u64,
    data_dir: PathBuf,
    listen: String,
    identity: RawIdentity,
    members: Vec<RawMember>,
    prediction: Option<Prediction>,
}

#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    pub id: CoordinatorId,
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub credentials: Credentials,
    /// All voters, this one included.
    pub members: Vec<Member>,
    /// None: reactive only.
    pub prediction: Option<Prediction>,
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
        if !members.iter().any(|member| member.id == id) {
            return Err(file.refuse("id", format!("{} is not among the members", raw.id)));
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
            members,
            prediction,
        })
    }
}
