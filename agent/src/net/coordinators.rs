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
    use std::sync::Arc;
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use tokio::sync::{broadcast, watch};
    use tokio::time::timeout;
    use understudy_common::id::HostId;
    use understudy_common::identity::{Credentials, Principal};
    use understudy_common::wire::{Hello, HostReport, Inventory, Request, Response};
    use understudy_transport::Link;

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

    const PATIENCE: Duration = Duration::from_secs(60);

    fn endpoints(principals: [Principal; 3]) -> [Endpoint; 3] {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        principals.map(|principal| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![principal.dns_name()]).unwrap();
            let chain = params.signed_by(&key, &issuer).unwrap().pem();
            let key = key.serialize_pem();
            let credentials = Credentials::from_pem(ca.as_bytes(), chain.as_bytes(), key.as_bytes()).unwrap();
            Endpoint::bind(([127, 0, 0, 1], 0).into(), &credentials).unwrap()
        })
    }

    /// Links end when nobody makes reports any more.
    fn said(
        agent: &Endpoint,
        reports: &watch::Sender<HostReport>,
    ) -> (Said, mpsc::Receiver<CoordinatorList>) {
        let (lists, named) = mpsc::channel(LISTS_MAX);
        let hello = Hello {
            host: HostId(1),
            name: "a".to_owned(),
            boot: 1,
            addr: ([127, 0, 0, 1], 1).into(),
            version: String::new(),
            inventory: Inventory::default(),
            domain: Default::default(),
        };
        let said = Said {
            hello: watch::channel(Some(Arc::new(hello))).1,
            reports: reports.subscribe(),
            beacons: broadcast::channel(1).0,
            renewals: broadcast::channel(1).0,
            asked: mpsc::channel(1).0,
            lists,
            endpoint: agent.clone(),
            open: watch::Sender::default(),
        };
        (said, named)
    }

    /// A coordinator takes the agent's link in and answers what it is asked.
    async fn taken_in(endpoint: &Endpoint) -> Link {
        let incoming = timeout(PATIENCE, endpoint.accept()).await.unwrap().unwrap();
        let link = incoming.handshake().await.unwrap();
        let asked = link.clone();
        tokio::spawn(async move {
            while let Ok(stream) = asked.accept_bi().await {
                let (_, mut sender, mut receiver) = stream.kind().await.unwrap();
                if receiver.receive().await.is_ok() {
                    // The link may end at any time.
                    let _ = sender.send(&wire::encode(&Response::Done)).await;
                    sender.finish();
                }
            }
        });
        link
    }

    #[tokio::test]
    async fn the_agent_follows_what_the_coordinators_say_and_remembers_it() {
        let (one, two) = (CoordinatorId(1), CoordinatorId(2));
        let [agent, first, second] = endpoints([
            Principal::Host(HostId(1)),
            Principal::Coordinator(one),
            Principal::Coordinator(two),
        ]);
        let dir = tempfile::tempdir().unwrap();
        let configured = vec![Coordinator {
            id: one,
            addr: first.local_addr().unwrap(),
        }];
        let reports = watch::Sender::new(HostReport::default());
        let (told, named) = said(&agent, &reports);
        let state_dir = dir.path().to_owned();
        let following = tokio::spawn(follow(agent.clone(), state_dir, configured.clone(), told, named));
        let link = taken_in(&first).await;

        let list = CoordinatorList {
            revision: 7,
            members: vec![(two, second.local_addr().unwrap())],
        };
        let answer = link.call(&Request::Coordinators(list.clone()), PATIENCE).await;
        assert_eq!(answer.unwrap(), Response::Done);
        let next = taken_in(&second).await;
        timeout(PATIENCE, link.closed())
            .await
            .expect("the one that is not named is let go");

        // An older list changes nothing.
        let stale = CoordinatorList {
            revision: 6,
            members: vec![(one, first.local_addr().unwrap())],
        };
        assert_eq!(
            next.call(&Request::Coordinators(stale), PATIENCE).await.unwrap(),
            Response::Done
        );
        let kept_now = timeout(PATIENCE, async {
            while kept(dir.path()).as_ref() != Some(&list) {
                tokio::task::yield_now().await;
            }
        });
        kept_now.await.expect("it is kept");

        // Started again it dials whom it was told, not whom its configuration names.
        following.abort();
        next.close("the agent stops");
        let (told, named) = said(&agent, &reports);
        tokio::spawn(follow(agent, dir.path().to_owned(), configured, told, named));
        taken_in(&second).await;
    }
}
