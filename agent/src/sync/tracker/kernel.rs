//! The change source for ext4, xfs and btrfs: kernel programs for pages, fanotify for names.
//!
//! Invariants: a slot belongs to one file at a time; a mark that arrives late for a slot's last owner
//! can only make the next one read more; a file with a lost mark is in `unknown`.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use understudy_common::abi::dirty::{NOTE_EARLY, NOTE_LOST, NOTE_TIMES, NOTE_TOUCHED, Watch, WatchKey};

use super::hooks::FileSystem;
use super::names::Names;
use super::pages::{PAGE, PageSet};
use super::programs::Programs;
use super::{ChangeSource, DirtySet, InodeKey, TrackError, TrackerCounters};

/// Room in the kernel's maps. A map that runs full makes files unknown; it never forgets.
#[derive(Clone, Copy, Debug)]
pub struct TrackerLimits {
    /// Files watched at once; one more is refused. Each takes about 100 bytes of kernel memory, and room
    /// for one 16 bytes.
    pub files_max: u32,
    /// Files of which one epoch can say more than pages: sizes, wide ranges, losses. With one more,
    /// everything is unknown. Room for one is 80 bytes, twice.
    pub notes_max: u32,
    /// Words of 64 pages that one epoch can mark: 64 Ki of them stand for 16 GiB, if dense. The file of
    /// one more is unknown. Room for one is 64 bytes, twice.
    pub chunks_max: u32,
}

impl Default for TrackerLimits {
    fn default() -> Self {
        Self {
            files_max: 524_288,
            notes_max: 65_536,
            chunks_max: 65_536,
        }
    }
}

struct Slot {
    key: InodeKey,
    kernel: WatchKey,
}

/// Watches files under some roots, all of them on file systems of `FileSystem`.
pub struct KernelTracker {
    /// Those that the roots are on: the programs of others are not attached.
    file_systems: BTreeSet<FileSystem>,
    programs: Programs,
    names: Names,
    limits: TrackerLimits,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    by_key: HashMap<InodeKey, u32>,
    epoch: u64,
    /// Marks per epoch at its last retirement.
    marked: [u64; 2],
    /// Pages that were announced before they changed: they count in the next epoch too.
    again: Vec<(InodeKey, PageSet)>,
    lost_all: u64,
    missed: u64,
    figures: TrackerCounters,
}

impl KernelTracker {
    /// Attaches the programs and watches the names under `roots`, which exist: directories, or single
    /// files. No file is watched yet.
    pub fn open(roots: &[PathBuf], limits: TrackerLimits) -> Result<Self, TrackError> {
        let mut file_systems = BTreeSet::new();
        for root in roots {
            let file = File::open(root).map_err(|source| TrackError::Io {
                what: "opening a root",
                source,
            })?;
            file_systems.insert(file_system(file.as_raw_fd(), root)?);
        }
        // Names first: nothing is listed before both are there.
        let names = Names::open(roots)?;
        let programs = Programs::attach(&file_systems, limits)?;
        let missed = programs.missed()?;
        Ok(Self {
            file_systems,
            programs,
            names,
            limits,
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            epoch: 0,
            marked: [0; 2],
            again: Vec::new(),
            lost_all: 0,
            missed,
            figures: TrackerCounters::default(),
        })
    }

    /// Nanoseconds and runs of each kernel program; zero unless the kernel keeps such statistics
    /// (`kernel.bpf_stats_enabled`).
    pub fn run_time(&self) -> Result<Vec<(String, u64, u64)>, TrackError> {
        self.programs.run_time()
    }

    fn key(&self, slot: u32) -> Option<InodeKey> {
        Some(self.slots.get(slot as usize)?.as_ref()?.key)
    }

    fn notes(&mut self, retired: u64, set: &mut DirtySet) -> Result<Vec<InodeKey>, TrackError> {
        let mut early = Vec::new();
        self.programs.drain_notes(retired, |slot, note| {
            let Some(key) = self.key(slot) else { return };
            if note.flags & NOTE_TOUCHED != 0 {
                set.touched.insert(key);
            }
            if note.flags & NOTE_TIMES != 0 {
                // With no page: its attributes are looked at.
                set.pages.entry(key).or_default();
            }
            if note.flags & NOTE_LOST != 0 {
                set.unknown.insert(key);
            }
            if note.flags & NOTE_EARLY != 0 {
                early.push(key);
            }
            if note.low < note.high {
                let pages = set.pages.entry(key).or_default();
                pages.insert(note.low / PAGE..note.high.div_ceil(PAGE));
            }
        })?;
        Ok(early)
    }
}

impl ChangeSource for KernelTracker {
    fn watch(&mut self, key: InodeKey, file: BorrowedFd<'_>) -> Result<bool, TrackError> {
        let path = Path::new("a watched file");
        let file_system = file_system(file.as_raw_fd(), path)?;
        if !self.file_systems.contains(&file_system) {
            return Err(TrackError::OtherFileSystem { file_system });
        }
        if is_dax(file)? {
            return Err(TrackError::Dax);
        }
        let kernel = WatchKey {
            dev: kernel_dev(key.dev),
            generation: generation(file)?,
            ino: key.ino,
        };
        if let Some(slot) = self.by_key.get(&key) {
            if self.slots[*slot as usize]
                .as_ref()
                .is_some_and(|slot| slot.kernel == kernel)
            {
                return Ok(false);
            }
            self.unwatch(key);
        }
        if self.by_key.len() >= self.limits.files_max as usize {
            return Err(TrackError::Full {
                watched: self.by_key.len(),
            });
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
        };
        let watch = Watch {
            slot,
            size: size(file)?,
            ..Watch::default()
        };
        if let Err(error) = self.programs.watch(kernel, watch) {
            self.free.push(slot);
            return Err(error);
        }
        self.slots[slot as usize] = Some(Slot { key, kernel });
        self.by_key.insert(key, slot);
        Ok(true)
    }

    fn unwatch(&mut self, key: InodeKey) {
        let Some(slot) = self.by_key.remove(&key) else {
            return;
        };
        if let Some(gone) = self.slots[slot as usize].take() {
            self.programs.unwatch(gone.kernel);
        }
        self.again.retain(|(early, _)| *early != key);
        self.free.push(slot);
    }

    fn swap(&mut self) -> Result<DirtySet, TrackError> {
        let retired = self.epoch;
        self.epoch += 1;
        self.programs.flip(self.epoch)?;

        let mut set = DirtySet::default();
        let early = self.notes(retired, &mut set)?;
        let key = |slot| self.key(slot);
        self.programs.drain_marks(retired, |chunk, bits| {
            if let Some(key) = key(chunk.slot) {
                set.pages
                    .entry(key)
                    .or_default()
                    .insert_chunk(chunk.chunk.into(), bits);
            }
        })?;
        let again = early
            .into_iter()
            .filter_map(|key| Some((key, set.pages.get(&key)?.clone())))
            .collect();
        for (key, pages) in std::mem::replace(&mut self.again, again) {
            set.touched.insert(key);
            set.pages.entry(key).or_default().union(&pages);
        }
        set.names = self.names.take();

        let counters = self.programs.counters()?;
        let missed = self.programs.missed()?;
        set.all_unknown = counters.lost_all != self.lost_all || missed != self.missed;
        self.lost_all = counters.lost_all;
        self.missed = missed;
        let at = (retired & 1) as usize;
        self.figures.events += counters.marked[at] - self.marked[at];
        self.marked[at] = counters.marked[at];
        self.figures.swaps += 1;
        self.figures.pages += set
            .pages
            .values()
            .flat_map(PageSet::ranges)
            .filter(|pages| pages.end < PageSet::END)
            .map(|pages| pages.end - pages.start)
            .sum::<u64>();
        self.figures.lost = counters.lost;
        self.figures.lost_all += u64::from(set.all_unknown);
        Ok(set)
    }

    fn pending(&mut self) -> bool {
        if !self.again.is_empty() || self.names.pending() {
            return true;
        }
        let at = (self.epoch & 1) as usize;
        // What cannot be read may be there.
        self.programs
            .counters()
            .map_or(true, |now| now.marked[at] != self.marked[at])
    }

    /// On ext4 and xfs writes have tracepoints of their own, which fire for dirty pages too. `exact` has been set since a write to a
    /// clean folio, at a time when there was no writable mapping: the first fault under one sets `mapped` and marks
    /// all of the file.
    fn needs_rearm(&mut self, key: InodeKey) -> bool {
        if self.file_systems.contains(&FileSystem::Btrfs) {
            return true;
        }
        let slot = self
            .by_key
            .get(&key)
            .and_then(|slot| self.slots[*slot as usize].as_ref());
        let state = slot.and_then(|slot| self.programs.state(slot.kernel));
        state.is_none_or(|watch| watch.exact == 0 || watch.mapped != 0)
    }

    fn exact(&self) -> bool {
        true
    }

    fn counters(&self) -> TrackerCounters {
        let (names, overflows) = self.names.counters();
        TrackerCounters {
            watched: self.by_key.len() as u64,
            names,
            overflows,
            ..self.figures
        }
    }
}

/// stat's device number in the kernel's own encoding.
fn kernel_dev(dev: u64) -> u32 {
    libc::major(dev) << 20 | libc::minor(dev)
}

fn file_system(fd: i32, path: &Path) -> Result<FileSystem, TrackError> {
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fstatfs fills the struct when it returns 0.
    let magic = unsafe {
        if libc::fstatfs(fd, stat.as_mut_ptr()) == -1 {
            return Err(last("fstatfs"));
        }
        stat.assume_init().f_type
    };
    FileSystem::of_magic(magic).ok_or_else(|| TrackError::FileSystem {
        path: path.to_owned(),
        magic,
    })
}

fn generation(file: BorrowedFd<'_>) -> Result<u32, TrackError> {
    // The kernel writes an int, whatever the request number says.
    nix::ioctl_read!(get_version, b'v', 1, libc::c_long);
    let mut generation: libc::c_long = 0;
    // SAFETY: the kernel writes at most a long.
    unsafe { get_version(file.as_raw_fd(), &mut generation) }.map_err(|error| TrackError::Io {
        what: "reading a file's generation",
        source: error.into(),
    })?;
    Ok(generation as u32)
}

/// Whether writes and stores go to the device without a page cache.
fn is_dax(file: BorrowedFd<'_>) -> Result<bool, TrackError> {
    let mut stat = MaybeUninit::<libc::statx>::uninit();
    // SAFETY: statx fills the struct when it returns 0.
    unsafe {
        let empty = c"".as_ptr();
        if libc::statx(file.as_raw_fd(), empty, libc::AT_EMPTY_PATH, 0, stat.as_mut_ptr()) == -1 {
            return Err(last("statx"));
        }
        Ok(stat.assume_init().stx_attributes & libc::STATX_ATTR_DAX as u64 != 0)
    }
}

fn size(file: BorrowedFd<'_>) -> Result<u64, TrackError> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the struct when it returns 0.
    unsafe {
        if libc::fstat(file.as_raw_fd(), stat.as_mut_ptr()) == -1 {
            return Err(last("fstat"));
        }
        Ok(stat.assume_init().st_size as u64)
    }
}

fn last(what: &'static str) -> TrackError {
    TrackError::Io {
        what,
        source: io::Error::last_os_error(),
    }
}

#[cfg(test)]
mod tests;
