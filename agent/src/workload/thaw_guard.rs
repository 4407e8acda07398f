//! A small process of its own that thaws what a dead agent left frozen.
//!
//! Invariants: a freeze is announced to the guard before the kernel is asked for it. The guard thaws
//! when its pipe closes, which is when the agent dies in whatever way, and when a freeze outlasts its
//! hard limit. It never freezes. It remembers at most [`FREEZES_MAX`] cgroups.
//!
//! Lines on its standard input: `freeze MILLISECONDS CGROUP` and `thaw CGROUP`.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};

use super::freezer::thaw;

/// Hidden first argument that makes the agent's program the guard.
pub const ARGUMENT: &str = "thaw-guard";
/// Cgroups frozen at one time; further ones are thawed at once.
pub const FREEZES_MAX: usize = 256;
/// Longest line.
const LINE_MAX: usize = 8_192;

/// The agent's end.
#[derive(Debug)]
pub struct ThawGuard {
    program: PathBuf,
    arguments: Vec<String>,
    running: Mutex<Option<Child>>,
}

impl ThawGuard {
    /// This very program, run with [`ARGUMENT`].
    pub fn of_this_program() -> Self {
        Self::new("/proc/self/exe", vec![ARGUMENT.to_owned()])
    }

    /// `program` must call [`run`]. It is started with the first freeze.
    pub fn new(program: impl Into<PathBuf>, arguments: Vec<String>) -> Self {
        Self {
            program: program.into(),
            arguments,
            running: Mutex::new(None),
        }
    }

    /// Announces a freeze that must never last longer than `hard_limit`.
    ///
    /// # Errors
    /// When no guard takes it: do not freeze then.
    pub fn announce(&self, cgroup: &Path, hard_limit: Duration) -> io::Result<()> {
        self.send(&format!(
            "freeze {} {}\n",
            hard_limit.as_millis(),
            cgroup.display()
        ))
    }

    /// The freeze is over.
    ///
    /// # Errors
    /// When no guard takes it, which is harmless: it thaws what runs already.
    pub fn forget(&self, cgroup: &Path) -> io::Result<()> {
        self.send(&format!("thaw {}\n", cgroup.display()))
    }

    fn send(&self, line: &str) -> io::Result<()> {
        if line.len() > LINE_MAX || line.matches('\n').count() != 1 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = running.as_mut() {
            if write(child, line).is_ok() {
                return Ok(());
            }
            tracing::warn!("the thaw guard is gone or stuck; a new one is started");
            // Dropping its pipe makes a guard that is merely stuck thaw and leave.
            child.stdin = None;
            let _ = child.try_wait();
        }
        let child = running.insert(self.spawn()?);
        write(child, line)
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .current_dir("/");
        // A signal to the agent's group or terminal is not for the guard.
        command.process_group(0);
        let child = command.spawn()?;
        if let Some(stdin) = &child.stdin {
            // A stopped guard must not stop the agent: a full pipe counts as no guard.
            fcntl(stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(child)
    }
}

fn write(child: &mut Child, line: &str) -> io::Result<()> {
    let stdin = child.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
    // Shorter than PIPE_BUF or not: on a partial line the guard is replaced.
    stdin.write_all(line.as_bytes())
}

/// Runs the guard when the program was started as one: call it first in `main`.
pub fn run_if_asked() -> Option<ExitCode> {
    let asked = std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == ARGUMENT);
    asked.then(run)
}

/// The guard itself: returns when the agent's end of the pipe is closed.
pub fn run() -> ExitCode {
    for ignored in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: no handler of ours runs.
        let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
    }
    let mut frozen = BTreeMap::new();
    let result = watch(&mut frozen);
    for cgroup in frozen.keys() {
        report(cgroup, "its agent is gone");
    }
    if result.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    }
}

fn watch(frozen: &mut BTreeMap<PathBuf, Instant>) -> io::Result<()> {
    let stdin = io::stdin();
    let mut pending = Vec::new();
    loop {
        let now = Instant::now();
        frozen.retain(|cgroup, deadline| {
            let lasts = *deadline > now;
            if !lasts {
                report(cgroup, "it was frozen for too long");
            }
            lasts
        });
        let wait = frozen.values().min().map_or(PollTimeout::NONE, |deadline| {
            let left = deadline.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut chunk = [0; LINE_MAX];
        // Past the standard library's buffer, which poll does not see.
        let read = nix::unistd::read(stdin.as_fd(), &mut chunk)?;
        if read == 0 {
            return Ok(());
        }
        pending.extend_from_slice(&chunk[..read]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            take(frozen, String::from_utf8_lossy(&line).trim_end());
        }
        if pending.len() > LINE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn take(frozen: &mut BTreeMap<PathBuf, Instant>, line: &str) {
    if let Some(cgroup) = line.strip_prefix("thaw ") {
        frozen.remove(Path::new(cgroup));
    } else if let Some((millis, cgroup)) = line.strip_prefix("freeze ").and_then(|rest| rest.split_once(' '))
    {
        let limit = Duration::from_millis(millis.parse().unwrap_or(0));
        if frozen.len() < FREEZES_MAX {
            frozen.insert(PathBuf::from(cgroup), Instant::now() + limit);
        } else {
            report(Path::new(cgroup), "too many are frozen");
        }
    }
}

fn report(cgroup: &Path, why: &str) {
    match thaw(cgroup) {
        Ok(()) => eprintln!("thaw guard: thawed {}: {why}", cgroup.display()),
        Err(error) => eprintln!("thaw guard: cannot thaw {}: {error}", cgroup.display()),
    }
}
