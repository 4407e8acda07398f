//! The top of a btrfs, for roots that lie in other subvolumes.
//!
//! Invariant: it is mounted where nobody else sees it, and gone when the call returns.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Runs `with` on the top directory of the btrfs that `directory` lies on.
///
/// # Errors
/// When it cannot be mounted, or as `with` does.
pub fn at_top<T: Send>(directory: &Path, with: impl FnOnce(&File) -> io::Result<T> + Send) -> io::Result<T> {
    let source = source(&File::open(directory)?)?;
    let mounted = || {
        // The namespace is this thread's own and ends with it.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        mount(
            Some(source.as_str()),
            directory,
            Some("btrfs"),
            MsFlags::MS_RDONLY,
            Some("subvolid=5"),
        )?;
        with(&File::open(directory)?)
    };
    let panicked = |_| Err(io::Error::other("the thread that mounts it panicked"));
    thread::scope(|scope| scope.spawn(mounted).join().unwrap_or_else(panicked))
}

/// The device that the mount of a file is of.
fn source(file: &File) -> io::Result<String> {
    let mut stat = MaybeUninit::<libc::statx>::uninit();
    // SAFETY: statx fills the struct when it returns 0.
    let id = unsafe {
        let (empty, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
        let wanted = libc::STATX_MNT_ID;
        if libc::statx(file.as_raw_fd(), empty, flags, wanted, stat.as_mut_ptr()) == -1 {
            return Err(io::Error::last_os_error());
        }
        stat.assume_init().stx_mnt_id.to_string()
    };
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let line = mounts
        .lines()
        .find(|line| line.split(' ').next() == Some(id.as_str()));
    // `… - type source options`
    line.and_then(|line| line.split_once(" - ")?.1.split(' ').nth(1))
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other("its mount is not listed"))
}
