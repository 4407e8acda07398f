//! The two clocks that the shells read for the machines that read none.

use nix::time::{ClockId, clock_gettime};
use understudy_common::units::BootTime;

/// `CLOCK_BOOTTIME`: goes on while the machine sleeps, so that a lease ends then, too.
pub fn boot_now() -> BootTime {
    // Every kernel that can run this has the clock.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME can be read");
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    BootTime(
        part(now.tv_sec())
            .saturating_mul(1_000_000_000)
            .saturating_add(part(now.tv_nsec())),
    )
}

/// Milliseconds of the wall clock since 1970, for people only.
pub fn wall_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
