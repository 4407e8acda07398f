//! What the coordinators say, as an operator would see it: their status and events, asked for by
//! the CLI on a thread of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use understudy_testbed::boot_ns;
use understudy_testbed::cluster::Operator;

use super::cluster::SERVICE;

const PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) status: Value,
    pub(super) events: Vec<Event>,
    /// Why the last question was not answered.
    pub(super) trouble: Option<String>,
    /// Highest p99 of the freezes that any primary reported, in microseconds.
    pub(super) freeze_us_p99: Option<u64>,
    /// Highest number of files that any primary compared for want of certainty.
    pub(super) unknown: Option<u64>,
    /// Every primary that cut generations had its dirty ranges from the kernel.
    pub(super) tracked: Option<bool>,
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) seq: u64,
    /// On the boot clock.
    pub(super) at_ns: u64,
    pub(super) kind: String,
    pub(super) host: Option<u64>,
    pub(super) text: String,
}

impl Seen {
    pub(super) fn service(&self) -> &Value {
        let services = self.status["services"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        services
            .iter()
            .find(|service| service["name"] == SERVICE)
            .unwrap_or(&Value::Null)
    }

    /// By number, from 1.
    pub(super) fn host(&self, id: u64) -> &Value {
        let hosts = self.status["hosts"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        hosts.iter().find(|host| host["id"] == id).unwrap_or(&Value::Null)
    }

    pub(super) fn risk_bp(&self, id: u64) -> Option<u64> {
        self.host(id)["risk_bp"].as_u64()
    }

    pub(super) fn in_safe_mode(&self, id: u64) -> bool {
        self.host(id)["safe_mode"] == true
    }

    /// The host that holds the service and serves.
    pub(super) fn serving(&self) -> Option<u64> {
        let service = self.service();
        (service["serving"] == true).then(|| service["holder"].as_u64())?
    }

    pub(super) fn is_ready_shadow(&self, id: u64) -> bool {
        let shadows = self.service()["shadows"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        shadows
            .iter()
            .any(|shadow| shadow["host"] == id && shadow["copy"] == "ready" && shadow["promotable"] != false)
    }

    pub(super) fn sync(&self, figure: &str) -> Option<u64> {
        self.service()["sync"][figure].as_u64()
    }

    /// Log entries that the leader knows to be committed.
    pub(super) fn commits(&self) -> Option<u64> {
        let coordinators = self.status["coordinators"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        coordinators
            .iter()
            .filter_map(|coordinator| coordinator["commits"].as_u64())
            .max()
    }

    pub(super) fn events_of(&self, kind: &str) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.kind == kind)
    }
}

pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn start(operator: Operator) -> Self {
        let (seen, stop) = (
            Arc::new(Mutex::new(Seen::default())),
            Arc::new(AtomicBool::new(false)),
        );
        let (theirs, ended) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                look(&operator, &theirs);
                thread::sleep(PAUSE);
            }
        });
        Self {
            seen,
            stop,
            thread: Some(thread),
        }
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.lock().map(|seen| seen.clone()).unwrap_or_default()
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

fn look(operator: &Operator, seen: &Mutex<Seen>) {
    let last = seen
        .lock()
        .map_or(0, |seen| seen.events.last().map_or(0, |event| event.seq));
    let status = operator.document(&["status"]);
    let events = operator.document(&["events", "--after", &last.to_string()]);
    let Ok(mut seen) = seen.lock() else { return };
    seen.trouble = None;
    match status {
        Ok(status) => {
            seen.status = status;
            let p99 = seen.sync("freeze_us_p99");
            seen.freeze_us_p99 = seen.freeze_us_p99.max(p99);
            seen.unknown = seen.unknown.max(seen.sync("unknown"));
            let service = seen.service();
            let cuts = seen.serving().is_some() && !service["generation"].is_null();
            if let Some(now) = service["sync"]["tracked"].as_bool().filter(|_| cuts) {
                seen.tracked = Some(now && seen.tracked != Some(false));
            }
        }
        Err(why) => seen.trouble = Some(format!("{why:#}")),
    }
    match events {
        Ok(events) => {
            let new = events["events"].as_array().map(Vec::as_slice).unwrap_or_default();
            seen.events
                .extend(new.iter().filter_map(event).filter(|event| event.seq > last));
        }
        Err(why) => seen.trouble = Some(format!("{why:#}")),
    }
}

fn event(value: &Value) -> Option<Event> {
    let at_ms = value["at_ms"].as_u64()?;
    Some(Event {
        seq: value["seq"].as_u64()?,
        at_ns: on_boot_clock(at_ms),
        kind: value["kind"].as_str()?.to_owned(),
        host: value["host"].as_u64(),
        text: value["text"].as_str().unwrap_or_default().to_owned(),
    })
}

/// All machines of the demo share this one's two clocks.
fn on_boot_clock(wall_ms: u64) -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ago = wall.as_nanos().saturating_sub(u128::from(wall_ms) * 1_000_000);
    boot_ns().saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_says_who_serves_and_who_could() {
        let seen = Seen {
            status: json!({
                "hosts": [{"id": 1, "risk_bp": 42, "safe_mode": true}],
                "services": [{
                    "name": "redis", "holder": 2, "serving": true,
                    "shadows": [{"host": 3, "copy": "ready", "promotable": true}, {"host": 1, "copy": "warming"}],
                }],
                "coordinators": [{"commits": 7}, {"commits": null}],
            }),
            ..Seen::default()
        };
        assert_eq!(
            (seen.serving(), seen.risk_bp(1), seen.commits()),
            (Some(2), Some(42), Some(7))
        );
        assert!(seen.in_safe_mode(1) && !seen.in_safe_mode(2));
        assert!(seen.is_ready_shadow(3) && !seen.is_ready_shadow(1));
    }

    #[test]
    fn an_event_of_now_is_now_on_the_boot_clock() {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_millis();
        let (at, now) = (on_boot_clock(wall as u64), boot_ns());
        assert!(now - at < 1_000_000_000, "{at} and {now}");
    }
}
