//! A first copy, written into the files as it comes: there is nothing yet that a crash could spoil.
//!
//! Invariants: what is in the files counts for nothing before all of it is on disk and the seal is noted. A mark in
//! the state directory says until then that whatever is there is part of a copy that was begun so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use understudy_common::delta::{Body, Manifest, Op, RelPath};

use super::attributes::{make_node, set_attributes};
use super::checkpoint::{absolute, with_parents};
use super::journal::{step, sync_parent};
use super::roots::{Roots, write_range};

/// Files kept open from one operation to the next.
const OPEN_FILES_MAX: usize = 128;

/// Begins to write a range to the disk. One that refuses says so at the seal.
fn write_back(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return;
    };
    // SAFETY: no pointers are passed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Whether a first copy was begun and not sealed.
pub fn is_begun(dir: &Path) -> bool {
    mark(dir).exists()
}

/// # Errors
/// When the mark cannot be removed.
pub fn forget(dir: &Path) -> io::Result<()> {
    match fs::remove_file(mark(dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn mark(dir: &Path) -> PathBuf {
    dir.join("filling")
}

/// A first copy that is under way.
#[derive(Debug)]
pub struct Fill {
    roots: Roots,
    open: BTreeMap<RelPath, File>,
    touched: BTreeSet<RelPath>,
}

impl Fill {
    /// # Errors
    /// When the mark cannot be put on disk.
    pub fn begin(dir: &Path, roots: Roots) -> io::Result<Self> {
        let mark = mark(dir);
        if !mark.exists() {
            File::create(&mark)?.sync_all()?;
            sync_parent(&mark)?;
        }
        step("fill begun")?;
        Ok(Self {
            roots,
            open: BTreeMap::new(),
            touched: BTreeSet::new(),
        })
    }

    /// Does what fits the manifest that the files are at.
    ///
    /// # Errors
    /// When the disk is full or fails, or something is in the way that no manifest names.
    pub fn take(&mut self, op: &Op) -> io::Result<()> {
        step("fill")?;
        match op {
            Op::Create { path, body, .. } => self.create(path, body),
            Op::Write { path, offset, bytes } => {
                let file = self.file(path)?;
                write_range(file, *offset, bytes)?;
                // On its way to the disk from now on, so that the seal has less to wait for.
                write_back(file, *offset, bytes.len() as u64);
                Ok(())
            }
            Op::Truncate { path, len } => self.file(path)?.set_len(*len),
            Op::Meta { path, .. } => {
                self.touched.insert(path.clone());
                Ok(())
            }
            Op::Rename { from, to } => {
                self.open.remove(from);
                self.touched.extend([from.clone(), to.clone()]);
                fs::rename(absolute(&self.roots, from)?, absolute(&self.roots, to)?)
            }
            Op::Unlink { path } => {
                self.open.remove(path);
                self.touched.insert(path.clone());
                let at = absolute(&self.roots, path)?;
                if fs::symlink_metadata(&at)?.is_dir() {
                    fs::remove_dir(at)
                } else {
                    fs::remove_file(at)
                }
            }
        }
    }

    fn create(&mut self, path: &RelPath, body: &Body) -> io::Result<()> {
        self.touched.insert(path.clone());
        let at = absolute(&self.roots, path)?;
        if path.is_root()
            && let Some(parent) = at.parent()
        {
            fs::create_dir_all(parent)?;
        }
        match body {
            Body::Dir => fs::create_dir(at),
            Body::Symlink { target } => {
                std::os::unix::fs::symlink(Path::new(std::ffi::OsStr::from_bytes(target)), at)
            }
            Body::Node(node) => make_node(&at, *node),
            Body::Link { to } => fs::hard_link(absolute(&self.roots, to)?, at),
            Body::File { .. } => {
                let file = OpenOptions::new().write(true).create_new(true).open(at)?;
                self.keep(path, file);
                Ok(())
            }
        }
    }

    fn file(&mut self, path: &RelPath) -> io::Result<&File> {
        if !self.open.contains_key(path) {
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(absolute(&self.roots, path)?)?;
            self.touched.insert(path.clone());
            self.keep(path, file);
        }
        Ok(&self.open[path])
    }

    fn keep(&mut self, path: &RelPath, file: File) {
        if self.open.len() >= OPEN_FILES_MAX {
            self.open.pop_first();
        }
        self.open.insert(path.clone(), file);
    }

    /// Sets attributes and waits until everything is on disk, also what an interrupted copy before wrote.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn finish(self, manifest: &Manifest) -> io::Result<()> {
        drop(self.open);
        for path in with_parents(&self.touched).iter().rev() {
            if let Some(entry) = manifest.get(path) {
                set_attributes(&absolute(&self.roots, path)?, &entry.meta)?;
            }
        }
        step("fill attributes")?;
        for root in self.roots.paths() {
            // One call for all files: a service may have a hundred thousand.
            match File::open(root) {
                Ok(opened) => {
                    nix::unistd::syncfs(opened).map_err(io::Error::from)?;
                    sync_parent(root)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        step("fill synced")
    }
}
