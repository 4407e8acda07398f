//! The shadow's tokio shell: one accepted `Sync` stream after another, one store.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use understudy_common::delta::{Answer, Frame, Manifest};
use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::wire::{self, CopyState, SyncFigures};
use understudy_transport::{FrameReceiver, FrameSender, TransportError};

use super::roots::Roots;
use super::store::{Store, StoreError};

/// Between two looks at a copy that is at rest.
const SCRUB_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct ShadowSettings {
    pub service: ServiceId,
    /// Name of the service: names its directory under `state_dir`.
    pub name: String,
    pub paths: Vec<PathBuf>,
    pub state_dir: PathBuf,
    /// How fast a ready copy is read again to find what something else wrote to it; 0 is never.
    pub scrub_bytes_s: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShadowStatus {
    pub copy: CopyState,
    pub generation: Option<GenerationId>,
    pub figures: SyncFigures,
    /// Why the last stream or checkpoint failed; cleared by the next sealed generation.
    pub failure: Option<String>,
}

/// What a promotion hands to the new primary.
#[derive(Clone, Debug)]
pub struct Promoted {
    pub generation: GenerationId,
    pub manifest: Manifest,
}

#[derive(Debug, thiserror::Error)]
pub enum ShadowError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("{speaker} may not send generations of {service}: {why}")]
    NotPrimary {
        speaker: Principal,
        service: ServiceId,
        why: String,
    },
    #[error("the stream did not begin with a hello")]
    NoHello,
    #[error("the copy is not what was received; it is compared again")]
    Doubted,
    #[error("a newer stream of the primary took over")]
    Superseded,
    #[error("the agent is shutting down")]
    Stopped,
}

/// One service's copy on this host. Clones share it.
#[derive(Clone, Debug)]
pub struct Shadow {
    service: ServiceId,
    store: Arc<Mutex<Inner>>,
    expected: Arc<watch::Sender<Option<(HostId, Epoch)>>>,
    /// Times that the copy was not what was received; each ends the stream, so that the primary begins anew.
    doubts: Arc<watch::Sender<u64>>,
    status: Arc<watch::Sender<ShadowStatus>>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    /// Number of the newest stream; frames of older ones are refused.
    stream: u64,
    /// No stream is taken any more.
    closed: bool,
}

impl Shadow {
    /// Finishes what a crash interrupted and hashes every file: takes as long as reading them.
    ///
    /// # Errors
    /// [`ShadowError::Store`] when the state on disk cannot be used.
    pub async fn open(settings: ShadowSettings) -> Result<Self, ShadowError> {
        let (service, rate) = (settings.service, settings.scrub_bytes_s);
        let store = blocking(move || {
            let roots = Roots::new(settings.paths);
            let mut store = Store::open(service, &settings.name, &settings.state_dir, roots)?;
            store.set_scrub_rate(rate);
            Ok(store)
        })
        .await?;
        let status = Arc::new(watch::Sender::new(status_of(&store, None)));
        let shadow = Self {
            service,
            store: Arc::new(Mutex::new(Inner {
                store,
                stream: 0,
                closed: false,
            })),
            expected: Arc::default(),
            doubts: Arc::default(),
            status,
        };
        if rate > 0 {
            tokio::spawn(shadow.keep_scrubbing());
        }
        Ok(shadow)
    }

    /// Who may send, by the newest order.
    pub fn set_primary(&self, host: HostId, epoch: Epoch) {
        self.expected.send_replace(Some((host, epoch)));
        // A promotion that came to nothing leaves an ordinary copy behind.
        self.store.lock().unwrap_or_else(PoisonError::into_inner).closed = false;
    }

    pub fn status(&self) -> watch::Receiver<ShadowStatus> {
        self.status.subscribe()
    }

    /// Serves one accepted stream until it ends. `first` is its first frame, by which the service was
    /// told.
    ///
    /// # Errors
    /// [`ShadowError`]; the peer is told why first where it can be.
    pub async fn serve(
        &self,
        principal: Principal,
        first: Vec<u8>,
        mut sender: FrameSender,
        mut receiver: FrameReceiver,
    ) -> Result<(), ShadowError> {
        let result = self.exchange(principal, first, &mut sender, &mut receiver).await;
        if let Err(error) = &result {
            let why = super::chain(error);
            // The peer may be gone, which its own side notices.
            let _ = sender
                .send(&wire::encode(&Answer::Refused { why: why.clone() }))
                .await;
            self.status.send_modify(|status| status.failure = Some(why));
        }
        sender.finish();
        result
    }

    async fn exchange(
        &self,
        principal: Principal,
        first: Vec<u8>,
        sender: &mut FrameSender,
        receiver: &mut FrameReceiver,
    ) -> Result<(), ShadowError> {
        let epoch = match wire::decode::<Frame>(&first).map_err(TransportError::from)? {
            Frame::Hello { epoch, .. } => epoch,
            _ => return Err(ShadowError::NoHello),
        };
        self.may_send(principal, epoch)?;
        let stream = {
            let mut inner = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            inner.stream += 1;
            inner.stream
        };
        let (mut next, mut doubts) = (Some(first), self.doubts.subscribe());
        while let Some(raw) = next {
            self.may_send(principal, epoch)?;
            for answer in self.step(stream, epoch, raw).await? {
                sender.send(&wire::encode(&answer)).await?;
            }
            self.checkpoint().await?;
            next = tokio::select! {
                received = receiver.receive() => received?,
                // The sender lives as long as this.
                Ok(()) = doubts.changed() => return Err(ShadowError::Doubted),
            };
        }
        Ok(())
    }

    /// Reads the copy again, a little each second, until nobody has it any more.
    fn keep_scrubbing(&self) -> impl Future<Output = ()> + use<> {
        let (store, service) = (Arc::downgrade(&self.store), self.service);
        let (expected, doubts) = (Arc::clone(&self.expected), Arc::clone(&self.doubts));
        let status = Arc::clone(&self.status);
        async move {
            let mut last = Instant::now();
            loop {
                tokio::time::sleep(SCRUB_PAUSE).await;
                let Some(store) = store.upgrade() else { return };
                let shadow = Self {
                    service,
                    store,
                    expected: Arc::clone(&expected),
                    doubts: Arc::clone(&doubts),
                    status: Arc::clone(&status),
                };
                let elapsed = std::mem::replace(&mut last, Instant::now()).elapsed();
                let scrubbed = shadow.with(move |inner| match inner.closed {
                    true => Ok(()),
                    false => Ok(inner.store.scrub(elapsed)?),
                });
                if let Err(error) = scrubbed.await {
                    tracing::error!(%service, error = super::chain(&error), "reading the copy again");
                    shadow.doubts.send_modify(|doubts| *doubts += 1);
                }
            }
        }
    }

    fn may_send(&self, principal: Principal, epoch: Epoch) -> Result<(), ShadowError> {
        let refuse = |why: String| {
            Err(ShadowError::NotPrimary {
                speaker: principal,
                service: self.service,
                why,
            })
        };
        match *self.expected.borrow() {
            None => refuse("no order has named its primary yet".to_owned()),
            Some((host, _)) if principal != Principal::Host(host) => refuse(format!("{host} is its primary")),
            Some((_, since)) if epoch < since => refuse(format!("its epoch is {since}, not {epoch}")),
            Some(_) => Ok(()),
        }
    }

    async fn step(&self, stream: u64, epoch: Epoch, raw: Vec<u8>) -> Result<Vec<Answer>, ShadowError> {
        self.with(move |inner| {
            if inner.stream != stream || inner.closed {
                return Err(ShadowError::Superseded);
            }
            let frame = wire::decode(&raw).map_err(TransportError::from)?;
            Ok(inner.store.handle(epoch, frame, &raw)?)
        })
        .await
    }

    async fn checkpoint(&self) -> Result<(), ShadowError> {
        self.with(|inner| {
            if inner.closed {
                return Err(ShadowError::Superseded);
            }
            Ok(inner.store.checkpoint()?)
        })
        .await
    }

    /// Ends the shadow's part in favour of `epoch`.
    ///
    /// # Errors
    /// [`StoreError::StaleEpoch`], [`StoreError::NotReady`], [`StoreError::Disk`].
    pub async fn promote(&self, epoch: Epoch) -> Result<Promoted, ShadowError> {
        self.expected.send_replace(None);
        self.with(move |inner| {
            inner.stream += 1;
            inner.closed = true;
            let (generation, manifest) = inner.store.promote(epoch)?;
            Ok(Promoted { generation, manifest })
        })
        .await
    }

    /// Takes no frame from here on, on whatever stream: the files are somebody else's now.
    pub async fn close(&self) {
        self.expected.send_replace(None);
        // Waits for a frame that is being handled.
        let closed = self.with(|inner| {
            inner.stream += 1;
            inner.closed = true;
            Ok(())
        });
        // Fails only while the agent stops, and then nobody handles frames.
        let _ = closed.await;
    }

    /// Whether a generation was ever sealed here.
    pub fn has_sealed(&self) -> bool {
        self.status.borrow().generation.is_some()
    }

    /// Takes the files back to an earlier sealed generation.
    ///
    /// # Errors
    /// [`StoreError::NoPreImages`], [`StoreError::Disk`].
    pub async fn restore(&self, to: GenerationId) -> Result<(), ShadowError> {
        self.with(move |inner| Ok(inner.store.restore(to)?)).await
    }

    async fn with<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Inner) -> Result<T, ShadowError> + Send + 'static,
    ) -> Result<T, ShadowError> {
        let (store, status) = (Arc::clone(&self.store), Arc::clone(&self.status));
        blocking(move || {
            let mut inner = store.lock().unwrap_or_else(PoisonError::into_inner);
            let result = act(&mut inner);
            let failure = result.as_ref().err().map(|error| super::chain(error));
            let now = status_of(&inner.store, failure);
            status.send_if_modified(|was| {
                *was != now && {
                    *was = now;
                    true
                }
            });
            result
        })
        .await
    }
}

fn status_of(store: &Store, failure: Option<String>) -> ShadowStatus {
    ShadowStatus {
        copy: store.copy(),
        generation: store.generation(),
        figures: store.figures().clone(),
        failure,
    }
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, ShadowError> + Send + 'static,
) -> Result<T, ShadowError> {
    tokio::task::spawn_blocking(act)
        .await
        .map_err(|_| ShadowError::Stopped)?
}
