//! Ends of processes in the cgroups of services, as the kernel pushes them.
//!
//! Invariants: only watched cgroups are told of, which the kernel filters. Every queue is bounded, and
//! what finds no room is dropped: these are the causes of an end, while the cgroup itself says whether
//! the service lives.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

use aya::maps::{HashMap, Map, MapData, MapError, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use understudy_common::abi::telemetry::Exit;
use understudy_common::units::BootTime;

/// Ends of one service's processes that wait to be looked at.
const QUEUE_MAX: usize = 64;

/// How a process of a watched cgroup ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessExit {
    pub process: u32,
    pub status: ExitStatus,
    /// The out-of-memory killer chose it.
    pub out_of_memory: bool,
    pub at: BootTime,
}

impl From<Exit> for ProcessExit {
    fn from(exit: Exit) -> Self {
        Self {
            process: exit.process,
            status: ExitStatus::from_raw(exit.code.cast_signed()),
            out_of_memory: exit.out_of_memory != 0,
            at: BootTime(exit.boot_ns),
        }
    }
}

/// The kernel's ring, to be [forwarded](Self::forward).
pub struct Exits {
    ring: RingBuf<MapData>,
    watched: HashMap<MapData, u64, u8>,
}

/// Where cgroups are watched. The kernel's programs may come later: until then nothing is told.
#[derive(Clone, Default)]
pub struct ExitWatch(Arc<Mutex<Watched>>);

#[derive(Default)]
struct Watched {
    kernel: Option<HashMap<MapData, u64, u8>>,
    listeners: BTreeMap<u64, mpsc::Sender<ProcessExit>>,
}

/// Ends of processes of one cgroup.
#[derive(Debug)]
pub struct ExitStream(mpsc::Receiver<ProcessExit>);

impl Exits {
    pub(super) fn new(exits: Map, watched: Map) -> Option<Self> {
        Some(Self {
            ring: RingBuf::try_from(exits).ok()?,
            watched: HashMap::try_from(watched).ok()?,
        })
    }

    /// Has the kernel push from now on, and hands every end to whoever watches its cgroup, until the ring
    /// cannot be waited for.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn forward(self, watch: ExitWatch) -> impl Future<Output = io::Result<()>> + Send {
        let attached = watch.attach(self.watched);
        async move {
            attached?;
            // SAFETY: the ring owns one descriptor, which stays open and the same until the drop.
            let mut ring = unsafe { AsyncFd::register_with_interest(self.ring, Interest::READABLE) }?;
            loop {
                let mut ready = ring.readable_mut().await?;
                while let Some(item) = ready.get_inner_mut().next() {
                    if let Some(exit) = Exit::from_bytes(&item) {
                        watch.tell(exit);
                    }
                }
                ready.clear_ready();
            }
        }
    }
}

impl ExitWatch {
    /// Watches a cgroup from now on, in place of who did before.
    ///
    /// # Errors
    /// When the directory cannot be looked at or the kernel's list is full.
    pub fn watch(&self, cgroup: &Path) -> io::Result<ExitStream> {
        // The inode's number is the cgroup's id.
        let id = fs::metadata(cgroup)?.ino();
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = &mut watched.kernel {
            insert(kernel, id)?;
        }
        watched.listeners.insert(id, sender);
        Ok(ExitStream(queue))
    }

    /// Gives the kernel all cgroups that are watched by now.
    fn attach(&self, mut kernel: HashMap<MapData, u64, u8>) -> io::Result<()> {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watched
            .listeners
            .keys()
            .try_for_each(|id| insert(&mut kernel, *id))?;
        watched.kernel = Some(kernel);
        Ok(())
    }

    fn tell(&self, exit: Exit) {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(listener) = watched.listeners.get(&exit.cgroup) else {
            return;
        };
        let gone = match listener.try_send(exit.into()) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => false,
            Err(mpsc::error::TrySendError::Closed(_)) => true,
        };
        if gone {
            watched.listeners.remove(&exit.cgroup);
            if let Some(kernel) = &mut watched.kernel {
                // It may be gone from the kernel's list already.
                let _ = kernel.remove(&exit.cgroup);
            }
        }
    }
}

fn insert(kernel: &mut HashMap<MapData, u64, u8>, id: u64) -> io::Result<()> {
    kernel
        .insert(id, 1, 0)
        .map_err(|error: MapError| io::Error::other(error))
}

impl ExitStream {
    /// The next end; waits for ever when nothing is pushed any more.
    pub async fn next(&mut self) -> ProcessExit {
        match self.0.recv().await {
            Some(exit) => exit,
            None => std::future::pending().await,
        }
    }

    /// Forgets what happened so far.
    pub fn clear(&mut self) {
        while self.0.try_recv().is_ok() {}
    }
}
