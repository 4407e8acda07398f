//! The engine with the kernel's own dirty ranges: equal trees, and reads that follow what changed.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_common::wire::CopyState;

use super::histories::Joined;
use super::pair::{Act, tree};
use crate::sync::store::StoreError;
use crate::sync::testdisk::{Disk, Kind, on_each};
use crate::sync::tracker::{KernelTracker, PAGE, TrackerLimits};

const GENERATIONS: u64 = 120;

/// Xorshift: the same history each time.
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    pub fn byte(&mut self) -> u8 {
        self.roll(256) as u8
    }

    fn act(&mut self) -> Act {
        let (file, fill) = (self.byte(), self.byte());
        let (at, len) = (self.roll(65_536) as u16, 1 + self.roll(20_000) as u16);
        match self.roll(14) {
            0..4 => Act::Write { file, at, len, fill },
            4..6 => Act::Append { file, len, fill },
            6..8 => Act::Truncate { file, len: at },
            8 | 9 => Act::Rename { from: file, to: fill },
            10 => Act::Remove { file },
            11 => Act::Mode { file, mode: fill },
            12 => Act::Dir { dir: file },
            _ => Act::RenameDir { from: file, to: fill },
        }
    }
}

pub struct Sides {
    pub from: PathBuf,
    pub to: PathBuf,
    state: PathBuf,
}

impl Sides {
    pub fn below(root: &Path) -> Self {
        let at = |name: &str| root.join(name);
        fs::create_dir(at("from")).expect("fresh");
        Self {
            from: at("from"),
            to: at("to"),
            state: at("state"),
        }
    }

    pub fn joined(&self) -> Joined {
        let roots = std::slice::from_ref(&self.from);
        let source = KernelTracker::open(roots, TrackerLimits::default()).expect("the kernel tracks it");
        Joined::with(Box::new(source), &self.from, &self.to, &self.state)
    }
}

/// One store through a mapping, not synced, of a file that has bytes.
fn store_mapped(path: &Path, dice: &mut Dice) {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else {
        return;
    };
    let len = file.metadata().map_or(0, |meta| meta.len());
    if len == 0 {
        return;
    }
    let (at, value) = (dice.roll(len) as usize, dice.byte());
    // SAFETY: a shared mapping of an open file, which nothing shortens before it is unmapped; the store
    // is inside the file.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
        map.cast::<u8>().add(at).write_volatile(value);
        libc::munmap(map, len as usize);
    }
}

fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found.sort();
    found
}

#[test]
fn both_trees_are_equal_after_each_of_many_generations() {
    on_each(&Kind::EACH, 192, |disk| {
        let sides = Sides::below(&disk.root());
        let mut joined = sides.joined();
        joined.set_rearm_max(Duration::from_secs(60));
        let mut dice = Dice(0x5EED);
        for n in 1..=GENERATIONS {
            for _ in 0..=dice.roll(8) {
                dice.act().play(&sides.from);
                let there = files(&sides.from);
                if !there.is_empty() && dice.roll(3) == 0 {
                    store_mapped(&there[dice.roll(there.len() as u64) as usize], &mut dice);
                }
            }
            let generation = joined.cut_live(n);
            joined.deliver();
            assert_eq!(joined.store.generation(), Some(generation));
            assert_eq!(joined.store.copy(), CopyState::Ready, "generation {n}");
            assert!(
                tree(&sides.from) == tree(&sides.to),
                "generation {n}: the trees differ"
            );
        }
        assert_eq!(joined.figures().unknown, 0, "nothing forced a re-read");
    });
}

#[test]
fn what_is_read_is_what_was_dirtied_within_a_tenth() {
    const PAGES: u64 = 8_192;
    on_each(&Kind::EACH, 192, |disk| {
        let sides = Sides::below(&disk.root());
        let big = sides.from.join("big");
        fs::write(&big, vec![7; (PAGES * PAGE) as usize]).expect("room");
        let mut joined = sides.joined();
        joined.set_rearm_max(Duration::from_secs(60));
        joined.cut_live(1);
        joined.deliver();
        // What was read inside the first cut is looked at once more.
        joined.cut_live(2);
        joined.deliver();
        let file = File::options().write(true).open(&big).expect("there");
        let (mut dice, mut dirtied) = (Dice(7), 0);
        let before = joined.figures().bytes_read;
        for n in 3..=60_u64 {
            let mut pages = BTreeSet::new();
            for _ in 0..=dice.roll(30) {
                // Never the last page, which is read twice: the file could be growing.
                let page = dice.roll(PAGES - 2);
                let at = page * PAGE + dice.roll(PAGE - 8);
                file.write_all_at(&n.to_le_bytes(), at).expect("room");
                pages.insert(page);
            }
            dirtied += pages.len() as u64 * PAGE;
            joined.cut_live(n);
            joined.deliver();
        }
        let read = joined.figures().bytes_read - before;
        assert!(read >= dirtied, "{read} bytes read of {dirtied} dirty ones");
        assert!(
            read <= dirtied + dirtied / 10,
            "{read} bytes read for {dirtied} dirty ones"
        );
        assert_eq!(joined.figures().unknown, 0, "nothing forced a re-read");
        assert!(tree(&sides.from) == tree(&sides.to), "the trees differ");
    });
}

/// Stores `value` into each of these pages through one mapping, not synced.
fn store_pages(path: &Path, pages: &BTreeSet<u64>, value: u8) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("there");
    let len = file.metadata().expect("there").len() as usize;
    // SAFETY: a shared mapping of an open file, which nothing shortens before it is unmapped; the stores
    // are inside the file.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(map, libc::MAP_FAILED);
        for page in pages {
            map.cast::<u8>().add((page * PAGE) as usize).write_volatile(value);
        }
        libc::munmap(map, len);
    }
}

#[test]
fn what_is_read_after_mapped_stores_is_the_folios_they_dirtied_within_a_tenth() {
    const PAGES: u64 = 8_192;
    on_each(&Kind::EACH, 192, |disk| {
        let sides = Sides::below(&disk.root());
        let big = sides.from.join("big");
        fs::write(&big, vec![7; (PAGES * PAGE) as usize]).expect("room");
        let mut joined = sides.joined();
        joined.set_rearm_max(Duration::from_secs(60));
        for n in 1..=2 {
            joined.cut_live(n);
            joined.deliver();
        }
        let mut dice = Dice(11);
        let (read_before, reported_before) = (joined.figures().bytes_read, joined.pages_reported());
        for n in 3..=40_u64 {
            let pages: BTreeSet<u64> = (0..=dice.roll(12)).map(|_| dice.roll(PAGES - 300)).collect();
            store_pages(&big, &pages, n as u8);
            joined.cut_live(n);
            joined.deliver();
            assert!(
                tree(&sides.from) == tree(&sides.to),
                "generation {n}: the trees differ"
            );
        }
        let read = joined.figures().bytes_read - read_before;
        let folios = (joined.pages_reported() - reported_before) * PAGE;
        println!("{read} bytes read of {folios} bytes of dirty folios");
        assert!(folios > 0 && read > 0);
        assert!(
            read <= folios + folios / 10,
            "{read} bytes read of {folios} bytes of dirty folios"
        );
        assert_eq!(joined.figures().unknown, 0, "nothing forced a re-read");
    });
}

type Make = fn(&Path) -> std::io::Result<()>;

/// Things that can bear the same name.
const KINDS: [(&str, Make); 6] = [
    ("a file", |path| fs::write(path, b"content")),
    ("an empty file", |path| fs::write(path, b"")),
    ("a link", |path| symlink("one", path)),
    ("another link", |path| symlink("two", path)),
    ("a directory", |path| {
        fs::create_dir(path)?;
        fs::write(path.join("empty"), b"")?;
        symlink("somewhere", path.join("link"))
    }),
    ("another directory", |path| {
        fs::create_dir(path)?;
        fs::create_dir(path.join("empty"))
    }),
];

#[test]
fn what_takes_the_inode_number_of_another_is_not_taken_for_it() {
    let Some(disk) = Disk::new(64) else { return };
    let sides = Sides::below(&disk.root());
    let mut joined = sides.joined();
    let path = sides.from.join("name");
    let number = || fs::symlink_metadata(&path).expect("there").ino();
    let remove = || match fs::symlink_metadata(&path).expect("there").is_dir() {
        true => fs::remove_dir_all(&path).expect("removable"),
        false => fs::remove_file(&path).expect("removable"),
    };
    let (mut n, mut taken) = (0, 0);
    for (before, make_before) in KINDS {
        for (after, make_after) in KINDS {
            let mut same = |joined: &mut Joined, stopped: bool| {
                n += 1;
                if stopped {
                    joined.cut(n);
                } else {
                    joined.cut_live(n);
                }
                joined.deliver();
                let when = if stopped { "stopped" } else { "live" };
                assert!(
                    tree(&sides.from) == tree(&sides.to),
                    "{before}, then {after}, {when}: the trees differ"
                );
            };
            make_before(&path).expect("room");
            same(&mut joined, false);
            let was = number();
            remove();
            make_after(&path).expect("room");
            taken += u32::from(number() == was);
            same(&mut joined, false);
            same(&mut joined, true);
            remove();
            same(&mut joined, false);
        }
    }
    assert!(taken > 0, "the file system gave no number twice");
}

#[test]
fn more_files_than_the_kernel_can_watch_are_scanned_from_then_on() {
    on_each(&Kind::EACH, 64, |disk| {
        let sides = Sides::below(&disk.root());
        let roots = std::slice::from_ref(&sides.from);
        let limits = TrackerLimits {
            files_max: 2,
            ..TrackerLimits::default()
        };
        let source = KernelTracker::open(roots, limits).expect("the kernel tracks it");
        for n in 0..2 {
            fs::write(sides.from.join(format!("f{n}")), vec![n; 9_000]).expect("room");
        }
        let mut joined = Joined::with(Box::new(source), &sides.from, &sides.to, &sides.state);
        joined.cut_live(1);
        joined.deliver();
        assert!(joined.figures().tracked);
        for n in 2..6 {
            fs::write(sides.from.join(format!("f{n}")), vec![n; 9_000]).expect("room");
        }
        fs::write(sides.from.join("f0"), b"changed").expect("room");
        joined.cut_live(2);
        joined.deliver();
        assert!(!joined.figures().tracked, "said in the figures");
        assert!(joined.figures().unknown >= 2, "what was tracked is in doubt once");
        assert!(tree(&sides.from) == tree(&sides.to), "the trees differ");
        fs::write(sides.from.join("f5"), b"and on").expect("room");
        joined.cut_live(3);
        joined.deliver();
        assert!(tree(&sides.from) == tree(&sides.to), "the trees differ");
    });
}

#[test]
fn a_patch_that_did_not_get_to_the_disk_makes_the_copy_unready() {
    let home = tempfile::Builder::new()
        .prefix("ussync")
        .tempdir_in("/dev/shm")
        .expect("tmpfs");
    let (from, to) = (home.path().join("from"), home.path().join("to"));
    fs::create_dir(&from).expect("fresh");
    fs::write(from.join("file"), vec![1; 20_000]).expect("room");
    let mut joined = Joined::new(&from, &to, &home.path().join("state"));
    let before = joined.store.manifest().clone();
    joined.cut(1);
    joined.deliver();
    joined.store.verify(&before).expect("it holds what was written");
    let copy = File::options().write(true).open(to.join("file")).expect("there");
    copy.write_all_at(b"rot", 8_192).expect("room");
    let found = joined.store.verify(&before).expect_err("the disk lied");
    assert!(found.to_string().contains("file"), "{found}");
    copy.set_len(10_000).expect("shortened");
    joined
        .store
        .verify(&before)
        .expect_err("a file that is short is not sound");
}

#[test]
fn a_full_disk_makes_a_copy_unready_until_there_is_room_again() {
    let Some(disk) = Disk::new(32) else { return };
    let home = tempfile::Builder::new()
        .prefix("ussync")
        .tempdir_in("/dev/shm")
        .expect("tmpfs");
    let from = home.path().join("from");
    fs::create_dir(&from).expect("fresh");
    fs::write(from.join("small"), b"acknowledged").expect("room");
    let (to, state) = (disk.root().join("to"), disk.root().join("state"));
    let mut joined = Joined::new(&from, &to, &state);
    let first = joined.cut(1);
    joined.deliver();
    fs::write(from.join("big"), vec![1; 28 << 20]).expect("room");
    joined.cut(2);
    let frames = joined.frames();
    let refused = frames.iter().find_map(|raw| {
        let frame = understudy_common::wire::decode(raw).expect("sound");
        let taken = joined.store.handle(super::histories::EPOCH, frame, raw);
        taken.map(|_| ()).and_then(|()| joined.store.checkpoint()).err()
    });
    assert!(matches!(refused, Some(StoreError::Disk { .. })), "{refused:?}");
    assert_ne!(joined.store.copy(), CopyState::Ready);
    assert_eq!(fs::read(to.join("small")).expect("kept"), b"acknowledged");

    fs::remove_file(from.join("big")).expect("there");
    joined.redial();
    let third = joined.cut(3);
    // First what it has is asked for.
    joined.deliver();
    joined.deliver();
    assert!(third > first);
    assert_eq!(
        (joined.store.copy(), joined.store.generation()),
        (CopyState::Ready, Some(third))
    );
    assert_eq!(tree(&from), tree(&to));
}
