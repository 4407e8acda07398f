//! Hosts on one machine: network namespaces on a bridge, each with its own mount namespace, ext4
//! loop disk, bpffs and cgroups, and a power switch.
//!
//! Invariants: nothing here touches the machine's own network, mounts or clock; everything made is
//! named after the run and removed when the [`Testbed`] is dropped, on panic and on Ctrl-C, and
//! what a killed run left is removed by the next one. Only processes in the run's own cgroups are
//! ever killed.

pub mod agent_log;
mod bed;
mod cgroup;
mod clock;
pub mod cluster;
mod disk;
pub mod exercise;
pub mod fault;
pub mod fault_child;
mod host;
mod interrupt;
pub mod ledger;
mod leftovers;
mod namespace;
mod process;
mod requirements;
pub mod soak;

pub use bed::Testbed;
pub use cgroup::{CgroupRoots, Cgroups};
pub use clock::{boot_ns, wait_for};
pub use disk::{Disk, FileSystem};
pub use host::{Host, HostSpec};
pub use process::Process;
pub use requirements::missing;

/// Ends a test with `skipped: reason` where the machine lacks what a test bed needs.
#[macro_export]
macro_rules! skip_without_testbed {
    () => {
        if let Some(reason) = $crate::missing() {
            println!("skipped: {reason}");
            return Ok(());
        }
    };
}
