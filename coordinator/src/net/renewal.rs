//! This coordinator's own certificate: signed by the issuer that it holds, or else by another coordinator.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use understudy_common::id::CoordinatorId;
use understudy_common::identity::Principal;
use understudy_common::wire::CoordinatorList;
use understudy_transport::{Endpoint, RenewalError, TransportError, chain_in, keep_renewed};

use super::rpc;
use crate::coordinator::Event;

const DIAL_MAX: Duration = Duration::from_millis(1_500);

pub(super) async fn run(
    endpoint: Endpoint,
    me: CoordinatorId,
    file: PathBuf,
    events: mpsc::Sender<Event>,
    members: watch::Receiver<CoordinatorList>,
) {
    let (asking, asked_by) = (endpoint.clone(), events.clone());
    let ask = move || {
        let members = members.borrow().members.clone();
        ask(asking.clone(), me, members, asked_by.clone())
    };
    tokio::join!(
        keep_renewed(endpoint.clone(), file, ask),
        tell(&endpoint, &events)
    );
}

/// The loop notes what this coordinator itself shows.
async fn tell(endpoint: &Endpoint, events: &mpsc::Sender<Event>) {
    let Some(mut own) = endpoint.credentials() else {
        return;
    };
    loop {
        let certificate = own.borrow_and_update().certificate().clone();
        if events.send(Event::Certificate(certificate)).await.is_err() || own.changed().await.is_err() {
            return;
        }
    }
}

async fn ask(
    endpoint: Endpoint,
    me: CoordinatorId,
    members: Vec<(CoordinatorId, SocketAddr)>,
    events: mpsc::Sender<Event>,
) -> Result<String, RenewalError> {
    let mut last = own_issuer(&endpoint, &events).await;
    for (id, addr) in members {
        if last.is_ok() {
            break;
        }
        if id != me {
            last = other(&endpoint, id, addr).await;
        }
    }
    last
}

async fn own_issuer(endpoint: &Endpoint, events: &mpsc::Sender<Event>) -> Result<String, RenewalError> {
    let own = endpoint.credentials().ok_or(RenewalError::Nobody)?;
    let certificate = own.borrow().certificate().clone();
    chain_in(rpc::answered(events, |reply| Event::Renewal { certificate, reply }).await)
}

async fn other(endpoint: &Endpoint, id: CoordinatorId, addr: SocketAddr) -> Result<String, RenewalError> {
    let dial = endpoint.dial(addr, Principal::Coordinator(id));
    let link = tokio::time::timeout(DIAL_MAX, dial)
        .await
        .unwrap_or(Err(TransportError::Timeout(DIAL_MAX)))?;
    let answer = link.renewed_certificate().await;
    link.close("this coordinator has asked");
    answer
}
