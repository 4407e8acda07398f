//! Random work by several threads while generations are cut by the engine's rule: after each cut the
//! copy equals the files, so no changed page was ever missing from the sets.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::super::super::rearm;
use super::*;

const WORKERS: u64 = 4;
const OPERATIONS: u64 = 4000;
const CUTS: u64 = 60;
const PAGES: u64 = 256;
const SIZE_MAX: u64 = 2 * PAGES * PAGE;

/// xorshift64*: the seed in the failure message repeats the choices, if not their timing.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

/// One worker's files: one with a mapping that never shrinks, one for all that changes the size.
struct Worker {
    random: Random,
    mapping: Mapping,
    mapped: File,
    plain: File,
    direct: File,
    mapped_path: PathBuf,
    aligned: Vec<u8>,
}

impl Worker {
    fn new(disk: &Disk, at: u64, seed: u64) -> Self {
        let (mapped, plain) = (
            disk.file(&format!("mapped{at}"), PAGES),
            disk.file(&format!("plain{at}"), PAGES),
        );
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(disk.root().join(format!("plain{at}")))
            .unwrap();
        Self {
            random: Random(seed),
            mapping: Mapping::new(&mapped),
            mapped_path: disk.root().join(format!("mapped{at}")),
            mapped,
            plain,
            direct,
            aligned: vec![0; 3 * PAGE as usize],
        }
    }

    fn operate(&mut self) {
        let value = self.random.below(256) as u8;
        let page = self.random.below(PAGES);
        let offset = page * PAGE + self.random.below(PAGE);
        match self.random.below(20) {
            0..6 => self.mapping.store(offset as usize, value),
            6..9 => self.write(page, value),
            9..12 => {
                let len = self.random.below(3 * PAGE) as usize;
                self.plain.write_all_at(&vec![value; len], offset).unwrap();
            }
            12 => self.plain.set_len(self.random.below(SIZE_MAX)).unwrap(),
            13 => self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset),
            14 => self.fallocate(libc::FALLOC_FL_ZERO_RANGE, offset),
            15 => self.fallocate(0, offset),
            16 => self.direct_write(page, value),
            17 => self.copy(offset),
            18 => fs::rename(&self.mapped_path, self.mapped_path.with_extension("away"))
                .and_then(|()| fs::rename(self.mapped_path.with_extension("away"), &self.mapped_path))
                .unwrap(),
            _ if self.random.below(30) == 0 => self.mapping.msync(),
            _ if self.random.below(30) == 0 => self.plain.sync_data().unwrap(),
            _ => self.shift(page),
        }
    }

    fn write(&mut self, page: u64, value: u8) {
        let len = 1 + self.random.below(PAGE) as usize;
        let end = (PAGES * PAGE).saturating_sub(len as u64);
        self.mapped
            .write_all_at(&vec![value; len], (page * PAGE).min(end))
            .unwrap();
    }

    fn fallocate(&mut self, mode: i32, offset: u64) {
        let len = 1 + self.random.below(20 * PAGE);
        // SAFETY: no pointers. On a full disk nothing happens, which is as good here.
        unsafe { libc::fallocate(self.plain.as_raw_fd(), mode, offset as i64, len as i64) };
    }

    fn shift(&mut self, page: u64) {
        let mode = match self.random.below(2) {
            0 => libc::FALLOC_FL_COLLAPSE_RANGE,
            _ if self.plain.metadata().unwrap().len() < SIZE_MAX => libc::FALLOC_FL_INSERT_RANGE,
            _ => return,
        };
        // SAFETY: no pointers. It is refused past the end of the file, which is as good here.
        unsafe { libc::fallocate(self.plain.as_raw_fd(), mode, (page * PAGE) as i64, PAGE as i64) };
    }

    fn direct_write(&mut self, page: u64, value: u8) {
        let skip = self.aligned.as_ptr().align_offset(PAGE as usize);
        let len = (1 + self.random.below(2)) as usize * PAGE as usize;
        let buffer = &mut self.aligned[skip..skip + len.min(2 * PAGE as usize)];
        buffer.fill(value);
        self.direct.write_all_at(buffer, page * PAGE).unwrap();
    }

    fn copy(&mut self, offset: u64) {
        let (mut from, mut to) = (self.random.below(PAGES * PAGE) as i64, offset as i64);
        let len = self.random.below(4 * PAGE) as usize;
        // SAFETY: both offsets outlive the call.
        let copied = unsafe {
            libc::copy_file_range(
                self.mapped.as_raw_fd(),
                &mut from,
                self.plain.as_raw_fd(),
                &mut to,
                len,
                0,
            )
        };
        assert!(copied >= 0, "{}", io::Error::last_os_error());
    }
}

/// What a shadow would have of one file.
struct Copy {
    file: File,
    bytes: Vec<u8>,
    carried: PageSet,
}

impl Copy {
    /// Reads some pages, and says which of them have to be read again because the file ended there.
    fn read(&mut self, pages: &PageSet) -> PageSet {
        let size = self.file.metadata().unwrap().len();
        self.bytes.resize(size as usize, 0);
        for bytes in pages.byte_ranges(size) {
            let mut at = bytes.start;
            while at < bytes.end {
                match self
                    .file
                    .read_at(&mut self.bytes[at as usize..bytes.end as usize], at)
                    .unwrap()
                {
                    0 => break,
                    read => at += read as u64,
                }
            }
        }
        pages.from_page(size / PAGE)
    }
}

struct Outcome {
    missed: u64,
    cuts: u64,
    operations: u64,
    pages: u64,
}

/// Cuts generations by the rule while the workers work. `rearming` off breaks the rule.
fn run_rule(disk: &Disk, tracker: &mut KernelTracker, seed: u64, rearming: bool) -> Outcome {
    let workers: Vec<Worker> = (0..WORKERS)
        .map(|at| Worker::new(disk, at, seed ^ (at + 1) << 32))
        .collect();
    let mut copies: BTreeMap<InodeKey, Copy> = BTreeMap::new();
    for file in workers.iter().flat_map(|worker| [&worker.mapped, &worker.plain]) {
        let mut carried = PageSet::new();
        carried.insert(0..PageSet::END);
        let file = file.try_clone().unwrap();
        let bytes = Vec::new();
        copies.insert(watch(tracker, &file), Copy { file, bytes, carried });
    }
    // Taken for writing it stands for the freezer: nobody is inside an operation.
    let running = RwLock::new(());
    let (left, cuts) = (AtomicU64::new(WORKERS), AtomicU64::new(0));
    let operations = AtomicU64::new(0);
    let mut outcome = Outcome {
        missed: 0,
        cuts: 0,
        operations: 0,
        pages: 0,
    };
    thread::scope(|scope| {
        for mut worker in workers {
            let (running, left, cuts, operations) = (&running, &left, &cuts, &operations);
            scope.spawn(move || {
                let mut done = 0;
                while done < OPERATIONS || cuts.load(Ordering::Relaxed) < CUTS {
                    let _running = running.read().unwrap();
                    worker.operate();
                    done += 1;
                }
                operations.fetch_add(done, Ordering::Relaxed);
                left.fetch_sub(1, Ordering::Release);
            });
        }
        loop {
            let last = left.load(Ordering::Acquire) == 0;
            let first = tracker.swap().unwrap();
            let mut tails = BTreeMap::new();
            for (key, copy) in &mut copies {
                let mut pages = std::mem::take(&mut copy.carried);
                pages.union(first.pages.get(key).unwrap_or(&PageSet::new()));
                if rearming {
                    rearm(copy.file.as_fd(), &pages).unwrap();
                }
                tails.insert(*key, copy.read(&pages));
            }
            let frozen = running.write().unwrap();
            let second = tracker.swap().unwrap();
            assert!(first.unknown.is_empty() && second.unknown.is_empty());
            assert!(!first.all_unknown && !second.all_unknown);
            for (key, copy) in &mut copies {
                let mut pages = tails.remove(key).unwrap();
                pages.union(second.pages.get(key).unwrap_or(&PageSet::new()));
                if !pages.is_empty() || second.touched.contains(key) || first.touched.contains(key) {
                    copy.read(&pages);
                }
                copy.carried = pages;
            }
            for (key, copy) in &copies {
                outcome.missed += differing(key, copy);
            }
            outcome.cuts = cuts.fetch_add(1, Ordering::Relaxed) + 1;
            drop(frozen);
            if last {
                break;
            }
        }
    });
    outcome.operations = operations.into_inner();
    outcome.pages = tracker.counters().pages;
    outcome
}

/// Pages in which the copy is not the file.
fn differing(key: &InodeKey, copy: &Copy) -> u64 {
    let size = copy.file.metadata().unwrap().len() as usize;
    let mut now = vec![0; size];
    copy.file.read_exact_at(&mut now, 0).unwrap();
    if size != copy.bytes.len() {
        println!("{key:?}: {} bytes instead of {size}", copy.bytes.len());
        return 1;
    }
    let pairs = now.chunks(PAGE as usize).zip(copy.bytes.chunks(PAGE as usize));
    let pages: Vec<usize> = pairs
        .enumerate()
        .filter(|(_, (now, had))| now != had)
        .map(|(page, _)| page)
        .collect();
    if !pages.is_empty() {
        println!("{key:?}: pages {pages:?} differ, size {size}");
    }
    pages.len() as u64
}

#[test]
fn no_changed_page_is_missed_by_the_rule() {
    on_each(&Kind::ALL, 256, |disk, mut tracker| {
        let seed = u64::from(std::process::id()) << 8 | 1;
        let outcome = run_rule(disk, &mut tracker, seed, true);
        println!(
            "{} operations, {} cuts, {} pages reported, {} missed, seed {seed}",
            outcome.operations, outcome.cuts, outcome.pages, outcome.missed
        );
        assert!(outcome.operations >= 10_000 && outcome.cuts >= CUTS);
        assert_eq!(outcome.missed, 0, "seed {seed}");
    });
}

#[test]
fn without_rearm_pages_are_missed_and_the_stress_test_sees_it() {
    on_each(&Kind::EACH, 256, |disk, mut tracker| {
        assert!(run_rule(disk, &mut tracker, 1, false).missed > 0);
    });
}

/// Not with `data=journal`, where writing back dirties once more.
#[test]
fn random_buffered_writes_are_reported_page_by_page() {
    on_each(&Kind::EACH, 128, |disk, mut tracker| {
        let file = disk.file("file", 4096);
        let key = watch(&mut tracker, &file);
        tracker.swap().unwrap();
        let mut random = Random(7);
        for round in 0..20 {
            let mut expected = PageSet::new();
            for _ in 0..200 {
                let (offset, len) = (random.below(4000 * PAGE), 1 + random.below(9000));
                file.write_all_at(&vec![1; len as usize], offset).unwrap();
                expected.insert_bytes(offset, len);
            }
            let set = tracker.swap().unwrap();
            assert_eq!(set.pages[&key], expected, "round {round}");
            // Clean folios, so that the next round's writes dirty them again.
            rearm(file.as_fd(), &expected).unwrap();
            let next = tracker.swap().unwrap();
            // What btrfs announces counts once more: ranges locked again behind a write-back.
            if disk.kind != Kind::Btrfs {
                assert!(next.pages.is_empty(), "writing back is no change");
            }
        }
    });
}
