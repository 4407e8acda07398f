//! Probes that know no network: each talks to one host only, whatever the network believes.
//!
//! One namespace for each host has the service's address nailed to that host's MAC, so a write is
//! accepted exactly when that host serves. A second probe reads at the host's own address.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;
use understudy_testbed::{Host, boot_ns};

use super::client::MARK;
use super::redis::Redis;

const CONNECT: Duration = Duration::from_millis(20);
const ANSWER: Duration = Duration::from_millis(100);
/// Well below a slot, so that a host which serves is seen in each.
const PAUSE: Duration = Duration::from_millis(4);
const DIRECT_PAUSE: Duration = Duration::from_millis(25);
/// Every so many accepted writes the mark is read as well.
const READ_EVERY: u64 = 4;

pub(super) struct Probes {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

struct Shared {
    stop: AtomicBool,
    /// Times of accepted writes, one list for each host.
    accepts: Vec<Mutex<Vec<u64>>>,
    /// Whether stale answers count.
    armed: AtomicBool,
    /// Highest mark that anyone was answered.
    seen: AtomicU64,
    stale: AtomicU64,
    reads: AtomicU64,
}

/// One host and the namespace that probes it.
pub(super) struct Target {
    pub(super) from: Arc<Host>,
    pub(super) own: Ipv4Addr,
}

impl Probes {
    pub(super) fn start(targets: Vec<Target>, service: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            accepts: targets.iter().map(|_| Mutex::default()).collect(),
            armed: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            reads: AtomicU64::new(0),
        });
        let mut threads = Vec::new();
        for (index, target) in targets.into_iter().enumerate() {
            let own = SocketAddr::from((target.own, service.port()));
            let (from, theirs) = (Arc::clone(&target.from), Arc::clone(&shared));
            threads.push(thread::spawn(move || {
                from.inside(|| accept(&theirs, index, service))
            }));
            let (from, theirs) = (target.from, Arc::clone(&shared));
            threads.push(thread::spawn(move || from.inside(|| read(&theirs, own))));
        }
        Self { shared, threads }
    }

    /// From now on an answer older than one already given since now is stale.
    pub(super) fn watch_for_stale(&self) {
        self.shared.seen.store(0, Ordering::SeqCst);
        self.shared.armed.store(true, Ordering::SeqCst);
    }

    /// Stale answers, and answers in all.
    pub(super) fn stale(&self) -> (u64, u64) {
        (
            self.shared.stale.load(Ordering::SeqCst),
            self.shared.reads.load(Ordering::SeqCst),
        )
    }

    pub(super) fn accepts(&self) -> Vec<Vec<u64>> {
        let copy = |times: &Mutex<Vec<u64>>| match times.lock() {
            Ok(times) => times.clone(),
            Err(_) => Vec::new(),
        };
        self.shared.accepts.iter().map(copy).collect()
    }

    pub(super) fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(shared: &Shared, index: usize, service: SocketAddr) -> Result<()> {
    let key = format!("probe:{index}");
    let mut connection: Option<Redis> = None;
    let mut writes = 0_u64;
    while !shared.stop.load(Ordering::SeqCst) {
        thread::sleep(PAUSE);
        let Some(redis) = connection.as_mut() else {
            connection = Redis::connect(service, CONNECT, ANSWER).ok();
            continue;
        };
        writes += 1;
        match redis.ask(&[b"SET", key.as_bytes(), writes.to_string().as_bytes()]) {
            Ok(reply) if reply.is_ok() => {
                if let Ok(mut times) = shared.accepts[index].lock() {
                    times.push(boot_ns());
                }
            }
            Ok(_) => continue,
            Err(_) => {
                connection = None;
                continue;
            }
        }
        if writes.is_multiple_of(READ_EVERY) && !check_mark(shared, redis) {
            connection = None;
        }
    }
    Ok(())
}

fn read(shared: &Shared, own: SocketAddr) -> Result<()> {
    let mut connection: Option<Redis> = None;
    while !shared.stop.load(Ordering::SeqCst) {
        thread::sleep(DIRECT_PAUSE);
        match connection.as_mut() {
            None => connection = Redis::connect(own, CONNECT, ANSWER).ok(),
            Some(redis) => {
                if !check_mark(shared, redis) {
                    connection = None;
                }
            }
        }
    }
    Ok(())
}

/// Reads the mark and judges it; false when the connection is of no more use.
fn check_mark(shared: &Shared, redis: &mut Redis) -> bool {
    let armed = shared.armed.load(Ordering::SeqCst);
    let floor = shared.seen.load(Ordering::SeqCst);
    let reply = match redis.ask(&[b"GET", MARK]) {
        Ok(super::redis::Reply::Error(_)) => return true,
        Ok(reply) => reply,
        Err(_) => return false,
    };
    let value = reply.stored_number().unwrap_or(0);
    if armed {
        shared.reads.fetch_add(1, Ordering::SeqCst);
        if value < floor {
            shared.stale.fetch_add(1, Ordering::SeqCst);
        }
        shared.seen.fetch_max(value, Ordering::SeqCst);
    }
    true
}
