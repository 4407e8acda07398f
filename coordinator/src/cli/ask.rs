//! Finds the leader among the coordinators and asks it.
//!
//! All coordinators are dialled at once, so that a dead one costs no time. A request that changes
//! something is never sent again once it may have been taken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use understudy_common::id::CoordinatorId;
use understudy_common::identity::Principal;
use understudy_common::wire::{Operate, Refusal, Request, Response};
use understudy_transport::{Endpoint, Link, TransportError};

use crate::config::{ClusterConfig, Member};

/// How long to look for a leader: several elections.
const PATIENCE: Duration = Duration::from_secs(10);
const DIAL: Duration = Duration::from_secs(3);
const CALL: Duration = Duration::from_secs(5);
/// How long the coordinators get to hear the goodbye.
const GOODBYE: Duration = Duration::from_millis(50);
/// Between two rounds without a leader.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("cannot open a socket: {0}")]
    Socket(TransportError),
    #[error("refused: {0}")]
    Refused(Refusal),
    #[error("no coordinator leads or can be reached; check that a majority of them runs: {0}")]
    NoLeader(String),
    #[error(
        "{coordinator} took the request but did not answer ({why}); it may still happen: look at `understudy status` before trying again"
    )]
    Unknown {
        coordinator: CoordinatorId,
        why: TransportError,
    },
    #[error("{0} answered something that this version of understudy does not know")]
    Answer(CoordinatorId),
}

enum Turn {
    Answered(Option<String>),
    NotLeader,
    Busy(Refusal),
    Lost(TransportError),
}

pub(super) struct Cluster {
    config: ClusterConfig,
    endpoint: Endpoint,
    links: BTreeMap<CoordinatorId, Link>,
    /// Under way: they outlast a round, so that a slow one is not begun again and again.
    dials: JoinSet<(Member, Result<Link, TransportError>)>,
    dialling: BTreeSet<CoordinatorId>,
    /// Why each coordinator was of no use, newest.
    excuses: BTreeMap<CoordinatorId, String>,
}

impl Cluster {
    pub(super) fn new(config: ClusterConfig) -> Result<Self, AskError> {
        let v6 = config.coordinators.iter().any(|member| member.addr.is_ipv6());
        let any: SocketAddr = if v6 {
            ([0_u16; 8], 0).into()
        } else {
            ([0, 0, 0, 0], 0).into()
        };
        let endpoint = Endpoint::bind(any, &config.credentials).map_err(AskError::Socket)?;
        Ok(Self {
            config,
            endpoint,
            links: BTreeMap::new(),
            dials: JoinSet::new(),
            dialling: BTreeSet::new(),
            excuses: BTreeMap::new(),
        })
    }

    pub(super) const fn config(&self) -> &ClusterConfig {
        &self.config
    }

    pub(super) async fn close(self) {
        self.endpoint.close();
        // A dial that nobody answered would hold this up for seconds.
        let _ = tokio::time::timeout(GOODBYE, self.endpoint.wait_idle()).await;
    }

    /// Status by the leader; where there is none, as any reachable coordinator sees it.
    pub(super) async fn status(&mut self) -> Result<String, AskError> {
        Ok(self.ask(Operate::Status).await?.unwrap_or_default())
    }

    /// Asks the leader. The answer's document, if it has one.
    pub(super) async fn ask(&mut self, operate: Operate) -> Result<Option<String>, AskError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut last_resort = None;
        loop {
            self.dial_missing().await;
            let ids: Vec<_> = self.links.keys().copied().collect();
            for id in ids {
                match self.turn(id, &operate).await? {
                    Turn::Answered(document) if leaderless(&operate, document.as_deref()) => {
                        last_resort = document;
                    }
                    Turn::Answered(document) => return Ok(document),
                    Turn::NotLeader => {
                        self.excuses.insert(id, "does not lead".to_owned());
                    }
                    Turn::Busy(refusal) => {
                        self.excuses.insert(id, refusal.to_string());
                    }
                    Turn::Lost(why) => {
                        self.links.remove(&id);
                        self.excuses.insert(id, why.to_string());
                    }
                }
            }
            if tokio::time::Instant::now() + PAUSE > deadline {
                return last_resort
                    .map(Some)
                    .ok_or_else(|| AskError::NoLeader(self.excuses()));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn turn(&mut self, id: CoordinatorId, operate: &Operate) -> Result<Turn, AskError> {
        let Some(link) = self.links.get(&id) else {
            return Ok(Turn::NotLeader);
        };
        match link.call(&Request::Operate(operate.clone()), CALL).await {
            Ok(Response::Done) => Ok(Turn::Answered(None)),
            Ok(Response::Document(document)) => Ok(Turn::Answered(Some(document))),
            Ok(Response::NotLeader(_)) => Ok(Turn::NotLeader),
            // A full queue took nothing in: the next round may find room.
            Ok(Response::Refused(refusal @ Refusal::Busy(_))) => Ok(Turn::Busy(refusal)),
            Ok(Response::Refused(refusal)) => Err(AskError::Refused(refusal)),
            Ok(
                Response::Renewed(_)
                | Response::Promised(_)
                | Response::Admitted(_)
                | Response::Certificate(_),
            ) => Err(AskError::Answer(id)),
            Err(why @ TransportError::Tls(_)) => Ok(Turn::Lost(why)),
            Err(why) if changes(operate) => Err(AskError::Unknown { coordinator: id, why }),
            Err(why) => Ok(Turn::Lost(why)),
        }
    }

    /// Sees to it that every coordinator without a link is being dialled, and takes in what is there.
    /// Waits long only while there is no link at all: a dead coordinator must not hold up the others.
    async fn dial_missing(&mut self) {
        for member in &self.config.coordinators {
            if !self.links.contains_key(&member.id) && self.dialling.insert(member.id) {
                let (endpoint, member) = (self.endpoint.clone(), *member);
                self.dials.spawn(async move {
                    let dial = endpoint.dial(member.addr, Principal::Coordinator(member.id));
                    let timeout = Err(TransportError::Timeout(DIAL));
                    (member, tokio::time::timeout(DIAL, dial).await.unwrap_or(timeout))
                });
            }
        }
        loop {
            let grace = if self.links.is_empty() { DIAL + DIAL } else { PAUSE };
            let Ok(Some(joined)) = tokio::time::timeout(grace, self.dials.join_next()).await else {
                return;
            };
            let Ok((member, outcome)) = joined else { continue };
            self.dialling.remove(&member.id);
            match outcome {
                Ok(link) => {
                    self.links.insert(member.id, link);
                }
                Err(why) => {
                    self.excuses.insert(member.id, format!("{why} ({})", member.addr));
                }
            }
        }
    }

    fn excuses(&self) -> String {
        let each: Vec<_> = self
            .excuses
            .iter()
            .map(|(id, why)| format!("{id}: {why}"))
            .collect();
        each.join("; ")
    }
}

const fn changes(operate: &Operate) -> bool {
    !matches!(
        operate,
        Operate::Status
            | Operate::Events { .. }
            | Operate::Plan { .. }
            | Operate::Tokens
            | Operate::Certificates
    )
}

/// A status in which nobody leads: others may know better.
fn leaderless(operate: &Operate, document: Option<&str>) -> bool {
    matches!(operate, Operate::Status)
        && document
            .and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok())
            .is_some_and(|value| value["leader"].is_null())
}
