//! The coordinators' events, followed by the CLI on a thread of its own: which epoch went to whom.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use super::owners::Grant;
use crate::boot_ns;
use crate::cluster::Operator;

const PAUSE: Duration = Duration::from_millis(300);

/// What happened to the service.
#[derive(Clone, Debug, Default)]
pub struct Events {
    pub grants: Vec<Grant>,
    /// Grants of a planned move.
    pub planned: u64,
    /// Kind and text of all, in their order.
    pub texts: Vec<String>,
    last: u64,
    /// Boot time at which the last answer was asked for.
    asked_ns: u64,
}

pub struct Watch {
    events: Arc<Mutex<Events>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start(operator: Operator) -> Self {
        let (events, stop) = (Arc::<Mutex<Events>>::default(), Arc::<AtomicBool>::default());
        let (theirs, ended) = (Arc::clone(&events), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                look(&operator, &theirs);
                thread::sleep(PAUSE);
            }
        });
        Self {
            events,
            stop,
            thread: Some(thread),
        }
    }

    pub fn events(&self) -> Events {
        lock(&self.events).clone()
    }

    /// Whether all that happened before this time is known.
    pub fn knows_until(&self, at_ns: u64) -> bool {
        lock(&self.events).asked_ns > at_ns
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(events: &Mutex<Events>) -> std::sync::MutexGuard<'_, Events> {
    events.lock().unwrap_or_else(PoisonError::into_inner)
}

fn look(operator: &Operator, events: &Mutex<Events>) {
    let after = lock(events).last.to_string();
    let asked_ns = boot_ns();
    // No answer while nobody leads.
    let Ok(document) = operator.document(&["events", "--after", &after]) else {
        return;
    };
    let known_ns = boot_ns();
    let mut events = lock(events);
    events.asked_ns = asked_ns;
    for event in document["events"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
    {
        events.take(event, known_ns);
    }
}

impl Events {
    fn take(&mut self, event: &Value, known_ns: u64) {
        let Some(seq) = event["seq"].as_u64().filter(|seq| *seq > self.last) else {
            return;
        };
        self.last = seq;
        let text = event["text"].as_str().unwrap_or_default();
        let kind = event["kind"].as_str().unwrap_or_default();
        self.texts.push(format!("{kind}: {text}"));
        if kind == "granted"
            && let (Some(epoch), Some(host)) = (epoch(text), event["host"].as_u64())
        {
            let planned = text.contains("(planned handover");
            self.planned += u64::from(planned);
            self.grants.push(Grant {
                epoch,
                host: u8::try_from(host).unwrap_or(u8::MAX),
                // After a lease end the successor may be held back by its promise while the old holder serves on:
                // only a planned grant says that the old one answers no more.
                known_ns: if planned { known_ns } else { u64::MAX },
            });
        }
        // Its gate is open: that of the epoch before it is not, whatever held it back until now.
        if kind == "serving"
            && let Some(epoch) = text
                .rsplit_once(" serves e")
                .and_then(|(_, epoch)| epoch.parse::<u64>().ok())
            && let Some(grant) = self.grants.iter_mut().find(|grant| grant.epoch == epoch)
        {
            grant.known_ns = grant.known_ns.min(known_ns);
        }
    }
}

/// `ledger: e3 goes to b (…)`
fn epoch(text: &str) -> Option<u64> {
    let (before, _) = text.split_once(" goes to ")?;
    before.rsplit_once(" e")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn grants_are_read_from_events_once() {
        let mut events = Events::default();
        let granted = json!({"seq": 4, "kind": "granted", "host": 2, "text": "ledger: e3 goes to b (planned handover)"});
        events.take(&granted, 50);
        events.take(&granted, 60);
        let grant = Grant {
            epoch: 3,
            host: 2,
            known_ns: 50,
        };
        assert_eq!((events.grants.as_slice(), events.planned), (&[grant][..], 1));
    }

    #[test]
    fn an_epoch_after_a_lease_end_ends_the_one_before_it_when_it_serves() {
        let mut events = Events::default();
        let told =
            |seq: u64, kind: &str, text: &str| json!({"seq": seq, "kind": kind, "host": 2, "text": text});
        events.take(&told(1, "granted", "ledger: e3 goes to b (lease of a ended)"), 50);
        assert_eq!(events.grants[0].known_ns, u64::MAX);
        events.take(&told(2, "serving", "ledger: b serves e3"), 70);
        events.take(&told(3, "serving", "ledger: b serves e3"), 90);
        assert_eq!(events.grants[0].known_ns, 70);
    }
}
