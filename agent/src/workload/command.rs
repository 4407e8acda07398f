//! A plain command in its own cgroup.
//!
//! Invariants: the process is in the cgroup before its program runs, so no instance can escape the
//! count. The cgroup, not a process id, says whether the service runs: that is what an agent that
//! was restarted finds again.

use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use understudy_common::spec::Workload;

use super::{Cgroup, WorkloadError, log};
use crate::telemetry::{ExitStream, ProcessExit};

/// How long processes may take to disappear after SIGKILL.
pub const STOP_KILL_MAX: Duration = Duration::from_secs(10);
/// How long after a workload left its cgroup the kernel's push may still come.
const PUSH_MAX: Duration = Duration::from_millis(20);
/// How often the log's length is looked at.
const LOG_CHECK: Duration = Duration::from_secs(5);

/// How a stop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Nothing ran.
    NotRunning,
    /// SIGTERM was enough.
    Asked,
    /// SIGKILL was needed after the stop timeout.
    Killed,
}

/// One service's workload on this host.
#[derive(Debug)]
pub struct CommandWorkload {
    cgroup: Cgroup,
    spec: Workload,
    log: PathBuf,
    /// The process that this agent started; none after adoption.
    child: Mutex<Option<Child>>,
    /// Where the kernel pushes the ends of its processes; none where it does not.
    exits: Mutex<Option<ExitStream>>,
}

/// How a workload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Of its main process, or of the last one that is known of; none when nothing is known.
    pub status: Option<ExitStatus>,
    pub out_of_memory: bool,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status}")?,
            None => write!(f, "how is not known")?,
        }
        if self.out_of_memory {
            write!(f, ", by the out-of-memory killer")?;
        }
        Ok(())
    }
}

impl CommandWorkload {
    /// Takes the cgroup as it is: processes in it are adopted, and thawed in case an earlier agent
    /// died while they were frozen.
    ///
    /// # Errors
    /// [`WorkloadError::Io`].
    pub fn adopt(cgroup: Cgroup, spec: Workload, log: impl Into<PathBuf>) -> Result<Self, WorkloadError> {
        cgroup.thaw()?;
        Ok(Self {
            cgroup,
            spec,
            log: log.into(),
            child: Mutex::new(None),
            exits: Mutex::new(None),
        })
    }

    /// Hears of ends from the kernel from now on.
    #[must_use]
    pub fn heed(mut self, exits: ExitStream) -> Self {
        self.exits = Mutex::new(Some(exits));
        self
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    pub fn spec(&self) -> &Workload {
        &self.spec
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// # Errors
    /// [`WorkloadError::Io`].
    pub fn is_running(&self) -> Result<bool, WorkloadError> {
        self.cgroup.is_populated()
    }

    /// Starts the command. It is not healthy yet: see [`super::wait_healthy`].
    ///
    /// # Errors
    /// [`WorkloadError::AlreadyRunning`] when anything lives in the cgroup, and then nothing is
    /// started; [`WorkloadError::Start`] when the program cannot be run.
    pub async fn start(&self) -> Result<(), WorkloadError> {
        let mut child = self.child.lock().await;
        if self.cgroup.is_populated()? {
            let (cgroup, pids) = (self.cgroup.path().to_owned(), self.cgroup.pids()?);
            return Err(WorkloadError::AlreadyRunning { cgroup, pids });
        }
        *child = None;
        if let Some(exits) = &mut *self.exits.lock().await {
            exits.clear();
        }
        self.cgroup.thaw()?;
        *child = Some(self.spawn()?);
        Ok(())
    }

    fn spawn(&self) -> Result<Child, WorkloadError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |source| WorkloadError::Io { what, path, source }
        };
        let procs = self.cgroup.path().join("cgroup.procs");
        let group = OpenOptions::new()
            .write(true)
            .open(&procs)
            .map_err(io("open", &procs))?;
        let output = log::open(&self.log).map_err(io("open the log", &self.log))?;
        let errors = output.try_clone().map_err(io("open the log", &self.log))?;
        let program = self.spec.start.first().cloned().unwrap_or_default();
        let mut command = Command::new(&program);
        command
            .args(self.spec.start.get(1..).unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .current_dir("/");
        // SAFETY: setsid and write are async-signal-safe and nothing is allocated. "0" is the writer.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                match libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) {
                    1 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        command
            .spawn()
            .map_err(|source| WorkloadError::Start { program, source })
    }

    /// Ends every process of the cgroup: SIGTERM, then SIGKILL after the service's stop timeout.
    ///
    /// # Errors
    /// [`WorkloadError::Unkillable`] when even that did not empty the cgroup.
    pub async fn stop(&self) -> Result<Stopped, WorkloadError> {
        let mut child = self.child.lock().await;
        let how = self.end().await?;
        if let Some(mut child) = child.take() {
            // The cgroup is empty, so this only reaps.
            let _ = tokio::time::timeout(STOP_KILL_MAX, child.wait()).await;
        }
        Ok(how)
    }

    async fn end(&self) -> Result<Stopped, WorkloadError> {
        if !self.cgroup.is_populated()? {
            return Ok(Stopped::NotRunning);
        }
        // A frozen process sees no SIGTERM.
        self.cgroup.thaw()?;
        self.cgroup.terminate()?;
        if self.cgroup.wait_empty(self.spec.stop_timeout).await? {
            return Ok(Stopped::Asked);
        }
        self.cgroup.kill()?;
        if self.cgroup.wait_empty(STOP_KILL_MAX).await? {
            return Ok(Stopped::Killed);
        }
        Err(WorkloadError::Unkillable {
            cgroup: self.cgroup.path().to_owned(),
        })
    }

    /// Waits until no process of the service is left, and keeps its log bounded meanwhile.
    ///
    /// # Errors
    /// [`WorkloadError::Io`].
    pub async fn exited(&self) -> Result<Ended, WorkloadError> {
        let mut exits = self.exits.lock().await;
        let main = self.child.lock().await.as_ref().and_then(Child::id);
        let mut told: Option<ProcessExit> = None;
        loop {
            tokio::select! {
                empty = self.cgroup.wait_empty(LOG_CHECK) => {
                    if empty? {
                        break;
                    }
                    if let Err(error) = log::bound(&self.log) {
                        tracing::warn!(log = %self.log.display(), %error, "cannot cut the workload's log");
                    }
                }
                exit = next(&mut exits) => {
                    told = Some(prefer(told, exit, main));
                    if self.is_left_soon().await? {
                        break;
                    }
                }
            }
        }
        if told.is_none() && exits.is_some() {
            // The cgroup's own word may come first.
            told = tokio::time::timeout(PUSH_MAX, next(&mut exits)).await.ok();
        }
        Ok(Ended {
            status: self.status().await.or(told.map(|exit| exit.status)),
            out_of_memory: told.is_some_and(|exit| exit.out_of_memory),
        })
    }

    /// Of the process that this agent started.
    async fn status(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().await;
        // A process leaves its cgroup shortly before its parent can see its end.
        let status = tokio::time::timeout(STOP_KILL_MAX, child.as_mut()?.wait()).await;
        status.ok().and_then(Result::ok)
    }

    /// The kernel tells of an end a little before the process leaves its cgroup.
    async fn is_left_soon(&self) -> Result<bool, WorkloadError> {
        for pause_ms in [0, 1, 2, 4, 8, 16] {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            if !self.cgroup.is_populated()? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

async fn next(exits: &mut Option<ExitStream>) -> ProcessExit {
    match exits {
        Some(exits) => exits.next().await,
        None => std::future::pending().await,
    }
}

/// The end of the main process explains that of the workload; without it the last one does.
fn prefer(told: Option<ProcessExit>, exit: ProcessExit, main: Option<u32>) -> ProcessExit {
    told.filter(|told| Some(told.process) == main).unwrap_or(exit)
}
