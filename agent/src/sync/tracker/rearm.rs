//! Making the next mmap store fire.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

use super::pages::{PAGE, PageSet};

/// Writes pages back and waits. They are clean and write-protected afterwards, so that the next
/// store into any of them is seen. It waits for the disk: never call it while the workload is frozen.
pub fn rearm(file: BorrowedFd<'_>, pages: &PageSet) -> io::Result<()> {
    rearm_all([(file, pages)].into_iter())
}

fn rearm_all<'a>(files: impl Iterator<Item = (BorrowedFd<'a>, &'a PageSet)> + Clone) -> io::Result<()> {
    const WAIT: u32 =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // All on their way first, so that the disk is waited for once and not for each range.
    for flags in [libc::SYNC_FILE_RANGE_WRITE, WAIT] {
        for (file, pages) in files.clone() {
            for range in pages.ranges() {
                write_back(file, range, flags)?;
            }
        }
    }
    Ok(())
}

fn write_back(file: BorrowedFd<'_>, pages: Range<u64>, flags: u32) -> io::Result<()> {
    const BYTES_MAX: u64 = i64::MAX as u64;
    let start = pages.start.saturating_mul(PAGE);
    if start >= BYTES_MAX {
        return Ok(());
    }
    let end = pages.end.saturating_mul(PAGE);
    // A length of zero means up to the end of the file.
    let len = if end >= BYTES_MAX { 0 } else { (end - start) as i64 };
    // SAFETY: no pointers are passed.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), start as i64, len, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Rearms on a thread of its own, so that a disk that has become slow does not hold up the cuts.
///
/// Invariant: at most one batch is under way. What was not rearmed in time is not rearmed as far as
/// the caller is concerned, even if the disk finishes later.
#[derive(Debug)]
pub struct Rearmer {
    batches: Sender<Vec<(Arc<File>, PageSet)>>,
    done: Receiver<io::Result<()>>,
    busy: bool,
}

impl Rearmer {
    /// # Errors
    /// When there can be no thread.
    pub fn start() -> io::Result<Self> {
        let (batches, inbox) = channel::<Vec<(Arc<File>, PageSet)>>();
        let (reply, done) = channel();
        std::thread::Builder::new()
            .name("rearm".to_owned())
            .spawn(move || {
                for batch in inbox {
                    let files = batch.iter().map(|(file, pages)| (file.as_fd(), pages));
                    if reply.send(rearm_all(files)).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self {
            batches,
            done,
            busy: false,
        })
    }

    /// Whether all pages were rearmed by `deadline`; without one it waits for the disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn rearm(&mut self, batch: Vec<(Arc<File>, PageSet)>, deadline: Option<Instant>) -> io::Result<bool> {
        if self.busy {
            match self.wait(deadline) {
                None => return Ok(false),
                // Its pages are still in the caller's hands and in a batch to come.
                Some(Err(error)) => tracing::warn!(%error, "a disk refused to write back"),
                Some(Ok(())) => {}
            }
        }
        if batch.is_empty() {
            return Ok(true);
        }
        self.batches.send(batch).map_err(|_| gone())?;
        self.busy = true;
        self.wait(deadline).transpose().map(|done| done.is_some())
    }

    /// How the batch under way ended, if it did.
    fn wait(&mut self, deadline: Option<Instant>) -> Option<io::Result<()>> {
        let ended = match deadline {
            None => self.done.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.done.recv_timeout(left)
            }
        };
        match ended {
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(gone())),
            Ok(result) => {
                self.busy = false;
                Some(result)
            }
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that writes pages back has ended")
}
