//! Changes without a write: sizes, holes, zeroes, shifts, and extents of other files.

use std::os::fd::AsRawFd;
use std::process::Command;

use super::writes::check;
use super::*;

fn fallocate(file: &File, mode: i32, offset: u64, len: u64) {
    // SAFETY: no pointers.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
    assert_eq!(done, 0, "mode {mode}: {}", io::Error::last_os_error());
}

#[test]
fn truncation_marks_from_the_new_end_on() {
    check(
        &Kind::ALL,
        "down",
        |_, file| file.set_len(10 * PAGE + 5).unwrap(),
        &[10],
    );
    let down_and_up = |_: &Disk, file: &File| {
        file.set_len(60 * PAGE).unwrap();
        file.set_len(64 * PAGE).unwrap();
    };
    check(&Kind::ALL, "down and up", down_and_up, &[60, 61, 62, 63]);
}

#[test]
fn a_new_size_alone_touches_the_file() {
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let (file, other) = (disk.file("file", 4), disk.file("other", 4));
        let key = watch(&mut tracker, &file);
        tracker.swap().unwrap();
        for (what, size) in [
            ("truncate up", 20 * PAGE),
            ("up again", 30 * PAGE),
            ("down", PAGE),
        ] {
            other.set_len(size).unwrap();
            file.set_len(size).unwrap();
            let set = tracker.swap().unwrap();
            assert_eq!(set.touched, [key].into(), "{what}");
            tracker.swap().unwrap();
        }
        fallocate(&file, 0, 0, 8 * PAGE);
        assert_eq!(tracker.swap().unwrap().touched, [key].into(), "fallocate");
    });
}

#[test]
fn a_punched_or_zeroed_hole_marks_its_pages() {
    for mode in [
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        libc::FALLOC_FL_ZERO_RANGE,
    ] {
        on_each(&Kind::ALL, 64, |disk, mut tracker| {
            let file = disk.file("file", 64);
            watch(&mut tracker, &file);
            tracker.swap().unwrap();
            fallocate(&file, mode, 12 * PAGE + 100, 2 * PAGE);
            let marked = pages(&tracker.swap().unwrap(), &file);
            assert_eq!(marked, [12, 13, 14], "mode {mode}");
            if disk.kind != Kind::Xfs {
                // The kernel announces it before it is done.
                assert!(tracker.pending());
                let again = pages(&tracker.swap().unwrap(), &file);
                assert_eq!(again, [12, 13, 14], "mode {mode}, again");
            }
            assert!(tracker.swap().unwrap().is_empty(), "mode {mode}, once again");
        });
    }
}

#[test]
fn collapse_and_insert_mark_everything_behind() {
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
        let end = if mode == libc::FALLOC_FL_COLLAPSE_RANGE {
            63
        } else {
            65
        };
        let write = |_: &Disk, file: &File| fallocate(file, mode, 50 * PAGE, PAGE);
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.is_ext4()).collect();
        check(&kinds, "shift", write, &(50..end).collect::<Vec<_>>());
        // It does not say from where on.
        check(&[Kind::Xfs], "shift", write, &(0..end).collect::<Vec<_>>());
    }
}

#[test]
fn a_wide_range_is_marked_from_end_to_end() {
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let file = disk.file("file", 2);
        watch(&mut tracker, &file);
        file.set_len(1 << 40).unwrap();
        tracker.swap().unwrap();
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, mode, PAGE, 1 << 39);
        let set = tracker.swap().unwrap();
        let end = match disk.kind {
            // It is one hole with what is behind, which is locked whole.
            Kind::Btrfs | Kind::BtrfsNoSums => 1 << 28,
            _ => 1 + (1 << 27),
        };
        assert_eq!(set.pages[&key(&file)], only(1..end));
    });
}

#[test]
fn holes_punched_one_after_the_other_mark_no_more_than_themselves() {
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let file = disk.file("file", 64);
        watch(&mut tracker, &file);
        tracker.swap().unwrap();
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        for page in [3, 40, 20] {
            fallocate(&file, mode, page * PAGE, PAGE);
        }
        assert_eq!(pages(&tracker.swap().unwrap(), &file), [3, 20, 40]);
    });
}

/// File systems whose files can share extents.
const SHARING: [Kind; 2] = [Kind::Xfs, Kind::Btrfs];

#[test]
fn a_reflinked_range_marks() {
    let write = |disk: &Disk, file: &File| {
        let source = open(&disk.root().join("other"));
        let range = libc::file_clone_range {
            src_fd: source.as_raw_fd().into(),
            src_offset: 0,
            src_length: 4 * PAGE,
            dest_offset: 24 * PAGE,
        };
        // SAFETY: the kernel reads one `file_clone_range`.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    };
    check(&SHARING, "FICLONERANGE", write, &[24, 25, 26, 27]);
}

#[test]
fn a_file_reflinked_whole_marks() {
    let write = |disk: &Disk, file: &File| {
        let source = disk.file("source", 70);
        // SAFETY: no pointers.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    };
    check(&SHARING, "FICLONE", write, &(0..70).collect::<Vec<_>>());
}

fn extents(path: &Path) -> usize {
    let listed = Command::new("xfs_bmap").arg(path).output().unwrap();
    String::from_utf8_lossy(&listed.stdout).lines().count()
}

#[test]
fn extents_exchanged_by_the_defragmenter_mark() {
    on_each(&[Kind::Xfs], 64, |disk, mut tracker| {
        let (file, other) = (disk.file("file", 0), disk.file("other", 0));
        // In turns, so that neither lies in one piece.
        for page in 0..64 {
            for file in [&file, &other] {
                file.write_all_at(&[7; PAGE as usize], page * PAGE).unwrap();
                file.sync_all().unwrap();
            }
        }
        watch(&mut tracker, &file);
        tracker.swap().unwrap();
        let path = disk.root().join("file");
        let before = extents(&path);
        let done = Command::new("xfs_fsr").arg("-d").arg(&path).status();
        assert!(done.expect("xfsprogs has it").success());
        assert!(extents(&path) < before, "nothing was exchanged");
        let marked = pages(&tracker.swap().unwrap(), &file);
        assert_eq!(marked, (0..64).collect::<Vec<_>>());
    });
}
