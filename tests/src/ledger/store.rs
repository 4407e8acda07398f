//! The ledger's files: segments of records, only the last of which is written to.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// A number and the hash of all records up to this one. Divides a page, so no record is torn by one.
const RECORD_BYTES: u64 = 16;
pub(super) const SEGMENT_RECORDS: u64 = 4_096;

pub struct Ledger {
    dir: PathBuf,
    ids: Vec<u64>,
    chain: u64,
    segment: File,
}

impl Ledger {
    /// # Errors
    /// When a record does not fit those before it: the files are not a state that ever was.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let (mut ids, mut chain, mut number) = (Vec::new(), 0, 0);
        loop {
            let path = segment(dir, number);
            let is_last = !segment(dir, number + 1).exists();
            if path.exists() {
                let bytes = read(&path)?;
                let whole = bytes.len() as u64 == SEGMENT_RECORDS * RECORD_BYTES;
                ensure!(
                    whole || is_last,
                    "{} is short, but there is a later one",
                    path.display()
                );
                take(&bytes, &mut ids, &mut chain).with_context(|| path.display().to_string())?;
            }
            if is_last {
                break;
            }
            number += 1;
        }
        let segment = open(&segment(dir, number))?;
        // A write that the machine's death cut in half was never answered.
        segment.set_len((ids.len() as u64 - number * SEGMENT_RECORDS) * RECORD_BYTES)?;
        Ok(Self {
            dir: dir.to_owned(),
            ids,
            chain,
            segment,
        })
    }

    /// All numbers, in the order in which they were appended.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// # Errors
    /// When it is not there afterwards.
    pub fn append(&mut self, id: u64) -> Result<()> {
        ensure!(
            self.ids.last().is_none_or(|last| *last < id),
            "{id} comes after {:?}",
            self.ids.last()
        );
        let records = self.ids.len() as u64;
        let within = records % SEGMENT_RECORDS;
        if within == 0 && records > 0 {
            // A later segment on the disk means that those before it are whole.
            self.segment.sync_data()?;
            self.segment = open(&segment(&self.dir, records / SEGMENT_RECORDS))?;
        }
        let chain = mix(self.chain, id);
        let record = [id.to_le_bytes(), chain.to_le_bytes()].concat();
        let at = within * RECORD_BYTES;
        if let Err(why) = self.segment.write_all_at(&record, at) {
            self.segment.set_len(at).context("taking back half of a record")?;
            return Err(why).context("writing a record");
        }
        self.ids.push(id);
        self.chain = chain;
        Ok(())
    }
}

fn segment(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("segment-{number:06}"))
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    options.open(path).with_context(|| path.display().to_string())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn take(bytes: &[u8], ids: &mut Vec<u64>, chain: &mut u64) -> Result<()> {
    let (words, _) = bytes.as_chunks::<8>();
    for record in words.chunks_exact(2) {
        let (id, hash) = (u64::from_le_bytes(record[0]), u64::from_le_bytes(record[1]));
        *chain = mix(*chain, id);
        if hash != *chain || ids.last().is_some_and(|last| *last >= id) {
            bail!("record {} ({id}) does not fit those before it", ids.len());
        }
        ids.push(id);
    }
    Ok(())
}

/// SplitMix64's mixer over the hash so far and the next number.
fn mix(chain: u64, id: u64) -> u64 {
    let mut z = chain.rotate_left(17) ^ id.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_appended_is_there_after_a_restart() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut ledger = Ledger::open(dir.path())?;
        for id in 0..2 * SEGMENT_RECORDS + 5 {
            ledger.append(id * 2)?;
        }
        assert!(ledger.append(7).is_err(), "numbers only rise");
        let ids = ledger.ids().to_vec();
        drop(ledger);
        let mut ledger = Ledger::open(dir.path())?;
        assert_eq!(ledger.ids(), ids);
        ledger.append(u64::MAX)?;
        Ok(())
    }

    #[test]
    fn half_a_record_is_dropped_and_a_hole_is_refused() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut ledger = Ledger::open(dir.path())?;
        for id in 0..SEGMENT_RECORDS + 3 {
            ledger.append(id)?;
        }
        drop(ledger);
        let last = segment(dir.path(), 1);
        OpenOptions::new().write(true).open(&last)?.set_len(40)?;
        assert_eq!(Ledger::open(dir.path())?.ids().len() as u64, SEGMENT_RECORDS + 2);
        let mut bytes = read(&segment(dir.path(), 0))?;
        bytes[100] ^= 1;
        fs::write(segment(dir.path(), 0), &bytes)?;
        assert!(Ledger::open(dir.path()).is_err(), "a changed record");
        fs::write(segment(dir.path(), 0), &bytes[..64])?;
        assert!(Ledger::open(dir.path()).is_err(), "a missing middle");
        Ok(())
    }
}
