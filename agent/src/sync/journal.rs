//! Files of checked records: a generation's redo and its pre-images.
//!
//! Invariant: a file under its final name was complete and on disk before it got that name; reading
//! stops with an error at the first record that is torn or garbled.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use understudy_common::delta::block_hash;
use understudy_common::wire::SYNC_FRAME_MAX;

const HEAD_BYTES: usize = 4 + 16;

/// A file that is being written under a temporary name.
#[derive(Debug)]
pub struct Writer {
    out: BufWriter<File>,
    path: PathBuf,
}

impl Writer {
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: PathBuf) -> io::Result<Self> {
        Ok(Self {
            out: BufWriter::with_capacity(256 << 10, File::create(&path)?),
            path,
        })
    }

    /// # Errors
    /// When the disk is full or fails.
    pub fn append(&mut self, record: &[u8]) -> io::Result<()> {
        step("append")?;
        let len = u32::try_from(record.len()).map_err(io::Error::other)?;
        self.out.write_all(&len.to_le_bytes())?;
        self.out.write_all(&block_hash(record))?;
        self.out.write_all(record)
    }

    /// Makes the file durable under its final name.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub fn commit(mut self, to: &Path) -> io::Result<()> {
        self.out.flush()?;
        step("before sync")?;
        sync(self.out.get_ref())?;
        step("before rename")?;
        fs::rename(&self.path, to)?;
        sync_parent(to)?;
        step("after rename")
    }
}

/// Calls `each` with every record.
///
/// # Errors
/// At the first record that is torn, garbled or not wanted by `each`.
pub fn read(path: &Path, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    read_while(path, |record| each(record).map(|()| true))
}

/// Calls `each` with one record after the other as long as it says true.
///
/// # Errors
/// As [`read`].
pub fn read_while(path: &Path, mut each: impl FnMut(&[u8]) -> io::Result<bool>) -> io::Result<()> {
    let mut input = BufReader::with_capacity(256 << 10, File::open(path)?);
    let mut record = Vec::new();
    loop {
        let mut head = [0; HEAD_BYTES];
        match input.read(&mut head[..1])? {
            0 => return Ok(()),
            _ => input.read_exact(&mut head[1..])?,
        }
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if len > SYNC_FRAME_MAX {
            return Err(garbled(path, "a record is longer than any frame"));
        }
        record.resize(len, 0);
        input.read_exact(&mut record)?;
        if block_hash(&record)[..] != head[4..] {
            return Err(garbled(path, "a record does not match its checksum"));
        }
        if !each(&record)? {
            return Ok(());
        }
    }
}

/// # Errors
/// When the directory cannot be synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

pub fn garbled(path: &Path, why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
}

fn sync(file: &File) -> io::Result<()> {
    #[cfg(test)]
    if crash::forgets() {
        return Ok(());
    }
    file.sync_all()
}

/// A point at which tests cut the power.
#[cfg(not(test))]
#[inline]
#[expect(clippy::unnecessary_wraps, reason = "tests make it fail")]
pub fn step(_name: &'static str) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub use crash::step;

#[cfg(test)]
pub mod crash {
    use std::cell::{Cell, RefCell};
    use std::fs::File;
    use std::io;

    use crate::sync::testdisk;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
        static KILLS: Cell<bool> = const { Cell::new(false) };
        static POWER: RefCell<Option<File>> = const { RefCell::new(None) };
        static FORGETS: Cell<bool> = const { Cell::new(false) };
    }

    /// The `n`th step cuts the power of the file system that `root` lies on.
    pub fn arm_power(n: u32, root: File) {
        POWER.set(Some(root));
        arm(Some(n));
    }

    /// A broken build: the journal is not synced before it counts.
    pub fn forget_syncs(forget: bool) {
        FORGETS.set(forget);
    }

    pub fn forgets() -> bool {
        FORGETS.get()
    }

    /// The `n`th step ends this process by SIGKILL.
    pub fn arm_kill(n: u32) {
        KILLS.set(true);
        arm(Some(n));
    }

    /// Every step fails from the `n`th on; `None` lets all pass.
    pub fn arm(n: Option<u32>) {
        if n.is_none() {
            POWER.set(None);
        }
        LEFT.set(n);
    }

    pub fn step(name: &'static str) -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) if KILLS.get() => {
                // SAFETY: no memory is involved; it does not return.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                unreachable!("a killed process goes no further")
            }
            Some(0) => {
                if let Some(root) = POWER.take() {
                    testdisk::cut_power(&root)?;
                }
                Err(io::Error::other(format!("test: power cut at {name}")))
            }
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}
