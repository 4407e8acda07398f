//! Cuts generations on the primary: follows a change source and keeps the manifest of what is there.
//!
//! Invariants: the working manifest equals the files at each cut; a page leaves the dirty set only
//! when it was read after it was write-protected, or inside a freeze and again after the next
//! write-protect; nothing waits for the disk inside a freeze.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_common::delta::{BLOCK, Body, Entry, Manifest, NO_HASH, Op, RelPath, block_hash};
use understudy_common::spec::Consistency;
use understudy_common::units::BootTime;
use understudy_common::wire::SyncFigures;

use super::roots::{Roots, Seen, look, read_range};
use super::scan::ScanSource;
use super::tracker::{ChangeSource, DirtySet, InodeKey, PAGE, PageSet, Rearmer, TrackError};
use crate::clock::boot_time;
use crate::workload::{FreezeError, Freezer};

/// Live rounds before a cut while much is being written.
const ROUNDS_MAX: u32 = 4;
/// A live round that read less than this is the last.
const ROUND_BYTES_SMALL: u64 = 4 << 20;
/// More than this is not read inside a freeze, but live in the next round.
const FROZEN_BYTES_MAX: u64 = 32 << 20;
/// After this many discarded cuts in a row the next one is made whatever it costs.
const DISCARDS_MAX: u32 = 3;
/// Content that is kept from reading until it is sent; more is read again.
const CONTENT_BYTES_MAX: usize = 64 << 20;
const FREEZES_KEPT: usize = 512;
/// How long a cut waits for the disk to take what is dirty. What it has not taken by then is read
/// inside the freeze as well.
const REARM_MAX: Duration = Duration::from_millis(60);
/// Files open at one time for that.
const REARM_FILES_MAX: usize = 64;

/// What changed between two cuts.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    pub touched: BTreeSet<RelPath>,
    /// New path → path at the last cut, of files that moved.
    pub origin: BTreeMap<RelPath, RelPath>,
}

pub struct Cutter {
    roots: Roots,
    source: Box<dyn ChangeSource>,
    /// The source was replaced since the last cycle began: what it had marked is lost.
    fell_back: bool,
    freezer: Option<Arc<dyn Freezer>>,
    /// Started with the first batch.
    rearmer: Option<Rearmer>,
    rearm_max: Duration,
    consistency: Consistency,
    freeze_max: Duration,
    work: Manifest,
    paths: HashMap<InodeKey, RelPath>,
    keys: HashMap<RelPath, InodeKey>,
    carried: DirtySet,
    delta: Delta,
    content: HashMap<(InodeKey, u64), Box<[u8]>>,
    discards: u32,
    freezes_us: Vec<u64>,
    /// When the last cut was begun: it holds everything that was written before.
    cut_at: BootTime,
    pub figures: SyncFigures,
}

/// Who may write while pages are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The workload runs: pages are write-protected before they are read.
    Live,
    Frozen,
    /// The workload has stopped.
    Still,
}

enum Outcome {
    /// The pages that were read, new files among them.
    Read(BTreeMap<InodeKey, PageSet>),
    /// The pages that would have been.
    TooMuch(BTreeMap<InodeKey, PageSet>),
}

impl Cutter {
    pub fn new(
        roots: Roots,
        source: Box<dyn ChangeSource>,
        freezer: Option<Arc<dyn Freezer>>,
        consistency: Consistency,
        freeze_max: Duration,
    ) -> Self {
        Self {
            roots,
            source,
            fell_back: false,
            freezer,
            rearmer: None,
            rearm_max: REARM_MAX,
            consistency,
            freeze_max,
            work: Manifest::default(),
            paths: HashMap::new(),
            keys: HashMap::new(),
            carried: DirtySet::default(),
            delta: Delta::default(),
            content: HashMap::new(),
            discards: 0,
            freezes_us: Vec::new(),
            cut_at: BootTime::ZERO,
            figures: SyncFigures::default(),
        }
    }

    /// For tests that count what is read: a disk that is slow by accident is waited for.
    #[cfg(test)]
    pub fn set_rearm_max(&mut self, rearm_max: Duration) {
        self.rearm_max = rearm_max;
    }

    /// Watches every file, then takes over `known` for files whose size and times are as it says.
    /// Everything else is read in the next cycle.
    ///
    /// # Errors
    /// When a root cannot be read.
    pub fn start(&mut self, known: Option<&Manifest>) -> io::Result<()> {
        let mut paths = Vec::new();
        for number in 0..self.roots.paths().len() {
            self.roots.walk(&RelPath::root(number), &mut paths);
        }
        self.names(&paths.into_iter().collect())?;
        // Nothing was marked yet that could have been lost.
        self.fell_back = false;
        let Some(known) = known else { return Ok(()) };
        let (mut trusted, mut fresh) = (Vec::new(), BTreeSet::new());
        for (path, entry) in self.work.iter() {
            match known.get(path) {
                Some(was) if was.meta == entry.meta && same_size(was, entry) => {
                    trusted.push((path.clone(), was.clone()))
                }
                _ => {
                    fresh.insert(path.clone());
                }
            }
        }
        for (path, entry) in trusted {
            if let Some(key) = self.keys.get(&path) {
                self.carried.pages.remove(key);
            }
            self.work.insert(path, entry);
        }
        self.delta.touched = fresh;
        self.delta.touched.extend(
            known
                .iter()
                .filter(|(path, _)| self.work.get(path).is_none())
                .map(|(path, _)| path.clone()),
        );
        Ok(())
    }

    pub const fn cut_at(&self) -> BootTime {
        self.cut_at
    }

    pub fn manifest(&self) -> &Manifest {
        &self.work
    }

    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// A block as it was at the last cut, if it was read for it.
    pub fn content(&self, path: &RelPath, block: u64) -> Option<&[u8]> {
        self.content
            .get(&(*self.keys.get(path)?, block))
            .map(|bytes| &**bytes)
    }

    /// One cycle. `forced` cuts even when nothing changed; `stopped` means that no workload runs.
    /// Nothing is returned when nothing changed or the cut has to be made later.
    ///
    /// # Errors
    /// When a file cannot be read; everything is looked at again then.
    pub fn cycle(&mut self, forced: bool, stopped: bool) -> io::Result<Option<Delta>> {
        self.content.clear();
        let result = self.attempt(forced, stopped);
        self.figures.tracked = self.source.exact();
        if result.is_err() {
            self.carried.all_unknown = true;
            self.carried.names.walk_all = true;
        }
        result
    }

    fn attempt(&mut self, forced: bool, stopped: bool) -> io::Result<Option<Delta>> {
        let mut tail: BTreeMap<InodeKey, PageSet> = BTreeMap::new();
        let look = if stopped { Look::Still } else { Look::Live };
        for round in 1.. {
            let marked = self.swap();
            let mut dirty = std::mem::take(&mut self.carried);
            let fresh: BTreeSet<InodeKey> = marked.pages.keys().copied().collect();
            dirty.merge(marked);
            let before = self.figures.bytes_read;
            self.take(dirty, look, &mut |key, rest, rearmed| {
                if !rest.is_empty() && (fresh.contains(&key) || !rearmed) {
                    tail.entry(key).or_default().union(&rest);
                }
            })?;
            let small = self.figures.bytes_read - before < ROUND_BYTES_SMALL;
            if stopped || small || round >= ROUNDS_MAX || !self.source.exact() || !self.source.pending() {
                break;
            }
        }
        if self.lost_marks(stopped) {
            return Ok(None);
        }
        let quiet =
            self.carried.is_empty() && tail.is_empty() && !(self.source.exact() && self.source.pending());
        if quiet && self.delta.touched.is_empty() && !forced {
            return Ok(None);
        }
        self.cut_at = boot_time();
        let frozen = match &self.freezer {
            Some(freezer) if self.consistency == Consistency::Freeze && !stopped => {
                let begun = Instant::now();
                match freezer.freeze(self.freeze_max) {
                    Ok(frozen) => Some((frozen, begun)),
                    Err(error) => {
                        if matches!(error, FreezeError::TimedOut { .. }) {
                            self.figures.freezes_timed_out += 1;
                            self.note_freeze(begun.elapsed());
                            tracing::debug!(error = super::chain(&error), "no cut this time");
                        } else {
                            tracing::warn!(
                                error = super::chain(&error),
                                "no cut: the workload cannot be frozen"
                            );
                        }
                        self.carried.merge(DirtySet {
                            pages: tail,
                            ..DirtySet::default()
                        });
                        return Ok(None);
                    }
                }
            }
            _ => None,
        };
        let mut rest = self.swap();
        rest.merge(std::mem::take(&mut self.carried));
        rest.merge(DirtySet {
            pages: tail,
            ..DirtySet::default()
        });
        let outcome = self.take(
            rest.clone(),
            if stopped { Look::Still } else { Look::Frozen },
            &mut |_, _, _| {},
        )?;
        let mut written_meanwhile = frozen.is_some() && self.source.exact() && self.source.pending();
        if let Some((frozen, begun)) = frozen {
            // The guard ends a freeze that lasts too long: what was read then is of two moments.
            written_meanwhile |= !frozen.is_whole();
            drop(frozen);
            self.figures.freezes += 1;
            self.note_freeze(begun.elapsed());
        }
        if self.lost_marks(stopped) {
            return Ok(None);
        }
        let again = match outcome {
            Outcome::Read(pages) if !written_meanwhile => pages,
            Outcome::Read(pages) | Outcome::TooMuch(pages) => {
                // More than what was marked: a file that was found only now is in no mark, and a page that is dirty
                // in memory is not marked again, whatever is written to it.
                self.carried.merge(DirtySet { pages, ..rest });
                self.discards += 1;
                self.figures.cuts_discarded += 1;
                return Ok(None);
            }
        };
        self.discards = 0;
        if self.source.exact() && !stopped {
            self.carried.merge(DirtySet {
                pages: again,
                ..DirtySet::default()
            });
        }
        if self.delta.touched.is_empty() && !forced {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.delta)))
    }

    fn swap(&mut self) -> DirtySet {
        self.source.swap().unwrap_or_else(|error| {
            tracing::warn!(
                error = super::chain(&error),
                "the change source lost count; everything is compared"
            );
            let mut dirty = DirtySet {
                all_unknown: true,
                ..DirtySet::default()
            };
            dirty.names.walk_all = true;
            dirty
        })
    }

    /// Whether marks were lost with a source that was replaced: everything is compared then, in the next
    /// cycle. Of a stopped workload all was read already.
    fn lost_marks(&mut self, stopped: bool) -> bool {
        if !std::mem::take(&mut self.fell_back) || stopped {
            return false;
        }
        self.carried.all_unknown = true;
        self.carried.names.walk_all = true;
        true
    }

    /// How long the workload stood still or was on its way there, whether or not that gave a cut.
    fn note_freeze(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.figures.freeze_us_last = us;
        if self.freezes_us.len() == FREEZES_KEPT {
            self.freezes_us.remove(0);
        }
        self.freezes_us.push(us);
        let mut sorted = self.freezes_us.clone();
        sorted.sort_unstable();
        self.figures.freeze_us_p99 = sorted[(sorted.len() * 99).div_ceil(100) - 1];
    }

    /// Looks at names and reads pages. `tail` gets what has to be read once more: what lies behind each
    /// file's end at its live read, or all of it where the disk did not let it be rearmed (false).
    fn take(
        &mut self,
        dirty: DirtySet,
        look: Look,
        tail: &mut dyn FnMut(InodeKey, PageSet, bool),
    ) -> io::Result<Outcome> {
        let mut paths = BTreeSet::new();
        if dirty.names.walk_all {
            let mut found = Vec::new();
            for number in 0..self.roots.paths().len() {
                self.roots.walk(&RelPath::root(number), &mut found);
            }
            paths.extend(found);
            paths.extend(self.work.iter().map(|(path, _)| path.clone()));
        }
        for changed in &dirty.names.entries {
            if let Some(path) = self.roots.relative(&changed.path()) {
                paths.extend(path.parent());
                paths.insert(path);
            }
        }
        let mut pages = dirty.pages;
        let mut unknown = dirty.unknown;
        if dirty.all_unknown {
            unknown.extend(self.paths.keys().copied());
        }
        self.figures.unknown += unknown.len() as u64;
        for key in unknown {
            pages.entry(key).or_default().insert(0..PageSet::END);
        }
        for key in dirty.touched {
            pages.entry(key).or_default();
        }
        paths.extend(pages.keys().filter_map(|key| self.paths.get(key)).cloned());
        self.names(&paths)?;
        // New files and files of a new length were put there by `names`.
        for (key, more) in std::mem::take(&mut self.carried.pages) {
            pages.entry(key).or_default().union(&more);
        }
        let bytes: u64 = pages
            .iter()
            .map(|(key, pages)| {
                pages
                    .byte_ranges(self.len_now(*key))
                    .map(|r| r.end - r.start)
                    .sum::<u64>()
            })
            .sum();
        if look == Look::Frozen && bytes > FROZEN_BYTES_MAX && self.discards < DISCARDS_MAX {
            return Ok(Outcome::TooMuch(pages));
        }
        // So much would make the freeze long: then rather the disk is waited for.
        let deadline = (bytes <= FROZEN_BYTES_MAX / 2).then(|| Instant::now() + self.rearm_max);
        let mut todo = pages.iter();
        loop {
            let batch: Vec<_> = todo.by_ref().take(REARM_FILES_MAX).collect();
            if batch.is_empty() {
                return Ok(Outcome::Read(pages));
            }
            let rearmed = look != Look::Live || self.rearm(&batch, deadline)?;
            for (&key, pages) in batch {
                self.read(key, pages, rearmed, tail)?;
            }
        }
    }

    fn rearm(&mut self, batch: &[(&InodeKey, &PageSet)], deadline: Option<Instant>) -> io::Result<bool> {
        if !self.source.exact() {
            return Ok(true);
        }
        let mut files = Vec::with_capacity(batch.len());
        for (key, pages) in batch {
            if let Some((_, file)) = self.open(**key)? {
                files.push((file, (*pages).clone()));
            }
        }
        let rearmer = match &mut self.rearmer {
            Some(rearmer) => rearmer,
            none => none.insert(Rearmer::start()?),
        };
        rearmer.rearm(files, deadline)
    }

    /// The file behind a key; none when its name is gone, since its name event is on the way then.
    fn open(&self, key: InodeKey) -> io::Result<Option<(RelPath, File)>> {
        let Some(path) = self.paths.get(&key) else {
            return Ok(None);
        };
        let Some(absolute) = self.roots.absolute(path) else {
            return Ok(None);
        };
        match File::open(&absolute) {
            Ok(file) => Ok(Some((path.clone(), file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Length of a file now; 0 when it is gone.
    fn len_now(&self, key: InodeKey) -> u64 {
        let path = self.paths.get(&key).and_then(|path| self.roots.absolute(path));
        path.and_then(|path| std::fs::symlink_metadata(path).ok())
            .map_or(0, |meta| meta.len())
    }

    fn known_len(&self, path: &RelPath) -> u64 {
        match self.work.get(path).map(|entry| &entry.body) {
            Some(Body::File { len, .. }) => *len,
            _ => 0,
        }
    }

    fn read(
        &mut self,
        key: InodeKey,
        pages: &PageSet,
        rearmed: bool,
        tail: &mut dyn FnMut(InodeKey, PageSet, bool),
    ) -> io::Result<()> {
        let Some((path, file)) = self.open(key)? else {
            return Ok(());
        };
        let meta = file.metadata()?;
        if InodeKey::of(&meta) != key {
            return Ok(());
        }
        let size = meta.len();
        let mut pages = pages.clone();
        if size != self.known_len(&path) {
            self.delta.touched.insert(path.clone());
            self.work
                .apply(&Op::Truncate {
                    path: path.clone(),
                    len: size,
                })
                .map_err(io::Error::other)?;
        }
        let Some(Entry {
            body: Body::File { blocks, .. },
            ..
        }) = self.work.get_mut(&path)
        else {
            return Ok(());
        };
        for (at, _) in blocks.iter().enumerate().filter(|(_, hash)| **hash == NO_HASH) {
            pages.insert(at as u64..at as u64 + 1);
        }
        let (mut changed, mut bytes_read) = (false, 0);
        for range in pages.byte_ranges(size) {
            read_range(&file, range, |offset, bytes| {
                bytes_read += bytes.len() as u64;
                for (at, block) in bytes.chunks(BLOCK as usize).enumerate() {
                    let number = offset / BLOCK + at as u64;
                    let hash = block_hash(block);
                    changed |= blocks[number as usize] != hash;
                    blocks[number as usize] = hash;
                    if self.content.len() * (BLOCK as usize) < CONTENT_BYTES_MAX {
                        self.content.insert((key, number), block.into());
                    } else {
                        self.content.remove(&(key, number));
                    }
                }
            })?;
        }
        if changed {
            self.delta.touched.insert(path);
        }
        self.figures.bytes_read += bytes_read;
        let again = if rearmed {
            pages.from_page(size / PAGE)
        } else {
            pages
        };
        tail(key, again, rearmed);
        Ok(())
    }

    /// Brings the manifest's names and attributes up to date at `paths`.
    fn names(&mut self, paths: &BTreeSet<RelPath>) -> io::Result<()> {
        let mut seen: BTreeMap<RelPath, Option<Seen>> = BTreeMap::new();
        let mut todo: Vec<RelPath> = paths.iter().cloned().collect();
        while let Some(path) = todo.pop() {
            if seen.contains_key(&path) {
                continue;
            }
            let Some(absolute) = self.roots.absolute(&path) else {
                continue;
            };
            let now = look(&absolute)?.filter(|now| now.entry.is_some());
            let known = self.keys.get(&path).copied();
            if now.as_ref().map(|now| now.key) != known {
                todo.extend(self.work.below(&path).cloned());
                if matches!(
                    &now,
                    Some(Seen {
                        entry: Some(Entry { body: Body::Dir, .. }),
                        ..
                    })
                ) {
                    let mut below = Vec::new();
                    self.roots.walk(&path, &mut below);
                    todo.extend(below);
                }
            }
            seen.insert(path, now);
        }
        let mut moved: HashMap<InodeKey, (RelPath, Entry)> = HashMap::new();
        for (path, now) in &seen {
            let Some(&key) = self.keys.get(path) else { continue };
            if now.as_ref().map(|now| now.key) != Some(key) {
                self.detach(path, key, &mut moved);
            }
        }
        for (path, now) in seen {
            let Some(Seen {
                key,
                entry: Some(entry),
            }) = now
            else {
                continue;
            };
            self.attach(path, key, entry, &mut moved)?;
        }
        for (key, _) in moved {
            self.source.unwatch(key);
        }
        Ok(())
    }

    fn detach(&mut self, path: &RelPath, key: InodeKey, moved: &mut HashMap<InodeKey, (RelPath, Entry)>) {
        self.keys.remove(path);
        let origin = self.delta.origin.remove(path).unwrap_or_else(|| path.clone());
        self.delta.touched.insert(path.clone());
        if let Some(entry) = self.work.remove(path)
            && self.paths.get(&key) == Some(path)
        {
            self.paths.remove(&key);
            if matches!(entry.body, Body::File { .. }) {
                moved.insert(key, (origin, entry));
            }
        }
    }

    fn attach(
        &mut self,
        path: RelPath,
        key: InodeKey,
        now: Entry,
        moved: &mut HashMap<InodeKey, (RelPath, Entry)>,
    ) -> io::Result<()> {
        let is_file = matches!(now.body, Body::File { .. });
        // Inodes are used again: only the source knows whether this is the file that it watches.
        let is_new = is_file && self.watch(&path, key)?;
        if self.keys.get(&path) == Some(&key) && !is_new {
            let Some(entry) = self.work.get_mut(&path) else {
                return Ok(());
            };
            if entry.meta != now.meta || !same_size(entry, &now) {
                self.delta.touched.insert(path.clone());
                entry.meta = now.meta;
            }
            if !same_size(entry, &now) {
                self.carried.pages.entry(key).or_default();
            }
            return Ok(());
        }
        self.delta.touched.insert(path.clone());
        self.keys.insert(path.clone(), key);
        if !is_file {
            self.work.insert(path, now);
            return Ok(());
        }
        // Its old name may be looked at only later.
        if let Some(old) = self.paths.get(&key).filter(|old| **old != path).cloned() {
            let still = self
                .roots
                .absolute(&old)
                .map_or(Ok(None), |absolute| look(&absolute))?;
            if still.map(|still| still.key) != Some(key) {
                self.detach(&old, key, moved);
            }
        }
        let body = match moved.remove(&key) {
            Some((origin, entry)) if !is_new => {
                self.delta.origin.insert(path.clone(), origin);
                self.carried.pages.entry(key).or_default();
                entry.body
            }
            _ => {
                self.carried.pages.entry(key).or_default().insert(0..PageSet::END);
                Body::empty_file()
            }
        };
        let meta = now.meta;
        self.work.insert(path.clone(), Entry { meta, body });
        self.paths.insert(key, path);
        Ok(())
    }

    /// Whether the source did not watch this very file before. One that is gone again is news to come.
    fn watch(&mut self, path: &RelPath, key: InodeKey) -> io::Result<bool> {
        let Some(absolute) = self.roots.absolute(path) else {
            return Ok(false);
        };
        let file = match File::open(&absolute) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if InodeKey::of(&file.metadata()?) != key {
            return Ok(false);
        }
        match self.source.watch(key, file.as_fd()) {
            Err(why @ (TrackError::Full { .. } | TrackError::FileSystem { .. })) => {
                self.scan_from_now_on(&why);
                self.source.watch(key, file.as_fd()).map_err(io::Error::other)
            }
            watched => watched.map_err(io::Error::other),
        }
    }

    /// More files than the kernel can watch, or some on another file system: a scan has no such limits.
    fn scan_from_now_on(&mut self, why: &TrackError) {
        tracing::warn!(
            why = super::chain(why),
            "changes are found by scanning from now on; everything is compared once"
        );
        let watched = self.paths.keys().copied();
        self.source = Box::new(ScanSource::watching(self.roots.paths().to_vec(), watched));
        self.fell_back = true;
    }

    /// Pages that the source reported so far.
    #[cfg(test)]
    pub fn pages_reported(&self) -> u64 {
        self.source.counters().pages
    }
}

fn same_size(a: &Entry, b: &Entry) -> bool {
    match (&a.body, &b.body) {
        (Body::File { len: a, .. }, Body::File { len: b, .. }) => a == b,
        (a, b) => a.same_kind(b),
    }
}
