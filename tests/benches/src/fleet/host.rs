//! One host of the fleet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use understudy_common::beacon::{Beacon, BeaconEncoder, FEATURES};
use understudy_common::domain::Domain;
use understudy_common::id::HostId;
use understudy_common::identity::{Credentials, Principal};
use understudy_common::wire::{Hello, Inventory, Request, Response, StreamKind};
use understudy_transport::{Endpoint, Link};

use super::CALL_MAX;
use super::cluster::COORDINATOR;

/// A coordinator that is busy taking others in is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Of the whole fleet.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: AtomicU64,
    /// Sent more than half a beacon's interval after they were due.
    pub(super) late: AtomicU64,
    /// While set nobody sends.
    pub(super) held: AtomicBool,
}

pub(super) struct Host {
    id: u32,
    link: Link,
    /// Its own, when it has one.
    _endpoint: Option<Endpoint>,
}

pub(super) const fn principal(id: u32) -> Principal {
    Principal::Host(HostId(id))
}

impl Host {
    pub(super) async fn dial(
        id: u32,
        credentials: Credentials,
        to: SocketAddr,
        shared: Option<Endpoint>,
    ) -> Result<Self> {
        let coordinator = Principal::Coordinator(COORDINATOR);
        let (link, endpoint) = match shared {
            Some(shared) => (shared.dial_as(&credentials, to, coordinator).await?, None),
            None => {
                let own = Endpoint::bind("127.0.0.1:0".parse()?, &credentials)?;
                (own.dial(to, coordinator).await?, Some(own))
            }
        };
        Ok(Self {
            id,
            link,
            _endpoint: endpoint,
        })
    }

    pub(super) async fn greet(self) -> Result<Self> {
        let hello = Request::Hello(Hello {
            host: HostId(self.id),
            name: format!("host-{}", self.id),
            boot: u128::from(self.id),
            addr: SocketAddr::from(([127, 0, 0, 1], 7401)),
            domain: Domain::default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            inventory: Inventory {
                kernel: "6.12.0-amd64".to_owned(),
                os: "Debian GNU/Linux 13".to_owned(),
                cpus: 16,
                memory_bytes: 64 << 30,
                ebpf_programs: 12,
                ebpf_source: "tp_btf".to_owned(),
            },
        });
        loop {
            match self.link.call(&hello, CALL_MAX).await? {
                Response::Done => return Ok(self),
                Response::NotLeader(_) | Response::Refused(understudy_common::wire::Refusal::Busy(_)) => {
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                other => bail!("host {} was not taken in: {other:?}", self.id),
            }
        }
    }

    /// Sends beacons for as long as the link holds.
    pub(super) async fn beacons(self, every: Duration, counts: Arc<Counts>) {
        let Ok(mut stream) = self.link.open_uni(StreamKind::Beacon).await else {
            return;
        };
        // Hosts boot when they boot: spread evenly over the interval.
        let phase = every.mul_f64(f64::from(noise(self.id, 0, 0)));
        let mut due = interval_at(Instant::now() + phase, every);
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut encoder = BeaconEncoder::default();
        let mut number = 0;
        loop {
            let at = due.tick().await;
            if counts.held.load(Ordering::Relaxed) {
                continue;
            }
            number += 1;
            let frame = encoder.encode(&beacon(self.id, number));
            if stream.send(&frame).await.is_err() {
                return;
            }
            counts.sent.fetch_add(1, Ordering::Relaxed);
            if at.elapsed() > every / 2 {
                counts.late.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Everything measured, everything changed since the last beacon: the longest frames there are.
fn beacon(host: u32, number: u64) -> Beacon {
    let mut beacon = Beacon::new(HostId(host), number, number);
    for (slot, spec) in (1..).zip(&FEATURES) {
        beacon.set(spec.feature, noise(host, slot, number));
    }
    beacon
}

/// Between 0 and 1, by a finaliser of splitmix64.
fn noise(host: u32, slot: u32, number: u64) -> f32 {
    let mut x = u64::from(host) << 40 ^ u64::from(slot) << 32 ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x >> 40) as f32 / (1_u64 << 24) as f32
}
