//! One request, one response. What is asked about certificates is about those of the link itself.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot};
use understudy_common::identity::Principal;
use understudy_common::wire::{self, Refusal, Request, Response, StreamKind};
use understudy_transport::{FrameReceiver, FrameSender, Link, PendingCall, TransportError};

use super::accept::Server;
use crate::coordinator::Event;

/// A peer that opens a stream and does not send its request within this time loses the stream.
const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// A two-way stream: a request, or a snapshot of another coordinator.
pub(super) async fn serve(server: &Server, link: &Link, stream: PendingCall) -> Result<(), TransportError> {
    let who = link.principal();
    let timeout = || TransportError::Timeout(REQUEST_PATIENCE);
    let kind = tokio::time::timeout(REQUEST_PATIENCE, stream.kind()).await;
    let (kind, sender, receiver) = kind.map_err(|_| timeout())??;
    match (who, kind) {
        (_, StreamKind::Rpc) => {
            let request = tokio::time::timeout(REQUEST_PATIENCE, request(receiver)).await;
            respond(server, link, sender, request.map_err(|_| timeout())??).await
        }
        (Principal::Coordinator(from), StreamKind::Snapshot) => {
            let (snapshots, events) = (Arc::clone(&server.snapshots), server.events.clone());
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
    server: &Server,
    link: &Link,
    mut sender: FrameSender,
    request: Request,
) -> Result<(), TransportError> {
    let who = link.principal();
    let response = match request {
        Request::RenewCertificate => renewal(link, &server.events).await,
        Request::ShowCertificate(chain) => shown(server, who, chain).await,
        request => ask(who, request, &server.events).await,
    };
    if let Response::Refused(refusal @ Refusal::NotYours { .. }) = &response {
        tracing::warn!(%who, %refusal, "refused");
    }
    sender.send(&wire::encode(&response)).await?;
    sender.finish();
    Ok(())
}

async fn ask(from: Principal, request: Request, events: &mpsc::Sender<Event>) -> Response {
    answered(events, |reply| Event::Request { from, request, reply }).await
}

async fn renewal(link: &Link, events: &mpsc::Sender<Event>) -> Response {
    match link.certificate() {
        Some(certificate) => answered(events, |reply| Event::Renewal { certificate, reply }).await,
        None => refused("a newcomer has no certificate to renew".to_owned()),
    }
}

async fn shown(server: &Server, who: Principal, chain: Vec<Vec<u8>>) -> Response {
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
    match server.endpoint.examine(&chain) {
        Ok(certificate) if certificate.identity.principal == who => {
            // The loop is gone only when the process stops.
            let _ = server.events.send(Event::Certificate(certificate)).await;
            Response::Done
        }
        Ok(certificate) => Response::Refused(Refusal::NotYours {
            speaker: who.to_string(),
            subject: certificate.identity.principal.to_string(),
        }),
        Err(error) => refused(error.to_string()),
    }
}

fn refused(why: String) -> Response {
    Response::Refused(Refusal::Invalid(why))
}

/// What the loop answers; *busy* when it has no room for the question.
pub(super) async fn answered(
    events: &mpsc::Sender<Event>,
    event: impl FnOnce(oneshot::Sender<Response>) -> Event,
) -> Response {
    let busy = || Response::Refused(Refusal::Busy("requests".to_owned()));
    let (reply, response) = oneshot::channel();
    if events.try_send(event(reply)).is_err() {
        return busy();
    }
    response.await.unwrap_or_else(|_| busy())
}
