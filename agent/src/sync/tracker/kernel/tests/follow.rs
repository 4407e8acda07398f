//! Operations that take longer than epochs: who reads what each set names, and nothing else, has the
//! file's content in the end, although nothing was ever frozen.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

/// Enough that writing it back takes many epochs.
const PAGES: u64 = 8192;

/// The pages of a set as they are now.
fn read(file: &File, set: &DirtySet, copy: &mut Vec<u8>) {
    let size = file.metadata().unwrap().len();
    copy.resize(size as usize, 0);
    let Some(pages) = set.pages.get(&key(file)) else {
        return;
    };
    for bytes in pages.byte_ranges(size) {
        let mut at = bytes.start as usize;
        while at < bytes.end as usize {
            match file
                .read_at(&mut copy[at..bytes.end as usize], at as u64)
                .unwrap()
            {
                // It became shorter.
                0 => break,
                read => at += read,
            }
        }
    }
}

fn follow(kinds: &[Kind], operation: impl Fn(&Disk, &File) + Sync) {
    on_each(kinds, 256, |disk, mut tracker| {
        let file = disk.file("file", PAGES);
        watch(&mut tracker, &file);
        let mut copy = Vec::new();
        for page in 0..PAGES {
            file.write_all_at(&[(page % 251) as u8 + 1; PAGE as usize], page * PAGE)
                .unwrap();
        }
        read(&file, &tracker.swap().unwrap(), &mut copy);
        let (disk, ended) = (&disk, &AtomicBool::new(false));
        let mut epochs = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                operation(disk, &file);
                ended.store(true, Ordering::Release);
            });
            loop {
                let is_last = ended.load(Ordering::Acquire);
                read(&file, &tracker.swap().unwrap(), &mut copy);
                epochs += 1;
                if is_last {
                    break;
                }
            }
        });
        println!("{epochs} epochs");
        let now = fs::read(disk.root().join("file")).unwrap();
        assert_eq!(now.len(), copy.len(), "after {epochs} epochs");
        let differ = |page: &usize| {
            let bytes = page * PAGE as usize..(page + 1) * PAGE as usize;
            now[bytes.clone()] != copy[bytes]
        };
        let pages: Vec<usize> = (0..now.len() / PAGE as usize).filter(differ).collect();
        assert!(
            pages.is_empty(),
            "after {epochs} epochs {} pages differ, from {} on",
            pages.len(),
            pages[0]
        );
    });
}

fn fallocate(file: &File, mode: i32, offset: u64, len: u64) {
    // SAFETY: no pointers.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
    assert_eq!(done, 0, "mode {mode}: {}", io::Error::last_os_error());
}

const SHIFTING: [Kind; 4] = [Kind::Ext4, Kind::Ext4NoDelalloc, Kind::Ext4Journalled, Kind::Xfs];

#[test]
fn a_collapsed_range_is_followed() {
    follow(&SHIFTING, |_, file| {
        fallocate(file, libc::FALLOC_FL_COLLAPSE_RANGE, 16 * PAGE, PAGE);
    });
}

#[test]
fn an_inserted_range_is_followed() {
    follow(&SHIFTING, |_, file| {
        fallocate(file, libc::FALLOC_FL_INSERT_RANGE, 16 * PAGE, PAGE);
    });
}

#[test]
fn punched_and_zeroed_ranges_are_followed() {
    follow(&Kind::ALL, |_, file| {
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        fallocate(file, punch, 100, 3000 * PAGE);
        fallocate(file, libc::FALLOC_FL_ZERO_RANGE, 4000 * PAGE + 5, 4000 * PAGE);
    });
}

#[test]
fn a_large_write_is_followed() {
    follow(&Kind::ALL, |_, file| {
        file.write_all_at(&vec![0xee; (PAGES * PAGE) as usize], 0)
            .unwrap();
    });
}

#[test]
fn sizes_are_followed() {
    follow(&Kind::ALL, |_, file| {
        for size in [PAGES / 2, PAGES, 7, 2 * PAGES, 3] {
            file.set_len(size * PAGE + 100).unwrap();
            file.write_all_at(b"end", size * PAGE).unwrap();
        }
    });
}

#[test]
fn a_reflink_is_followed() {
    follow(&[Kind::Xfs, Kind::Btrfs], |disk, file| {
        let source = disk.file("source", PAGES);
        // SAFETY: no pointers.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    });
}
