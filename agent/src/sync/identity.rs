//! What a host remembers about its copy of a service across restarts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use understudy_common::delta::{Digest, Identifiers};
use understudy_common::id::Epoch;
use understudy_common::wire;

use super::journal::{self, Writer};

#[derive(Clone, Debug, Default, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Identity {
    pub identifiers: Identifiers,
    /// Content of `identifiers.current`; none while the copy is written to by a workload.
    pub digest: Option<Digest>,
    /// The files were written to by a workload here since the last agreed generation, so that they
    /// may hold what no other host has.
    pub diverging: bool,
    /// Frames of older epochs are refused.
    pub floor: Epoch,
}

/// Directory of one service's sync state.
pub fn service_dir(state_dir: &Path, service: &str) -> PathBuf {
    state_dir.join("sync").join(service)
}

/// Whether a workload wrote to the files on this host since the last generation that another host has:
/// they are ahead of every copy then, or beside them.
///
/// # Errors
/// When what is known of the copy cannot be read.
pub fn is_own(state_dir: &Path, service: &str) -> io::Result<bool> {
    Ok(load(&service_dir(state_dir, service))?.diverging)
}

/// # Errors
/// When there is one and it cannot be read: nothing is known about the copy then.
pub fn load(dir: &Path) -> io::Result<Identity> {
    let path = dir.join("identity");
    let mut found = Identity::default();
    match journal::read(&path, |record| {
        found = wire::decode(record).map_err(|error| journal::garbled(&path, error))?;
        Ok(())
    }) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(found),
    }
}

/// # Errors
/// When the disk is full or fails.
pub fn save(dir: &Path, identity: &Identity) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut out = Writer::create(dir.join("identity.part"))?;
    out.append(&wire::encode(identity))?;
    out.commit(&dir.join("identity"))
}
