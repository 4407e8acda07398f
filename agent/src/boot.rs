//! The number of this boot of the host, which tells the coordinators whether leases in memory survived.
//!
//! Invariants: the number stays the same only while both the kernel and the gate's pins are those that
//! an earlier agent left: a gate that was lost means that a lease must be granted anew. It is kept before
//! new pins are made, so that pins are never older than the number beside them.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use understudy_common::units::BootTime;

/// The kernel's own number of its boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    pub number: u128,
    /// When an agent first ran in it. What was promised before is forgotten, so nothing is opened for the
    /// length of a promise from here.
    pub since: BootTime,
}

/// What is kept below `state_dir`, or a new one that began `now` when the host was restarted or its pins
/// are gone. Call it before pins are made.
///
/// # Errors
/// When the kernel's number cannot be read or the new one cannot be kept.
pub fn current(state_dir: &Path, pins_survived: bool, now: BootTime) -> io::Result<Boot> {
    let kernel = fs::read_to_string(BOOT_ID)?;
    let kept = state_dir.join("boot");
    if pins_survived
        && let Ok(text) = fs::read_to_string(&kept)
        && let Some(boot) = read(&text, kernel.trim(), now)
    {
        return Ok(boot);
    }
    let mut random = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let number = u128::from_le_bytes(random);
    fs::create_dir_all(state_dir)?;
    let part = state_dir.join("boot.part");
    let mut file = fs::File::create(&part)?;
    writeln!(file, "{} {number:032x} {}", kernel.trim(), now.0)?;
    file.sync_all()?;
    fs::rename(part, kept)?;
    Ok(Boot { number, since: now })
}

/// What a line `KERNEL NUMBER SINCE` says, if it is of this kernel's boot. A time that makes no sense is
/// taken for now: it only lengthens the wait.
fn read(text: &str, kernel: &str, now: BootTime) -> Option<Boot> {
    let mut words = text.split_whitespace();
    (words.next()? == kernel).then_some(())?;
    let number = u128::from_str_radix(words.next()?, 16).ok()?;
    let since = words.next().and_then(|word| word.parse().ok()).map(BootTime);
    Some(Boot {
        number,
        since: since.filter(|since| *since <= now).unwrap_or(now),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const T1: BootTime = BootTime::from_ms(1);
    const T2: BootTime = BootTime::from_ms(2);

    #[test]
    fn a_boot_keeps_its_number_until_its_pins_or_its_kernel_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = current(dir.path(), false, T1).unwrap();
        assert_eq!(first.since, T1);
        assert_eq!(current(dir.path(), true, T2).unwrap(), first);
        let second = current(dir.path(), false, T2).unwrap();
        assert_ne!(second.number, first.number);
        assert_eq!(current(dir.path(), true, T2).unwrap(), second);
        let line = format!("another {:032x} 1\n", second.number);
        fs::write(dir.path().join("boot"), line).unwrap();
        assert_ne!(current(dir.path(), true, T2).unwrap().number, second.number);
    }

    #[test]
    fn a_torn_number_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("boot"), "").unwrap();
        let now = current(dir.path(), true, T1).unwrap();
        assert_eq!(current(dir.path(), true, T2).unwrap(), now);
    }

    #[test]
    fn a_beginning_that_is_missing_or_to_come_is_taken_for_now() {
        for since in ["", "x", "99999999999"] {
            let line = format!("k {:032x} {since}\n", 5);
            let expected = Boot { number: 5, since: T2 };
            assert_eq!(read(&line, "k", T2), Some(expected), "{since:?}");
        }
    }
}
