//! A host's cgroups: one cgroup2 directory, and where the machine has them the v1 controllers
//! memory, cpu, cpuacct and blkio beside it. A process sits in all of them.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::clock::wait_for;

const V1: [&str; 4] = ["memory", "cpu", "cpuacct", "blkio"];

/// Where the hierarchies are mounted.
#[derive(Clone, Debug)]
pub struct CgroupRoots {
    pub unified: PathBuf,
    /// Controller and its directory, for those on v1.
    pub v1: Vec<(String, PathBuf)>,
}

impl CgroupRoots {
    pub fn discover() -> Result<Self> {
        Self::from_mounts(&fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?)
    }

    fn from_mounts(mounts: &str) -> Result<Self> {
        let (mut unified, mut v1) = (None, Vec::new());
        for line in mounts.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [_, at, kind, options, ..] = words[..] else {
                continue;
            };
            match kind {
                "cgroup2" => unified = Some(PathBuf::from(at)),
                "cgroup" => {
                    for controller in options.split(',').filter(|word| V1.contains(word)) {
                        v1.push((controller.to_owned(), PathBuf::from(at)));
                    }
                }
                _ => {}
            }
        }
        match unified {
            Some(unified) => Ok(Self { unified, v1 }),
            None => bail!("no cgroup2 hierarchy is mounted"),
        }
    }

    /// All directories called `name` directly under the roots.
    pub(crate) fn named(&self, name: &str) -> Vec<PathBuf> {
        let mut all = vec![self.unified.join(name)];
        all.extend(self.v1.iter().map(|(_, at)| at.join(name)));
        all.sort();
        all.dedup();
        all
    }
}

/// The directories of one host, or of all.
#[derive(Debug)]
pub struct Cgroups {
    roots: CgroupRoots,
    name: String,
}

impl Cgroups {
    /// `run` is the directory of the run, `host` one below it.
    pub(crate) fn make(roots: &CgroupRoots, run: &str, host: &str) -> Result<Self> {
        let made = Self {
            roots: roots.clone(),
            name: format!("{run}/{host}"),
        };
        for directory in roots.named(&made.name) {
            fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        }
        if roots.v1.is_empty() {
            delegate(&roots.unified, run)?;
        }
        Ok(made)
    }

    /// Those of the whole run.
    pub(crate) fn of_run(roots: &CgroupRoots, run: &str) -> Self {
        Self {
            roots: roots.clone(),
            name: run.to_owned(),
        }
    }

    /// The cgroup2 directory.
    pub fn unified(&self) -> PathBuf {
        self.roots.unified.join(&self.name)
    }

    /// The directory of a v1 controller; none where the controller is on cgroup2.
    pub fn v1(&self, controller: &str) -> Option<PathBuf> {
        let (_, root) = self.roots.v1.iter().find(|(name, _)| name == controller)?;
        Some(root.join(&self.name))
    }

    pub fn set_memory_limit(&self, bytes: u64) -> Result<()> {
        match self.v1("memory") {
            Some(directory) => write(&directory.join("memory.limit_in_bytes"), &bytes.to_string()),
            None => write(&self.unified().join("memory.max"), &bytes.to_string()),
        }
    }

    /// Bytes charged to the host's memory cgroup, page cache included.
    pub fn memory_usage(&self) -> Result<u64> {
        let path = match self.v1("memory") {
            Some(directory) => directory.join("memory.usage_in_bytes"),
            None => self.unified().join("memory.current"),
        };
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.trim().parse().with_context(|| path.display().to_string())
    }

    /// Limits writes to a block device (`major:minor`); none lifts the limit.
    pub fn set_write_bps(&self, device: &str, bps: Option<u64>) -> Result<()> {
        match self.v1("blkio") {
            Some(directory) => {
                let line = format!("{device} {}", bps.unwrap_or(0));
                write(&directory.join("blkio.throttle.write_bps_device"), &line)
            }
            None => {
                let limit = bps.map_or("max".to_owned(), |bps| bps.to_string());
                write(&self.unified().join("io.max"), &format!("{device} wbps={limit}"))
            }
        }
    }

    /// Limits reads from a block device (`major:minor`); none lifts the limit.
    pub fn set_read_bps(&self, device: &str, bps: Option<u64>) -> Result<()> {
        match self.v1("blkio") {
            Some(directory) => {
                let line = format!("{device} {}", bps.unwrap_or(0));
                write(&directory.join("blkio.throttle.read_bps_device"), &line)
            }
            None => {
                let limit = bps.map_or("max".to_owned(), |bps| bps.to_string());
                write(&self.unified().join("io.max"), &format!("{device} rbps={limit}"))
            }
        }
    }

    /// Its weight against its siblings; 1024 is what each has by itself.
    pub fn set_cpu_shares(&self, shares: u64) -> Result<()> {
        match self.v1("cpu") {
            Some(directory) => write(&directory.join("cpu.shares"), &shares.to_string()),
            None => {
                let weight = (shares * 100 / 1_024).clamp(1, 10_000);
                write(&self.unified().join("cpu.weight"), &weight.to_string())
            }
        }
    }

    /// Processor time that all in it took, in nanoseconds.
    pub fn cpu_usage_ns(&self) -> Result<u64> {
        if let Some(directory) = self.v1("cpuacct") {
            let path = directory.join("cpuacct.usage");
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            return text.trim().parse().with_context(|| path.display().to_string());
        }
        let path = self.unified().join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let us = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        let us: u64 = us.and_then(|word| word.parse().ok()).context("usage_usec")?;
        Ok(us * 1_000)
    }

    /// Open `cgroup.procs` of every hierarchy: writing `0` moves the writer in.
    pub(crate) fn doors(&self) -> Result<Vec<File>> {
        self.roots
            .named(&self.name)
            .into_iter()
            .map(|directory| {
                let path = directory.join("cgroup.procs");
                OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .with_context(|| path.display().to_string())
            })
            .collect()
    }

    /// SIGKILL to every process in it and below, frozen ones too, in one instant.
    pub(crate) fn kill(&self) -> Result<()> {
        write(&self.unified().join("cgroup.kill"), "1")
    }

    pub(crate) fn wait_empty(&self) -> Result<()> {
        let events = self.unified().join("cgroup.events");
        wait_for("the host's processes to end", Duration::from_secs(20), || {
            let text = fs::read_to_string(&events).ok()?;
            text.contains("populated 0").then_some(())
        })
    }
}

/// Kills and removes everything called `name`. What is not there is fine.
pub(crate) fn remove_all(roots: &CgroupRoots, name: &str) {
    let unified = roots.unified.join(name);
    let _ = fs::write(unified.join("cgroup.kill"), "1");
    for directory in roots.named(name) {
        let _ = wait_for("a cgroup to be removed", Duration::from_secs(10), || {
            remove_tree(&directory);
            (!directory.exists()).then_some(())
        });
    }
}

fn remove_tree(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(directory);
}

/// Lets the run's hosts have controllers of their own on a cgroup2-only machine.
fn delegate(unified: &Path, run: &str) -> Result<()> {
    for directory in [unified.to_owned(), unified.join(run)] {
        write(&directory.join("cgroup.subtree_control"), "+memory +io +cpu")?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing `{text}` to {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_a_hybrid_mount_table() {
        let roots = CgroupRoots::from_mounts(
            "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
             cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n",
        )
        .expect("a cgroup2 line is there");
        assert_eq!(roots.unified, Path::new("/sys/fs/cgroup/unified"));
        let names: Vec<&str> = roots.v1.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cpu", "cpuacct", "memory"]);
        assert_eq!(roots.named("x").len(), 3);
    }

    #[test]
    fn a_machine_without_cgroup2_is_told_so() {
        assert!(CgroupRoots::from_mounts("proc /proc proc rw 0 0\n").is_err());
    }
}
