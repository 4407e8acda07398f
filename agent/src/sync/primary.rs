//! The primary's shell: one thread that cuts and ships, one tokio task per shadow that moves frames.
//!
//! Invariant: the engine thread never waits for a shadow; the tasks never look into frames.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc as engine;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use understudy_common::delta::{Answer, Frame, Identifiers, Manifest};
use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::spec::Consistency;
use understudy_common::wire::{self, FinalCut, Peer, StreamKind, SyncFigures};
use understudy_transport::{Endpoint, TransportError};

use super::drive::{Engine, Event};
use super::shipper::Pipe;
use super::tracker::ChangeSource;
use crate::workload::Freezer;

/// Pause between two attempts to reach a shadow.
const REDIAL: Duration = Duration::from_millis(150);
/// A handshake takes one round trip; one that was begun before its host was up backs off for seconds.
const DIAL_TIMEOUT: Duration = Duration::from_millis(800);

pub struct PrimarySettings {
    pub service: ServiceId,
    /// Name of the service: names its directory under `state_dir`.
    pub name: String,
    pub epoch: Epoch,
    pub host: HostId,
    pub paths: Vec<PathBuf>,
    pub state_dir: PathBuf,
    pub consistency: Consistency,
    pub freeze_ms_max: u32,
    /// How fast files are read again to find what no mark told; 0 is never.
    pub scrub_bytes_s: u64,
    /// None when there is no cgroup to freeze: cuts are made live.
    pub freezer: Option<Arc<dyn Freezer>>,
    pub source: Box<dyn ChangeSource>,
    /// What a promotion found; none makes the engine read every file first.
    pub start: Option<(GenerationId, Manifest)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrimaryStatus {
    /// Newest cut of this epoch.
    pub generation: Option<GenerationId>,
    /// Newest generation that each shadow has on its disk.
    pub acked: Vec<(HostId, GenerationId)>,
    /// The last cut, once it was made, and who has it by now.
    pub final_cut: Option<FinalCut>,
    pub figures: SyncFigures,
    /// Why the last cycle failed or a shadow refused.
    pub failure: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PrimaryError {
    #[error("the state under {} cannot be written", dir.display())]
    State {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the service's paths cannot be watched")]
    Watch(#[source] std::io::Error),
    #[error("the sync engine has stopped")]
    Stopped,
}

/// A running primary. Dropping it stops the engine.
#[derive(Debug)]
pub struct Primary {
    events: engine::Sender<Event>,
    status: watch::Receiver<PrimaryStatus>,
    endpoint: Endpoint,
    links: BTreeMap<HostId, (Peer, tokio::task::JoinHandle<()>)>,
    service: ServiceId,
    epoch: Epoch,
}

impl Primary {
    /// Watches all files before it returns: start the workload afterwards. Call it inside a runtime.
    ///
    /// # Errors
    /// [`PrimaryError::State`], [`PrimaryError::Watch`].
    pub async fn start(settings: PrimarySettings, endpoint: Endpoint) -> Result<Self, PrimaryError> {
        let (service, epoch) = (settings.service, settings.epoch);
        let (events, inbox) = engine::channel();
        let (ready, watched) = oneshot::channel();
        let status = watch::Sender::new(PrimaryStatus::default());
        let seen = status.subscribe();
        std::thread::Builder::new()
            .name(format!("sync-{}", settings.name))
            .spawn(move || match Engine::start(settings, status) {
                Ok(engine) => {
                    if ready.send(Ok(())).is_ok() {
                        engine.run(&inbox);
                    }
                }
                Err(error) => {
                    // Whoever asked has gone when this fails.
                    let _ = ready.send(Err(error));
                }
            })
            .map_err(PrimaryError::Watch)?;
        watched.await.map_err(|_| PrimaryError::Stopped)??;
        Ok(Self {
            events,
            status: seen,
            endpoint,
            links: BTreeMap::new(),
            service,
            epoch,
        })
    }

    /// Ships to exactly these hosts.
    pub fn set_shadows(&mut self, shadows: Vec<Peer>) {
        self.links.retain(|_, (peer, task)| {
            let keep = shadows.iter().any(|wanted| wanted == peer);
            if !keep {
                task.abort();
            }
            keep
        });
        // A stopped engine ships to nobody.
        let _ = self
            .events
            .send(Event::Wanted(shadows.iter().map(|peer| peer.host).collect()));
        for peer in shadows {
            if self.links.contains_key(&peer.host) {
                continue;
            }
            let hello = Frame::Hello {
                service: self.service,
                epoch: self.epoch,
                identifiers: Identifiers::default(),
            };
            let task = tokio::spawn(keep_linked(
                peer,
                self.endpoint.clone(),
                wire::encode(&hello).to_vec(),
                self.events.clone(),
            ));
            self.links.insert(peer.host, (peer, task));
        }
    }

    pub fn status(&self) -> watch::Receiver<PrimaryStatus> {
        self.status.clone()
    }

    /// The last cut of this epoch. The workload must have stopped. Waits until all shadows acknowledged
    /// it or `limit` is over; nothing is cut afterwards, but late shadows still get it.
    ///
    /// # Errors
    /// [`PrimaryError::Stopped`].
    pub async fn final_cut(&self, limit: Duration) -> Result<FinalCut, PrimaryError> {
        self.ask(|reply| Event::FinalCut { limit, reply }).await
    }

    /// Cuts at once. Waits until all shadows have everything that was written before, or `limit` is over; says
    /// who has it.
    ///
    /// # Errors
    /// [`PrimaryError::Stopped`], also when nothing could be cut within the limit.
    pub async fn barrier(&self, limit: Duration) -> Result<FinalCut, PrimaryError> {
        self.ask(|reply| Event::Barrier { limit, reply }).await
    }

    async fn ask(
        &self,
        event: impl FnOnce(oneshot::Sender<FinalCut>) -> Event,
    ) -> Result<FinalCut, PrimaryError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.events.send(event(reply));
        sent.map_err(|_| PrimaryError::Stopped)?;
        answer.await.map_err(|_| PrimaryError::Stopped)
    }

    /// Ends cutting and shipping.
    pub async fn stop(self) {
        let (reply, stopped) = oneshot::channel();
        if self.events.send(Event::Stop(Some(reply))).is_ok() {
            // An engine that is gone has stopped.
            let _ = stopped.await;
        }
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        for (_, task) in self.links.values() {
            task.abort();
        }
        // An engine that is gone has stopped.
        let _ = self.events.send(Event::Stop(None));
    }
}

async fn keep_linked(peer: Peer, endpoint: Endpoint, hello: Vec<u8>, events: engine::Sender<Event>) {
    loop {
        if let Err(error) = link(peer, &endpoint, &hello, &events).await {
            tracing::debug!(shadow = %peer.host, error = super::chain(&error), "no sync stream");
        }
        if events.send(Event::Unlinked { host: peer.host }).is_err() {
            return;
        }
        tokio::time::sleep(REDIAL).await;
    }
}

async fn link(
    peer: Peer,
    endpoint: &Endpoint,
    hello: &[u8],
    events: &engine::Sender<Event>,
) -> Result<(), TransportError> {
    let link = tokio::time::timeout(DIAL_TIMEOUT, endpoint.dial(peer.addr, Principal::Host(peer.host)))
        .await
        .map_err(|_| TransportError::Timeout(DIAL_TIMEOUT))??;
    let (mut sender, mut receiver) = link.open_bi(StreamKind::Sync).await?;
    sender.send(hello).await?;
    let (frames, mut outbox) = mpsc::unbounded_channel::<Vec<u8>>();
    let inflight = Arc::new(AtomicUsize::new(0));
    let gone = |_| TransportError::Closed("the sync engine has stopped".to_owned());
    let pipe = Pipe {
        frames,
        inflight: Arc::clone(&inflight),
    };
    events
        .send(Event::Linked {
            host: peer.host,
            pipe,
        })
        .map_err(gone)?;
    let pump = async {
        while let Some(frame) = outbox.recv().await {
            sender.send(&frame).await?;
            inflight.fetch_sub(frame.len(), Ordering::Relaxed);
        }
        Ok(())
    };
    let answers = async {
        while let Some(raw) = receiver.receive().await? {
            let answer: Answer = wire::decode(&raw)?;
            events
                .send(Event::Answer {
                    host: peer.host,
                    answer,
                })
                .map_err(gone)?;
        }
        Ok(())
    };
    tokio::select! {
        result = pump => result,
        result = answers => result,
    }
}
