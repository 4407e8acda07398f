//! Pins on a bpffs: what keeps the gate in force without the agent.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use nix::sys::statfs::statfs;

use super::GateError;

/// `BPF_FS_MAGIC`
const BPF_FS: i64 = 0xcafe_4a11;

/// Makes `dir` and checks that it is on a bpffs.
pub(super) fn make_dir(dir: &Path) -> Result<(), GateError> {
    let failed = |source| GateError::Pin {
        what: "make the directory",
        path: dir.to_owned(),
        source,
    };
    // Looked at before anything is made: a directory on another file system would only be in the way.
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let found = statfs(existing).map_err(|errno| failed(errno.into()))?;
    if found.filesystem_type().0 != BPF_FS {
        return Err(GateError::NotBpffs(dir.to_owned()));
    }
    fs::create_dir_all(dir).map_err(failed)
}

/// A bpffs takes no dots; a colon occurs neither in an interface's name nor in an address.
pub(super) fn interface_pin(dir: &Path, direction: &str, interface: &str) -> PathBuf {
    dir.join(format!("{direction}-{}", interface.replace('.', ":")))
}

pub(super) fn workload_pin(dir: &Path, address: Ipv4Addr) -> PathBuf {
    dir.join(format!("workload-{}", address.to_string().replace('.', ":")))
}

/// Pins `link` at `path` in place of what is pinned there. The new link is attached already, so the
/// gate is in force throughout.
pub(super) fn replace(link: FdLink, path: &Path) -> Result<FdLink, GateError> {
    let failed = |what| {
        move |source| GateError::Pin {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let mut next = path.as_os_str().to_owned();
    next.push(":next");
    let next = PathBuf::from(next);
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove what a dead agent left beside")(error));
        }
        _ => {}
    }
    let pinned = link
        .pin(&next)
        .map_err(|error| failed("pin the link at")(io::Error::other(error)))?;
    fs::rename(&next, path).map_err(failed("replace the pin"))?;
    Ok(pinned.into())
}
