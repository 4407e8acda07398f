//! The list of revocations that an endpoint enforces, and the file that outlives the program.
//!
//! Invariant: a list that was taken in is on disk before it is acknowledged, and replaces the one
//! before as a whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use understudy_common::revocation::Revocations;
use understudy_common::wire;

use crate::link::Wire;
use crate::tls::Revoked;
use crate::{TransportError, file};

/// Links between two sweeps of those that ended.
const SWEEP_EVERY: usize = 64;
/// An operator that revokes its own certificate still hears the answer.
const GRACE: Duration = Duration::from_millis(100);

/// What all clones of one endpoint share.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    revoked: Revoked,
    links: Mutex<Links>,
    file: RwLock<Option<PathBuf>>,
}

#[derive(Debug, Default)]
struct Links {
    all: Vec<Weak<Wire>>,
    sweep_at: usize,
}

impl Watch {
    pub(crate) fn revoked(&self) -> Revoked {
        Arc::clone(&self.revoked)
    }

    /// Reads what an earlier program kept in `file`, and keeps it there from now on.
    pub(crate) fn keep_in(&self, file: PathBuf) -> Result<(), TransportError> {
        let unreadable = |why: String| TransportError::Revocations {
            path: file.clone(),
            why,
        };
        match fs::read(&file) {
            Ok(bytes) => {
                let kept: Revocations =
                    wire::decode(&bytes).map_err(|error| unreadable(error.to_string()))?;
                self.merge(&kept);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(error.to_string())),
        }
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Takes over what `list` refuses, keeps it, and closes the links that it concerns after a moment.
    /// Must be called inside a tokio runtime.
    pub(crate) fn revoke(&self, list: &Revocations) -> Result<(), TransportError> {
        if !self.merge(list) {
            return Ok(());
        }
        let links: Vec<_> = self.links().all.iter().filter_map(Weak::upgrade).collect();
        let concerned: Vec<_> = links.into_iter().filter(|link| self.refuses(link)).collect();
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            for link in concerned {
                tracing::warn!(who = %link.identity.principal, "closed a link: its certificate is revoked");
                link.close("the certificate is revoked");
            }
        });
        let kept = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = kept.as_ref() else { return Ok(()) };
        let known = self
            .revoked
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        keep(path, &known).map_err(|error| TransportError::Revocations {
            path: path.clone(),
            why: error.to_string(),
        })
    }

    fn merge(&self, list: &Revocations) -> bool {
        let mut known = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        known.merge(list)
    }

    fn refuses(&self, link: &Wire) -> bool {
        let known = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        known.refuses(link.identity)
    }

    fn links(&self) -> std::sync::MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the link ends when its peer is revoked; false when that has happened already.
    pub(crate) fn add(&self, link: &Arc<Wire>) -> bool {
        let mut links = self.links();
        if links.all.len() >= links.sweep_at {
            links.all.retain(|link| link.strong_count() > 0);
            links.sweep_at = links.all.len() * 2 + SWEEP_EVERY;
        }
        links.all.push(Arc::downgrade(link));
        // Only now: a list that came during the handshake has not seen it.
        !self.refuses(link)
    }
}

fn keep(path: &Path, list: &Revocations) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    file::replace(path, &wire::encode(list))
}
