//! What changed on disk since the last look: the seam between the sync engine and the kernel.
//!
//! Invariants:
//! - A source never calls a file clean that it lost sight of. Doubt is sticky: it is reported as
//!   `unknown` (one file), `names.walk_all` (names) or `all_unknown` (everything), and only the
//!   engine can resolve it, by reading.
//! - A mark may cover too much, never too little, and the last one of a change comes when it is there to
//!   be read and before its call returns (a store through a mapping: before the store, see rearm): the
//!   engine may read a page that did not change, it never misses one that did.
//! - Nothing here reads file contents or decides when to cut.
//!
//! # The rule that the engine follows
//!
//! ```text
//! swap → R1;  R1 ∪= carried;  rearm(R1);  read R1 live      (pre-copy, the workload runs)
//! freeze;  swap → R2;  read R2 ∪ tail(R1);  thaw            (the cut)
//! carried = R2 ∪ tail(R1)
//! ```
//!
//! - **Swap before rearm, rearm before read.** `writeback_dirty_folio` fires only when a folio goes
//!   from clean to dirty. `rearm` cleans and write-protects, so that a store after the read fires
//!   again. A page of R1 that is stored to after `rearm` is in R2.
//! - **A file that is only written to** needs no rearm: `needs_rearm` says so as long as nothing was mapped. The
//!   first page fault under a shared writable mapping marks all of such a file, which needs rearming from then on.
//! - **Rearm never inside the freeze**: it waits for the disk. R2 is read without it, so a store that
//!   was already past its page fault may land after the thaw with no new event: R2 is carried into
//!   the next R1.
//! - **A rearm that is not done in time did not happen**: the pages of R1 are read in the freeze as
//!   well and carried, like R2, so that a slow disk makes no generation wait.
//! - **tail(R1)**: the pages of R1 from the page that holds the file's end (`size / PAGE`, the size
//!   being the one `fstat` gave just before the live read). On ext4 and btrfs a write marks its pages
//!   before it moves the end of the file; a live read in between comes back short. A file that was found in the same
//!   look counts as one of R1: it may have been marked before it was watched.
//! - Pages of a file that is under none of its names when it is to be read stay carried until it is
//!   found again or its names are gone.
//! - A mark found by `pending` after R2 was swapped and before the thaw discards the cut (in-flight
//!   direct I/O): thaw, carry, try again.
//! - Ranges may reach past the end of the file, up to `PageSet::END`: clip them to the size, and skip
//!   holes. A truncated or punched file is reported as "everything from here on".
//! - A new file is watched, then `0..PageSet::END` is put into the carried set: so its old mappings
//!   are write-protected by the next `rearm` before it is read whole.
//! - `unknown`, `walk_all` and `all_unknown` are reported once. The engine keeps them until it has
//!   compared everything they name.
//! - One source has its own kernel programs and maps. Marks of files that are not watched, and names
//!   outside the roots, do not appear.

mod hooks;
mod kernel;
mod names;
mod pages;
mod programs;
mod rearm;
mod records;
mod subvolume;
mod syscall;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

pub use hooks::FileSystem;
pub use kernel::{KernelTracker, TrackerLimits};
pub use pages::{PAGE, PageSet};
pub use rearm::{Rearmer, rearm};

/// A file as `stat` names it: `st_dev` in the encoding of stat, and the inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeKey {
    pub dev: u64,
    pub ino: u64,
}

impl InodeKey {
    pub fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
        }
    }
}

/// Everything one epoch marked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtySet {
    /// Pages that may have changed. Only watched files appear.
    pub pages: BTreeMap<InodeKey, PageSet>,
    /// Files whose size may have changed, and more may have: look at them with `fstat` again.
    pub touched: BTreeSet<InodeKey>,
    /// Files whose marks were lost: compare every block.
    pub unknown: BTreeSet<InodeKey>,
    /// Names and attributes.
    pub names: NameChanges,
    /// The source lost count altogether: every watched file is unknown.
    pub all_unknown: bool,
}

impl DirtySet {
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
            && self.touched.is_empty()
            && self.unknown.is_empty()
            && self.names.is_empty()
            && !self.all_unknown
    }

    /// Adds everything of a later set.
    pub fn merge(&mut self, later: DirtySet) {
        for (key, pages) in later.pages {
            self.pages.entry(key).or_default().union(&pages);
        }
        self.touched.extend(later.touched);
        self.unknown.extend(later.unknown);
        self.names.entries.extend(later.names.entries);
        self.names.walk_all |= later.names.walk_all;
        self.all_unknown |= later.all_unknown;
    }
}

/// Names that may have been created, removed, renamed, linked, or whose mode, owner, times or
/// extended attributes may have changed. The order and the kind of the events are not kept, because
/// the kernel merges them: the engine looks at what is there now.
///
/// Setting the modification time alone (`touch -m`) is no such event; the scrub finds it.
///
/// A directory that appears (created or moved in) is reported by its own name alone: walk it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameChanges {
    pub entries: BTreeSet<ChangedName>,
    /// Events were lost: walk all roots.
    pub walk_all: bool,
}

impl NameChanges {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && !self.walk_all
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangedName {
    /// Absolute path of the directory as it is called now, in the caller's mount namespace.
    pub dir: PathBuf,
    /// The entry in it; `.` for the directory itself.
    pub name: OsString,
}

impl ChangedName {
    pub fn path(&self) -> PathBuf {
        if self.name == "." {
            self.dir.clone()
        } else {
            self.dir.join(&self.name)
        }
    }
}

/// What a source did so far; all of them only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackerCounters {
    /// Files watched now (the only figure that falls).
    pub watched: u64,
    pub swaps: u64,
    /// Events of watched files that the kernel programs marked.
    pub events: u64,
    /// Pages reported.
    pub pages: u64,
    /// Times a mark was lost and a file became unknown.
    pub lost: u64,
    /// Times everything became unknown.
    pub lost_all: u64,
    /// Name events seen under the roots.
    pub names: u64,
    /// Times the queue of name events ran over.
    pub overflows: u64,
}

/// Why a change source cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    #[error("dirty tracking is not available: {what}; the service falls back to scanning")]
    Unavailable {
        what: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("{path} is on a file system without dirty ranges (magic {magic:#x}; ext4, xfs and btrfs have them)", path = .path.display())]
    FileSystem { path: PathBuf, magic: i64 },
    #[error("a watched file is on {file_system}, where no root is")]
    OtherFileSystem { file_system: FileSystem },
    #[error("a watched file is on memory that is written to directly (DAX), where nothing shows the stores")]
    Dax,
    #[error("{watched} files are watched already, which is the limit; raise it or watch fewer paths")]
    Full { watched: usize },
    #[error("{what} failed")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl TrackError {
    /// Whether a scan could do what the kernel's programs cannot.
    pub fn is_for_scanning(&self) -> bool {
        use TrackError::{Dax, FileSystem, Full, OtherFileSystem};
        matches!(
            self,
            Full { .. } | FileSystem { .. } | OtherFileSystem { .. } | Dax
        )
    }
}

/// A source of changes: kernel programs, or a scan.
pub trait ChangeSource: Send {
    /// Must come before the file's first read. `key` is what `fstat` of `file` says. True when this very
    /// file was not watched yet: nothing is known of it then, even if an older file had the same key.
    fn watch(&mut self, key: InodeKey, file: BorrowedFd<'_>) -> Result<bool, TrackError>;

    /// Forgets a file. Its marks of the current epoch are dropped.
    fn unwatch(&mut self, key: InodeKey);

    /// Retires the current epoch and returns its marks: every mark made before the call is in this
    /// set or in an earlier one. After an error the caller treats everything as unknown.
    fn swap(&mut self) -> Result<DirtySet, TrackError>;

    /// Whether anything at all was marked since the last swap. Cheap; may say yes for nothing.
    fn pending(&mut self) -> bool;

    /// Whether pages of a file that were marked have to be rearmed before they are read. False only where each
    /// write marks by itself, also of a page that is dirty already, and no store through a mapping can come before
    /// a mark of the whole file. Ask after the swap.
    fn needs_rearm(&mut self, _key: InodeKey) -> bool {
        true
    }

    /// True when ranges come from the kernel; false when the engine has to find out by `stat` and
    /// hashing which files changed.
    fn exact(&self) -> bool;

    fn counters(&self) -> TrackerCounters;
}
