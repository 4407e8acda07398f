//! `soak sync`: random operations on real disks, and no write that a generation misses.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use crate::bench::Programs;
use crate::bench::missed::{self, Course, FILE_SYSTEMS, Outcome};
use crate::repo;

/// Operations before each comparison.
const STRETCH: u64 = 20;

pub(super) fn run(operations: u64, seed: u64, json: bool) -> Result<ExitCode> {
    if let Some(reason) = understudy_testbed::missing() {
        bail!("the soak cannot run here: {reason}");
    }
    let outcomes = courses(operations, seed)?;
    if json {
        println!("{}", document(seed, &outcomes)?);
    } else {
        table(&outcomes);
    }
    let missed = outcomes.iter().any(|(_, outcome)| outcome.missed_writes > 0);
    Ok(ExitCode::from(u8::from(missed)))
}

/// By the name of each file system.
fn courses(operations: u64, seed: u64) -> Result<Vec<(&'static str, Outcome)>> {
    let load = Programs::found()?.path("understudy-load");
    let mut outcomes = Vec::new();
    for file_system in FILE_SYSTEMS {
        let course = Course {
            file_system,
            operations,
            stretch: STRETCH,
            seed,
        };
        let tell = &mut |line: &str| eprintln!("{line}");
        let outcome = missed::run(load.clone(), directory()?, course, tell)?;
        outcomes.push((file_system.name, outcome));
    }
    Ok(outcomes)
}

/// Empty, for the files of one course.
fn directory() -> Result<PathBuf> {
    let directory = repo::root().join("target/soak/sync");
    if directory.exists() {
        std::fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
    }
    std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    Ok(directory)
}

/// The sums, and each file system under its name.
fn document(seed: u64, outcomes: &[(&'static str, Outcome)]) -> Result<Value> {
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(|(_, outcome)| of(outcome)).sum::<u64>();
    let mut document = Map::new();
    document.insert("soak".to_owned(), json!("sync"));
    document.insert("seed".to_owned(), json!(seed));
    document.insert("operations".to_owned(), json!(sum(|outcome| outcome.operations)));
    document.insert(
        "generations".to_owned(),
        json!(sum(|outcome| outcome.generations)),
    );
    document.insert(
        "missed_writes".to_owned(),
        json!(sum(|outcome| outcome.missed_writes)),
    );
    for (name, outcome) in outcomes {
        let mut one = serde_json::to_value(outcome)?;
        one["seed"] = json!(seed);
        document.insert((*name).to_owned(), one);
    }
    Ok(Value::Object(document))
}

fn table(outcomes: &[(&'static str, Outcome)]) {
    for (name, outcome) in outcomes {
        println!(
            "{name:<8} {} missed of {} operations in {} generations, {:.0} s",
            outcome.missed_writes, outcome.operations, outcome.generations, outcome.seconds
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_soak_misses_nothing() {
        if let Some(reason) = understudy_testbed::missing() {
            println!("skipped: {reason}");
            return;
        }
        if let Err(why) = Programs::found() {
            println!("skipped: {why:#}");
            return;
        }
        let outcomes = courses(400, 7).unwrap();
        let document = document(7, &outcomes).unwrap();
        assert_eq!(document["missed_writes"], 0, "{document}");
        for name in ["ext4", "xfs", "btrfs"] {
            assert_eq!(document[name]["operations"], 400, "{document}");
            assert_eq!(document[name]["generations"], 20, "{document}");
        }
    }
}
