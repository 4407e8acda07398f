//! The boot clock: the one place where this crate reads it for decisions.

use nix::time::{ClockId, clock_gettime};
use understudy_common::units::BootTime;

/// `CLOCK_BOOTTIME`: goes on while the machine sleeps, and is what the gate compares with in the kernel.
pub fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every supported kernel has a boot clock");
    let nanos = std::time::Duration::from(now).as_nanos();
    BootTime(u64::try_from(nanos).unwrap_or(u64::MAX))
}
