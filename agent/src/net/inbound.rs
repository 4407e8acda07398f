//! Streams of generations from other hosts.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use understudy_common::delta::{Answer, Frame};
use understudy_common::identity::Principal;
use understudy_common::wire::{self, StreamKind};
use understudy_transport::{Endpoint, Incoming, Link, PendingCall, TransportError};

use crate::service::Registry;
use crate::sync;

/// Links open at once, handshakes included. Further peers wait at the socket.
const LINKS_MAX: usize = 256;
/// How long a stream may take to say what it is.
const HELLO_MAX: Duration = Duration::from_secs(3);

/// Takes links in until the endpoint is closed.
pub async fn accept(endpoint: Endpoint, registry: Registry) {
    let room = Arc::new(Semaphore::new(LINKS_MAX));
    let mut links = JoinSet::new();
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let Some(incoming) = endpoint.accept().await else {
            return;
        };
        while links.try_join_next().is_some() {}
        let registry = registry.clone();
        links.spawn(async move {
            greet(incoming, registry).await;
            drop(permit);
        });
    }
}

async fn greet(incoming: Incoming, registry: Registry) {
    let from = incoming.remote_addr();
    match incoming.handshake().await {
        Ok(link) if matches!(link.principal(), Principal::Host(_)) => streams(&link, &registry).await,
        Ok(link) => {
            tracing::warn!(%from, who = %link.principal(), "refused a link: only hosts send generations");
            link.close("only hosts send generations");
        }
        Err(error) => tracing::warn!(%from, %error, "refused a connection"),
    }
}

async fn streams(link: &Link, registry: &Registry) {
    let who = link.principal();
    let mut streams = JoinSet::new();
    while let Ok(stream) = link.accept_bi().await {
        while streams.try_join_next().is_some() {}
        let registry = registry.clone();
        // The transport bounds how many of them a peer may have open.
        streams.spawn(async move {
            match serve(who, stream, &registry).await {
                Ok(()) => {}
                Err(error @ TransportError::Closed(_)) => tracing::debug!(%who, %error, "a stream ended"),
                Err(error) => tracing::warn!(%who, %error, "closed a stream"),
            }
        });
    }
}

async fn serve(who: Principal, stream: PendingCall, registry: &Registry) -> Result<(), TransportError> {
    let hello = async {
        let (kind, sender, mut receiver) = stream.kind().await?;
        if kind != StreamKind::Sync {
            return Err(TransportError::UnknownStream(kind as u8));
        }
        let first = receiver.receive().await?;
        let first = first.ok_or_else(|| TransportError::Closed("before it said hello".to_owned()))?;
        Ok((sender, receiver, first))
    };
    let hello = tokio::time::timeout(HELLO_MAX, hello).await;
    let (mut sender, receiver, first) = hello.map_err(|_| TransportError::Timeout(HELLO_MAX))??;
    let copy = match wire::decode::<Frame>(&first)? {
        Frame::Hello { service, .. } => registry.get(service).ok_or(service),
        _ => return Err(TransportError::Closed("it did not begin with a hello".to_owned())),
    };
    match copy {
        Ok(copy) => {
            if let Err(error) = copy.serve(who, first, sender, receiver).await {
                tracing::info!(%who, why = sync::chain(&error), "a stream of generations ended");
            }
            Ok(())
        }
        Err(service) => {
            let why = format!("this host keeps no copy of {service} now");
            sender.send(&wire::encode(&Answer::Refused { why })).await?;
            sender.finish();
            Ok(())
        }
    }
}
