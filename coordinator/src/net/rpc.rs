//! One request, one response.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use understudy_common::identity::Principal;
use understudy_common::wire::{self, Refusal, Request, Response, StreamKind};
use understudy_transport::{FrameReceiver, FrameSender, PendingCall, TransportError};

use crate::coordinator::Event;

/// A peer that opens a stream and does not send its request within this time loses the stream.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// A two-way stream: a request, or a snapshot of another coordinator.
pub(super) async fn serve(
    who: Principal,
    stream: PendingCall,
    events: mpsc::Sender<Event>,
    snapshots: Arc<Semaphore>,
) -> Result<(), TransportError> {
    let timeout = || TransportError::Timeout(REQUEST_PATIENCE);
    let kind = tokio::time::timeout(REQUEST_PATIENCE, stream.kind()).await;
    let (kind, sender, receiver) = kind.map_err(|_| timeout())??;
    match (who, kind) {
        (_, StreamKind::Rpc) => {
            let request = tokio::time::timeout(REQUEST_PATIENCE, request(receiver)).await;
            respond(who, sender, request.map_err(|_| timeout())??, &events).await
        }
        (Principal::Coordinator(from), StreamKind::Snapshot) => {
            super::snapshots::receive(from, sender, receiver, snapshots, events).await
        }
        _ => Err(TransportError::UnknownStream(kind as u8)),
    }
}

async fn request(mut receiver: FrameReceiver) -> Result<Request, TransportError> {
    let frame = receiver
        .receive()
        .await?
        .ok_or_else(|| TransportError::Closed("a stream without a request".to_owned()))?;
    Ok(wire::decode::<Request>(&frame)?)
}

async fn respond(
    who: Principal,
    mut sender: FrameSender,
    request: Request,
    events: &mpsc::Sender<Event>,
) -> Result<(), TransportError> {
    let response = ask(who, request, events).await;
    if let Response::Refused(refusal @ Refusal::NotYours { .. }) = &response {
        tracing::warn!(%who, %refusal, "refused");
    }
    sender.send(&wire::encode(&response)).await?;
    sender.finish();
    Ok(())
}

async fn ask(from: Principal, request: Request, events: &mpsc::Sender<Event>) -> Response {
    let busy = || Response::Refused(Refusal::Busy("requests".to_owned()));
    let (reply, response) = oneshot::channel();
    if events.try_send(Event::Request { from, request, reply }).is_err() {
        return busy();
    }
    response.await.unwrap_or_else(|_| busy())
}
