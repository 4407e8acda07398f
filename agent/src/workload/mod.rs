//! Runs a service's command in a cgroup of its own, freezes it for cuts, and finds it again after
//! a restart of the agent.
//!
//! Invariants: nothing is started while a process lives in the service's cgroup. A freeze ends: by
//! the guard's drop, by its limit, or by the thaw guard process when the agent is gone.

mod freezer;

pub use freezer::{CgroupFreezer, FreezeError, Freezer, Frozen};
