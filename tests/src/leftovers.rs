//! What a run leaves when it is killed, and how the next one finds and removes it.
//!
//! The run's directory is named after it and holds the process id and start time of its owner. A
//! directory whose owner is gone is a leftover; its cgroups have the same name. Loop devices and
//! namespaces go by themselves.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use anyhow::{Context, Result};

use crate::cgroup::{self, CgroupRoots};

const PREFIX: &str = "understudy-bed-";
const OWNER: &str = "owner";

/// Makes the directory of a new run.
pub(crate) fn claim(area: &str) -> Result<(String, PathBuf)> {
    let pid = process::id();
    let started = start_time(pid).unwrap_or_default();
    let mut number = 0;
    loop {
        let name = format!("{PREFIX}{area}-{pid}-{number}");
        let directory = env::temp_dir().join(&name);
        match fs::create_dir(&directory) {
            Ok(()) => {
                fs::write(directory.join(OWNER), format!("{pid} {started}"))?;
                return Ok((name, directory));
            }
            Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(why) => return Err(why).with_context(|| directory.display().to_string()),
        }
    }
}

/// Removes what runs left whose owners are gone.
pub(crate) fn sweep(roots: &CgroupRoots) {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) && !owner_lives(&entry.path()) {
            remove(roots, &name, &entry.path());
        }
    }
}

pub(crate) fn remove(roots: &CgroupRoots, name: &str, directory: &Path) {
    cgroup::remove_all(roots, name);
    let _ = fs::remove_dir_all(directory);
}

/// A directory without an owner file is one being made: its name holds the id.
fn owner_lives(directory: &Path) -> bool {
    let Ok(text) = fs::read_to_string(directory.join(OWNER)) else {
        let name = directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let pid = name.rsplit('-').nth(1).and_then(|word| word.parse().ok());
        return pid.is_some_and(|pid| start_time(pid).is_some());
    };
    let mut words = text.split(' ');
    let (Some(Ok(pid)), Some(started)) = (words.next().map(str::parse), words.next()) else {
        return true;
    };
    start_time(pid).is_some_and(|now| now == started)
}

/// Field 22 of `/proc/PID/stat`; with the id it names one process for ever.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(") ")?.1;
    after_name.split(' ').nth(19).map(str::to_owned)
}
