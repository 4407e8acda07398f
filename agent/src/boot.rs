//! The number of this boot of the host, which tells the coordinators whether leases in memory survived.
//!
//! Invariant: the number stays the same only while both the kernel and the gate's pins are those that
//! an earlier agent left: a gate that was lost means that a lease must be granted anew.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

/// The kernel's own number of its boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The number kept below `state_dir`, or a new one when the host was restarted or its pins are gone.
///
/// # Errors
/// When the kernel's number cannot be read or the new one cannot be kept.
pub fn number(state_dir: &Path, pins_survived: bool) -> io::Result<u128> {
    let kernel = fs::read_to_string(BOOT_ID)?;
    let kept = state_dir.join("boot");
    if pins_survived
        && let Ok(text) = fs::read_to_string(&kept)
        && let Some(number) = read(&text, kernel.trim())
    {
        return Ok(number);
    }
    let mut random = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let number = u128::from_le_bytes(random);
    fs::create_dir_all(state_dir)?;
    let part = state_dir.join("boot.part");
    let mut file = fs::File::create(&part)?;
    writeln!(file, "{} {number:032x}", kernel.trim())?;
    file.sync_all()?;
    fs::rename(part, kept)?;
    Ok(number)
}

/// The number in a line `KERNEL NUMBER`, if it is of this kernel's boot.
fn read(text: &str, kernel: &str) -> Option<u128> {
    let (of, number) = text.trim_end().split_once(' ')?;
    (of == kernel)
        .then(|| u128::from_str_radix(number, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_keeps_its_number_until_its_pins_or_its_kernel_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = number(dir.path(), true).unwrap();
        assert_eq!(number(dir.path(), true).unwrap(), first);
        let second = number(dir.path(), false).unwrap();
        assert_ne!(second, first);
        assert_eq!(number(dir.path(), true).unwrap(), second);
        fs::write(dir.path().join("boot"), format!("another {second:032x}\n")).unwrap();
        assert_ne!(number(dir.path(), true).unwrap(), second);
    }

    #[test]
    fn a_torn_number_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("boot"), "").unwrap();
        let number_now = number(dir.path(), true).unwrap();
        assert_eq!(number(dir.path(), true).unwrap(), number_now);
    }
}
