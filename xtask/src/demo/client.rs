//! The client: numbered writes over one connection, and what was answered +OK when.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use understudy_testbed::{Host, boot_ns};

use super::figures::Ack;
use super::redis::{Redis, Reply};

const CONNECT: Duration = Duration::from_millis(50);
const ANSWER: Duration = Duration::from_millis(100);
const WRITES_PER_S: f64 = 1_250.0;
/// After a pause the client catches up at most this many writes.
const BACKLOG_MAX: f64 = 250.0;
/// Every so many writes the newest answered number is stored under [`MARK`].
const MARK_EVERY: u64 = 16;
pub(super) const MARK: &[u8] = b"mark";
const READ_BACK_BATCH: usize = 500;
const READ_BACK: Duration = Duration::from_secs(5);
const READ_BACK_TRIES: usize = 20;

pub(super) struct Client {
    shared: Arc<Shared>,
    host: Arc<Host>,
    at: SocketAddr,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acks: Mutex<Vec<Ack>>,
    last_ok_ns: AtomicU64,
    reconnects: AtomicU64,
}

impl Client {
    pub(super) fn start(host: &Arc<Host>, at: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let (inside, theirs) = (Arc::clone(host), Arc::clone(&shared));
        let thread = thread::spawn(move || inside.inside(|| write_until_stopped(&theirs, at)));
        Self {
            shared,
            host: Arc::clone(host),
            at,
            thread: Some(thread),
        }
    }

    /// Everything answered so far, in the order of the answers.
    pub(super) fn acks(&self) -> Vec<Ack> {
        self.shared
            .acks
            .lock()
            .map(|acks| acks.clone())
            .unwrap_or_default()
    }

    pub(super) fn count(&self) -> usize {
        self.shared.acks.lock().map_or(0, |acks| acks.len())
    }

    pub(super) fn last_ok_ns(&self) -> u64 {
        self.shared.last_ok_ns.load(Ordering::SeqCst)
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.shared.reconnects.load(Ordering::SeqCst)
    }

    /// Which of the numbers the service holds now, over a connection of its own.
    pub(super) fn read_back(&self, numbers: &[u64]) -> Result<Vec<bool>> {
        let mut why = anyhow!("not tried");
        for _ in 0..READ_BACK_TRIES {
            match self.host.inside(|| read_all(self.at, numbers)) {
                Ok(present) => return Ok(present),
                Err(error) => why = error,
            }
            thread::sleep(ANSWER);
        }
        Err(why).context("reading the numbered writes back")
    }

    pub(super) fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
    }
}

fn key(number: u64) -> String {
    format!("n:{number}")
}

fn write_until_stopped(shared: &Shared, at: SocketAddr) -> Result<()> {
    let mut connection: Option<Redis> = None;
    let mut number = 0_u64;
    let mut began = Instant::now();
    let mut sent = 0.0;
    while !shared.stop.load(Ordering::SeqCst) {
        let due = began.elapsed().as_secs_f64() * WRITES_PER_S;
        if sent >= due {
            thread::sleep(Duration::from_micros(200));
            continue;
        }
        if due - sent > BACKLOG_MAX {
            (began, sent) = (Instant::now(), -BACKLOG_MAX);
        }
        let Some(redis) = connection.as_mut() else {
            connection = Redis::connect(at, CONNECT, ANSWER).ok();
            shared.reconnects.fetch_add(1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        number += 1;
        sent += 1.0;
        let text = number.to_string();
        match redis.ask(&[b"SET", key(number).as_bytes(), text.as_bytes()]) {
            Ok(reply) if reply.is_ok() => note(shared, number),
            // Loading, or out of memory: not answered +OK, so not promised.
            Ok(_) => thread::sleep(Duration::from_millis(1)),
            Err(_) => {
                connection = None;
                continue;
            }
        }
        if number.is_multiple_of(MARK_EVERY) && redis.ask(&[b"SET", MARK, text.as_bytes()]).is_err() {
            connection = None;
        }
    }
    Ok(())
}

fn note(shared: &Shared, number: u64) {
    let ok_ns = boot_ns();
    shared.last_ok_ns.store(ok_ns, Ordering::SeqCst);
    if let Ok(mut acks) = shared.acks.lock() {
        acks.push(Ack { number, ok_ns });
    }
}

fn read_all(at: SocketAddr, numbers: &[u64]) -> Result<Vec<bool>> {
    let mut redis = Redis::connect(at, READ_BACK, READ_BACK)?;
    let mut present = Vec::with_capacity(numbers.len());
    for batch in numbers.chunks(READ_BACK_BATCH) {
        let keys: Vec<String> = batch.iter().map(|number| key(*number)).collect();
        let words: Vec<&[u8]> = std::iter::once(&b"MGET"[..])
            .chain(keys.iter().map(String::as_bytes))
            .collect();
        match redis.ask(&words)? {
            Reply::Array(values) if values.len() == batch.len() => {
                let holds = |(value, number): (&Reply, &u64)| value.stored_number() == Some(*number);
                present.extend(values.iter().zip(batch).map(holds));
            }
            other => bail!("Redis answered a read with {other:?}"),
        }
    }
    Ok(present)
}
