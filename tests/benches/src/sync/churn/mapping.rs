//! Stores through a shared mapping, which no system call announces.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::super::files::Dice;

pub(super) struct Mapping {
    /// What the file was called when it was mapped.
    pub(super) path: PathBuf,
    file: File,
    at: NonNull<libc::c_void>,
    len: NonZeroUsize,
}

// SAFETY: the memory belongs to whoever owns the value, on whatever thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// None for an empty file.
    pub(super) fn of(path: &Path) -> io::Result<Option<Self>> {
        let file = File::options().read(true).write(true).open(path)?;
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        let Some(len) = NonZeroUsize::new(len) else {
            return Ok(None);
        };
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, wherever the kernel puts it.
        let at = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &file, 0) }?;
        let path = path.to_owned();
        Ok(Some(Self { path, file, at, len }))
    }

    /// One random byte; false when the file has become empty.
    pub(super) fn store(&self, dice: &mut Dice) -> io::Result<bool> {
        let there = self.file.metadata()?.len().min(self.len.get() as u64);
        if there == 0 {
            return Ok(false);
        }
        let at = dice.below(there) as usize;
        // SAFETY: inside the mapping and inside the file, which nobody else changes meanwhile.
        unsafe { self.at.cast::<u8>().add(at).write_volatile(dice.roll() as u8) };
        Ok(true)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and whole.
        let _ = unsafe { munmap(self.at, self.len.get()) };
    }
}
