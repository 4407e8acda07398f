//! The boot clock, and bounded waits on conditions.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// `CLOCK_BOOTTIME` in nanoseconds: the clock that the agents stamp with.
pub fn boot_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid timespec for the kernel to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Polls until `condition` gives a value. `what` names the condition in the error.
pub fn wait_for<T>(what: &str, at_most: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let until = Instant::now() + at_most;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= until {
            bail!("waited {at_most:?} for {what}, in vain");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
