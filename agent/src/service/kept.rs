//! The newest order of each service, kept on disk: an agent that starts again guards, renews and reports
//! before any coordinator speaks.
//!
//! Invariants: the agent's loop never waits for the disk: a thread writes, and only the newest order of a
//! service waits for it. A file is complete or absent. What cannot be read, or is of another boot, is no
//! order: nothing in memory survived that, and the coordinators know. A file may lag behind what was
//! obeyed; the gate's pinned entry says whether it does.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use understudy_common::id::ServiceId;
use understudy_common::wire::{self, Order};

use crate::lease::SERVICES_MAX;
use crate::sync::{chain, journal};

const ENDING: &str = "order";

#[derive(Debug, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct Kept {
    boot: u128,
    order: Order,
}

type Waiting = Arc<Mutex<BTreeMap<ServiceId, Order>>>;

/// The loop's end of the writer.
#[derive(Debug)]
pub struct KeptOrders {
    waiting: Waiting,
    wake: SyncSender<()>,
}

impl KeptOrders {
    /// What an agent of this boot kept below `state_dir`, and a writer that goes on keeping.
    ///
    /// # Errors
    /// When the directory cannot be made or read, or no thread can be started.
    pub fn open(state_dir: &Path, boot: u128) -> io::Result<(Self, Vec<Order>)> {
        let dir = state_dir.join("orders");
        fs::create_dir_all(&dir)?;
        let orders = read_all(&dir, boot)?;
        let (wake, woken) = mpsc::sync_channel(1);
        let kept = Self {
            waiting: Waiting::default(),
            wake,
        };
        let waiting = Arc::clone(&kept.waiting);
        let write = move || {
            while woken.recv().is_ok() {
                while let Some((_, order)) = pop(&waiting) {
                    if let Err(error) = write(&dir, boot, &order) {
                        tracing::warn!(service = %order.service, error = chain(&error), "its order is not kept: after a restart this host waits for the coordinators");
                    }
                }
            }
        };
        thread::Builder::new().name("orders".to_owned()).spawn(write)?;
        Ok((kept, orders))
    }

    /// Keeps the order soon, in place of the one before. At most [`SERVICES_MAX`] wait, one a service.
    pub fn keep(&self, order: Order) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < SERVICES_MAX || waiting.contains_key(&order.service) {
            waiting.insert(order.service, order);
        }
        drop(waiting);
        // Full: it is awake already.
        let _ = self.wake.try_send(());
    }
}

fn pop(waiting: &Waiting) -> Option<(ServiceId, Order)> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
}

fn write(dir: &Path, boot: u128, order: &Order) -> io::Result<()> {
    let path = dir.join(format!("{}.{ENDING}", order.service));
    let kept = Kept {
        boot,
        order: order.clone(),
    };
    let mut out = journal::Writer::create(path.with_extension("part"))?;
    out.append(&wire::encode(&kept))?;
    out.commit(&path)
}

fn read_all(dir: &Path, boot: u128) -> io::Result<Vec<Order>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == ENDING))
        .take(SERVICES_MAX)
        .collect();
    paths.sort();
    let mut orders = Vec::new();
    for path in paths {
        match read(&path) {
            Ok(Some(kept)) if kept.boot == boot => orders.push(kept.order),
            Ok(_) => tracing::debug!(path = %path.display(), "an order of another boot"),
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "a kept order cannot be read: the coordinators send it again"
                );
            }
        }
    }
    Ok(orders)
}

fn read(path: &Path) -> io::Result<Option<Kept>> {
    let mut found = None;
    journal::read(path, |record| {
        found = Some(wire::decode(record).map_err(|error| journal::garbled(path, error))?);
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use understudy_common::id::Epoch;
    use understudy_common::spec::{RawServiceSpec, ServiceSpec};
    use understudy_common::wire::Role;

    use super::*;

    fn order(service: u32, revision: u64) -> Order {
        let raw: RawServiceSpec = toml::from_str(
            r#"
            name = "kv"
            paths = ["/srv/kv"]
            address = "192.0.2.50/24"
            interface = "eth0"
            hosts = [1, 2]
            workload = { start = ["/bin/kv"], health = { tcp = "127.0.0.1:1" } }
            "#,
        )
        .unwrap();
        Order {
            service: ServiceId(service),
            epoch: Epoch(3),
            revision,
            role: Role::Idle,
            spec: ServiceSpec::try_from(raw).unwrap(),
            holder: None,
            bounding: true,
            boot: 0,
        }
    }

    fn open(dir: &Path, boot: u128) -> Vec<Order> {
        KeptOrders::open(dir, boot).unwrap().1
    }

    #[test]
    fn the_newest_order_of_each_service_is_found_again_in_the_same_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, before) = KeptOrders::open(dir.path(), 7).unwrap();
        assert_eq!(before, []);
        for (service, revision) in [(1, 5), (2, 6), (1, 9)] {
            kept.keep(order(service, revision));
        }
        let expected = [order(1, 9), order(2, 6)];
        let begun = Instant::now();
        while open(dir.path(), 7) != expected {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is not written");
            thread::yield_now();
        }
        assert_eq!(open(dir.path(), 8), []);
    }

    #[test]
    fn what_is_torn_or_garbled_is_no_order_and_the_others_are() {
        let dir = tempfile::tempdir().unwrap();
        let orders = dir.path().join("orders");
        fs::create_dir_all(&orders).unwrap();
        for service in 1..=4 {
            write(&orders, 7, &order(service, 1)).unwrap();
        }
        let spoil = |name: &str, change: fn(&mut Vec<u8>)| {
            let path = orders.join(name);
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(path, bytes).unwrap();
        };
        spoil("service-1.order", |bytes| bytes.truncate(30));
        spoil("service-2.order", |bytes| bytes[40] ^= 1);
        spoil("service-3.order", Vec::clear);
        fs::write(orders.join("service-9.part"), "half").unwrap();
        assert_eq!(open(dir.path(), 7), [order(4, 1)]);
    }
}
