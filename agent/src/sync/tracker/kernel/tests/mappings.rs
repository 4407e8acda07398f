//! Stores through mappings, and the rearming that shows the next one.

use std::os::fd::AsRawFd;

use super::super::super::rearm;
use super::*;

#[test]
fn an_mmap_store_marks_with_and_without_msync() {
    for msync in [false, true] {
        on_each(&Kind::ALL, 64, |disk, mut tracker| {
            let file = disk.file("file", 64);
            watch(&mut tracker, &file);
            tracker.swap().unwrap();
            let mapping = Mapping::new(&file);
            mapping.store(10 * PAGE as usize, 1);
            if msync {
                mapping.msync();
            }
            let set = tracker.swap().unwrap();
            assert!(pages(&set, &file).contains(&10), "msync {msync}: {set:?}");
            assert!(pages(&set, &file).len() <= 64);
        });
    }
}

#[test]
fn a_store_after_rearm_marks_again() {
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let file = disk.file("file", 64);
        let key = watch(&mut tracker, &file);
        let mapping = Mapping::new(&file);
        mapping.store(0, 1);
        let mut set = tracker.swap().unwrap();
        for round in 0..20 {
            rearm(file.as_fd(), &set.pages[&key]).unwrap();
            mapping.store(0, round);
            set = tracker.swap().unwrap();
            assert!(pages(&set, &file).contains(&0), "round {round}: {set:?}");
        }
        // The trap that the rule is for: without rearm the kernel says nothing.
        mapping.store(0, 100);
        assert!(pages(&tracker.swap().unwrap(), &file).is_empty());
    });
}

#[test]
fn a_store_to_a_folio_that_a_write_dirtied_before_the_file_was_mapped_marks() {
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let file = disk.file("file", 64);
        watch(&mut tracker, &file);
        file.write_all_at(b"x", 3 * PAGE).unwrap();
        assert_eq!(pages(&tracker.swap().unwrap(), &file), [3]);
        // The folio of page 3 is dirty still, and the kernel says nothing of stores to its other pages.
        let mapping = Mapping::new(&file);
        for page in 0..64 {
            mapping.store(page * PAGE as usize, 1);
        }
        let set = tracker.swap().unwrap();
        assert_eq!(pages(&set, &file), (0..64).collect::<Vec<_>>());
        assert!(set.touched.contains(&key(&file)));
    });
}

/// Not with `data=journal`, where writing back dirties once more.
#[test]
fn a_store_marks_the_folio_it_dirties_and_no_more() {
    on_each(&Kind::EACH, 64, |disk, mut tracker| {
        let file = disk.file("file", 1024);
        let key = watch(&mut tracker, &file);
        let mapping = Mapping::new(&file);
        for page in [0, 17, 500, 1023, 17] {
            mapping.store(page as usize * PAGE as usize, 1);
            let set = tracker.swap().unwrap();
            let marked: Vec<_> = set.pages[&key].ranges().collect();
            let [folio] = marked.as_slice() else {
                panic!("page {page}: {marked:?}")
            };
            let len = folio.end - folio.start;
            assert!(folio.contains(&page), "page {page}: {folio:?}");
            assert!(
                len.is_power_of_two() && folio.start % len == 0,
                "page {page}: {folio:?}"
            );
            rearm(file.as_fd(), &set.pages[&key]).unwrap();
        }
    });
}

#[test]
fn a_private_or_read_only_mapping_leaves_writes_exact() {
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let file = disk.file("file", 64);
        watch(&mut tracker, &file);
        let reader = File::open(disk.root().join("file")).unwrap();
        // SAFETY: a fresh mapping, read inside its length and unmapped below.
        unsafe {
            let len = 64 * PAGE as usize;
            let at = libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                reader.as_raw_fd(),
                0,
            );
            assert_ne!(at, libc::MAP_FAILED);
            assert_eq!(at.cast::<u8>().add(5 * PAGE as usize).read_volatile(), b'.');
            libc::munmap(at, len);
        }
        assert!(tracker.swap().unwrap().pages.is_empty());
        file.write_all_at(b"x", 3 * PAGE).unwrap();
        assert_eq!(pages(&tracker.swap().unwrap(), &file), [3]);
    });
}

#[test]
fn a_whole_file_rearmed_shows_stores_of_mappings_older_than_the_watch() {
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let file = disk.file("file", 64);
        let mapping = Mapping::new(&file);
        mapping.store(20 * PAGE as usize, 1);
        watch(&mut tracker, &file);
        rearm(file.as_fd(), &everything_from(0)).unwrap();
        mapping.store(20 * PAGE as usize, 2);
        assert!(pages(&tracker.swap().unwrap(), &file).contains(&20));
    });
}

#[test]
fn rearming_comes_to_rest() {
    const ROUNDS: u32 = 6;
    on_each(&Kind::ALL, 64, |disk, mut tracker| {
        let file = disk.file("file", 64);
        let key = watch(&mut tracker, &file);
        let mapping = Mapping::new(&file);
        mapping.store(9 * PAGE as usize, 1);
        file.write_all_at(b"x", 3 * PAGE).unwrap();
        let mut rounds = 0;
        loop {
            let set = tracker.swap().unwrap();
            let Some(pages) = set.pages.get(&key) else { break };
            rounds += 1;
            assert!(rounds < ROUNDS, "marked again and again: {set:?}");
            rearm(file.as_fd(), pages).unwrap();
        }
        println!("{rounds} rounds");
    });
}
