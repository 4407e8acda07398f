//! Who asks at the address all the time: a client that appends, and one probe for each host that no network can
//! lead to another.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::history::Ack;
use super::owners::Answered;
use crate::ledger::{Connection, Said};
use crate::{Host, boot_ns};

const CONNECT: Duration = Duration::from_millis(50);
const ANSWER: Duration = Duration::from_millis(100);
const APPEND_EVERY: Duration = Duration::from_millis(5);
const PROBE_EVERY: Duration = Duration::from_millis(4);
const DUMP: Duration = Duration::from_secs(5);

/// Everything that was answered so far.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub acks: Vec<Ack>,
    /// Those of `acks` come first.
    pub answers: Vec<Answered>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    asked: AtomicU64,
    appended: Mutex<Vec<(Ack, Answered)>>,
    probed: Mutex<Vec<Answered>>,
    refused: AtomicU64,
}

pub struct Traffic {
    shared: Arc<Shared>,
    client: Arc<Host>,
    service: SocketAddr,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Traffic {
    /// `probes` are pinned to the hosts, in their order.
    pub fn start(client: &Arc<Host>, probes: &[Arc<Host>], service: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        let (from, theirs) = (Arc::clone(client), Arc::clone(&shared));
        threads.push(thread::spawn(move || from.inside(|| append(&theirs, service))));
        for (number, probe) in (1..).zip(probes) {
            let (from, theirs) = (Arc::clone(probe), Arc::clone(&shared));
            threads.push(thread::spawn(move || {
                from.inside(|| ask(&theirs, service, number))
            }));
        }
        Self {
            shared,
            client: Arc::clone(client),
            service,
            threads,
        }
    }

    pub fn heard(&self) -> Heard {
        let appended = self
            .shared
            .appended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let probed = self.shared.probed.lock().unwrap_or_else(PoisonError::into_inner);
        Heard {
            acks: appended.iter().map(|(ack, _)| *ack).collect(),
            answers: appended
                .iter()
                .map(|(_, answer)| *answer)
                .chain(probed.iter().copied())
                .collect(),
        }
    }

    /// Highest number that was asked to be appended.
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// Whether an append that was sent after this time was answered.
    pub fn served_since(&self, since_ns: u64) -> bool {
        let appended = self
            .shared
            .appended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        appended.last().is_some_and(|(_, last)| last.sent_ns > since_ns)
    }

    /// Longest time between two answers to the client from this time on, in nanoseconds.
    pub fn longest_gap_ns(&self, since_ns: u64) -> u64 {
        let appended = self
            .shared
            .appended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let first = appended.partition_point(|(ack, _)| ack.answered_ns < since_ns);
        let times = appended[first.saturating_sub(1)..]
            .iter()
            .map(|(ack, _)| ack.answered_ns);
        times
            .clone()
            .zip(times.skip(1))
            .map(|(one, next)| next - one)
            .max()
            .unwrap_or(0)
    }

    /// Appends that were answered.
    pub fn appends(&self) -> u64 {
        let appended = self
            .shared
            .appended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        appended.len() as u64
    }

    /// Appends that the ledger said it could not make.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::SeqCst)
    }

    /// The whole ledger, as the host at the address has it.
    pub fn dump(&self) -> Result<(Said, Vec<u64>)> {
        self.client
            .inside(|| Connection::open(self.service, CONNECT, DUMP)?.dump())
    }

    /// Whether a thread has ended, which it does only for an error of its own.
    pub fn check(&mut self) -> Result<()> {
        if let Some(at) = self.threads.iter().position(JoinHandle::is_finished) {
            let outcome = self.threads.swap_remove(at).join();
            return outcome.unwrap_or_else(|_| anyhow::bail!("a client or a probe panicked"));
        }
        Ok(())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Appends 1, 2, 3 … A number whose fate is unknown is never used again.
fn append(shared: &Shared, service: SocketAddr) -> Result<()> {
    let mut connection = None;
    let mut id = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        thread::sleep(APPEND_EVERY);
        let Some(ledger) = &mut connection else {
            connection = Connection::open(service, CONNECT, ANSWER).ok();
            continue;
        };
        id += 1;
        shared.asked.store(id, Ordering::SeqCst);
        let sent_ns = boot_ns();
        let Ok(said) = ledger.append(id) else {
            connection = None;
            continue;
        };
        let answered = answered(said, sent_ns);
        if !said.done {
            shared.refused.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let ack = Ack {
            id,
            answered_ns: answered.answered_ns,
        };
        let mut appended = shared.appended.lock().unwrap_or_else(PoisonError::into_inner);
        appended.push((ack, answered));
    }
    Ok(())
}

fn ask(shared: &Shared, service: SocketAddr, host: u8) -> Result<()> {
    let mut connection = None;
    while !shared.stop.load(Ordering::SeqCst) {
        thread::sleep(PROBE_EVERY);
        let Some(ledger) = &mut connection else {
            connection = Connection::open(service, CONNECT, ANSWER).ok();
            continue;
        };
        let sent_ns = boot_ns();
        let Ok(said) = ledger.ping() else {
            connection = None;
            continue;
        };
        ensure!(
            said.host == host,
            "the probe of host {host} was led to host {}",
            said.host
        );
        let mut probed = shared.probed.lock().unwrap_or_else(PoisonError::into_inner);
        probed.push(answered(said, sent_ns));
    }
    Ok(())
}

fn answered(said: Said, sent_ns: u64) -> Answered {
    Answered {
        host: said.host,
        sent_ns,
        answered_ns: boot_ns(),
    }
}
