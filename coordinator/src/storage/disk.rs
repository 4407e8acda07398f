//! The thread that writes the log beside the event loop, so that a slow disk holds up neither
//! heartbeats nor the answers to renewals.
//!
//! Invariants: one write at a time, in order; the loop hears of each once it is durable. While there
//! is no room the same write is tried again and again, and nothing after it is taken.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Storage, StorageError};
use crate::replica::Persist;

/// Between two attempts to write while the disk is full.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub enum DiskEvent {
    /// The write is durable.
    Written,
    /// There is no room for it; it is tried until there is.
    Full(StorageError),
    /// Nothing is written any more: the process must stop.
    Failed(StorageError),
}

/// The loop's end.
#[derive(Debug)]
pub struct Disk {
    writes: SyncSender<Persist>,
    events: mpsc::Receiver<DiskEvent>,
}

impl Disk {
    /// # Errors
    /// When the system starts no thread.
    pub fn start(storage: Storage) -> std::io::Result<Self> {
        let (writes, queue) = sync_channel(1);
        let (told, events) = mpsc::channel(4);
        std::thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || run(storage, &queue, &told))?;
        Ok(Self { writes, events })
    }

    /// Takes a write; the one before it must be [`DiskEvent::Written`].
    pub fn write(&self, persist: Persist) {
        // The thread ends only after it has told that it failed.
        let _ = self.writes.send(persist);
    }

    /// What became of the write; none when the thread is gone.
    pub async fn event(&mut self) -> Option<DiskEvent> {
        self.events.recv().await
    }
}

fn run(mut storage: Storage, queue: &Receiver<Persist>, told: &mpsc::Sender<DiskEvent>) {
    while let Ok(persist) = queue.recv() {
        let mut full = false;
        let event = loop {
            match storage.persist(&persist) {
                Ok(()) => break DiskEvent::Written,
                Err(error) if error.is_full() => {
                    if !std::mem::replace(&mut full, true) {
                        // Fails only when the loop is gone, which is looked at below.
                        let _ = told.blocking_send(DiskEvent::Full(error));
                    }
                    if told.is_closed() {
                        return;
                    }
                    std::thread::sleep(AGAIN);
                }
                Err(error) => break DiskEvent::Failed(error),
            }
        };
        let failed = matches!(event, DiskEvent::Failed(_));
        if told.blocking_send(event).is_err() || failed {
            return;
        }
    }
}
