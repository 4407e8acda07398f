//! One request, one response.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use understudy_common::identity::Principal;
use understudy_common::wire::{self, Refusal, Request, Response, StreamKind};
use understudy_transport::{PendingCall, TransportError};

use crate::coordinator::Event;

/// A peer that opens a stream and does not send its request within this time loses the stream.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn serve(
    who: Principal,
    stream: PendingCall,
    events: mpsc::Sender<Event>,
) -> Result<(), TransportError> {
    let receive = async {
        let (kind, sender, mut receiver) = stream.kind().await?;
        if kind != StreamKind::Rpc {
            return Err(TransportError::UnknownStream(kind as u8));
        }
        let frame = receiver
            .receive()
            .await?
            .ok_or_else(|| TransportError::Closed("a stream without a request".to_owned()))?;
        Ok((sender, wire::decode::<Request>(&frame)?))
    };
    let (mut sender, request) = tokio::time::timeout(REQUEST_PATIENCE, receive)
        .await
        .map_err(|_| TransportError::Timeout(REQUEST_PATIENCE))??;
    let response = ask(who, request, &events).await;
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
