//! Names and attributes under the watched roots, by fanotify with directory handles.
//!
//! Invariants: events of other directories of the same file system are left out; an event that
//! cannot be read, resolved or queued turns into `walk_all`; nothing here trusts the lengths that
//! the kernel's records claim.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::records::{self, Event, Handle};
use super::subvolume;
use super::{ChangedName, NameChanges, TrackError};

const MASK: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_ATTRIB
    | libc::FAN_ONDIR;

/// Events read in one drain; the kernel's queue holds 16384, so more means that they come faster
/// than they are read.
const DRAIN_EVENTS_MAX: usize = 1 << 17;
const BUFFER_BYTES: usize = 64 * 1024;

struct Root {
    /// As the caller named it.
    given: PathBuf,
    /// Without symbolic links.
    real: PathBuf,
    /// A directory of the mount that handles are resolved in.
    mount: File,
    fsid: [i32; 2],
}

/// Watches the names under some roots, which are directories or single files.
pub struct Names {
    group: OwnedFd,
    roots: Vec<Root>,
    changes: NameChanges,
    buffer: Vec<u8>,
    seen: u64,
    overflows: u64,
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> TrackError {
    move |source| TrackError::Io { what, source }
}

impl Names {
    pub fn open(roots: &[PathBuf]) -> Result<Self, TrackError> {
        let flags =
            libc::FAN_CLASS_NOTIF | libc::FAN_NONBLOCK | libc::FAN_CLOEXEC | libc::FAN_REPORT_DFID_NAME;
        // SAFETY: no pointers are passed, and the descriptor is owned from here on.
        let group = unsafe {
            match libc::fanotify_init(flags, libc::O_RDONLY as u32) {
                -1 => return Err(failed("fanotify_init")(io::Error::last_os_error())),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        let roots = roots
            .iter()
            .map(|root| open_root(&group, root))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            group,
            roots,
            changes: NameChanges::default(),
            buffer: vec![0; BUFFER_BYTES],
            seen: 0,
            overflows: 0,
        })
    }

    /// Reads all that is queued, and says whether anything is known to have changed.
    pub fn pending(&mut self) -> bool {
        self.drain();
        !self.changes.is_empty()
    }

    /// Takes the changes of all events queued before the call.
    pub fn take(&mut self) -> NameChanges {
        self.drain();
        std::mem::take(&mut self.changes)
    }

    /// Events under the roots, and times that events were lost.
    pub fn counters(&self) -> (u64, u64) {
        (self.seen, self.overflows)
    }

    fn drain(&mut self) {
        let mut events = BTreeSet::new();
        let mut read_events = 0;
        loop {
            // SAFETY: the buffer is as long as said.
            let read = unsafe {
                libc::read(
                    self.group.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                )
            };
            let Ok(read) = usize::try_from(read) else {
                match io::Error::last_os_error().kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => break,
                    _ => return self.overflow(),
                }
            };
            match records::parse(&self.buffer[..read.min(self.buffer.len())]) {
                Some(parsed) if read > 0 && read_events < DRAIN_EVENTS_MAX => {
                    read_events += parsed.len();
                    events.extend(parsed);
                }
                _ => return self.overflow(),
            }
        }
        self.resolve(events);
    }

    fn overflow(&mut self) {
        self.changes.walk_all = true;
        self.overflows += 1;
    }

    fn resolve(&mut self, events: BTreeSet<Event>) {
        // A directory may be renamed at any time: paths are kept for this call alone.
        let mut paths: HashMap<(usize, Handle), Option<PathBuf>> = HashMap::new();
        for event in events {
            for at in 0..self.roots.len() {
                let root = &self.roots[at];
                if root.fsid != event.fsid {
                    continue;
                }
                let dir = match paths.get(&(at, event.handle.clone())) {
                    Some(dir) => dir.clone(),
                    None => match directory(root, &event.handle) {
                        Ok(dir) => {
                            paths.insert((at, event.handle.clone()), dir.clone());
                            dir
                        }
                        Err(_) => {
                            self.overflow();
                            continue;
                        }
                    },
                };
                let Some(dir) = dir else { continue };
                if let Some(found) = under(&self.roots[at], &dir, &event) {
                    self.changes.entries.insert(found);
                    self.seen += 1;
                }
            }
        }
    }
}

fn open_root(group: &OwnedFd, root: &Path) -> Result<Root, TrackError> {
    let opened = || {
        let real = fs::canonicalize(root)?;
        let directory = if real.is_dir() {
            real.clone()
        } else {
            real.parent().unwrap_or(&real).to_owned()
        };
        let mount = File::open(&directory)?;
        io::Result::Ok((real, directory, mount))
    };
    let (real, directory, mount) = opened().map_err(failed("opening a root"))?;
    let fsid = match mark(group, &mount) {
        // A btrfs subvolume has an id of its own, and a file system is marked by its top's
        // (`fanotify_test_fsid`).
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => subvolume::at_top(&directory, |top| {
            mark(group, top)
        })
        .map_err(|source| TrackError::Unavailable {
            what: format!(
                "{} is in a btrfs subvolume, and the top one cannot be marked",
                root.display()
            ),
            source: Some(Box::new(source)),
        })?,
        marked => marked.map_err(failed("watching the names of a root"))?,
    };
    Ok(Root {
        given: root.to_owned(),
        real,
        mount,
        fsid,
    })
}

/// Asks for the events of the file system that a directory is on; returns the id that they bear.
fn mark(group: &OwnedFd, directory: &File) -> io::Result<[i32; 2]> {
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: without a path the descriptor alone is meant; fstatfs fills the struct when it returns 0,
    // and fsid_t is two ints.
    unsafe {
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        let directory = directory.as_raw_fd();
        if libc::fanotify_mark(group.as_raw_fd(), flags, MASK, directory, std::ptr::null()) == -1
            || libc::fstatfs(directory, stat.as_mut_ptr()) == -1
        {
            return Err(io::Error::last_os_error());
        }
        Ok(std::mem::transmute::<libc::fsid_t, [i32; 2]>(
            stat.assume_init().f_fsid,
        ))
    }
}

/// Where a directory is now. `None` when it is gone: its parent has an event for that.
fn directory(root: &Root, handle: &Handle) -> io::Result<Option<PathBuf>> {
    let mut bytes = handle.to_bytes();
    // SAFETY: `bytes` is a whole `file_handle`, whose length field is its own.
    let fd = unsafe {
        libc::open_by_handle_at(
            root.mount.as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd == -1 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ESTALE | libc::ENOENT) => Ok(None),
            _ => Err(error),
        };
    }
    // SAFETY: the call above gave this descriptor to us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map(Some)
}

/// The change as the caller would name it, if it is under the root.
fn under(root: &Root, dir: &Path, event: &Event) -> Option<ChangedName> {
    if let Ok(below) = dir.strip_prefix(&root.real) {
        let dir = if below.as_os_str().is_empty() {
            root.given.clone()
        } else {
            root.given.join(below)
        };
        let name = event.name.clone();
        return Some(ChangedName { dir, name });
    }
    // A root that is a single file, or the root's own entry in its parent.
    (dir.join(&event.name) == root.real).then(|| ChangedName {
        dir: root.given.parent().unwrap_or(Path::new("/")).to_owned(),
        name: root.given.file_name().unwrap_or(&event.name).to_owned(),
    })
}
