//! Files of random bytes, and changes to them.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

pub(super) const PAGE: usize = 4096;
const BUFFER: usize = 1 << 20;
/// Files in a folder of a tree.
const FOLDER: u64 = 1_000;

#[derive(Debug, clap::Args)]
pub(super) struct Make {
    /// A new folder
    #[arg(long)]
    data: PathBuf,
    /// Bytes of each file
    #[arg(long)]
    bytes: u64,
    /// One is called `0/0`, of many a thousand are in a folder
    #[arg(long, default_value_t = 1)]
    files: u64,
}

impl Make {
    pub(super) fn run(&self) -> Result<()> {
        let mut dice = Dice::new(self.bytes ^ self.files);
        let mut buffer = vec![0; BUFFER];
        for number in 0..self.files {
            let path = path(&self.data, number);
            if let Some(folder) = path.parent().filter(|_| number.is_multiple_of(FOLDER)) {
                fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            }
            let mut file = File::create_new(&path).with_context(|| path.display().to_string())?;
            let mut left = self.bytes;
            while left > 0 {
                let part = &mut buffer[..BUFFER.min(usize::try_from(left)?)];
                dice.fill(part);
                file.write_all(part)?;
                left -= part.len() as u64;
            }
        }
        // Nothing is left to be written when something is measured.
        nix::unistd::syncfs(File::open(&self.data)?)?;
        Ok(())
    }
}

pub(super) fn path(data: &Path, number: u64) -> PathBuf {
    data.join((number / FOLDER).to_string()).join(number.to_string())
}

/// Xorshift (Marsaglia 2003): bytes that do not compress, many a second.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) const fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) const fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            let random = self.roll().to_le_bytes();
            word.copy_from_slice(&random[..word.len()]);
        }
    }
}

/// Overwrites a random page of so many random files.
pub(super) fn change(data: &Path, files: u64, changes: u64, dice: &mut Dice) -> Result<()> {
    let mut page = vec![0; PAGE];
    for _ in 0..changes {
        let path = path(data, dice.roll() % files);
        let file = File::options().write(true).open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        let pages = file.metadata()?.len() / PAGE as u64;
        ensure!(pages > 0, "{} has no whole page", path.display());
        dice.fill(&mut page);
        file.write_all_at(&page, dice.roll() % pages * PAGE as u64)?;
    }
    Ok(())
}
