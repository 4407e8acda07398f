//! Processes that stand still for a moment, again and again.

use std::fs;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use crate::boot_ns;
use crate::fault::{Range, Seeded};

pub(super) const STALL: Duration = Duration::from_millis(200);
/// Between two stalls of one process.
const PAUSE_MS: Range = 400..=2_400;

/// How long each stall was, and in how many the kernel said at its end that the process was stopped.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    pub(super) lengths_ns: Mutex<Vec<u64>>,
    pub(super) confirmed: Mutex<u64>,
}

impl Stalls {
    /// Stalls one process until told to stop, or until it is gone.
    pub(super) fn stall(&self, pid: u32, mut seeded: Seeded, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(seeded.within(&PAUSE_MS)));
            let began_ns = boot_ns();
            if !signal(pid, libc::SIGSTOP) {
                return;
            }
            sleep(STALL);
            let stopped = is_stopped(pid);
            signal(pid, libc::SIGCONT);
            let length_ns = boot_ns() - began_ns;
            self.lengths_ns
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(length_ns);
            *self.confirmed.lock().unwrap_or_else(PoisonError::into_inner) += u64::from(stopped);
        }
    }
}

/// The process is a child of ours that is not reaped meanwhile, so the number is its own.
fn signal(pid: u32, signal: i32) -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pid as i32, signal) == 0 }
}

fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('T'))
}
