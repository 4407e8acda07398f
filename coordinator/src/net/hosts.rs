//! Orders to hosts: one call in flight for each host and service; a newer order replaces one that waits.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use understudy_common::id::{HostId, ServiceId};
use understudy_common::wire::{Order, Request, Response};
use understudy_transport::Link;

/// An agent that takes longer to acknowledge an order is asked again.
const ORDER_PATIENCE: Duration = Duration::from_millis(1_000);

#[derive(Debug)]
pub(super) enum HostEvent {
    /// A host's agent connected; the number tells its links apart.
    Joined {
        host: HostId,
        link: Link,
        number: u64,
    },
    Left {
        host: HostId,
        number: u64,
        last: tokio::sync::oneshot::Sender<bool>,
    },
    Order {
        host: HostId,
        order: Box<Order>,
    },
}

struct Connected {
    link: Link,
    number: u64,
}

#[derive(Default)]
struct Orders {
    links: BTreeMap<HostId, Connected>,
    /// Calls in flight, each with the order that goes next.
    busy: BTreeMap<(HostId, ServiceId), Option<Order>>,
    calls: JoinSet<(HostId, ServiceId)>,
}

pub(super) async fn run(mut events: mpsc::Receiver<HostEvent>) {
    let mut orders = Orders::default();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => orders.handle(event),
                None => return,
            },
            Some(Ok((host, service))) = orders.calls.join_next() => {
                if let Some(Some(next)) = orders.busy.remove(&(host, service)) {
                    orders.order(host, next);
                }
            }
        }
    }
}

impl Orders {
    fn handle(&mut self, event: HostEvent) {
        match event {
            HostEvent::Joined { host, link, number } => {
                if self.links.get(&host).is_none_or(|known| known.number < number) {
                    self.links.insert(host, Connected { link, number });
                }
            }
            HostEvent::Left { host, number, last } => {
                let current = self.links.get(&host).is_some_and(|known| known.number == number);
                if current {
                    self.links.remove(&host);
                }
                // Nobody waits for it when the process stops.
                let _ = last.send(current);
            }
            HostEvent::Order { host, order } => self.order(host, *order),
        }
    }

    fn order(&mut self, host: HostId, order: Order) {
        let key = (host, order.service);
        if let Some(next) = self.busy.get_mut(&key) {
            *next = Some(order);
            return;
        }
        let Some(Connected { link, .. }) = self.links.get(&host) else {
            return;
        };
        let link = link.clone();
        self.busy.insert(key, None);
        self.calls.spawn(async move {
            call(&link, host, order).await;
            key
        });
    }
}

async fn call(link: &Link, host: HostId, order: Order) {
    let (service, revision) = (order.service, order.revision);
    match link.call(&Request::Order(order), ORDER_PATIENCE).await {
        Ok(Response::Done) => tracing::debug!(%host, %service, revision, "order taken"),
        Ok(Response::Refused(refusal)) => {
            tracing::warn!(%host, %service, revision, %refusal, "order refused");
        }
        Ok(other) => tracing::warn!(%host, %service, ?other, "an order's answer makes no sense"),
        Err(error) => tracing::debug!(%host, %service, revision, %error, "order not delivered"),
    }
}
