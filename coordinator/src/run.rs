//! Puts one coordinator together: log, replica, network, loop.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use understudy_transport::Endpoint;

use crate::clock::boot_now;
use crate::config::CoordinatorConfig;
use crate::coordinator::{Core, EVENTS_MAX};
use crate::replica::{Replica, ReplicaError, Settings};
use crate::storage::{Disk, Storage, StorageError};
use crate::{forecast, net};

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error(transparent)]
    Transport(#[from] understudy_transport::TransportError),
    #[error("{0}")]
    Halted(String),
}

/// Runs a coordinator on a bound endpoint until it fails, `stop` resolves or the future is dropped.
/// With `stop` a leader gives the leadership away first.
///
/// # Errors
/// [`RunError`] in plain words.
pub async fn run(
    config: CoordinatorConfig,
    endpoint: Endpoint,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let (storage, durable) = Storage::open(&config.data_dir)?;
    let (predictor, prediction) = forecast::load(config.prediction.as_ref());
    let mut settings = Settings::new(config.id, config.members.iter().map(|member| member.id).collect());
    settings.addrs = config
        .members
        .iter()
        .map(|member| (member.id, member.addr))
        .collect();
    settings.joins = config.joins;
    settings.first_host = config.issuer.as_ref().map_or(1, |issuer| issuer.first_host);
    endpoint.keep_revocations(config.data_dir.join("revoked"))?;
    settings.threshold = prediction.threshold_bp;
    let replica = Replica::new(settings, durable, boot_now(), random())?;
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    let beacons = predictor
        .map(|predictor| forecast::start(predictor, events.clone()))
        .transpose()
        .map_err(RunError::Thread)?;
    let mut tasks = JoinSet::new();
    let mut outbox = net::start(
        &endpoint,
        config.id,
        &events,
        beacons.clone(),
        config.certificate,
        &mut tasks,
    );
    for member in &config.members {
        if replica.listens_to(member.id) {
            outbox.meet(member.id, member.addr);
        }
    }
    tracing::info!(id = %config.id, listen = %config.listen, term = replica.term(), "runs");
    let disk = Disk::start(storage).map_err(RunError::Thread)?;
    let forecast = forecast::ForecastStatus::new(prediction, beacons);
    Core::new(replica, disk, outbox, forecast, config.issuer)
        .run(queue, stop)
        .await?;
    Ok(())
}

/// Not secret: seeds and jitter.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
