//! SIGINT and SIGTERM take the test beds down before they take the process down.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, Once, Weak};
use std::{io, process, thread};

use anyhow::{Context, Result};

use crate::bed::Shared;

static BEDS: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
static PIPE: AtomicI32 = AtomicI32::new(-1);
static INSTALLED: Once = Once::new();

/// From now on `bed` is removed when the process is interrupted.
pub(crate) fn guard(bed: Weak<Shared>) -> Result<()> {
    let mut beds = BEDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    beds.retain(|bed| bed.strong_count() > 0);
    beds.push(bed);
    drop(beds);
    let mut outcome = Ok(());
    INSTALLED.call_once(|| outcome = install().context("catching SIGINT and SIGTERM"));
    outcome
}

fn install() -> io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: the kernel fills the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just opened and are owned by nobody else.
    let (mut read, write) = unsafe { (File::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    PIPE.store(write.into_raw_fd(), Ordering::SeqCst);
    thread::spawn(move || {
        let mut signal = [0_u8];
        if read.read_exact(&mut signal).is_ok() {
            let beds = BEDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            for bed in beds.iter().filter_map(Weak::upgrade) {
                bed.tear_down();
            }
            process::exit(128 + i32::from(signal[0]));
        }
    });
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only calls write(2).
        if unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn note(signal: i32) {
    let number = signal as u8;
    // SAFETY: one byte of a live variable, to a pipe that is never closed.
    unsafe { libc::write(PIPE.load(Ordering::SeqCst), (&raw const number).cast(), 1) };
}
