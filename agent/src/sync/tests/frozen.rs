//! Cuts inside a freeze: what is marked meanwhile, a freeze that does not come, a guard that ends it.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use understudy_common::delta::{BLOCK, Body, RelPath, block_hash};
use understudy_common::spec::Consistency;

use crate::sync::cutter::{Cutter, Delta};
use crate::sync::roots::Roots;
use crate::sync::tracker::{ChangeSource, DirtySet, InodeKey, TrackError, TrackerCounters};
use crate::workload::{FreezeError, Freezer, Frozen};

const LIMIT: Duration = Duration::from_millis(50);

/// How the next freeze goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Freeze {
    #[default]
    Whole,
    /// A page is stored to after the cut's own swap.
    Marked,
    /// Page 1 is filled with this just before.
    StoredBefore(u8),
    TimesOut,
    /// The guard thawed before the cut was done.
    Broken,
    /// The same, and a file was made just before.
    BrokenWithNewFile,
}

#[derive(Default)]
struct Script {
    marks: DirtySet,
    /// Stored to while frozen, after the next swap.
    late: DirtySet,
    freeze: Freeze,
    frozen: bool,
    /// Renames the file, while frozen or not, after its name was looked at and before it is read.
    rename: Option<While>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum While {
    Live,
    Frozen,
}

/// The kernel and the workload, as the test wants them.
#[derive(Clone)]
struct Stage {
    script: Arc<Mutex<Script>>,
    file: PathBuf,
}

impl Stage {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("one thread")
    }

    fn key(&self) -> InodeKey {
        InodeKey::of(&fs::metadata(&self.file).expect("there"))
    }

    fn second(&self) -> PathBuf {
        self.file.with_file_name("second")
    }

    /// As an append does: its name is looked at.
    fn page(&self, page: u64) -> DirtySet {
        let mut dirty = DirtySet::default();
        dirty.touched.insert(self.key());
        dirty.pages.entry(self.key()).or_default().insert(page..page + 1);
        dirty
    }

    /// The workload stores into a page, and the kernel marks it.
    fn store(&self, page: u64, fill: u8) {
        let file = fs::File::options().write(true).open(&self.file).expect("there");
        file.write_all_at(&[fill; BLOCK as usize], page * BLOCK)
            .expect("room");
        let dirty = self.page(page);
        self.script().marks.merge(dirty);
    }
}

impl ChangeSource for Stage {
    fn watch(&mut self, _: InodeKey, _: BorrowedFd<'_>) -> Result<bool, TrackError> {
        let mut script = self.script();
        let now = if script.frozen { While::Frozen } else { While::Live };
        if script.rename == Some(now) {
            script.rename = None;
            fs::rename(&self.file, self.second()).expect("it is there");
            script.marks.names.walk_all = true;
        }
        Ok(false)
    }

    fn unwatch(&mut self, _: InodeKey) {}

    fn swap(&mut self) -> Result<DirtySet, TrackError> {
        let mut script = self.script();
        let late = if script.frozen {
            std::mem::take(&mut script.late)
        } else {
            DirtySet::default()
        };
        Ok(std::mem::replace(&mut script.marks, late))
    }

    fn pending(&mut self) -> bool {
        !self.script().marks.is_empty()
    }

    fn exact(&self) -> bool {
        true
    }

    fn counters(&self) -> TrackerCounters {
        TrackerCounters::default()
    }
}

impl Freezer for Stage {
    fn freeze(&self, limit: Duration) -> Result<Frozen, FreezeError> {
        let how = std::mem::take(&mut self.script().freeze);
        if how == Freeze::TimesOut {
            return Err(FreezeError::TimedOut {
                limit_ms: limit.as_millis() as u64,
            });
        }
        if let Freeze::StoredBefore(fill) = how {
            self.store(1, fill);
        }
        self.script().frozen = true;
        if how == Freeze::Marked {
            let late = self.page(1);
            self.script().late = late;
        }
        if how == Freeze::BrokenWithNewFile {
            fs::write(self.second(), [1; BLOCK as usize]).expect("room");
            self.script().marks.names.walk_all = true;
        }
        let stage = self.clone();
        let frozen = Frozen::new(move || stage.script().frozen = false);
        Ok(if matches!(how, Freeze::Broken | Freeze::BrokenWithNewFile) {
            frozen.until(Instant::now())
        } else {
            frozen
        })
    }
}

struct Cuts {
    stage: Stage,
    cutter: Cutter,
    _dir: tempfile::TempDir,
}

/// A file of four pages that was cut once.
fn cuts() -> Cuts {
    let dir = tempfile::Builder::new()
        .prefix("ussync")
        .tempdir_in("/dev/shm")
        .expect("tmpfs");
    let file = dir.path().join("file");
    fs::write(&file, vec![0; 4 * BLOCK as usize]).expect("room");
    let script = Arc::default();
    let stage = Stage { script, file };
    let mut cutter = Cutter::new(
        Roots::new(vec![dir.path().to_owned()]),
        Box::new(stage.clone()),
        Some(Arc::new(stage.clone())),
        Consistency::Freeze,
        LIMIT,
    );
    cutter.start(None).expect("readable");
    cutter
        .cycle(true, false)
        .expect("readable")
        .expect("the first cut");
    let mut cuts = Cuts {
        stage,
        cutter,
        _dir: dir,
    };
    // What was read inside the first freeze is looked at once more.
    cuts.cycle();
    cuts
}

impl Cuts {
    fn cycle(&mut self) -> Option<Delta> {
        self.cutter.cycle(false, false).expect("readable")
    }

    fn holds(&self, page: u64, fill: u8) -> bool {
        self.file_holds(b"file", page, fill)
    }

    fn file_holds(&self, name: &[u8], page: u64, fill: u8) -> bool {
        let hash = block_hash(&[fill; BLOCK as usize]);
        let manifest = self.cutter.manifest();
        let file = RelPath::root(0).join(name).expect("a plain name");
        let Some(Body::File { blocks, .. }) = manifest.get(&file).map(|entry| &entry.body) else {
            return false;
        };
        blocks.get(page as usize) == Some(hash)
    }
}

#[test]
fn a_mark_while_frozen_discards_the_cut_and_the_next_one_holds_it() {
    let mut cuts = cuts();
    cuts.stage.store(0, 1);
    cuts.stage.script().freeze = Freeze::Marked;
    assert!(cuts.cycle().is_none(), "two moments are no cut");
    assert_eq!(cuts.cutter.figures.cuts_discarded, 1);
    assert!(!cuts.stage.script().frozen, "thawed");

    let file = fs::File::options()
        .write(true)
        .open(&cuts.stage.file)
        .expect("there");
    file.write_all_at(&[2; BLOCK as usize], BLOCK).expect("room");
    let delta = cuts.cycle().expect("nothing is in the way now");
    assert_eq!(delta.touched.len(), 1);
    assert!(cuts.holds(0, 1), "the page of the discarded cut");
    assert!(cuts.holds(1, 2), "the page that was marked while frozen");
}

#[test]
fn a_freeze_that_times_out_is_counted_and_nothing_is_lost() {
    let mut cuts = cuts();
    let before = cuts.cutter.figures.freezes;
    cuts.stage.store(3, 7);
    cuts.stage.script().freeze = Freeze::TimesOut;
    assert!(cuts.cycle().is_none(), "the old generation stays");
    assert_eq!(cuts.cutter.figures.freezes_timed_out, 1);
    assert_eq!(
        cuts.cutter.figures.freezes, before,
        "a freeze that failed is not one that gave a cut"
    );
    assert!(cuts.cycle().is_some(), "tried again later");
    assert!(cuts.holds(3, 7));
}

#[test]
fn a_cut_that_the_guard_ended_is_discarded() {
    let mut cuts = cuts();
    cuts.stage.store(2, 5);
    cuts.stage.script().freeze = Freeze::Broken;
    assert!(cuts.cycle().is_none());
    assert_eq!(cuts.cutter.figures.cuts_discarded, 1);
    assert!(cuts.cycle().is_some());
    assert!(cuts.holds(2, 5));
}

#[test]
fn a_write_that_nothing_told_of_is_found_counted_and_shipped() {
    let mut cuts = cuts();
    cuts.cutter.set_scrub_rate(1 << 20);
    let second = Duration::from_secs(1);
    // One that is marked only after the look is no miss.
    cuts.stage.store(1, 5);
    cuts.cutter.scrub(second).expect("readable");
    assert!(cuts.cycle().is_some() && cuts.holds(1, 5));
    assert_eq!(cuts.cutter.figures.missed_writes, 0);

    let file = fs::File::options().write(true).open(&cuts.stage.file);
    file.expect("there")
        .write_all_at(&[6; BLOCK as usize], 2 * BLOCK)
        .expect("room");
    while cuts.cycle().is_some() {}
    assert!(!cuts.holds(2, 6), "nothing told of it");
    cuts.cutter.scrub(second).expect("readable");
    let delta = cuts.cycle().expect("what was found is to be shipped");
    assert_eq!(delta.touched.len(), 1);
    assert!(cuts.holds(2, 6));
    assert_eq!(cuts.cutter.figures.missed_writes, 1);
    cuts.cutter.scrub(second).expect("readable");
    while cuts.cycle().is_some() {}
    assert_eq!(cuts.cutter.figures.missed_writes, 1, "once");
}

#[test]
fn a_time_that_is_set_after_the_mark_is_seen() {
    let mut cuts = cuts();
    let then = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    // The content is as it was: a punch of a hole, say.
    let dirty = cuts.stage.page(1);
    cuts.stage.script().marks.merge(dirty);
    assert!(cuts.cycle().is_none());
    let file = fs::File::options().write(true).open(&cuts.stage.file);
    file.expect("there").set_modified(then).expect("root may");
    assert_eq!(cuts.cycle().expect("it has another time").touched.len(), 1);
    assert!(cuts.cycle().is_none());
}

#[test]
fn a_time_that_is_set_after_the_mark_is_seen_though_the_freeze_timed_out() {
    let mut cuts = cuts();
    cuts.stage.store(3, 7);
    cuts.stage.script().freeze = Freeze::TimesOut;
    assert!(cuts.cycle().is_none());
    let then = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    let file = fs::File::options().write(true).open(&cuts.stage.file);
    file.expect("there").set_modified(then).expect("root may");
    assert!(cuts.cycle().is_some());
    let path = RelPath::new(b"0/file".to_vec()).expect("good");
    let meta = &cuts.cutter.manifest().get(&path).expect("there").meta;
    assert_eq!(meta.mtime_ns, 7_000_000_000);
}

#[test]
fn a_time_that_is_set_alone_is_found() {
    let mut cuts = cuts();
    cuts.cutter.set_scrub_rate(1 << 20);
    let then = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    let file = fs::File::options().write(true).open(&cuts.stage.file);
    file.expect("there").set_modified(then).expect("root may");
    while cuts.cycle().is_some() {}
    cuts.cutter.scrub(Duration::from_secs(1)).expect("readable");
    assert_eq!(
        cuts.cycle()
            .expect("what was found is to be shipped")
            .touched
            .len(),
        1
    );
    assert_eq!(cuts.cutter.figures.missed_writes, 0, "nobody wrote");
}

#[test]
fn a_file_that_is_found_in_a_cut_that_is_discarded_is_read_again() {
    let mut cuts = cuts();
    cuts.stage.store(2, 5);
    cuts.stage.script().freeze = Freeze::BrokenWithNewFile;
    assert!(cuts.cycle().is_none() && cuts.cutter.figures.cuts_discarded == 1);
    // Its page is dirty in memory since it was made: the kernel marks nothing.
    fs::write(cuts.stage.second(), [2; BLOCK as usize]).expect("room");
    assert!(cuts.cycle().is_some());
    assert!(cuts.file_holds(b"second", 0, 2));
}

#[test]
fn a_file_that_is_renamed_before_it_is_read_is_read_under_its_new_name() {
    let mut cuts = cuts();
    cuts.stage.store(1, 9);
    cuts.stage.script().rename = Some(While::Live);
    assert!(cuts.cycle().is_some());
    assert!(cuts.file_holds(b"second", 1, 9));
}

#[test]
fn a_file_that_is_renamed_during_a_cut_discards_it() {
    let mut cuts = cuts();
    cuts.stage.script().freeze = Freeze::StoredBefore(9);
    cuts.stage.script().rename = Some(While::Frozen);
    cuts.stage.store(0, 8);
    assert!(cuts.cycle().is_none(), "its page was read under neither name");
    assert_eq!(cuts.cutter.figures.cuts_discarded, 1);
    assert!(cuts.cycle().is_some());
    assert!(cuts.file_holds(b"second", 0, 8) && cuts.file_holds(b"second", 1, 9));
}
