//! The kernel's own boot clock: the one place where this crate reads it for decisions.
//!
//! Invariant: [`boot_time`] is what `bpf_ktime_get_boot_ns` says at the same instant, also where this
//! process lives in a time namespace, in which `CLOCK_BOOTTIME` is off by a constant. The gate compares
//! in the kernel, so a deadline on the namespace's clock would be wrong by that constant.
//!
//! The clock goes on while the machine sleeps: a suspended host finds its leases over. It need not go on
//! while a hypervisor pauses a guest: see README.

use std::sync::OnceLock;

use nix::time::{ClockId, clock_gettime};
use understudy_common::units::BootTime;

/// Offsets of the time namespace of this process's *children*; its own as well once it has been executed
/// and has not made another since, which [`calibrate`] checks.
const OFFSETS: &str = "/proc/self/timens_offsets";
const OWN: &str = "/proc/self/ns/time";
const OF_CHILDREN: &str = "/proc/self/ns/time_for_children";

#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    #[error("cannot read {path}, which says how far this time namespace's clock is off")]
    Read {
        path: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{OFFSETS} has no boot-time offset that can be read: {0:?}")]
    Offset(String),
    #[error("this process's children would live in another time namespace; start it with `unshare --fork`")]
    Between,
}

/// Nanoseconds that this namespace's clock is ahead of the kernel's.
static AHEAD: OnceLock<i128> = OnceLock::new();

/// Finds out how far the clock of this time namespace is off. Without it [`boot_time`] does at its first
/// call, and takes what cannot be read for nothing.
///
/// # Errors
/// [`ClockError`]: deadlines would be a guess then, and the agent must not start.
pub fn calibrate() -> Result<(), ClockError> {
    let ahead = measure()?;
    AHEAD.get_or_init(|| ahead);
    Ok(())
}

pub fn boot_time() -> BootTime {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every supported kernel has a boot clock");
    let here = i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec());
    let ahead = *AHEAD.get_or_init(|| measure().unwrap_or(0));
    BootTime(u64::try_from(here - ahead).unwrap_or(0))
}

fn measure() -> Result<i128, ClockError> {
    let text = match std::fs::read_to_string(OFFSETS) {
        Ok(text) => text,
        // A kernel without time namespaces has one clock.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(source) => {
            return Err(ClockError::Read {
                path: OFFSETS,
                source,
            });
        }
    };
    let link = |path| std::fs::read_link(path).map_err(|source| ClockError::Read { path, source });
    if link(OWN)? != link(OF_CHILDREN)? {
        return Err(ClockError::Between);
    }
    offset(&text).ok_or(ClockError::Offset(text))
}

/// The line `boottime SECONDS NANOSECONDS`; in older kernels the clock's number, 7.
fn offset(text: &str) -> Option<i128> {
    let mut words = text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("boottime" | "7")).then_some(words)
    })?;
    let mut number = || words.next()?.parse::<i64>().ok().map(i128::from);
    Some(number()? * 1_000_000_000 + number()?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_offset_is_read_in_both_forms_and_nothing_else_is() {
        let check = |text: &str, expected: Option<i128>| assert_eq!(offset(text), expected, "{text:?}");
        check(
            "monotonic           0         0\nboottime           0         0\n",
            Some(0),
        );
        check("monotonic 0 0\nboottime 86400 500\n", Some(86_400_000_000_500));
        check("monotonic 0 0\nboottime -2 500\n", Some(-1_999_999_500));
        check("1 0 0\n7 10 1\n", Some(10_000_000_001));
        check("monotonic 0 0\n", None);
        check("boottime x 0\n", None);
        check("boottime 1\n", None);
    }

    const INSIDE: &str = "US_CLOCK_TEST_INSIDE";

    /// Prints both clocks, for the test below.
    #[test]
    #[ignore = "a process of its own for another test"]
    fn process_in_a_time_namespace() {
        if std::env::var_os(INSIDE).is_none() {
            return;
        }
        calibrate().unwrap();
        let kernel = boot_time().0;
        let own = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
        println!("clocks {kernel} {}", std::time::Duration::from(own).as_nanos());
    }

    #[test]
    fn the_clock_is_the_kernels_own_in_a_time_namespace() {
        const DAY_NS: u128 = 86_400_000_000_000;
        let before = boot_time();
        let output = Command::new("unshare")
            .args(["--time", "--boottime", "86400", "--fork"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "clock::tests::process_in_a_time_namespace",
                "--ignored",
                "--nocapture",
            ])
            .env(INSIDE, "1")
            .output();
        let output = match output {
            Ok(output) if output.status.success() => output,
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr);
                assert!(!why.contains("panicked"), "{why}");
                println!("skipped: no time namespace can be made: {}", why.trim());
                return;
            }
            Err(error) => {
                println!("skipped: unshare cannot be run: {error}");
                return;
            }
        };
        let after = boot_time();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.split_once("clocks "))
            .expect("its clocks")
            .1;
        let (kernel, own) = line.split_once(' ').expect("two clocks");
        let (kernel, own): (u64, u128) = (kernel.parse().unwrap(), own.trim().parse().unwrap());
        assert!(
            (before.0..=after.0).contains(&kernel),
            "{before:?} {kernel} {after:?}"
        );
        assert!(
            own >= u128::from(kernel) + DAY_NS,
            "the namespace's own clock is a day ahead"
        );
    }
}
