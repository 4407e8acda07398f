//! A service's own cgroup v2: who lives in it, and the signals that reach all of them.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use tokio::time::{Instant, timeout};

use super::WorkloadError;

/// The kernel's notification is the rule; this bounds what a lost one costs.
const RECHECK: Duration = Duration::from_millis(250);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the directory if need be. It is kept for ever, since the gate is attached to it.
    ///
    /// # Errors
    /// [`WorkloadError::Io`], also when this is not on a cgroup v2 file system.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, WorkloadError> {
        let path = path.into();
        let group = Self { path };
        fs::create_dir_all(&group.path).map_err(group.failed("make the cgroup"))?;
        group.is_populated()?;
        Ok(group)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a living process is in this cgroup or below it.
    ///
    /// # Errors
    /// [`WorkloadError::Io`].
    pub fn is_populated(&self) -> Result<bool, WorkloadError> {
        let events = fs::read_to_string(self.path.join("cgroup.events"));
        events
            .map(|text| populated(&text))
            .map_err(self.failed("read the events of"))
    }

    /// Processes directly in this cgroup.
    ///
    /// # Errors
    /// [`WorkloadError::Io`].
    pub fn pids(&self) -> Result<Vec<i32>, WorkloadError> {
        let text = fs::read_to_string(self.path.join("cgroup.procs"));
        let text = text.map_err(self.failed("read the processes of"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Sends SIGTERM to every process directly in the cgroup.
    ///
    /// # Errors
    /// [`WorkloadError::Io`].
    pub fn terminate(&self) -> Result<(), WorkloadError> {
        for pid in self.pids()? {
            // A handle first, then a second look: so the signal cannot reach a stranger that was
            // given the number of a process which just died.
            if let Some(handle) = pidfd(pid)
                && self.pids()?.contains(&pid)
            {
                // SAFETY: a valid descriptor, no siginfo, no flags.
                unsafe {
                    libc::syscall(
                        libc::SYS_pidfd_send_signal,
                        handle.as_raw_fd(),
                        libc::SIGTERM,
                        std::ptr::null::<libc::siginfo_t>(),
                        0,
                    )
                };
            }
        }
        Ok(())
    }

    /// SIGKILL to everything in the cgroup and below, forks in flight included.
    ///
    /// # Errors
    /// [`WorkloadError::Io`].
    pub fn kill(&self) -> Result<(), WorkloadError> {
        fs::write(self.path.join("cgroup.kill"), "1").map_err(self.failed("kill the processes of"))
    }

    /// Lets the cgroup run, whoever froze it.
    ///
    /// # Errors
    /// [`WorkloadError::Io`].
    pub fn thaw(&self) -> Result<(), WorkloadError> {
        super::freezer::thaw(&self.path).map_err(self.failed("thaw"))
    }

    /// Waits until nobody lives in the cgroup. False when `limit` passed first.
    ///
    /// # Errors
    /// [`WorkloadError::Io`].
    pub async fn wait_empty(&self, limit: Duration) -> Result<bool, WorkloadError> {
        let failed = self.failed("watch");
        let file = File::open(self.path.join("cgroup.events")).map_err(&failed)?;
        // SAFETY: the file owns one descriptor, which stays open and the same until the drop.
        let mut events = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }
            .map_err(|error| failed(error.into()))?;
        let deadline = Instant::now() + limit;
        loop {
            let mut text = String::new();
            let file = events.get_mut();
            file.rewind()
                .and_then(|()| file.read_to_string(&mut text))
                .map_err(&failed)?;
            if !populated(&text) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if let Ok(ready) = timeout(left.min(RECHECK), events.ready(Interest::PRIORITY)).await {
                ready.map_err(&failed)?.clear_ready_matching(Ready::ALL);
            }
        }
    }

    fn failed(&self, what: &'static str) -> impl Fn(io::Error) -> WorkloadError + use<> {
        let path = self.path.clone();
        move |source| WorkloadError::Io {
            what,
            path: path.clone(),
            source,
        }
    }
}

fn populated(events: &str) -> bool {
    events.lines().any(|line| line == "populated 1")
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: plain numbers; the result is a new descriptor of ours or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel just gave it to us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
