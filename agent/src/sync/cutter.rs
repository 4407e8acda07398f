//! Cuts generations on the primary: follows a change source and keeps the manifest of what is there.
//!
//! Invariants: the working manifest equals the files at each cut; a page leaves the dirty set only
//! when it was read after it was write-protected, or inside a freeze and again after the next
//! write-protect, or when its file is gone; nothing waits for the disk inside a freeze.

mod names;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_common::delta::{BLOCK, BlockHash, Body, Entry, Manifest, Op, RelPath, block_hash, zeros};
use understudy_common::spec::Consistency;
use understudy_common::units::BootTime;
use understudy_common::wire::SyncFigures;

use self::names::same_size;
use super::roots::{Roots, is_sparse, look, open_file, parts, read_range};
use super::scrub::{Odd, Scrub};
use super::tracker::{ChangeSource, ChangedName, DirtySet, InodeKey, PAGE, PageSet, Rearmer};
use crate::clock::boot_time;
use crate::workload::{FreezeError, Freezer};

/// Live rounds before a cut while much is being written.
const ROUNDS_MAX: u32 = 4;
/// A live round that read less than this is the last.
const ROUND_BYTES_SMALL: u64 = 4 << 20;
/// More than this is not read inside a freeze, but live in the next round.
const FROZEN_BYTES_MAX: u64 = 32 << 20;
/// Shorter ranges are read without a look for holes.
const HOLES_BYTES_MIN: u64 = 1 << 20;
/// After this many discarded cuts in a row the next one is made whatever it costs.
const DISCARDS_MAX: u32 = 3;
/// Cycles in a row that trust the source's word that nothing happened. What it lost and cannot know of it finds
/// when it is swapped.
const SKIPS_MAX: u32 = 8;
/// Content that is kept from reading until it is sent; more is read again.
const CONTENT_BYTES_MAX: usize = 64 << 20;
/// Read in one cycle while the workload runs. What is left is read in the cycles that follow, before there is a
/// cut, so that the engine hears what happens meanwhile.
const LIVE_BYTES_MAX: u64 = CONTENT_BYTES_MAX as u64;
/// After so many cycles that left no less than they found, the next one reads everything.
const STALLS_MAX: u32 = 3;
const FREEZES_KEPT: usize = 512;
/// How long a cut waits for the disk to take what is dirty. What it has not taken by then is read
/// inside the freeze as well.
const REARM_MAX: Duration = Duration::from_millis(60);
/// Files open at one time for that.
const REARM_FILES_MAX: usize = 256;

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
    live_max: u64,
    consistency: Consistency,
    freeze_max: Duration,
    work: Manifest,
    /// All names of each file; never empty. One may be gone already, its name event being on the way. The first
    /// holds the content in the manifest, the others are links to it.
    paths: HashMap<InodeKey, BTreeSet<RelPath>>,
    /// All names of each symlink and node: what is done to one is done to all.
    aliases: HashMap<InodeKey, BTreeSet<RelPath>>,
    keys: HashMap<RelPath, InodeKey>,
    carried: DirtySet,
    delta: Delta,
    /// Touched since the last cut or draft.
    fresh: BTreeSet<RelPath>,
    /// The last cycle left pages for the next one to read.
    behind: bool,
    /// Bytes that the last cycle found to read, if it was behind.
    behind_bytes: u64,
    /// Cycles that found no less to read than the one before, since the last cut.
    stalls: u32,
    /// Blocks as they were read last, by their hashes.
    content: HashMap<(InodeKey, u64), Content>,
    discards: u32,
    skips: u32,
    freezes_us: Vec<u64>,
    scrub: Scrub,
    /// Blocks that were read and are not as the manifest says. The next cycle knows whether a mark tells why.
    suspects: BTreeMap<InodeKey, PageSet>,
    /// Names of which the attributes are not as the manifest says.
    looks: BTreeSet<RelPath>,
    /// When the last cut was begun: it holds everything that was written before.
    cut_at: BootTime,
    pub figures: SyncFigures,
}

/// A block and its hash.
type Content = (BlockHash, Box<[u8]>);

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

struct Read {
    /// Length of the file just before.
    size: u64,
    /// Pages that nobody asked for, of unknown content since the length changed.
    besides: PageSet,
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
            live_max: LIVE_BYTES_MAX,
            consistency,
            freeze_max,
            work: Manifest::default(),
            paths: HashMap::new(),
            aliases: HashMap::new(),
            keys: HashMap::new(),
            carried: DirtySet::default(),
            delta: Delta::default(),
            fresh: BTreeSet::new(),
            behind: false,
            behind_bytes: u64::MAX,
            stalls: 0,
            content: HashMap::new(),
            discards: 0,
            skips: 0,
            freezes_us: Vec::new(),
            scrub: Scrub::new(0),
            suspects: BTreeMap::new(),
            looks: BTreeSet::new(),
            cut_at: BootTime::ZERO,
            figures: SyncFigures::default(),
        }
    }

    /// For tests that count what is read: a disk that is slow by accident is waited for.
    #[cfg(test)]
    pub fn set_rearm_max(&mut self, rearm_max: Duration) {
        self.rearm_max = rearm_max;
    }

    /// For tests with small files.
    #[cfg(test)]
    pub fn set_live_max(&mut self, live_max: u64) {
        self.live_max = live_max;
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
        self.names(&paths.into_iter().collect(), &BTreeSet::new(), &BTreeSet::new())?;
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
        // A file with a name that is not as it was is read under all its names.
        let doubted: HashSet<InodeKey> = fresh
            .iter()
            .filter_map(|path| self.keys.get(path))
            .copied()
            .collect();
        for (path, entry) in trusted {
            match self.keys.get(&path) {
                Some(key) if doubted.contains(key) => {}
                key => {
                    if let Some(key) = key {
                        self.carried.pages.remove(key);
                    }
                    self.work.insert(path, entry);
                }
            }
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

    /// Whether the last cycle left more to read, so that there is no cut yet.
    pub const fn is_behind(&self) -> bool {
        self.behind
    }

    /// What the manifest has become other than it was at the last cut or call.
    pub fn take_fresh(&mut self) -> BTreeSet<RelPath> {
        std::mem::take(&mut self.fresh)
    }

    fn touch(&mut self, path: RelPath) {
        self.fresh.insert(path.clone());
        self.delta.touched.insert(path);
    }

    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// A block as it was at the last cut, if it was read for it.
    pub fn content(&self, path: &RelPath, block: u64, hash: BlockHash) -> Option<&[u8]> {
        let (found, bytes) = self.content.get(&(*self.keys.get(path)?, block))?;
        (*found == hash).then_some(&**bytes)
    }

    /// One cycle. `forced` cuts even when nothing changed; `stopped` means that no workload runs.
    /// Nothing is returned when nothing changed or the cut has to be made later.
    ///
    /// # Errors
    /// When a file cannot be read; everything is looked at again then.
    pub fn cycle(&mut self, forced: bool, stopped: bool) -> io::Result<Option<Delta>> {
        if !forced && !stopped && self.is_at_rest() {
            self.skips += 1;
            return Ok(None);
        }
        self.skips = 0;
        self.content.clear();
        self.behind = false;
        let result = self.attempt(forced, stopped);
        if !self.behind {
            self.behind_bytes = u64::MAX;
            self.stalls = 0;
        }
        if matches!(result, Ok(Some(_))) {
            self.fresh.clear();
        }
        self.figures.tracked = self.source.exact();
        if result.is_err() {
            self.carried.all_unknown = true;
            self.carried.names.walk_all = true;
        }
        result
    }

    /// Whether a cycle would find nothing.
    fn is_at_rest(&mut self) -> bool {
        self.skips < SKIPS_MAX
            && self.source.exact()
            && !self.fell_back
            && self.carried.is_empty()
            && self.delta.touched.is_empty()
            && self.suspects.is_empty()
            && self.looks.is_empty()
            && !self.source.pending()
    }

    /// Bytes a second that [`Cutter::scrub`] reads.
    pub fn set_scrub_rate(&mut self, rate: u64) {
        self.scrub = Scrub::new(rate);
    }

    /// Reads as much again as so much time allows.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn scrub(&mut self, elapsed: Duration) -> io::Result<()> {
        // What is known to be incomplete is read anyway.
        if self.behind || self.carried.all_unknown || self.carried.names.walk_all {
            return Ok(());
        }
        let (keys, roots, work) = (&self.keys, &self.roots, &self.work);
        let mut looks = BTreeSet::new();
        let open = |path: &RelPath| {
            let Some((key, absolute)) = keys.get(path).zip(roots.absolute(path)) else {
                return Ok(None);
            };
            // There is no event for a modification time that is set alone.
            let now = look(&absolute)?.and_then(|seen| seen.entry);
            if now.as_ref().map(|now| &now.meta) != work.get(path).map(|known| &known.meta) {
                looks.insert(path.clone());
            }
            open_file(&absolute, *key)
        };
        let found = self.scrub.step(elapsed, work, open)?;
        self.looks.extend(looks);
        self.figures.scrubbed_bytes = self.scrub.figures.bytes;
        self.figures.scrubs = self.scrub.figures.passes;
        for Odd { path, block } in found {
            let Some(&key) = self.keys.get(&path) else {
                continue;
            };
            if !self
                .carried
                .pages
                .get(&key)
                .is_some_and(|pages| pages.contains(block))
            {
                self.suspects.entry(key).or_default().insert(block..block + 1);
            }
        }
        Ok(())
    }

    /// Has suspects read, and counts those that no mark in `dirty` tells of.
    fn judge(&mut self, dirty: &mut DirtySet) {
        for (key, suspects) in std::mem::take(&mut self.suspects) {
            let names = self.paths.get(&key);
            let named = |changed: &ChangedName| {
                let changed = self.roots.relative(&changed.path());
                let names = names.into_iter().flatten();
                changed.is_some_and(|changed| {
                    names
                        .clone()
                        .any(|name| *name == changed || name.is_below(&changed))
                })
            };
            let told = names.is_none()
                || dirty.all_unknown
                || dirty.names.walk_all
                || dirty.unknown.contains(&key)
                || dirty.touched.contains(&key)
                || dirty.names.entries.iter().any(named);
            let pages = dirty.pages.entry(key).or_default();
            let missed = suspects
                .ranges()
                .flatten()
                .filter(|page| !told && !pages.contains(*page))
                .count() as u64;
            if missed > 0 {
                tracing::error!(path = ?names.and_then(|names| names.first()), blocks = missed,
                    "a file changed and nothing told of it; it is read again");
            }
            self.figures.missed_writes += missed;
            pages.union(&suspects);
        }
    }

    fn attempt(&mut self, forced: bool, stopped: bool) -> io::Result<Option<Delta>> {
        let mut tail: BTreeMap<InodeKey, PageSet> = BTreeMap::new();
        // Of these the times may be set only after their last mark: they are looked at once more.
        let mut marked_files: BTreeSet<InodeKey> = BTreeSet::new();
        let look = if stopped { Look::Still } else { Look::Live };
        for round in 1.. {
            let marked = self.swap();
            let mut dirty = std::mem::take(&mut self.carried);
            let marked_now: BTreeSet<InodeKey> = marked.pages.keys().copied().collect();
            marked_files.extend(marked_now.iter().chain(&marked.touched));
            dirty.merge(marked);
            self.judge(&mut dirty);
            let before = self.figures.bytes_read;
            self.take(dirty, look, &mut |key, rest, certain| {
                if !rest.is_empty() && (marked_now.contains(&key) || !certain) {
                    tail.entry(key).or_default().union(&rest);
                }
            })?;
            if self.behind {
                self.read_later(tail);
                self.look_later(marked_files);
                return Ok(None);
            }
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
            self.look_later(marked_files);
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
                        self.read_later(tail);
                        self.look_later(marked_files);
                        return Ok(None);
                    }
                }
            }
            _ => None,
        };
        let mut rest = self.swap();
        let was_frozen = frozen.is_some();
        for key in &marked_files {
            rest.pages.entry(*key).or_default();
        }
        marked_files.extend(rest.pages.keys());
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
        // What was renamed while it was looked for is not as it was in this cut. Where something renames all
        // the time and is not frozen, there would be no other.
        let lost_sight = !self.carried.pages.is_empty() && (stopped || self.discards < DISCARDS_MAX);
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
            Outcome::Read(pages) if !written_meanwhile && !lost_sight => pages,
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
            self.read_later(again.into_iter().filter(|(_, pages)| !pages.is_empty()).collect());
            if !was_frozen {
                self.look_later(marked_files);
            }
        }
        if self.delta.touched.is_empty() && !forced {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.delta)))
    }

    /// Has the next cycle read pages again.
    fn read_later(&mut self, pages: BTreeMap<InodeKey, PageSet>) {
        self.carried.merge(DirtySet {
            pages,
            ..DirtySet::default()
        });
    }

    /// Has the next cycle look at the attributes of files that had marks in this one.
    fn look_later(&mut self, files: BTreeSet<InodeKey>) {
        for key in files {
            self.carried.pages.entry(key).or_default();
        }
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
    /// file's end at its live read, or all of it where the disk did not let it be rearmed. It is not
    /// certain (false) that marks say the same: there was no rearming, or the file was found just now and
    /// may have been marked before it was watched. Pages of a file that was not where its name said are
    /// carried.
    fn take(
        &mut self,
        dirty: DirtySet,
        look: Look,
        tail: &mut dyn FnMut(InodeKey, PageSet, bool),
    ) -> io::Result<Outcome> {
        let (mut paths, mut named) = (std::mem::take(&mut self.looks), BTreeSet::new());
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
                named.insert(path);
            }
        }
        let mut pages = dirty.pages;
        let mut unknown = dirty.unknown;
        if dirty.all_unknown {
            unknown.extend(self.paths.keys().copied());
        }
        self.figures.unknown += unknown.len() as u64;
        let of = |key: &InodeKey| self.paths.get(key).into_iter().flatten().cloned();
        let marked: BTreeSet<RelPath> = pages.keys().flat_map(of).collect();
        paths.extend(unknown.iter().flat_map(of));
        paths.extend(dirty.touched.iter().flat_map(of));
        for key in unknown {
            pages.entry(key).or_default().insert(0..PageSet::END);
        }
        for key in dirty.touched {
            pages.entry(key).or_default();
        }
        self.names(&paths, &named, &marked)?;
        // New files and files of a new length were put there by `names`.
        let found = std::mem::take(&mut self.carried.pages);
        let found_now: BTreeSet<InodeKey> = found.keys().copied().collect();
        for (key, more) in found {
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
        if look == Look::Live && bytes > self.live_max {
            self.stalls += u32::from(bytes >= self.behind_bytes);
            self.behind_bytes = bytes;
            // More is written than one cycle reads: then rather one that takes long.
            if self.stalls < STALLS_MAX {
                self.put_off(&mut pages);
            }
        }
        // So much would make the freeze long: then rather the disk is waited for.
        let deadline = (bytes <= FROZEN_BYTES_MAX / 2).then(|| Instant::now() + self.rearm_max);
        let mut todo = pages
            .iter()
            .filter(|(key, pages)| !pages.is_empty() || found_now.contains(key));
        loop {
            let batch: Vec<_> = todo.by_ref().take(REARM_FILES_MAX).collect();
            if batch.is_empty() {
                return Ok(Outcome::Read(pages));
            }
            let (mut opened, rearmed) = match look {
                Look::Live => self.rearm(&batch, deadline)?,
                Look::Frozen | Look::Still => (HashMap::new(), true),
            };
            for (&key, pages) in batch {
                match self.read(key, pages, opened.remove(&key))? {
                    Some(read) => {
                        if rearmed {
                            let end = pages.from_page(read.size / PAGE);
                            tail(key, end, !found_now.contains(&key));
                        } else {
                            tail(key, pages.clone(), false);
                        }
                        tail(key, read.besides, false);
                    }
                    None if self.paths.contains_key(&key) => {
                        self.carried.pages.entry(key).or_default().union(pages);
                    }
                    None => {}
                }
            }
        }
    }

    /// Carries what is more than one cycle reads.
    fn put_off(&mut self, pages: &mut BTreeMap<InodeKey, PageSet>) {
        let (mut room, mut cut) = (self.live_max, None);
        'files: for (key, set) in &*pages {
            for range in set.byte_ranges(self.len_now(*key)) {
                let len = range.end - range.start;
                if len > room {
                    cut = Some((*key, (range.start + room) / PAGE));
                    break 'files;
                }
                room -= len;
            }
        }
        let Some((key, page)) = cut else { return };
        let mut later = pages.split_off(&key);
        if let Some(set) = later.get_mut(&key) {
            let rest = set.from_page(page);
            let now = set.before_page(page);
            *set = rest;
            if !now.is_empty() {
                pages.insert(key, now);
            }
        }
        self.carried.pages = later;
        self.behind = true;
    }

    /// The files of a batch that were found, and whether all were rearmed.
    fn rearm(
        &mut self,
        batch: &[(&InodeKey, &PageSet)],
        deadline: Option<Instant>,
    ) -> io::Result<(HashMap<InodeKey, Arc<File>>, bool)> {
        let (mut files, mut all) = (HashMap::with_capacity(batch.len()), true);
        if !self.source.exact() {
            return Ok((files, true));
        }
        let mut todo = Vec::with_capacity(batch.len());
        for &(&key, pages) in batch {
            match self.open(key)? {
                Some(file) => {
                    let file = Arc::new(file);
                    if self.source.needs_rearm(key) {
                        todo.push((Arc::clone(&file), pages.clone()));
                    }
                    files.insert(key, file);
                }
                // Its name may be back before it is read.
                None => all &= !self.paths.contains_key(&key),
            }
        }
        let rearmer = match &mut self.rearmer {
            Some(rearmer) => rearmer,
            none => none.insert(Rearmer::start()?),
        };
        Ok((files, rearmer.rearm(todo, deadline)? && all))
    }

    /// The file behind a key; none when it is under none of its names, since a name event is on the way
    /// then.
    fn open(&self, key: InodeKey) -> io::Result<Option<File>> {
        for path in self.paths.get(&key).into_iter().flatten() {
            if let Some(absolute) = self.roots.absolute(path)
                && let Some(file) = open_file(&absolute, key)?
            {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// Length of a file now; 0 when it is gone.
    fn len_now(&self, key: InodeKey) -> u64 {
        let names = self.paths.get(&key).into_iter().flatten();
        names
            .filter_map(|path| std::fs::symlink_metadata(self.roots.absolute(path)?).ok())
            .find(|meta| InodeKey::of(meta) == key)
            .map_or(0, |meta| meta.len())
    }

    /// Reads pages of a file, which may be open already; none when it is under none of its names.
    fn read(
        &mut self,
        key: InodeKey,
        pages: &PageSet,
        opened: Option<Arc<File>>,
    ) -> io::Result<Option<Read>> {
        let file = match opened {
            Some(file) => file,
            None => match self.open(key)? {
                Some(file) => Arc::new(file),
                None => return Ok(None),
            },
        };
        let meta = file.metadata()?;
        let size = meta.len();
        let Some(path) = self.paths.get(&key).and_then(|names| names.first()).cloned() else {
            return Ok(None);
        };
        let Some(Body::File { len, .. }) = self.work.get(&path).map(|entry| &entry.body) else {
            return Ok(None);
        };
        let mut changed = size != *len;
        if changed {
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
            return Ok(None);
        };
        let mut besides = PageSet::default();
        for at in blocks.unknown() {
            besides.insert(at as u64..at as u64 + 1);
        }
        let mut pages = pages.clone();
        pages.union(&besides);
        let (mut bytes_read, mut done) = (0, Ok(0));
        let mut todo = Vec::new();
        for range in pages.byte_ranges(size) {
            if range.end - range.start < HOLES_BYTES_MIN || !is_sparse(&meta) {
                todo.push((range, true));
            } else {
                // What cannot be asked for can be read.
                let found = parts(&file, range.clone());
                todo.extend(found.unwrap_or_else(|_| vec![(range, true)]));
            }
        }
        let zero = zeros(BLOCK);
        for (range, has_data) in todo {
            if !has_data {
                for number in range.start / BLOCK..range.end.div_ceil(BLOCK) {
                    let len = range.end - number * BLOCK;
                    let hash = if len < BLOCK { zeros(len) } else { zero };
                    changed |= blocks.set(number as usize, hash);
                    self.content.remove(&(key, number));
                }
                continue;
            }
            done = read_range(&file, range, |offset, bytes| {
                bytes_read += bytes.len() as u64;
                for (at, block) in bytes.chunks(BLOCK as usize).enumerate() {
                    let number = offset / BLOCK + at as u64;
                    let hash = block_hash(block);
                    changed |= blocks.set(number as usize, hash);
                    if self.content.len() * (BLOCK as usize) < CONTENT_BYTES_MAX {
                        self.content.insert((key, number), (hash, block.into()));
                    } else {
                        self.content.remove(&(key, number));
                    }
                }
            });
            if done.is_err() {
                break;
            }
        }
        self.figures.bytes_read += bytes_read;
        if changed {
            self.touch(path);
        }
        done?;
        Ok(Some(Read { size, besides }))
    }

    /// Pages that the source reported so far.
    #[cfg(test)]
    pub fn pages_reported(&self) -> u64 {
        self.source.counters().pages
    }
}
