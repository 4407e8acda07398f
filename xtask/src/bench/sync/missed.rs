//! Missed writes: random operations on one side, and after each generation both trees compared.
//!
//! Nothing scans and nothing scrubs. Generations are cut while operations go on, and one more with nobody writing:
//! that one must hold everything. A generation that follows although nothing was written since is a write that it
//! missed, even if the trees are equal by then.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use understudy_testbed::FileSystem;

use super::stage::{Plan, Stage};
use super::tree::differences;
use crate::bench::Wanted;
use crate::bench::report::{Better, Judged, Kind, Row};
use crate::shell::say;

pub(super) const KIND: Kind = Kind {
    id: "missed_writes",
    unit: "",
    better: Better::Lower,
    judged: Judged::Ours,
    must: Some(0.0),
    goal: Some(0.0),
};

/// File systems with a tracker.
pub(crate) const FILE_SYSTEMS: [FileSystem; 3] = [FileSystem::EXT4, FileSystem::XFS, FileSystem::BTRFS];

/// What is there before the first operation.
const FIRST_FILE: u64 = 64 << 10;
const FIRST_FILES: u64 = 16;
/// The files are patched after the acknowledgement.
const PATCHED_MAX: Duration = Duration::from_secs(20);
const PATCHED_POLL: Duration = Duration::from_millis(2);
/// Names that are told.
const TOLD_MAX: usize = 20;
const TELL_EVERY: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    pub(crate) file_system: FileSystem,
    pub(crate) operations: u64,
    /// Operations before each comparison.
    pub(crate) stretch: u64,
    pub(crate) seed: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Outcome {
    /// That took effect.
    pub(crate) operations: u64,
    /// After which both trees were compared.
    pub(crate) generations: u64,
    pub(crate) missed_writes: u64,
    /// Files that were read again since the tracker was not sure of them: what is proved of these is less.
    pub(crate) unknown: u64,
    pub(crate) seconds: f64,
    /// The first of them, with the generation.
    pub(crate) missed: Vec<String>,
    /// What was done since the comparison before, when something was missed.
    pub(crate) played: Vec<String>,
}

#[derive(Deserialize)]
struct Churned {
    played: Vec<String>,
    generation: u64,
}

#[derive(Deserialize)]
struct Newest {
    generation: u64,
}

pub(super) fn row(wanted: &Wanted) -> Row {
    measure(wanted).unwrap_or_else(|why| Row::missing(KIND, format!("{why:#}")))
}

fn measure(wanted: &Wanted) -> Result<Row> {
    let (operations, stretch) = if wanted.quick { (300, 10) } else { (10_000, 8) };
    let (mut all, mut notes) = (0, Vec::new());
    for file_system in FILE_SYSTEMS {
        let course = Course {
            file_system,
            operations,
            stretch,
            seed: 1,
        };
        let (load, directory) = (wanted.programs.path("understudy-load"), wanted.directory("sync")?);
        let outcome = run(load, directory, course, &mut |line| say("churn", line))?;
        all += outcome.missed_writes;
        notes.push(format!(
            "{}: {} operations, {} generations compared, {} files doubted",
            file_system.name, outcome.operations, outcome.generations, outcome.unknown
        ));
        notes.extend(outcome.missed);
    }
    Ok(Row::measured(KIND, vec![all as f64]).noting(notes.join("; ")))
}

/// Ends with the first generation that missed something. `directory` is empty; `tell` gets a line at a time.
///
/// # Errors
/// When the course could not be run.
pub(crate) fn run(
    load: PathBuf,
    directory: PathBuf,
    course: Course,
    tell: &mut dyn FnMut(&str),
) -> Result<Outcome> {
    let plan = Plan::new(load, directory, FIRST_FILE, FIRST_FILES).on(course.file_system);
    let mut stage = Stage::prepare(Plan {
        seed: course.seed,
        ..plan
    })?;
    stage.attach()?;
    let name = course.file_system.name;
    let (begun, mut told) = (Instant::now(), Instant::now());
    let mut outcome = Outcome::default();
    while outcome.operations < course.operations && outcome.missed_writes == 0 {
        let stretch = course.stretch.min(course.operations - outcome.operations);
        let Churned { played, generation } = stage.order(&format!("churn {stretch}"))?;
        outcome.operations += stretch;
        outcome.generations += 1;
        let missed = missed(&mut stage, generation)?;
        outcome.missed_writes = missed.len() as u64;
        if !missed.is_empty() {
            outcome.played = played;
        }
        let told_of = missed.into_iter().take(TOLD_MAX);
        outcome.missed = told_of
            .map(|what| format!("{name}, generation {generation}: {what}"))
            .collect();
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(&format!(
                "{name}: {:.0} s, {} of {} operations, {} generations, nothing missed",
                begun.elapsed().as_secs_f64(),
                outcome.operations,
                course.operations,
                outcome.generations
            ));
        }
    }
    let figures = stage.figures()?;
    anyhow::ensure!(figures.tracked, "the kernel does not track the files on {name}");
    outcome.unknown = figures.unknown;
    outcome.seconds = begun.elapsed().as_secs_f64();
    for what in outcome.missed.iter().chain(&outcome.played) {
        tell(what);
    }
    Ok(outcome)
}

/// What the shadow does not have of a generation that nothing was written after.
fn missed(stage: &mut Stage, generation: u64) -> Result<Vec<String>> {
    let [ours, theirs] = stage.trees();
    let until = Instant::now() + PATCHED_MAX;
    let mut differ = differences(&ours, &theirs)?;
    while !differ.is_empty() && Instant::now() < until {
        sleep(PATCHED_POLL);
        differ = differences(&ours, &theirs)?;
    }
    let newest: Newest = stage.order("newest")?;
    if newest.generation != generation {
        differ.push(format!(
            "generation {} followed although nothing was written",
            newest.generation
        ));
    }
    Ok(differ)
}
