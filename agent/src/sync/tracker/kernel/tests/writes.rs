//! Every kind of write shows up as exactly the pages it changed.

use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use super::*;

/// Runs one kind of write on a clean watched file of 64 pages, beside one that is not watched.
fn check(kind: &str, write: impl FnOnce(&Disk, &File), expected: &[u64]) {
    let Some(disk) = Disk::new(64) else { return };
    let Some(mut tracker) = tracker(&disk, TrackerLimits::default()) else {
        return;
    };
    let (file, other) = (disk.file("file", 64), disk.file("other", 64));
    watch(&mut tracker, &file);
    tracker.swap().unwrap();
    assert!(!tracker.pending(), "{kind}: nothing was written yet");

    other.write_all_at(b"not watched", 9 * PAGE).unwrap();
    write(&disk, &file);
    assert!(tracker.pending(), "{kind}: pending");
    let set = tracker.swap().unwrap();
    assert_eq!(pages(&set, &file), expected, "{kind}: {set:?}");
    assert!(!set.pages.contains_key(&key(&other)), "{kind}: {set:?}");
    assert!(set.unknown.is_empty() && !set.all_unknown, "{kind}: {set:?}");

    let next = tracker.swap().unwrap();
    assert_eq!(next.unknown.len(), 0, "{kind}");
}

#[test]
fn a_write_marks_its_page() {
    check(
        "pwrite",
        |_, file| file.write_all_at(b"x", 5 * PAGE + 17).unwrap(),
        &[5],
    );
}

#[test]
fn a_write_over_a_border_marks_both_pages() {
    check(
        "pwrite",
        |_, file| file.write_all_at(b"xy", 6 * PAGE - 1).unwrap(),
        &[5, 6],
    );
}

#[test]
fn a_second_write_to_a_dirty_page_marks_again() {
    let Some(disk) = Disk::new(64) else { return };
    let Some(mut tracker) = tracker(&disk, TrackerLimits::default()) else {
        return;
    };
    let file = disk.file("file", 64);
    watch(&mut tracker, &file);
    for round in 0..3 {
        file.write_all_at(b"x", 7 * PAGE).unwrap();
        assert_eq!(pages(&tracker.swap().unwrap(), &file), [7], "round {round}");
    }
}

#[test]
fn write_at_the_file_position_marks() {
    let write = |_: &Disk, mut file: &File| {
        file.seek(SeekFrom::Start(3 * PAGE)).unwrap();
        file.write_all(&[1; 2 * PAGE as usize]).unwrap();
    };
    check("write", write, &[3, 4]);
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
    check("append", write, &[64, 65]);
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
    check("copy_file_range", write, &[20, 21, 22]);
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
                std::ptr::null_mut(),
                2 * PAGE as usize,
            )
        };
        assert_eq!(copied, 2 * PAGE as isize);
    };
    check("sendfile", write, &[30, 31]);
}

#[test]
fn a_write_through_a_hard_link_marks() {
    let write = |disk: &Disk, _: &File| {
        fs::hard_link(disk.root().join("file"), disk.root().join("link")).unwrap();
        open(&disk.root().join("link"))
            .write_all_at(b"x", 2 * PAGE)
            .unwrap();
    };
    check("hard link", write, &[2]);
}

#[test]
fn a_direct_write_marks() {
    let write = |disk: &Disk, _: &File| {
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(disk.root().join("file"))
            .unwrap();
        let mut buffer = vec![0u8; 3 * PAGE as usize];
        let skip = buffer.as_ptr().align_offset(PAGE as usize);
        let buffer = &mut buffer[skip..skip + 2 * PAGE as usize];
        buffer.fill(7);
        direct.write_all_at(buffer, 40 * PAGE).unwrap();
    };
    check("O_DIRECT", write, &[40, 41]);
}

#[test]
fn truncation_marks_from_the_new_end_on() {
    check("down", |_, file| file.set_len(10 * PAGE + 5).unwrap(), &[10]);
    let down_and_up = |_: &Disk, file: &File| {
        file.set_len(60 * PAGE).unwrap();
        file.set_len(64 * PAGE).unwrap();
    };
    check("down and up", down_and_up, &[60, 61, 62, 63]);
}

#[test]
fn a_new_size_alone_touches_the_file() {
    let Some(disk) = Disk::new(64) else { return };
    let Some(mut tracker) = tracker(&disk, TrackerLimits::default()) else {
        return;
    };
    let (file, other) = (disk.file("file", 4), disk.file("other", 4));
    let key = watch(&mut tracker, &file);
    tracker.swap().unwrap();
    for (kind, size) in [
        ("truncate up", 20 * PAGE),
        ("up again", 30 * PAGE),
        ("down", PAGE),
    ] {
        other.set_len(size).unwrap();
        file.set_len(size).unwrap();
        let set = tracker.swap().unwrap();
        assert_eq!(set.touched, [key].into(), "{kind}");
    }
    // SAFETY: no pointers.
    assert_eq!(
        unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 8 * PAGE as i64) },
        0
    );
    assert_eq!(tracker.swap().unwrap().touched, [key].into(), "fallocate");
}

#[test]
fn a_punched_or_zeroed_hole_marks_now_and_in_the_next_epoch() {
    for mode in [
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        libc::FALLOC_FL_ZERO_RANGE,
    ] {
        let Some(disk) = Disk::new(64) else { return };
        let Some(mut tracker) = tracker(&disk, TrackerLimits::default()) else {
            return;
        };
        let file = disk.file("file", 64);
        watch(&mut tracker, &file);
        tracker.swap().unwrap();
        // SAFETY: no pointers.
        let done =
            unsafe { libc::fallocate(file.as_raw_fd(), mode, 12 * PAGE as i64 + 100, 2 * PAGE as i64) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
        assert_eq!(
            pages(&tracker.swap().unwrap(), &file),
            [12, 13, 14],
            "mode {mode}"
        );
        // The kernel announces it before it is done.
        assert!(tracker.pending());
        assert_eq!(
            pages(&tracker.swap().unwrap(), &file),
            [12, 13, 14],
            "mode {mode}, again"
        );
        assert!(tracker.swap().unwrap().is_empty(), "mode {mode}, once again");
    }
}

#[test]
fn collapse_and_insert_mark_everything_behind() {
    for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_INSERT_RANGE] {
        let write = |_: &Disk, file: &File| {
            // SAFETY: no pointers.
            let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, 50 * PAGE as i64, PAGE as i64) };
            assert_eq!(done, 0, "{}", io::Error::last_os_error());
        };
        let end = if mode == libc::FALLOC_FL_COLLAPSE_RANGE {
            63
        } else {
            65
        };
        check("shift", write, &(50..end).collect::<Vec<_>>());
    }
}

#[test]
fn a_wide_range_is_marked_as_everything_from_there_on() {
    let Some(disk) = Disk::new(64) else { return };
    let Some(mut tracker) = tracker(&disk, TrackerLimits::default()) else {
        return;
    };
    let file = disk.file("file", 2);
    watch(&mut tracker, &file);
    file.set_len(1 << 40).unwrap();
    tracker.swap().unwrap();
    // SAFETY: no pointers.
    let done = unsafe {
        libc::fallocate(
            file.as_raw_fd(),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            PAGE as i64,
            1 << 39,
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    let set = tracker.swap().unwrap();
    assert_eq!(set.pages[&key(&file)], everything_from(1));
}
