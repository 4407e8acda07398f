//! Making the next mmap store fire.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::pages::{PAGE, PageSet};

/// Writes pages back and waits. They are clean and write-protected afterwards, so that the next
/// store into any of them is seen. It waits for the disk: never call it while the workload is frozen.
pub fn rearm(file: BorrowedFd<'_>, pages: &PageSet) -> io::Result<()> {
    const FLAGS: u32 =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    const BYTES_MAX: u64 = i64::MAX as u64;
    for range in pages.ranges() {
        let start = range.start.saturating_mul(PAGE);
        if start >= BYTES_MAX {
            break;
        }
        let end = range.end.saturating_mul(PAGE);
        // A length of zero means up to the end of the file.
        let len = if end >= BYTES_MAX { 0 } else { (end - start) as i64 };
        // SAFETY: no pointers are passed.
        if unsafe { libc::sync_file_range(file.as_raw_fd(), start as i64, len, FLAGS) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
