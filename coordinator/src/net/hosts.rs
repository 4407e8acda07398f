//! Orders to hosts: one call in flight for each host and service; a newer order replaces one that waits.
//! Every host is told who the coordinators are, and whose certificates are refused, when it connects
//! and when that changes.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use understudy_common::id::{HostId, ServiceId};
use understudy_common::revocation::Revocations;
use understudy_common::wire::{CoordinatorList, Order, Request, Response};
use understudy_transport::{Link, TransportError};

/// An agent that takes longer to acknowledge an order is asked again.
const ORDER_PATIENCE: Duration = Duration::from_millis(1_000);
/// The same for who the coordinators are and whose certificates are refused.
const TELL_PATIENCE: Duration = Duration::from_secs(5);

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
    /// Calls in flight, each with its link and the order that goes next. A call on a link that was replaced
    /// holds up nothing: its host may be gone without a goodbye.
    busy: BTreeMap<(HostId, ServiceId), Busy>,
    calls: JoinSet<((HostId, ServiceId), u64)>,
    /// Hosts being told who the coordinators are and whose certificates are refused.
    told: JoinSet<()>,
}

struct Busy {
    number: u64,
    next: Option<Order>,
}

pub(super) async fn run(
    mut events: mpsc::Receiver<HostEvent>,
    mut coordinators: watch::Receiver<CoordinatorList>,
    mut revoked: watch::Receiver<Revocations>,
) {
    let mut orders = Orders::default();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => {
                    if let HostEvent::Joined { link, .. } = &event {
                        let (list, revoked) = (coordinators.borrow().clone(), revoked.borrow().clone());
                        orders.told.spawn(tell(link.clone(), list, revoked));
                    }
                    orders.handle(event);
                }
                None => return,
            },
            Ok(()) = coordinators.changed() => {
                orders.tell_all(&coordinators.borrow_and_update(), &revoked.borrow());
            }
            Ok(()) = revoked.changed() => {
                orders.tell_all(&coordinators.borrow(), &revoked.borrow_and_update());
            }
            Some(_) = orders.told.join_next() => {}
            Some(Ok((key, number))) = orders.calls.join_next() => orders.ended(key, number),
        }
    }
}

impl Orders {
    fn tell_all(&mut self, list: &CoordinatorList, revoked: &Revocations) {
        self.told.abort_all();
        for connected in self.links.values() {
            self.told
                .spawn(tell(connected.link.clone(), list.clone(), revoked.clone()));
        }
    }

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
        let Some(Connected { link, number }) = self.links.get(&host) else {
            return;
        };
        let number = *number;
        if let Some(busy) = self.busy.get_mut(&key).filter(|busy| busy.number == number) {
            busy.next = Some(order);
            return;
        }
        let link = link.clone();
        self.busy.insert(key, Busy { number, next: None });
        self.calls.spawn(async move {
            call(&link, host, order).await;
            (key, number)
        });
    }

    fn ended(&mut self, key: (HostId, ServiceId), number: u64) {
        if self.busy.get(&key).is_none_or(|busy| busy.number != number) {
            return;
        }
        if let Some(next) = self.busy.remove(&key).and_then(|busy| busy.next) {
            self.order(key.0, next);
        }
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

/// Until the agent knows both or its link ends.
async fn tell(link: Link, list: CoordinatorList, revoked: Revocations) {
    let list = (!list.members.is_empty()).then_some(Request::Coordinators(list));
    let revoked = (!revoked.is_empty()).then_some(Request::Revoked(revoked));
    for request in [list, revoked].into_iter().flatten() {
        while let Err(TransportError::Timeout(_)) = link.call(&request, TELL_PATIENCE).await {
            tracing::debug!(who = %link.principal(), "does not answer what it is told");
        }
    }
}
