//! One random operation.
//!
//! Not among them: what changes a modification time and nothing else, which no source of changes sees.

use std::collections::VecDeque;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};

use super::super::files::Dice;
use super::HELD_MAX;
use super::mapping::Mapping;

/// Names of files in each directory.
const FILES: u64 = 9;
const BLOCK: u64 = 4_096;
/// Writes begin below this.
const OFFSET_MAX: u64 = 160 << 10;
/// What a file grows to at most, nearly.
const BYTES_MAX: u64 = 256 << 10;
const PIECE_MAX: u64 = 20_000;
const DIRECTORIES: [&str; 5] = ["", "d0", "d1", "d0/e0", "d1/e1"];
const OWNERS: u32 = 3;

#[derive(Clone, Copy, Debug)]
pub(super) enum Act {
    Create,
    Write,
    WriteSynced,
    Append,
    Truncate,
    Replace,
    StoreMapped,
    StoreHeld,
    Rename,
    Exchange,
    Unlink,
    Link,
    Symlink,
    MakeDirectory,
    RemoveDirectory,
    RemoveTree,
    RenameDirectory,
    Mode,
    Owner,
    Punch,
    Zero,
    Allocate,
    Collapse,
    Insert,
    Copy,
}

/// Each with its share of all.
const ACTS: [(Act, u64); 25] = [
    (Act::Create, 4),
    (Act::Write, 20),
    (Act::WriteSynced, 2),
    (Act::Append, 10),
    (Act::Truncate, 7),
    (Act::Replace, 4),
    (Act::StoreMapped, 10),
    (Act::StoreHeld, 9),
    (Act::Rename, 9),
    (Act::Exchange, 2),
    (Act::Unlink, 5),
    (Act::Link, 4),
    (Act::Symlink, 2),
    (Act::MakeDirectory, 6),
    (Act::RemoveDirectory, 2),
    (Act::RemoveTree, 1),
    (Act::RenameDirectory, 3),
    (Act::Mode, 4),
    (Act::Owner, 3),
    (Act::Punch, 4),
    (Act::Zero, 2),
    (Act::Allocate, 3),
    (Act::Collapse, 1),
    (Act::Insert, 1),
    (Act::Copy, 3),
];

impl Act {
    pub(super) fn roll(dice: &mut Dice) -> Self {
        let all = ACTS.iter().map(|(_, share)| share).sum();
        let mut at = dice.below(all);
        for (act, share) in ACTS {
            if at < share {
                return act;
            }
            at -= share;
        }
        Self::Write
    }

    /// False when what it needs is not there.
    pub(super) fn play(self, round: &mut Round<'_>) -> io::Result<bool> {
        let target = round.file();
        match self {
            Self::Create => File::create_new(&target)?.write_all(&round.piece())?,
            Self::Write | Self::WriteSynced => {
                let options = File::options().create(true).truncate(false).write(true).clone();
                let file = options.open(&target)?;
                file.write_all_at(&round.piece(), round.dice.below(OFFSET_MAX))?;
                if matches!(self, Self::WriteSynced) {
                    file.sync_data()?;
                }
            }
            Self::Append => {
                let mut file = File::options().append(true).create(true).open(&target)?;
                if file.metadata()?.len() > BYTES_MAX {
                    return Ok(false);
                }
                file.write_all(&round.piece())?;
            }
            Self::Truncate => {
                let (file, len) = (writable(&target)?, round.dice.below(OFFSET_MAX));
                if file.metadata()?.len() == len {
                    return Ok(false);
                }
                file.set_len(len)?;
            }
            Self::Replace => {
                let new = target.with_extension("new");
                fs::write(&new, round.piece())?;
                fs::rename(new, target)?;
            }
            Self::StoreMapped => return store(&target, round),
            Self::StoreHeld => {
                let Some(at) =
                    (!round.held.is_empty()).then(|| round.dice.below(round.held.len() as u64) as usize)
                else {
                    return Ok(false);
                };
                let mapping = &round.held[at];
                round.chosen.push(mapping.path.clone());
                return mapping.store(round.dice);
            }
            Self::Rename => {
                let to = round.file();
                if to == target {
                    return Ok(false);
                }
                fs::rename(target, to)?;
            }
            Self::Exchange => {
                let other = round.file();
                renameat2(AT_FDCWD, &target, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE)?;
            }
            Self::Unlink => fs::remove_file(target)?,
            Self::Link => fs::hard_link(target, round.file())?,
            Self::Symlink => symlink(format!("to-{}", round.dice.below(FILES)), target)?,
            Self::MakeDirectory => fs::create_dir(round.directory())?,
            Self::RemoveDirectory | Self::RemoveTree | Self::RenameDirectory => {
                return self.play_below(round);
            }
            Self::Mode => {
                let mode = 0o600 | (round.dice.below(0o100) as u32);
                fs::set_permissions(target, Permissions::from_mode(mode))?;
            }
            Self::Owner => {
                let mut owner = || Some(round.dice.below(u64::from(OWNERS)) as u32);
                std::os::unix::fs::lchown(target, owner(), owner())?;
            }
            Self::Punch | Self::Zero | Self::Allocate | Self::Collapse | Self::Insert => {
                return self.allocate(&target, round.dice);
            }
            // The kernel copies it, or shares it where the file system can.
            Self::Copy => {
                let mut from = File::open(&target)?;
                io::copy(&mut from, &mut File::create(round.file())?)?;
            }
        }
        Ok(true)
    }

    /// Of directories other than the root.
    fn play_below(self, round: &mut Round<'_>) -> io::Result<bool> {
        let (target, other) = (round.directory(), round.directory());
        if target == round.root || other == round.root {
            return Ok(false);
        }
        match self {
            Self::RemoveDirectory => fs::remove_dir(target)?,
            Self::RemoveTree => fs::remove_dir_all(target)?,
            _ => fs::rename(target, other)?,
        }
        Ok(true)
    }

    /// Blocks rather than bytes.
    fn allocate(self, target: &Path, dice: &mut Dice) -> io::Result<bool> {
        let file = writable(target)?;
        let len = file.metadata()?.len();
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (flags, aligned) = match self {
            Self::Punch => (FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep, false),
            Self::Zero => (FallocateFlags::FALLOC_FL_ZERO_RANGE, false),
            Self::Collapse => (FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, true),
            Self::Insert => (FallocateFlags::FALLOC_FL_INSERT_RANGE, true),
            _ => (FallocateFlags::empty(), false),
        };
        if matches!(self, Self::Allocate | Self::Insert) && len > BYTES_MAX {
            return Ok(false);
        }
        let (mut at, mut bytes) = (dice.below(OFFSET_MAX), 1 + dice.below(PIECE_MAX));
        if aligned {
            at = at / BLOCK * BLOCK;
            bytes = bytes.next_multiple_of(BLOCK);
        }
        if matches!(self, Self::Allocate) {
            // What lies inside the file changes nothing but its modification time.
            bytes += len.saturating_sub(at);
        }
        let offset = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        fallocate(file, flags, offset(at), offset(bytes))?;
        Ok(true)
    }
}

/// Into a mapping that is given up at once or held.
fn store(target: &Path, round: &mut Round<'_>) -> io::Result<bool> {
    let Some(mapping) = Mapping::of(target)? else {
        return Ok(false);
    };
    let stored = mapping.store(round.dice)?;
    if round.dice.below(2) == 0 {
        if round.held.len() == HELD_MAX {
            round.held.pop_front();
        }
        round.held.push_back(mapping);
    }
    Ok(stored)
}

fn writable(path: &Path) -> io::Result<File> {
    File::options().write(true).open(path)
}

/// What one operation draws from.
pub(super) struct Round<'a> {
    pub(super) root: &'a Path,
    pub(super) dice: &'a mut Dice,
    pub(super) held: &'a mut VecDeque<Mapping>,
    /// The names that it was about so far.
    pub(super) chosen: Vec<PathBuf>,
}

impl Round<'_> {
    fn directory(&mut self) -> PathBuf {
        let path = self.any_directory();
        self.chosen.push(path.clone());
        path
    }

    fn file(&mut self) -> PathBuf {
        let path = self.any_directory().join(format!("f{}", self.dice.below(FILES)));
        self.chosen.push(path.clone());
        path
    }

    fn any_directory(&mut self) -> PathBuf {
        match DIRECTORIES[self.dice.below(DIRECTORIES.len() as u64) as usize] {
            "" => self.root.to_owned(),
            name => self.root.join(name),
        }
    }

    /// A few bytes as often as many.
    fn piece(&mut self) -> Vec<u8> {
        let most = if self.dice.below(3) == 0 { 64 } else { PIECE_MAX };
        let mut bytes = vec![0; 1 + self.dice.below(most) as usize];
        self.dice.fill(&mut bytes);
        bytes
    }
}
