//! Files that are made, written, linked and renamed in the very moments in which cuts look at them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use understudy_common::delta::RelPath;
use understudy_common::id::GenerationId;
use understudy_common::wire::CopyState;

use super::histories::EPOCH;
use super::kernel::{Dice, Sides};
use super::pair::tree;
use crate::sync::testdisk::{Disk, Kind};

const ROUNDS: u64 = 20;
const CYCLES: u64 = 12;
const FILES: u64 = 6;
const DIRS: u64 = 3;

/// What databases and editors do: a new file is written, synced and put in the place of the old one; a
/// log is appended to and put aside; a directory is put in the place of another.
fn play(root: &Path, dice: &mut Dice) -> io::Result<()> {
    let dir = |dice: &mut Dice| root.join(format!("dir-{}", dice.roll(DIRS)));
    let name = |kind: &str, dice: &mut Dice| {
        let below = if dice.roll(3) == 0 {
            dir(dice)
        } else {
            root.to_owned()
        };
        fs::create_dir_all(&below)?;
        io::Result::Ok(below.join(format!("{kind}-{}", dice.roll(FILES))))
    };
    let content = vec![dice.byte(); 1 + dice.roll(9_000) as usize];
    let to = name("file", dice)?;
    match dice.roll(8) {
        0 | 1 => {
            let log = if dice.roll(2) == 0 { to } else { name("log", dice)? };
            let mut file = File::options().append(true).create(true).open(&log)?;
            file.write_all(&content)?;
            fs::rename(&log, name("log", dice)?)
        }
        // In its place while it is still written.
        2 | 3 => {
            let temporary = name("temp", dice)?;
            let mut file = File::create(&temporary)?;
            fs::rename(&temporary, &to)?;
            file.write_all(&content)
        }
        4 => or_not(fs::hard_link(name("file", dice)?, &to)).and_then(|done| match done {
            Some(()) => Ok(()),
            None => or_not(fs::remove_file(&to)).map(drop),
        }),
        5 => or_not(fs::rename(dir(dice), dir(dice))).map(drop),
        how => {
            let temporary = name("temp", dice)?;
            let mut file = File::create(&temporary)?;
            file.write_all(&content)?;
            if how == 6 {
                file.sync_data()?;
            }
            fs::rename(&temporary, &to)
        }
    }
}

/// None when what is there does not let it be done.
fn or_not(result: io::Result<()>) -> io::Result<Option<()>> {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, NotFound};
    match result {
        Err(error) if matches!(error.kind(), AlreadyExists | DirectoryNotEmpty | NotFound) => Ok(None),
        result => result.map(Some),
    }
}

fn differences(sides: &Sides) -> Vec<RelPath> {
    let (from, to) = (tree(&sides.from), tree(&sides.to));
    let paths: BTreeSet<_> = from.keys().chain(to.keys()).collect();
    let differ = paths.into_iter().filter(|path| from.get(path) != to.get(path));
    differ.cloned().collect()
}

#[test]
fn nothing_is_lost_of_files_that_are_renamed_while_they_are_looked_at() {
    race(Kind::Ext4);
}

#[test]
fn nothing_is_lost_of_files_that_are_renamed_while_they_are_looked_at_on_xfs() {
    race(Kind::Xfs);
}

#[test]
fn nothing_is_lost_of_files_that_are_renamed_while_they_are_looked_at_on_btrfs() {
    race(Kind::Btrfs);
}

fn race(kind: Kind) {
    let Some(disk) = Disk::of(kind, 192) else { return };
    let sides = Sides::below(&disk.root());
    let mut joined = sides.joined();
    let (step, paused, ended) = (Mutex::new(()), AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut dice = Dice::new(0xACE);
            let mut steps = 0_u64;
            while !ended.load(Ordering::Relaxed) {
                // A mutex alone would always go to the one who just had it.
                while paused.load(Ordering::Relaxed) && !ended.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
                let _turn = step.lock().expect("the other side lives");
                play(&sides.from, &mut dice).expect("there is room");
                steps += 1;
            }
            steps
        });
        let mut n = 0;
        let mut differ = Vec::new();
        for _ in 0..ROUNDS {
            for _ in 0..CYCLES {
                n += 1;
                joined.cycle(n);
            }
            paused.store(true, Ordering::Relaxed);
            let pause = step.lock().expect("the other side lives");
            n += 1;
            joined.cut_live(n);
            joined.deliver();
            differ = differences(&sides);
            if !differ.is_empty() {
                break;
            }
            drop(pause);
            paused.store(false, Ordering::Relaxed);
        }
        ended.store(true, Ordering::Relaxed);
        let steps = writer.join().expect("it ended");
        assert!(
            differ.is_empty(),
            "generation {n}, after {steps} steps: {differ:?}"
        );
        assert!(
            steps > ROUNDS * CYCLES,
            "only {steps} steps in {n} cycles: no race"
        );
        assert_eq!(joined.store.generation(), Some(GenerationId { epoch: EPOCH, n }));
        assert_eq!(joined.store.copy(), CopyState::Ready);
    });
    assert_eq!(joined.figures().unknown, 0, "nothing forced a re-read");
}
