//! Every kind of write shows up as exactly the pages it changed.

use std::cell::Cell;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs one kind of write on a clean watched file of 64 pages, beside one that is not watched.
pub fn check(kinds: &[Kind], what: &str, write: impl Fn(&Disk, &File), expected: &[u64]) {
    on_each(kinds, 64, |disk, mut tracker| {
        let what = format!("{what} on {:?}", disk.kind);
        let (file, other) = (disk.file("file", 64), disk.file("other", 64));
        watch(&mut tracker, &file);
        tracker.swap().unwrap();
        assert!(!tracker.pending(), "{what}: nothing was written yet");

        other.write_all_at(b"not watched", 9 * PAGE).unwrap();
        write(disk, &file);
        assert!(tracker.pending(), "{what}: pending");
        let set = tracker.swap().unwrap();
        assert_eq!(pages(&set, &file), expected, "{what}: {set:?}");
        assert!(!set.pages.contains_key(&key(&other)), "{what}: {set:?}");
        assert!(set.unknown.is_empty() && !set.all_unknown, "{what}: {set:?}");

        let next = tracker.swap().unwrap();
        assert_eq!(next.unknown.len(), 0, "{what}");
    });
}

#[test]
fn a_write_marks_its_page() {
    check(
        &Kind::ALL,
        "pwrite",
        |_, file| file.write_all_at(b"x", 5 * PAGE + 17).unwrap(),
        &[5],
    );
}

#[test]
fn a_write_over_a_border_marks_both_pages() {
    check(
        &Kind::ALL,
        "pwrite",
        |_, file| file.write_all_at(b"xy", 6 * PAGE - 1).unwrap(),
        &[5, 6],
    );
}

#[test]
fn a_second_write_to_a_dirty_page_marks_again() {
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let file = disk.file("file", 64);
        watch(&mut tracker, &file);
        for round in 0..3 {
            file.write_all_at(b"x", 7 * PAGE).unwrap();
            assert_eq!(pages(&tracker.swap().unwrap(), &file), [7], "round {round}");
        }
    });
}

#[test]
fn write_at_the_file_position_marks() {
    let write = |_: &Disk, mut file: &File| {
        file.seek(SeekFrom::Start(3 * PAGE)).unwrap();
        file.write_all(&[1; 2 * PAGE as usize]).unwrap();
    };
    check(&Kind::ALL, "write", write, &[3, 4]);
}

#[test]
fn an_append_marks_the_new_pages() {
    let write = |disk: &Disk, _: &File| {
        let mut end = OpenOptions::new()
            .append(true)
            .open(disk.root().join("file"))
            .unwrap();
        end.write_all(&[1; PAGE as usize + 1]).unwrap();
    };
    check(&Kind::ALL, "append", write, &[64, 65]);
}

#[test]
fn an_append_touches_the_file() {
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let file = disk.file("file", 4);
        let key = watch(&mut tracker, &file);
        tracker.swap().unwrap();
        file.write_all_at(b"x", 4 * PAGE).unwrap();
        assert_eq!(tracker.swap().unwrap().touched, [key].into());
        // Inside a page that the file has.
        file.write_all_at(b"x", 4 * PAGE + 1).unwrap();
        assert_eq!(tracker.swap().unwrap().touched, [key].into());
    });
}

#[test]
fn copy_file_range_marks() {
    let write = |disk: &Disk, file: &File| {
        let source = open(&disk.root().join("other"));
        let (mut from, mut to) = (0, 20 * PAGE as i64);
        // SAFETY: both offsets outlive the call.
        let copied = unsafe {
            libc::copy_file_range(
                source.as_raw_fd(),
                &mut from,
                file.as_raw_fd(),
                &mut to,
                3 * PAGE as usize,
                0,
            )
        };
        assert_eq!(copied, 3 * PAGE as isize);
    };
    check(&Kind::ALL, "copy_file_range", write, &[20, 21, 22]);
}

#[test]
fn sendfile_marks() {
    let write = |disk: &Disk, mut file: &File| {
        let source = open(&disk.root().join("other"));
        file.seek(SeekFrom::Start(30 * PAGE)).unwrap();
        // SAFETY: a null offset means the source's own position.
        let copied = unsafe {
            libc::sendfile(
                file.as_raw_fd(),
                source.as_raw_fd(),
                ptr::null_mut(),
                2 * PAGE as usize,
            )
        };
        assert_eq!(copied, 2 * PAGE as isize);
    };
    check(&Kind::ALL, "sendfile", write, &[30, 31]);
}

#[test]
fn splice_marks() {
    let write = |_: &Disk, file: &File| {
        let (from, mut into) = std::io::pipe().unwrap();
        into.write_all(&[1; 2 * PAGE as usize]).unwrap();
        let mut to = 33 * PAGE as i64;
        let mut left = 2 * PAGE as usize;
        while left > 0 {
            // SAFETY: the offset outlives the call.
            let moved = unsafe {
                libc::splice(
                    from.as_raw_fd(),
                    ptr::null_mut(),
                    file.as_raw_fd(),
                    &mut to,
                    left,
                    0,
                )
            };
            assert!(moved > 0, "{}", io::Error::last_os_error());
            left -= moved as usize;
        }
    };
    check(&Kind::ALL, "splice", write, &[33, 34]);
}

#[test]
fn io_uring_marks() {
    let write = |_: &Disk, file: &File| match uring::write(file, &[1; 2 * PAGE as usize], 14 * PAGE) {
        Some(written) => assert_eq!(written, 2 * PAGE as i32),
        // It is said that it is not allowed here.
        None => file.write_all_at(&[1; 2 * PAGE as usize], 14 * PAGE).unwrap(),
    };
    check(&Kind::ALL, "io_uring", write, &[14, 15]);
}

#[test]
fn a_write_through_a_hard_link_marks() {
    let write = |disk: &Disk, _: &File| {
        fs::hard_link(disk.root().join("file"), disk.root().join("link")).unwrap();
        open(&disk.root().join("link"))
            .write_all_at(b"x", 2 * PAGE)
            .unwrap();
    };
    check(&Kind::ALL, "hard link", write, &[2]);
}

#[test]
fn a_write_in_another_mount_namespace_marks() {
    let write = |disk: &Disk, _: &File| {
        let (root, bound) = (disk.root(), disk.root().join("bound"));
        fs::create_dir(&bound).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                mount(Some(&root), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
                open(&bound.join("file")).write_all_at(b"x", 21 * PAGE).unwrap();
            });
        });
    };
    check(&Kind::ALL, "bind mount elsewhere", write, &[21]);
}

#[test]
fn a_write_through_a_loop_device_marks_its_backing_file() {
    for direct in ["off", "on"] {
        let write = |disk: &Disk, _: &File| {
            let backing = disk.root().join("file");
            let direct = format!("--direct-io={direct}");
            let made = Command::new("losetup")
                .args(["-f", "--show", &direct])
                .arg(backing)
                .output();
            let made = made.unwrap();
            let path = String::from_utf8(made.stdout).unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let device = open(Path::new(path.trim()));
            // It goes when the last one lets go of it.
            let detached = Command::new("losetup").args(["-d", path.trim()]).status();
            assert!(detached.unwrap().success());
            device.write_all_at(&[1; PAGE as usize], 50 * PAGE).unwrap();
            device.sync_all().unwrap();
        };
        check(&Kind::ALL, "loop device", write, &[50]);
    }
}

fn open_direct(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(path).unwrap()
}

/// Runs `with` on that many bytes at a page's border.
fn aligned(len: usize, with: impl FnOnce(&mut [u8])) {
    let mut buffer = vec![7u8; len + PAGE as usize];
    let skip = buffer.as_ptr().align_offset(PAGE as usize);
    with(&mut buffer[skip..skip + len]);
}

#[test]
fn a_direct_write_marks() {
    let write = |disk: &Disk, _: &File| {
        let direct = open_direct(&disk.root().join("file"));
        aligned(2 * PAGE as usize, |buffer| {
            direct.write_all_at(buffer, 40 * PAGE).unwrap();
        });
    };
    check(&Kind::ALL, "O_DIRECT", write, &[40, 41]);
}

#[test]
fn a_direct_read_marks_nothing() {
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let file = disk.file("file", 64);
        watch(&mut tracker, &file);
        let direct = open_direct(&disk.root().join("file"));
        aligned(PAGE as usize, |buffer| {
            direct.write_all_at(buffer, 40 * PAGE).unwrap();
            assert_eq!(pages(&tracker.swap().unwrap(), &file), [40]);
            tracker.swap().unwrap();
            direct.read_exact_at(buffer, 20 * PAGE).unwrap();
            assert!(tracker.swap().unwrap().pages.is_empty());
            direct.write_all_at(buffer, 30 * PAGE).unwrap();
            assert_eq!(pages(&tracker.swap().unwrap(), &file), [30]);
        });
    });
}

#[test]
fn a_direct_write_under_way_when_the_file_is_found_marks() {
    const PAGES: u64 = 8192;
    let under_way = Cell::new(0);
    // With checksums it is no direct write.
    on_each(
        &[Kind::Ext4, Kind::Xfs, Kind::BtrfsNoSums],
        256,
        |disk, mut tracker| {
            let file = disk.file("file", PAGES);
            let direct = open_direct(&disk.root().join("file"));
            for round in 0..10 {
                tracker.unwatch(key(&file));
                tracker.swap().unwrap();
                let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
                let is_under_way = std::thread::scope(|scope| {
                    scope.spawn(|| {
                        aligned((PAGES * PAGE) as usize, |buffer| {
                            begun.store(true, Ordering::Release);
                            direct.write_all_at(buffer, 0).unwrap();
                            ended.store(true, Ordering::Release);
                        });
                    });
                    while !begun.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                    std::thread::sleep(Duration::from_millis(round));
                    watch(&mut tracker, &file);
                    !ended.load(Ordering::Acquire)
                });
                let set = tracker.swap().unwrap();
                if is_under_way {
                    under_way.set(under_way.get() + 1);
                    assert!(set.pages.contains_key(&key(&file)), "round {round}");
                }
            }
        },
    );
    println!("{} of 30 were under way", under_way.get());
}

#[test]
fn a_large_write_marks_no_more_than_it_wrote() {
    on_each(&Kind::ALL, 256, |disk, mut tracker| {
        let file = disk.file("file", 16_384);
        watch(&mut tracker, &file);
        tracker.swap().unwrap();
        let bytes = vec![1; 32 << 20];
        assert_eq!(file.write_at(&bytes, 100 * PAGE).unwrap(), bytes.len());
        let set = tracker.swap().unwrap();
        assert_eq!(set.pages[&key(&file)], only(100..100 + 8192));
    });
}
