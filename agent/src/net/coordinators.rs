//! Links to all coordinators: those of the configuration at first, then those that they name themselves.
//!
//! Invariants: the list with the highest revision counts, and it outlives the agent in a file. A
//! coordinator that it does not name is no longer dialled and no longer obeyed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use understudy_common::id::CoordinatorId;
use understudy_common::wire::{self, CoordinatorList};
use understudy_transport::Endpoint;

use super::uplink::{Said, keep_linked};
use crate::config::Coordinator;

/// Lists that wait to be followed; links wait when it is full.
pub const LISTS_MAX: usize = 16;
/// A longer list is no list of coordinators.
const MEMBERS_MAX: usize = 64;
const FILE: &str = "coordinators";

/// Keeps a link to each coordinator for as long as the agent runs.
pub async fn follow(
    endpoint: Endpoint,
    state_dir: PathBuf,
    configured: Vec<Coordinator>,
    said: Said,
    mut lists: mpsc::Receiver<CoordinatorList>,
) {
    let mut links = Links {
        endpoint,
        said,
        open: BTreeMap::new(),
        tasks: JoinSet::new(),
    };
    let mut known = kept(&state_dir).unwrap_or_else(|| CoordinatorList {
        revision: 0,
        members: configured.iter().map(|known| (known.id, known.addr)).collect(),
    });
    links.follow(&known);
    while let Some(list) = lists.recv().await {
        if list.revision <= known.revision || list.members.is_empty() || list.members.len() > MEMBERS_MAX {
            continue;
        }
        tracing::info!(revision = list.revision, members = ?list.members, "these are the coordinators");
        known = list.clone();
        links.follow(&known);
        let dir = state_dir.clone();
        match spawn_blocking(move || keep(&dir, &list)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the list of coordinators cannot be kept"),
            // Only when the agent stops.
            Err(_) => return,
        }
    }
}

struct Links {
    endpoint: Endpoint,
    said: Said,
    open: BTreeMap<CoordinatorId, (SocketAddr, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Links {
    fn follow(&mut self, list: &CoordinatorList) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|id, (addr, task)| {
            let stays = list.members.contains(&(*id, *addr));
            if !stays {
                task.abort();
            }
            stays
        });
        for (id, addr) in &list.members {
            if !self.open.contains_key(id) {
                let coordinator = Coordinator { id: *id, addr: *addr };
                let link = keep_linked(self.endpoint.clone(), coordinator, self.said.clone());
                self.open.insert(*id, (*addr, self.tasks.spawn(link)));
            }
        }
    }
}

/// The list that an earlier agent kept.
fn kept(state_dir: &Path) -> Option<CoordinatorList> {
    let path = state_dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the kept list of coordinators cannot be read; the configured ones are used");
            return None;
        }
    };
    match wire::decode::<CoordinatorList>(&bytes) {
        Ok(list) if (1..=MEMBERS_MAX).contains(&list.members.len()) => Some(list),
        _ => {
            tracing::warn!(path = %path.display(), "the kept list of coordinators is damaged; the configured ones are used");
            None
        }
    }
}

fn keep(state_dir: &Path, list: &CoordinatorList) -> io::Result<()> {
    fs::create_dir_all(state_dir)?;
    let part = state_dir.join("coordinators.part");
    let mut file = fs::File::create(&part)?;
    file.write_all(&wire::encode(list))?;
    file.sync_all()?;
    fs::rename(part, state_dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(revision: u64) -> CoordinatorList {
        CoordinatorList {
            revision,
            members: vec![(CoordinatorId(4), ([192, 0, 2, 4], 7400).into())],
        }
    }

    #[test]
    fn a_kept_list_is_read_back_and_a_damaged_one_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kept(dir.path()), None);
        keep(dir.path(), &list(3)).unwrap();
        keep(dir.path(), &list(9)).unwrap();
        assert_eq!(kept(dir.path()), Some(list(9)));
        let path = dir.path().join(FILE);
        let bytes = fs::read(&path).unwrap();
        for end in 0..bytes.len() {
            fs::write(&path, &bytes[..end]).unwrap();
            assert_eq!(kept(dir.path()), None, "cut off at {end}");
        }
    }
}
