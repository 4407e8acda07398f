//! Freezing a service's cgroup for a cut.
//!
//! Invariants: a [`Frozen`] exists only while every process of the cgroup stands still; dropping
//! it thaws. A freeze that is not complete within its limit is thawed before the error returns.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::thaw_guard::ThawGuard;

/// Stops a workload for the length of a cut.
pub trait Freezer: Send + Sync {
    /// Blocks until all processes stand still.
    ///
    /// # Errors
    /// [`FreezeError::TimedOut`] when that took longer than `limit`: everything runs again then.
    fn freeze(&self, limit: Duration) -> Result<Frozen, FreezeError>;
}

#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("the workload did not stand still within {limit_ms} ms, so it was thawed again")]
    TimedOut { limit_ms: u64 },
    #[error("no guard process would thaw the workload if the agent died, so it was not frozen")]
    Guard(#[source] io::Error),
    #[error("cannot freeze the cgroup {}: is it a cgroup v2 directory with the service in it?", path.display())]
    Cgroup {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Proof that the workload stands still. Thaws when dropped.
#[must_use = "the workload runs again as soon as this is dropped"]
pub struct Frozen {
    since: Instant,
    until: Option<Instant>,
    thaw: Option<Box<dyn FnOnce() + Send>>,
}

impl Frozen {
    /// `thaw` runs once, at drop.
    pub fn new(thaw: impl FnOnce() + Send + 'static) -> Self {
        Self {
            since: Instant::now(),
            until: None,
            thaw: Some(Box::new(thaw)),
        }
    }

    /// A guard may thaw it from `instant` on.
    pub fn until(mut self, instant: Instant) -> Self {
        self.until = Some(instant);
        self
    }

    /// Whether the workload has stood still until now. False once the guard may have thawed it: a cut
    /// that ends so late is to be discarded.
    pub fn is_whole(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() < until)
    }

    /// For how long the workload has stood still.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(thaw) = self.thaw.take() {
            thaw();
        }
    }
}

/// No freeze may last longer, whatever the agent does: the guard ends it.
pub const HARD_LIMIT: Duration = Duration::from_millis(2_000);

/// `cgroup.freeze` of cgroup v2, watched by the thaw guard.
#[derive(Clone, Debug)]
pub struct CgroupFreezer {
    cgroup: PathBuf,
    guard: Arc<ThawGuard>,
    hard_limit: Duration,
}

impl CgroupFreezer {
    pub fn new(cgroup: impl Into<PathBuf>, guard: Arc<ThawGuard>) -> Self {
        Self {
            cgroup: cgroup.into(),
            guard,
            hard_limit: HARD_LIMIT,
        }
    }

    /// Another limit than `HARD_LIMIT` for the whole freeze.
    pub fn with_hard_limit(self, hard_limit: Duration) -> Self {
        Self { hard_limit, ..self }
    }

    fn end(&self) {
        if let Err(error) = thaw(&self.cgroup) {
            // The guard still knows of the freeze and will try.
            tracing::error!(cgroup = %self.cgroup.display(), %error, "cannot thaw the workload");
            return;
        }
        if let Err(error) = self.guard.forget(&self.cgroup) {
            tracing::debug!(%error, "the thaw guard does not listen");
        }
    }
}

impl Freezer for CgroupFreezer {
    fn freeze(&self, limit: Duration) -> Result<Frozen, FreezeError> {
        let failed = |source| FreezeError::Cgroup {
            path: self.cgroup.clone(),
            source,
        };
        let mut events = File::open(self.cgroup.join("cgroup.events")).map_err(failed)?;
        let until = Instant::now() + self.hard_limit;
        self.guard
            .announce(&self.cgroup, self.hard_limit)
            .map_err(FreezeError::Guard)?;
        let freezer = self.clone();
        let mut frozen = Frozen::new(move || freezer.end());
        write_freeze(&self.cgroup, "1").map_err(failed)?;
        if wait_frozen(&mut events, limit).map_err(failed)? {
            frozen.since = Instant::now();
            return Ok(frozen.until(until));
        }
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Err(FreezeError::TimedOut { limit_ms })
    }
}

/// Lets a cgroup run again. Harmless when it runs already; a cgroup that is gone counts as thawed.
///
/// # Errors
/// When the kernel refuses the write.
pub(crate) fn thaw(cgroup: &Path) -> io::Result<()> {
    match write_freeze(cgroup, "0") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn write_freeze(cgroup: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(cgroup.join("cgroup.freeze"))
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
}

/// The kernel notifies readers of `cgroup.events` by `POLLPRI`, once per change since the last read.
fn wait_frozen(events: &mut File, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        // Rounded up, so that the last millisecond does not spin.
        let millis = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], millis) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
