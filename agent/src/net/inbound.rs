//! Other hosts: their streams of generations, and their requests for promises.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use understudy_common::delta::{Answer, Frame};
use understudy_common::identity::Principal;
use understudy_common::wire::{self, Refusal, Request, Response, StreamKind};
use understudy_transport::{
    Endpoint, FrameReceiver, FrameSender, Incoming, Link, PendingCall, TransportError,
};

use super::Asked;
use crate::service::Registry;
use crate::sync;

/// Links open at once, handshakes included. Further peers wait at the socket.
const LINKS_MAX: usize = 256;
/// How long a stream may take to say what it is.
const HELLO_MAX: Duration = Duration::from_secs(3);

/// Where what other hosts say goes to.
#[derive(Clone, Debug)]
pub struct Inbox {
    pub registry: Registry,
    /// To the agent's loop.
    pub asked: mpsc::Sender<Asked>,
}

/// Takes links in until the endpoint is closed.
pub async fn accept(endpoint: Endpoint, inbox: Inbox) {
    let room = Arc::new(Semaphore::new(LINKS_MAX));
    let mut links = JoinSet::new();
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        let Some(incoming) = endpoint.accept().await else {
            return;
        };
        while links.try_join_next().is_some() {}
        let inbox = inbox.clone();
        links.spawn(async move {
            greet(incoming, inbox).await;
            drop(permit);
        });
    }
}

async fn greet(incoming: Incoming, inbox: Inbox) {
    let from = incoming.remote_addr();
    match incoming.handshake().await {
        Ok(link) if matches!(link.principal(), Principal::Host(_)) => streams(&link, &inbox).await,
        Ok(link) => {
            tracing::warn!(%from, who = %link.principal(), "refused a link: only hosts talk to hosts");
            link.close("only hosts talk to hosts");
        }
        Err(error) => tracing::warn!(%from, %error, "refused a connection"),
    }
}

async fn streams(link: &Link, inbox: &Inbox) {
    let who = link.principal();
    let mut streams = JoinSet::new();
    while let Ok(stream) = link.accept_bi().await {
        while streams.try_join_next().is_some() {}
        let inbox = inbox.clone();
        // The transport bounds how many of them a peer may have open.
        streams.spawn(async move {
            match serve(who, stream, &inbox).await {
                Ok(()) => {}
                Err(error @ TransportError::Closed(_)) => tracing::debug!(%who, %error, "a stream ended"),
                Err(error) => tracing::warn!(%who, %error, "closed a stream"),
            }
        });
    }
}

async fn serve(who: Principal, stream: PendingCall, inbox: &Inbox) -> Result<(), TransportError> {
    let hello = async {
        let (kind, sender, mut receiver) = stream.kind().await?;
        let first = receiver.receive().await?;
        let first = first.ok_or_else(|| TransportError::Closed("before it said hello".to_owned()))?;
        Ok::<_, TransportError>((kind, sender, receiver, first))
    };
    let hello = tokio::time::timeout(HELLO_MAX, hello).await;
    let (kind, sender, receiver, first) = hello.map_err(|_| TransportError::Timeout(HELLO_MAX))??;
    match kind {
        StreamKind::Sync => generations(who, first, sender, receiver, &inbox.registry).await,
        StreamKind::Rpc => promise(who, &first, sender, &inbox.asked).await,
        StreamKind::Raft | StreamKind::Beacon | StreamKind::Snapshot => {
            Err(TransportError::UnknownStream(kind as u8))
        }
    }
}

/// A host may ask for what it holds itself, and for nothing else.
async fn promise(
    who: Principal,
    first: &[u8],
    mut sender: FrameSender,
    asked: &mpsc::Sender<Asked>,
) -> Result<(), TransportError> {
    let response = match wire::decode::<Request>(first)? {
        Request::Promise(request) if who == Principal::Host(request.host) => {
            let (answer, answered) = oneshot::channel();
            // The loop is gone only when the agent stops.
            let _ = asked.send(Asked::Promise { request, answer }).await;
            match answered.await {
                Ok(promised) => Response::Promised(promised),
                Err(_) => Response::Refused(Refusal::Busy("this agent, which stops".to_owned())),
            }
        }
        Request::Promise(request) => Response::Refused(Refusal::NotYours {
            speaker: who.to_string(),
            subject: request.host.to_string(),
        }),
        _ => Response::Refused(Refusal::Invalid("hosts ask hosts for promises only".to_owned())),
    };
    sender.send(&wire::encode(&response)).await?;
    sender.finish();
    Ok(())
}

async fn generations(
    who: Principal,
    first: Vec<u8>,
    mut sender: FrameSender,
    receiver: FrameReceiver,
    registry: &Registry,
) -> Result<(), TransportError> {
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
