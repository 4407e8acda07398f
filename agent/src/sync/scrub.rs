//! Reading files again, a little at a time, to find what no mark told.
//!
//! Invariants: it reads no more than its rate allows, whatever there is to read, and knows nothing of what a
//! difference means: who asked for it decides.

use std::fs::File;
use std::io;
use std::time::Duration;

use understudy_common::delta::{BLOCK, Blocks, Body, Manifest, RelPath, block_hash};

use super::roots::read_range;

/// Unused allowance that is kept, in seconds of the rate.
const SAVED_MAX_S: u64 = 2;

/// Where a pass over all files stands.
#[derive(Debug)]
pub struct Scrub {
    /// Bytes a second; 0 reads nothing.
    rate: u64,
    allowance: u64,
    /// The file and the block to go on with.
    at: (RelPath, u64),
    pub figures: ScrubFigures,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubFigures {
    pub bytes: u64,
    /// Passes over all files that were finished.
    pub passes: u64,
}

/// A block that is not as the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Odd {
    pub path: RelPath,
    pub block: u64,
}

impl Scrub {
    pub fn new(rate: u64) -> Self {
        Self {
            rate,
            allowance: 0,
            at: (RelPath::root(0), 0),
            figures: ScrubFigures::default(),
        }
    }

    /// Compares the next part of the files with what the manifest says, as much as `elapsed` time allows, up to the last
    /// file. `open` gives
    /// a file, or none when it is not to be looked at now. One whose length is not the manifest's is changing and is
    /// passed over.
    ///
    /// # Errors
    /// When a file cannot be read; the pass goes on behind it.
    pub fn step(
        &mut self,
        elapsed: Duration,
        manifest: &Manifest,
        mut open: impl FnMut(&RelPath) -> io::Result<Option<File>>,
    ) -> io::Result<Vec<Odd>> {
        let earned = u128::from(self.rate) * elapsed.as_millis() / 1000;
        let saved = u128::from(self.allowance) + earned;
        self.allowance = u64::try_from(saved)
            .unwrap_or(u64::MAX)
            .min(self.rate * SAVED_MAX_S);
        let mut odd = Vec::new();
        while self.allowance >= BLOCK {
            let (from, block) = self.at.clone();
            let Some((path, len, blocks)) = files(manifest, &from).next() else {
                self.figures.passes += u64::from(from != RelPath::root(0));
                self.at = (RelPath::root(0), 0);
                break;
            };
            let block = if path == from { block } else { 0 };
            let start = block * BLOCK;
            let end = len.min(start.saturating_add(self.allowance / BLOCK * BLOCK));
            // A file that is passed over and an empty one cost a look.
            self.allowance = self
                .allowance
                .saturating_sub(end.saturating_sub(start).max(BLOCK));
            self.at = if end < len {
                (path.clone(), end / BLOCK)
            } else {
                (path.successor(), 0)
            };
            if start >= end {
                continue;
            }
            let Some(file) = open(&path)? else { continue };
            if file.metadata()?.len() != len {
                continue;
            }
            let mut number = block;
            read_range(&file, start..end, |_, bytes| {
                for content in bytes.chunks(BLOCK as usize) {
                    if blocks.get(number as usize) != Some(block_hash(content)) {
                        odd.push(Odd {
                            path: path.clone(),
                            block: number,
                        });
                    }
                    number += 1;
                }
            })?;
            self.figures.bytes += end - start;
        }
        Ok(odd)
    }
}

/// Files from a path on.
fn files<'a>(manifest: &'a Manifest, from: &RelPath) -> impl Iterator<Item = (RelPath, u64, &'a Blocks)> {
    manifest
        .from(from)
        .filter_map(|path| match &manifest.get(path)?.body {
            Body::File { len, blocks } => Some((path.clone(), *len, blocks)),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::roots::Roots;

    #[test]
    fn a_block_that_changed_is_found_within_a_pass_at_the_rate_that_is_allowed() {
        let dir = tempfile::tempdir().expect("room");
        std::fs::create_dir(dir.path().join("sub")).expect("fresh");
        for (name, len) in [("a", 10_000), ("b", 0), ("sub/c", 50_000), ("z", 3)] {
            std::fs::write(dir.path().join(name), vec![1; len]).expect("room");
        }
        let roots = Roots::new(vec![dir.path().to_owned()]);
        let manifest = roots.hash_all().expect("readable");
        let open = |path: &RelPath| Ok(Some(File::open(roots.absolute(path).expect("below"))?));
        let mut content = vec![1; 50_000];
        content[20_000] = 2;
        std::fs::write(dir.path().join("sub/c"), content).expect("room");

        let mut scrub = Scrub::new(8_192);
        let (mut found, mut seconds) = (Vec::new(), 0);
        while scrub.figures.passes == 0 {
            let before = scrub.figures.bytes;
            found.extend(
                scrub
                    .step(Duration::from_secs(1), &manifest, open)
                    .expect("readable"),
            );
            assert!(scrub.figures.bytes - before <= 8_192 * SAVED_MAX_S);
            seconds += 1;
            assert!(seconds < 30, "{scrub:?}");
        }
        let path = RelPath::new(b"0/sub/c".to_vec()).expect("good");
        assert_eq!(found, [Odd { path, block: 4 }]);
        assert!(seconds >= 60_003 / 8_192, "{seconds} s");
    }

    #[test]
    fn nothing_is_read_at_rate_zero_or_where_there_are_no_files() {
        let open = |_: &RelPath| -> io::Result<Option<File>> { panic!("nothing is opened") };
        let hour = Duration::from_secs(3600);
        let odd = Scrub::new(0)
            .step(hour, &Manifest::default(), open)
            .expect("nothing fails");
        assert!(odd.is_empty());
        let odd = Scrub::new(1 << 20)
            .step(hour, &Manifest::default(), open)
            .expect("nothing fails");
        assert!(odd.is_empty());
    }
}
