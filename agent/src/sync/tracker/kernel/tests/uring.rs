//! One write by io_uring, with nothing but its system calls.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// `IORING_OP_WRITE`
const OP_WRITE: u8 = 23;
/// `IOSQE_ASYNC`: a worker of the kernel's does it, not the caller.
const SQE_ASYNC: u8 = 1 << 4;
const ENTER_GETEVENTS: u32 = 1;
const FEAT_SINGLE_MMAP: u32 = 1;
const OFF_SQES: i64 = 0x1000_0000;

#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    /// Of the submissions: flags, dropped, array. Of the completions: overflow, completions, flags.
    rest: [u32; 3],
    reserved: u32,
    user: u64,
}

#[repr(C)]
#[derive(Default)]
struct Parameters {
    entries: [u32; 2],
    flags: u32,
    threads: [u32; 2],
    features: u32,
    unused: [u32; 4],
    submissions: Offsets,
    completions: Offsets,
}

#[repr(C)]
#[derive(Default)]
struct Submission {
    opcode: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    address: u64,
    len: u32,
    rest: [u32; 9],
}

const _: () = assert!(size_of::<Submission>() == 64 && size_of::<Parameters>() == 120);

/// Writes `bytes` and waits; none where io_uring is not allowed.
pub fn write(file: &File, bytes: &[u8], offset: u64) -> Option<i32> {
    let mut parameters = Parameters::default();
    // SAFETY: the kernel writes a whole `io_uring_params`, and the descriptor is owned from here on.
    let ring = unsafe {
        let fd = libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut parameters);
        if fd < 0 {
            println!("skipped: io_uring: {}", io::Error::last_os_error());
            return None;
        }
        OwnedFd::from_raw_fd(fd as i32)
    };
    assert!(parameters.features & FEAT_SINGLE_MMAP != 0);
    let rings = map(&ring, 4096, 0);
    let entries = map(&ring, 4096, OFF_SQES);
    let word = |at: u32| {
        // SAFETY: an aligned word of the rings' page, shared with the kernel.
        unsafe { AtomicU32::from_ptr(rings.add(at as usize).cast()) }
    };
    let submission = Submission {
        opcode: OP_WRITE,
        flags: SQE_ASYNC,
        fd: file.as_raw_fd(),
        offset,
        address: bytes.as_ptr() as u64,
        len: bytes.len() as u32,
        ..Submission::default()
    };
    let (to, from) = (&parameters.submissions, &parameters.completions);
    // SAFETY: the only entry, which the kernel does not look at before it is submitted.
    unsafe { entries.cast::<Submission>().write(submission) };
    word(to.rest[2]).store(0, Ordering::Relaxed);
    word(to.tail).fetch_add(1, Ordering::Release);
    // SAFETY: no pointers; `bytes` outlives the wait.
    let entered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            1,
            1,
            ENTER_GETEVENTS,
            0,
            0,
        )
    };
    assert_eq!(entered, 1, "{}", io::Error::last_os_error());
    assert_ne!(
        word(from.head).load(Ordering::Acquire),
        word(from.tail).load(Ordering::Acquire)
    );
    // A completion: eight bytes of the user's, the result, flags.
    let result = word(from.rest[1] + 8).load(Ordering::Acquire) as i32;
    for at in [rings, entries] {
        // SAFETY: mapped above and not used afterwards.
        unsafe { libc::munmap(at.cast(), 4096) };
    }
    Some(result)
}

fn map(ring: &OwnedFd, len: usize, offset: i64) -> *mut u8 {
    // SAFETY: a fresh shared mapping of the ring.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            ring.as_raw_fd(),
            offset,
        )
    };
    assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    at.cast()
}
