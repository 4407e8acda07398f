//! Random operations on a small tree: everything that can change what a shadow must have.
//!
//! Invariants: the same seed gives the same operations as long as the file system lets the same ones be done; one
//! that is refused counts for nothing; no name, file or mapping is beyond the bounds below.

mod act;
mod mapping;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use self::act::{Act, Round};
use self::mapping::Mapping;
use super::files::Dice;

/// What is refused is tried otherwise; more in a row means that nothing works.
const REFUSED_MAX: u64 = 10_000;
/// Mappings that are stored to again after later cuts.
const HELD_MAX: usize = 6;
/// Between two operations that are to meet a cut.
const PAUSE_US: u64 = 1_200;

pub(super) struct Churn {
    root: PathBuf,
    dice: Dice,
    /// At most [`HELD_MAX`], the oldest first.
    held: VecDeque<Mapping>,
}

impl Churn {
    pub(super) fn new(root: PathBuf, seed: u64) -> Self {
        Self {
            root,
            // Seeds that differ little give streams that differ much.
            dice: Dice::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(17)),
            held: VecDeque::new(),
        }
    }

    /// So many operations that took effect; `spread` over some milliseconds. Returns them in words.
    pub(super) fn play(&mut self, operations: u64, spread: bool) -> Result<Vec<String>> {
        let mut played = Vec::new();
        for _ in 0..operations {
            if spread {
                std::thread::sleep(Duration::from_micros(self.dice.below(PAUSE_US)));
            }
            let mut refused = 0;
            played.push(loop {
                if let Some(act) = self.act()? {
                    break act;
                }
                refused += 1;
                ensure!(refused < REFUSED_MAX, "the file system refuses everything");
            });
        }
        Ok(played)
    }

    /// None when the file system refused it, or what it needs is not there.
    fn act(&mut self) -> Result<Option<String>> {
        let which = Act::roll(&mut self.dice);
        let mut round = Round {
            root: &self.root,
            dice: &mut self.dice,
            held: &mut self.held,
            chosen: Vec::new(),
        };
        let played = which.play(&mut round);
        let mut words = format!("{which:?}");
        for path in &round.chosen {
            let name = path.strip_prefix(&self.root).unwrap_or(path);
            words.push_str(&format!(" {}", name.display()));
        }
        match played {
            Ok(done) => Ok(done.then_some(words)),
            Err(error) if is_refusal(&error) => Ok(None),
            Err(error) => Err(error).context(words),
        }
    }
}

/// What is there does not let it be done; everything else is trouble.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AlreadyExists, DirectoryNotEmpty, InvalidInput, IsADirectory, NotADirectory, NotFound, Unsupported,
    };
    matches!(
        error.kind(),
        AlreadyExists
            | DirectoryNotEmpty
            | InvalidInput
            | IsADirectory
            | NotADirectory
            | NotFound
            | Unsupported
    )
}
