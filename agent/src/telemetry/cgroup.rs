//! Control group files, v1 and v2.
//!
//! Invariant: a file that is missing or unreadable puts nothing into the sample, which masks its features.

use std::path::{Path, PathBuf};

use understudy_common::beacon::{Feature, Source};

use super::fold::{Sample, Signal};
use super::memory::MemoryUse;

/// The value behind `key ` in a flat keyed file.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?
        .trim()
        .parse()
        .ok()
}

fn read(dir: &Path, file: &str) -> Option<String> {
    std::fs::read_to_string(dir.join(file)).ok()
}

fn number(dir: &Path, file: &str) -> Option<u64> {
    read(dir, file)?.trim().parse().ok()
}

/// The memory controller's directory of a scope.
#[derive(Debug)]
pub struct MemoryGroup {
    dir: PathBuf,
    v1: bool,
    host_bytes: u64,
}

impl MemoryGroup {
    pub fn new(dir: PathBuf, host_bytes: u64) -> Self {
        let v1 = dir.join("memory.usage_in_bytes").exists();
        Self { dir, v1, host_bytes }
    }

    pub fn sample(&self, all: bool, sample: &mut Sample) {
        let Some(stat) = read(&self.dir, "memory.stat") else {
            return;
        };
        let found = if self.v1 {
            self.use_v1(&stat)
        } else {
            self.use_v2(&stat)
        };
        if let Some(found) = found {
            found.put(Source::Cgroup, sample);
        }
        if !all {
            return;
        }
        let (faults, hits, kills) = if self.v1 {
            (
                keyed(&stat, "total_pgmajfault"),
                number(&self.dir, "memory.failcnt"),
                read(&self.dir, "memory.oom_control").and_then(|text| keyed(&text, "oom_kill")),
            )
        } else {
            let events = read(&self.dir, "memory.events").unwrap_or_default();
            (
                keyed(&stat, "pgmajfault"),
                keyed(&events, "max"),
                keyed(&events, "oom_kill"),
            )
        };
        for (feature, total) in [
            (Feature::MajorFaultsPerSecond, faults),
            (Feature::MemoryLimitHitsPerSecond, hits),
            (Feature::OomKillsPerSecond, kills),
        ] {
            if let Some(total) = total {
                sample.put_if_missing(feature, Source::Cgroup, Signal::total(total));
            }
        }
    }

    fn use_v1(&self, stat: &str) -> Option<MemoryUse> {
        let shmem = keyed(stat, "total_shmem").unwrap_or(0);
        Some(MemoryUse {
            limit: keyed(stat, "hierarchical_memory_limit")?.min(self.host_bytes),
            used: number(&self.dir, "memory.usage_in_bytes")?,
            anon: keyed(stat, "total_rss")?.saturating_add(shmem),
            file: keyed(stat, "total_cache")?.saturating_sub(shmem),
            droppable: keyed(stat, "total_inactive_file")?.saturating_add(keyed(stat, "total_active_file")?),
            dirty: keyed(stat, "total_dirty"),
            writeback: keyed(stat, "total_writeback"),
        })
    }

    fn use_v2(&self, stat: &str) -> Option<MemoryUse> {
        let shmem = keyed(stat, "shmem").unwrap_or(0);
        // "max" is no number: then the machine is the limit.
        let limit = number(&self.dir, "memory.max").unwrap_or(u64::MAX);
        Some(MemoryUse {
            limit: limit.min(self.host_bytes),
            used: number(&self.dir, "memory.current")?,
            anon: keyed(stat, "anon")?.saturating_add(shmem),
            file: keyed(stat, "file")?.saturating_sub(shmem),
            droppable: keyed(stat, "inactive_file")?.saturating_add(keyed(stat, "active_file")?),
            dirty: keyed(stat, "file_dirty"),
            writeback: keyed(stat, "file_writeback"),
        })
    }
}

/// CPU time and quota of a scope.
#[derive(Debug)]
pub struct CpuGroup {
    /// The cgroup2 directory, which accounts CPU time with and without the controller.
    pub usage: Option<PathBuf>,
    /// The controller's directory, v1 or v2.
    pub quota: Option<PathBuf>,
    pub host_cpus: u32,
}

impl CpuGroup {
    pub fn sample(&self, sample: &mut Sample) {
        let quota = self.quota.as_deref();
        if let Some(used_us) = self.used_us() {
            let cpus = quota.and_then(quota_cpus).unwrap_or(f64::from(self.host_cpus));
            let share = Signal::Total {
                value: used_us,
                scale: 1e-6 / cpus,
            };
            sample.put(Feature::CpuUsedShare, Source::Cgroup, share);
        }
        let stat = quota.and_then(|dir| read(dir, "cpu.stat")).unwrap_or_default();
        if let (Some(part), Some(whole)) = (keyed(&stat, "nr_throttled"), keyed(&stat, "nr_periods")) {
            sample.put(
                Feature::CpuThrottledShare,
                Source::Cgroup,
                Signal::Ratio { part, whole },
            );
        }
    }

    fn used_us(&self) -> Option<u64> {
        if let Some(dir) = &self.usage {
            return keyed(&read(dir, "cpu.stat")?, "usage_usec");
        }
        // v1 with `cpu` and `cpuacct` mounted together.
        Some(number(self.quota.as_deref()?, "cpuacct.usage")? / 1_000)
    }
}

/// CPUs' worth of time that a quota allows; `None` without a quota.
fn quota_cpus(dir: &Path) -> Option<f64> {
    let (quota, period) = match read(dir, "cpu.max") {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse::<f64>().ok()?, period.parse::<f64>().ok()?)
        }
        None => {
            let period = number(dir, "cpu.cfs_period_us")? as f64;
            // -1 is no quota and no unsigned number.
            (number(dir, "cpu.cfs_quota_us")? as f64, period)
        }
    };
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use understudy_common::beacon::Beacon;
    use understudy_common::id::HostId;
    use understudy_common::units::BootTime;

    use super::*;
    use crate::telemetry::fold::Fold;

    const MIB: u64 = 1 << 20;

    fn folded(samples: [Sample; 2]) -> Beacon {
        let mut fold = Fold::new(HostId(1));
        let [first, second] = samples;
        fold.take(BootTime(0), first);
        fold.take(BootTime(1_000_000_000), second).unwrap()
    }

    fn memory(dir: &Path) -> Beacon {
        let group = MemoryGroup::new(dir.to_owned(), 1 << 40);
        let sample = || {
            let mut sample = Sample::default();
            group.sample(true, &mut sample);
            sample
        };
        folded([sample(), sample()])
    }

    #[test]
    fn both_versions_tell_a_leak_from_page_cache() {
        let v1 = tempfile::tempdir().unwrap();
        let write = |dir: &Path, file: &str, text: String| std::fs::write(dir.join(file), text).unwrap();
        write(v1.path(), "memory.usage_in_bytes", format!("{}\n", 80 * MIB));
        write(
            v1.path(),
            "memory.stat",
            format!(
                "cache 1\nrss 1\nhierarchical_memory_limit {}\ntotal_cache {}\ntotal_rss {}\ntotal_shmem {}\n\
                 total_dirty 4096\ntotal_writeback 0\ntotal_inactive_file {}\ntotal_active_file {}\n\
                 total_pgmajfault 3\n",
                100 * MIB,
                50 * MIB,
                20 * MIB,
                10 * MIB,
                30 * MIB,
                10 * MIB
            ),
        );
        write(
            v1.path(),
            "memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n".to_owned(),
        );
        write(v1.path(), "memory.failcnt", "0\n".to_owned());

        let v2 = tempfile::tempdir().unwrap();
        write(v2.path(), "memory.current", format!("{}\n", 80 * MIB));
        write(v2.path(), "memory.max", format!("{}\n", 100 * MIB));
        write(
            v2.path(),
            "memory.stat",
            format!(
                "anon {}\nfile {}\nshmem {}\nfile_dirty 4096\nfile_writeback 0\ninactive_anon 9\n\
                 inactive_file {}\nactive_file {}\npgmajfault 3\n",
                20 * MIB,
                50 * MIB,
                10 * MIB,
                30 * MIB,
                10 * MIB
            ),
        );
        write(
            v2.path(),
            "memory.events",
            "low 0\nhigh 0\nmax 0\noom 0\noom_kill 7\n".to_owned(),
        );

        let (v1, v2) = (memory(v1.path()), memory(v2.path()));
        assert_eq!(v1, v2);
        for (feature, expected) in [
            (Feature::MemoryUsedShare, 0.8),
            (Feature::MemoryAnonShare, 0.3),
            (Feature::MemoryFileShare, 0.4),
            (Feature::MemoryAvailableShare, 0.6),
            (Feature::DirtyBytes, 4096.0),
            (Feature::OomKillsPerSecond, 0.0),
            (Feature::MajorFaultsPerSecond, 0.0),
        ] {
            assert_eq!(v1.get(feature), Some(expected), "{feature:?}");
        }
    }

    #[test]
    fn a_cgroup_that_went_away_masks_its_features() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(memory(&dir.path().join("gone")).mask(), 0);
    }

    #[test]
    fn cpu_time_is_a_share_of_the_quota() {
        let (usage, quota) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(quota.path().join("cpu.cfs_quota_us"), "50000\n").unwrap();
        std::fs::write(quota.path().join("cpu.cfs_period_us"), "100000\n").unwrap();
        let group = CpuGroup {
            usage: Some(usage.path().to_owned()),
            quota: Some(quota.path().to_owned()),
            host_cpus: 2,
        };
        let sample = |us: u64, periods: u64, throttled: u64| {
            std::fs::write(
                usage.path().join("cpu.stat"),
                format!("usage_usec {us}\nuser_usec 1\n"),
            )
            .unwrap();
            let stat = format!("nr_periods {periods}\nnr_throttled {throttled}\nthrottled_time 9\n");
            std::fs::write(quota.path().join("cpu.stat"), stat).unwrap();
            let mut sample = Sample::default();
            group.sample(&mut sample);
            sample
        };
        let beacon = folded([sample(1_000_000, 100, 50), sample(1_250_000, 110, 55)]);
        assert_eq!(beacon.get(Feature::CpuUsedShare), Some(0.5));
        assert_eq!(beacon.get(Feature::CpuThrottledShare), Some(0.5));
        std::fs::write(quota.path().join("cpu.cfs_quota_us"), "-1\n").unwrap();
        let beacon = folded([sample(0, 0, 0), sample(1_000_000, 0, 0)]);
        assert_eq!(beacon.get(Feature::CpuUsedShare), Some(0.5));
        assert_eq!(beacon.get(Feature::CpuThrottledShare), Some(0.0));
    }
}
