//! The tracker against the running kernel, each test on file systems of its own.

mod follow;
mod limits;
mod mappings;
mod names;
mod shapes;
mod stress;
mod uring;
mod writes;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::*;
use crate::btf::Btf;
use crate::sync::testdisk::{self, Disk, Kind};

impl Disk {
    /// A file of that many pages, clean on disk.
    fn file(&self, name: &str, pages: u64) -> File {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![b'.'; (pages * PAGE) as usize]).unwrap();
        let file = open(&path);
        file.sync_all().unwrap();
        file
    }
}

/// Runs a test with a tracker on a disk of each kind.
fn on_each(kinds: &[Kind], megabytes: u64, test: impl Fn(&Disk, KernelTracker)) {
    testdisk::on_each(kinds, megabytes, |disk| {
        if let Some(tracker) = tracker(disk, TrackerLimits::default()) {
            test(disk, tracker);
        }
    });
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn key(file: &File) -> InodeKey {
    let stat = file.metadata().unwrap();
    InodeKey {
        dev: stat.dev(),
        ino: stat.ino(),
    }
}

/// `None`, after saying why, where the kernel is too old. A program that the verifier refuses is a
/// failure.
fn tracker(disk: &Disk, limits: TrackerLimits) -> Option<KernelTracker> {
    tracker_of(&disk.root(), limits)
}

fn tracker_of(root: &Path, limits: TrackerLimits) -> Option<KernelTracker> {
    if let Err(error) = Btf::load().and_then(|btf| btf.tracepoint_arguments("iomap_dio_rw_begin")) {
        println!("skipped: {error}");
        return None;
    }
    match KernelTracker::open(&[root.to_owned()], limits) {
        Ok(tracker) => Some(tracker),
        Err(error) => {
            // The verifier's log ends with what it refused.
            let source = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            let end = source.lines().rev().take(15).collect::<Vec<_>>();
            panic!(
                "{error}: {}",
                end.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
    }
}

fn watch(tracker: &mut KernelTracker, file: &File) -> InodeKey {
    tracker.watch(key(file), file.as_fd()).unwrap();
    key(file)
}

/// The page numbers that a set has for a file, cut off at its size.
fn pages(set: &DirtySet, file: &File) -> Vec<u64> {
    let size = file.metadata().unwrap().len();
    let Some(pages) = set.pages.get(&key(file)) else {
        return Vec::new();
    };
    pages
        .byte_ranges(size)
        .flat_map(|bytes| bytes.start / PAGE..bytes.end.div_ceil(PAGE))
        .collect()
}

fn everything_from(page: u64) -> PageSet {
    only(page..PageSet::END)
}

fn only(pages: Range<u64>) -> PageSet {
    let mut set = PageSet::new();
    set.insert(pages);
    set
}

/// A shared writable mapping of a whole file.
struct Mapping {
    at: *mut u8,
    len: usize,
}

// SAFETY: the tests store to it one byte at a time, each thread to its own file.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(file: &File) -> Self {
        let len = file.metadata().unwrap().len() as usize;
        // SAFETY: a fresh shared mapping of an open file.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                std::os::fd::AsRawFd::as_raw_fd(file),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self { at: at.cast(), len }
    }

    fn store(&self, offset: usize, value: u8) {
        assert!(offset < self.len);
        // SAFETY: inside the mapping, and no file is truncated below its mapping.
        unsafe { self.at.add(offset).write_volatile(value) };
    }

    fn msync(&self) {
        // SAFETY: the whole mapping.
        let done = unsafe { libc::msync(self.at.cast(), self.len, libc::MS_SYNC) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and not used afterwards.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}
