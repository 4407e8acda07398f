//! Maps that run full, files that come and go, and what a write costs.

use super::*;

#[test]
fn a_full_bitmap_makes_the_file_unknown_and_never_clean() {
    testdisk::on_each(&Kind::EACH, 128, |disk| {
        let limits = TrackerLimits {
            files_max: 4,
            notes_max: 4,
            chunks_max: 4,
        };
        let Some(mut tracker) = tracker(disk, limits) else {
            return;
        };
        let file = disk.file("file", 64 * 128);
        let key = watch(&mut tracker, &file);
        tracker.swap().unwrap();
        for round in 0..3 {
            for chunk in 0..128 {
                file.write_all_at(b"x", chunk * 64 * PAGE).unwrap();
            }
            let set = tracker.swap().unwrap();
            let marked = pages(&set, &file);
            assert!(set.unknown.contains(&key), "round {round}: {set:?}");
            assert!(
                !marked.is_empty() && marked.len() < 128,
                "round {round}: {marked:?}"
            );
            assert!(tracker.counters().lost > 0);
            // And there is room again afterwards.
            file.write_all_at(b"x", 3 * PAGE).unwrap();
            let set = tracker.swap().unwrap();
            assert_eq!(
                (pages(&set, &file), set.unknown.len()),
                (vec![3], 0),
                "round {round}"
            );
        }
    });
}

#[test]
fn watching_more_files_than_there_is_room_for_is_refused() {
    let Some(disk) = Disk::new(32) else { return };
    let limits = TrackerLimits {
        files_max: 2,
        notes_max: 64,
        chunks_max: 64,
    };
    let Some(mut tracker) = tracker(&disk, limits) else {
        return;
    };
    let files: Vec<File> = (0..3).map(|at| disk.file(&at.to_string(), 1)).collect();
    watch(&mut tracker, &files[0]);
    watch(&mut tracker, &files[1]);
    watch(&mut tracker, &files[1]);
    let refused = tracker.watch(key(&files[2]), files[2].as_fd());
    assert!(
        matches!(refused, Err(TrackError::Full { watched: 2 })),
        "{refused:?}"
    );
    tracker.unwatch(key(&files[0]));
    watch(&mut tracker, &files[2]);
    assert_eq!(tracker.counters().watched, 2);
    tracker.swap().unwrap();

    files[0].write_all_at(b"x", 0).unwrap();
    files[2].write_all_at(b"x", 0).unwrap();
    let set = tracker.swap().unwrap();
    assert_eq!(set.pages.keys().collect::<Vec<_>>(), [&key(&files[2])]);
}

#[test]
fn a_new_file_with_a_removed_ones_number_is_not_taken_for_it() {
    testdisk::on_each(&Kind::EACH, 32, |disk| {
        let Some(mut tracker) = tracker(disk, TrackerLimits::default()) else {
            return;
        };
        let first = disk.file("file", 1);
        let number = watch(&mut tracker, &first);
        drop(first);
        fs::remove_file(disk.root().join("file")).unwrap();
        tracker.swap().unwrap();
        let second = disk.file("file", 1);
        if key(&second) != number {
            return println!("skipped: the number was not used again");
        }
        assert!(tracker.swap().unwrap().pages.is_empty());
        watch(&mut tracker, &second);
        second.write_all_at(b"x", 0).unwrap();
        assert_eq!(pages(&tracker.swap().unwrap(), &second), [0]);
        assert_eq!(tracker.counters().watched, 1);
    });
}

#[test]
fn another_file_system_is_refused() {
    let refused = KernelTracker::open(&[PathBuf::from("/proc")], TrackerLimits::default());
    assert!(matches!(refused, Err(TrackError::FileSystem { .. })));
}

#[test]
fn a_write_costs_little_and_a_swap_costs_its_marks() {
    const ROUNDS: u64 = 50;
    const WRITES: u64 = 500;
    testdisk::on_each(&Kind::EACH, 256, |disk| {
        let Some(mut tracker) = tracker(disk, TrackerLimits::default()) else {
            return;
        };
        let Ok(_stats) = aya::sys::enable_stats(aya::sys::Stats::RunTime) else {
            return println!("skipped: the kernel keeps no run-time statistics here");
        };
        let (file, other) = (disk.file("file", 8192), disk.file("other", 8192));
        let key = watch(&mut tracker, &file);
        tracker.swap().unwrap();
        for (name, target) in [("not watched", &other), ("watched", &file)] {
            // The best of many rounds: the statistics count what interrupts a program as its own.
            let mut best = (u64::MAX, Vec::new());
            for round in 0..ROUNDS {
                let before = tracker.run_time().unwrap();
                for at in 0..WRITES {
                    target
                        .write_all_at(b"x", (round * WRITES + at) * 7919 % 8192 * PAGE)
                        .unwrap();
                }
                let after = tracker.run_time().unwrap();
                let (mut total, mut runs) = (0, Vec::new());
                for ((program, ns, run), (_, ns_before, run_before)) in after.into_iter().zip(before) {
                    total += ns - ns_before;
                    if run > run_before {
                        runs.push((program, (run - run_before) as f64 / WRITES as f64));
                    }
                }
                if total < best.0 {
                    best = (total, runs);
                }
            }
            let (total, runs) = best;
            assert!(total > 0, "the programs did not run");
            println!("{name}: {} ns for each write, runs {runs:?}", total / WRITES);
        }
        let start = std::time::Instant::now();
        let set = tracker.swap().unwrap();
        println!("swap with {} pages: {:?}", set.pages[&key].len(), start.elapsed());
        assert_eq!(pages(&set, &file).len(), 8192);
        // What btrfs announces counts once more.
        tracker.swap().unwrap();
        let start = std::time::Instant::now();
        for _ in 0..100 {
            assert!(tracker.swap().unwrap().pages.is_empty());
        }
        println!("swap with nothing: {:?}", start.elapsed() / 100);
        let start = std::time::Instant::now();
        for _ in 0..100 {
            assert!(!tracker.pending());
        }
        println!("pending: {:?}", start.elapsed() / 100);
    });
}

/// Bytes of kernel memory that the maps with room for that many take.
fn memory(entries: u32) -> u64 {
    let maps = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    maps.filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter(|text| text.contains(&format!("max_entries:\t{entries}\n")))
        .filter_map(|text| {
            text.split_once("memlock:")?
                .1
                .lines()
                .next()?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .sum()
}

#[test]
fn half_a_million_files_can_be_watched() {
    let Some(disk) = Disk::new(32) else { return };
    let limits = TrackerLimits::default();
    let Some(mut tracker) = tracker(&disk, limits) else {
        return;
    };
    let empty = memory(limits.files_max);
    let start = std::time::Instant::now();
    for ino in 0..u64::from(limits.files_max) {
        let key = WatchKey {
            ino,
            ..WatchKey::default()
        };
        tracker.programs.watch(key, Watch::default()).unwrap();
    }
    let (took, full) = (start.elapsed(), memory(limits.files_max));
    println!("{empty} bytes empty, {full} full, {took:?}");
    if empty > 0 {
        let each = (full - empty) / u64::from(limits.files_max);
        assert!(each <= 128, "{each} bytes each");
    }
    let one_more = WatchKey {
        dev: 1,
        ..WatchKey::default()
    };
    assert!(tracker.programs.watch(one_more, Watch::default()).is_err());
}

#[test]
fn more_notes_than_there_is_room_for_make_everything_unknown() {
    let Some(disk) = Disk::new(32) else { return };
    let limits = TrackerLimits {
        files_max: 64,
        notes_max: 4,
        chunks_max: 64,
    };
    let Some(mut tracker) = tracker(&disk, limits) else {
        return;
    };
    let files: Vec<File> = (0..64).map(|at| disk.file(&at.to_string(), 1)).collect();
    for file in &files {
        watch(&mut tracker, file);
    }
    tracker.swap().unwrap();
    for file in &files {
        file.set_len(2 * PAGE).unwrap();
    }
    assert!(tracker.swap().unwrap().all_unknown);
    assert_eq!(tracker.counters().lost_all, 1);
    assert!(!tracker.swap().unwrap().all_unknown, "said once");
}
