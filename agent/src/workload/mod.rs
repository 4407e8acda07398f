//! Runs a service's command in a cgroup of its own, freezes it for cuts, and finds it again after
//! a restart of the agent.
//!
//! Invariants: nothing is started while a process lives in the service's cgroup. A freeze ends: by
//! the guard's drop, by its limit, or by the thaw guard process when the agent is gone.

mod cgroup;
mod command;
mod freezer;
mod health;
mod log;
mod switch;
pub mod thaw_guard;

use std::io;
use std::path::PathBuf;

pub use cgroup::Cgroup;
pub use command::{CommandWorkload, Ended, STOP_KILL_MAX, Stopped};
pub use freezer::{CgroupFreezer, FreezeError, Freezer, Frozen};
pub use health::{HealthError, check, wait_healthy};
pub use log::LOG_BYTES_MAX;
pub use switch::{SwitchError, switch};
pub use thaw_guard::ThawGuard;

#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    #[error("an instance still lives in {} (processes {pids:?}): stop it before another is started", cgroup.display())]
    AlreadyRunning { cgroup: PathBuf, pids: Vec<i32> },
    #[error("{program} cannot be started: is it installed on this host?")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("processes in {} outlived SIGKILL by {} s: the host is not well", cgroup.display(), STOP_KILL_MAX.as_secs())]
    Unkillable { cgroup: PathBuf },
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod exit_tests;
#[cfg(test)]
mod tests;
