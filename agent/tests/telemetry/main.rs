//! Kernel tier of the telemetry: the real programs against known loads.
//!
//! Time is an argument of `Telemetry::sample`, so a test that counts events gives it two instants one second apart and
//! reads exact counts. A test that cannot run here says `skipped: reason`.

mod record;
mod support;

use std::time::{Duration, Instant};

use support::{Cgroup, Disk, Skip, spawn_in};
use understudy_agent::telemetry::{ScopeConfig, Telemetry, TelemetryConfig};
use understudy_common::beacon::{Beacon, FEATURES, Feature, Source};
use understudy_common::id::HostId;
use understudy_common::units::BootTime;

const PATIENCE: Duration = Duration::from_secs(120);

fn open(scope: Option<ScopeConfig>) -> Result<Telemetry, Skip> {
    let config = TelemetryConfig {
        scope,
        ..TelemetryConfig::default()
    };
    let telemetry = Telemetry::open(HostId(1), &config).expect("the scope is of this test's own making");
    let sources = telemetry.sources();
    if sources.programs == 0 {
        return Err(Skip(format!("no kernel programs: {:?}", sources.refused)));
    }
    Ok(telemetry)
}

/// The beacon of one second by the test's own clock in which `load` runs.
fn over(telemetry: &mut Telemetry, second: u64, load: impl FnOnce()) -> Beacon {
    telemetry.sample(BootTime::from_ms(second * 1_000));
    load();
    telemetry
        .sample(BootTime::from_ms((second + 1) * 1_000))
        .expect("a second passed")
}

/// Beacons in real time until one satisfies `wanted`.
fn until(telemetry: &mut Telemetry, what: &str, mut wanted: impl FnMut(&Beacon) -> bool) -> Beacon {
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < PATIENCE {
        let now = BootTime(start.elapsed().as_nanos() as u64);
        if let Some(beacon) = telemetry.sample(now) {
            if wanted(&beacon) {
                return beacon;
            }
            last = Some(beacon);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    panic!("not seen within {PATIENCE:?}: {what}; last {last:?}");
}

fn run(test: impl FnOnce() -> Result<(), Skip>) {
    if let Err(Skip(reason)) = test() {
        println!("skipped: {reason}");
    }
}

#[test]
fn process_ends_are_counted_in_the_scope_and_below_it_and_nowhere_else() {
    run(|| {
        let (ours, other) = (Cgroup::v2("exits-a")?, Cgroup::v2("exits-b")?);
        let deep = ours.child("deep")?;
        let below = deep.child("deeper")?;
        let mut watched = open(Some(ours.scope()))?;
        let mut neighbour = open(Some(other.scope()))?;
        neighbour.sample(BootTime::ZERO);
        let beacon = over(&mut watched, 0, || {
            for _ in 0..20 {
                assert!(spawn_in(&[&ours], "exit 3").wait().is_ok());
            }
            for _ in 0..7 {
                assert!(spawn_in(&[&below], "kill -9 $$").wait().is_ok());
            }
            for _ in 0..5 {
                assert!(spawn_in(&[&other], "exit 0").wait().is_ok());
            }
        });
        assert_eq!(beacon.get(Feature::ExitsPerSecond), Some(27.0));
        assert_eq!(beacon.get(Feature::ExitsBySignalPerSecond), Some(7.0));
        assert!(beacon.get(Feature::RunQueueP50).is_some());
        let beacon = neighbour.sample(BootTime::from_ms(1_000)).unwrap();
        assert_eq!(beacon.get(Feature::ExitsPerSecond), Some(5.0));
        assert_eq!(beacon.get(Feature::ExitsBySignalPerSecond), Some(0.0));
        Ok(())
    });
}

#[test]
fn requests_that_fail_are_counted_on_the_scopes_device_and_on_no_other() {
    run(|| {
        let (ours, other) = (Disk::ext4("failing-a")?, Disk::ext4("failing-b")?);
        let scope = |disk: &Disk| ScopeConfig {
            devices: vec![disk.device.clone()],
            ..ScopeConfig::default()
        };
        let mut watched = open(Some(scope(&ours)))?;
        let mut neighbour = open(Some(scope(&other)))?;
        neighbour.sample(BootTime::ZERO);
        ours.write_and_sync("a", 32);
        other.write_and_sync("a", 32);
        ours.drop_cache("a");
        // Past its metadata, which reading the file needs.
        let beacon = over(&mut watched, 0, || {
            ours.lose_all_behind(1 << 20);
            let failed = std::fs::read(ours.path("a")).expect_err("the disk lost it");
            assert_eq!(failed.raw_os_error(), Some(libc::EIO));
            other.read_from_disk("a");
        });
        assert!(beacon.get(Feature::BlockErrorsPerSecond).unwrap() > 0.0);
        let beacon = neighbour.sample(BootTime::from_ms(1_000)).unwrap();
        assert_eq!(beacon.get(Feature::BlockErrorsPerSecond), Some(0.0));
        Ok(())
    });
}

#[test]
fn writes_and_syncs_are_counted_on_the_scopes_device_and_on_no_other() {
    run(|| {
        let (ours, other) = (Disk::ext4("disk-a")?, Disk::ext4("disk-b")?);
        let scope = |disk: &Disk| ScopeConfig {
            devices: vec![disk.device.clone()],
            ..ScopeConfig::default()
        };
        let mut watched = open(Some(scope(&ours)))?;
        let mut neighbour = open(Some(scope(&other)))?;
        neighbour.sample(BootTime::ZERO);
        let beacon = over(&mut watched, 0, || {
            ours.write_and_sync("a", 32);
            other.write_and_sync("a", 3);
            ours.read_from_disk("a");
        });
        assert_eq!(beacon.get(Feature::FsyncsPerSecond), Some(32.0));
        assert!(beacon.get(Feature::DiskWriteOpsPerSecond).unwrap() >= 32.0);
        assert!(beacon.get(Feature::DiskWriteBytesPerSecond).unwrap() >= 32.0 * 65_536.0);
        assert!(beacon.get(Feature::DiskReadBytesPerSecond).unwrap() >= 32.0 * 65_536.0);
        for (median, tail) in [
            (Feature::FsyncP50, Feature::FsyncP99),
            (Feature::BlockWriteP50, Feature::BlockWriteP99),
            (Feature::BlockReadP50, Feature::BlockReadP99),
        ] {
            let (median, tail) = (beacon.get(median).unwrap(), beacon.get(tail).unwrap());
            assert!(median > 0.0 && tail >= median, "{median} {tail}");
        }
        assert_eq!(beacon.get(Feature::BlockErrorsPerSecond), Some(0.0));
        let used = beacon.get(Feature::DiskUsedShare).unwrap();
        assert!(used > 0.0 && used < 1.0, "{used}");
        // What the scope cannot tell apart is masked, not zero.
        for feature in [
            Feature::ExitsPerSecond,
            Feature::RunQueueP50,
            Feature::NetRxBytesPerSecond,
            Feature::LoadOneMinute,
        ] {
            assert_eq!(beacon.get(feature), None, "{feature:?}");
        }
        let beacon = neighbour.sample(BootTime::from_ms(1_000)).unwrap();
        assert_eq!(beacon.get(Feature::FsyncsPerSecond), Some(3.0));
        // Its file system may read its own maps, but not what was read from the other.
        assert!(beacon.get(Feature::DiskReadBytesPerSecond).unwrap() < 16.0 * 65_536.0);
        Ok(())
    });
}

#[test]
fn a_cpu_quota_shows_as_run_queue_latency_and_throttling() {
    run(|| {
        let (tasks, quota) = (Cgroup::v2("quota")?, Cgroup::v1("cpu", "quota")?);
        quota.write("cpu.cfs_period_us", "100000")?;
        quota.write("cpu.cfs_quota_us", "20000")?;
        let mut telemetry = open(Some(ScopeConfig {
            cpu: Some(quota.path().to_owned()),
            ..tasks.scope()
        }))?;
        let _busy = spawn_in(&[&tasks, &quota], "while :; do :; done");
        let beacon = until(&mut telemetry, "a throttled task", |beacon| {
            beacon.get(Feature::RunQueueP99).is_some_and(|us| us > 5_000.0)
                && beacon
                    .get(Feature::CpuThrottledShare)
                    .is_some_and(|share| share > 0.2)
        });
        assert!(beacon.get(Feature::CpuUsedShare).unwrap() > 0.2);
        assert!(beacon.get(Feature::PsiCpuSomeMicros).is_some());
        Ok(())
    });
}

#[test]
fn a_leak_fills_anonymous_memory_until_the_kill_is_counted() {
    run(|| {
        let (tasks, memory) = (Cgroup::v2("leak")?, Cgroup::v1("memory", "leak")?);
        memory.write("memory.limit_in_bytes", "67108864")?;
        let mut telemetry = open(Some(ScopeConfig {
            memory: Some(memory.path().to_owned()),
            ..tasks.scope()
        }))?;
        // Keeps everything it reads, since there is no line's end in it: 1 MiB every few milliseconds.
        let script = "while :; do head -c 1048576 /dev/zero; sleep 0.02; done | tail -n 1";
        let _leak = spawn_in(&[&tasks, &memory], script);
        let (mut kills, mut anon) = (0.0, 0.0_f32);
        until(&mut telemetry, "the kill", |beacon| {
            kills += beacon.get(Feature::OomKillsPerSecond).unwrap_or(0.0);
            anon = anon.max(beacon.get(Feature::MemoryAnonShare).unwrap_or(0.0));
            kills > 0.0
        });
        assert!(anon > 0.3, "{anon}");
        let source = telemetry.sources().signals[Feature::OomKillsPerSecond as usize];
        assert_eq!(source, ("oom_kills_per_s", Some(Source::TpBtf)));
        Ok(())
    });
}

#[test]
fn page_cache_fills_memory_but_not_what_is_anonymous_and_stays_available() {
    run(|| {
        let (tasks, memory) = (Cgroup::v2("cache")?, Cgroup::v1("memory", "cache")?);
        memory.write("memory.limit_in_bytes", "33554432")?;
        let disk = Disk::ext4("cache")?;
        disk.write_and_sync("big", 1_024);
        disk.drop_cache("big");
        let mut telemetry = open(Some(ScopeConfig {
            memory: Some(memory.path().to_owned()),
            ..tasks.scope()
        }))?;
        let file = disk.path("big");
        let beacon = over(&mut telemetry, 0, || {
            let read = format!("exec cat {} >/dev/null", file.display());
            assert!(spawn_in(&[&tasks, &memory], &read).wait().is_ok());
        });
        let last = telemetry.sample(BootTime::from_ms(2_000)).unwrap();
        let share = |feature| last.get(feature).unwrap();
        assert!(
            share(Feature::MemoryFileShare) > 0.7,
            "{}",
            share(Feature::MemoryFileShare)
        );
        assert!(
            share(Feature::MemoryAnonShare) < 0.2,
            "{}",
            share(Feature::MemoryAnonShare)
        );
        assert!(
            share(Feature::MemoryAvailableShare) > 0.7,
            "{}",
            share(Feature::MemoryAvailableShare)
        );
        // 64 MiB through a limit of 32: the reader had to reclaim its own cache.
        assert!(beacon.get(Feature::ReclaimStallsPerSecond).unwrap() > 0.0);
        assert!(beacon.get(Feature::ReclaimStallMicros).unwrap() > 0.0);
        assert!(beacon.get(Feature::MemoryLimitHitsPerSecond).unwrap() > 0.0);
        assert_eq!(beacon.get(Feature::OomKillsPerSecond), Some(0.0));
        Ok(())
    });
}

#[test]
fn a_throttled_disk_shows_as_slow_syncs_and_pressure() {
    run(|| {
        let tasks = Cgroup::v2("throttle")?;
        let blkio = Cgroup::v1("blkio", "throttle")?;
        let disk = Disk::ext4("throttle")?;
        let mut telemetry = open(Some(ScopeConfig {
            devices: vec![disk.device.clone()],
            ..tasks.scope()
        }))?;
        let script = format!(
            "while :; do dd if=/dev/zero of={} bs=64k count=1 conv=fsync,notrunc 2>/dev/null; done",
            disk.path("w").display()
        );
        let _writer = spawn_in(&[&tasks, &blkio], &script);
        let before = until(&mut telemetry, "a sync", |beacon| {
            beacon.get(Feature::FsyncP50).is_some()
        });
        blkio.write(
            "blkio.throttle.write_bps_device",
            &format!("{} 262144", disk.device),
        )?;
        let floor = before.get(Feature::FsyncP50).unwrap().max(50_000.0);
        let after = until(&mut telemetry, "slow syncs", |beacon| {
            beacon.get(Feature::FsyncP50).is_some_and(|us| us > floor)
                && beacon
                    .get(Feature::PsiIoSomeMicros)
                    .is_some_and(|us| us > 200_000.0)
        });
        assert!(after.get(Feature::DiskWriteBytesPerSecond).unwrap() < 1_048_576.0);
        Ok(())
    });
}

#[test]
fn detached_programs_mask_what_only_they_give() {
    run(|| {
        let mut telemetry = open(None)?;
        let sources = telemetry.sources();
        assert_eq!(sources.source, "tp_btf");
        assert!(sources.programs >= 6, "{sources:?}");
        let exits = || {
            for _ in 0..3 {
                let status = std::process::Command::new("true").status();
                assert!(status.is_ok());
            }
        };
        let before = over(&mut telemetry, 0, exits);
        assert!(before.get(Feature::ExitsPerSecond).unwrap() >= 3.0);
        telemetry.detach_bpf();
        telemetry.sample(BootTime::from_ms(2_000));
        let after = over(&mut telemetry, 2, exits);

        for spec in &FEATURES {
            if spec.sources == [Source::TpBtf] {
                assert_eq!(after.get(spec.feature), None, "{}", spec.name);
            } else if before.get(spec.feature).is_some() {
                assert!(
                    after.get(spec.feature).is_some(),
                    "{} was lost with the programs",
                    spec.name
                );
            }
        }
        let sources = telemetry.sources();
        assert_eq!((sources.programs, sources.source), (0, "procfs"));
        let retransmits = sources.signals[Feature::TcpRetransmitsPerSecond as usize];
        assert_eq!(retransmits, ("tcp_retransmits_per_s", Some(Source::Procfs)));
        assert_eq!(telemetry.inventory().ebpf_source, "procfs");
        Ok(())
    });
}

#[test]
fn own_cost_is_measured_when_the_kernel_keeps_statistics() {
    run(|| {
        drop(open(None)?);
        let config = TelemetryConfig {
            bpf_stats: true,
            ..TelemetryConfig::default()
        };
        let mut telemetry = Telemetry::open(HostId(1), &config).unwrap();
        if let Some((_, why)) = telemetry
            .sources()
            .refused
            .iter()
            .find(|(what, _)| what == "bpf_stats")
        {
            return Err(Skip(why.clone()));
        }
        let beacon = until(&mut telemetry, "run time", |beacon| {
            beacon.get(Feature::BpfCpuShare).is_some_and(|share| share > 0.0)
        });
        assert!(beacon.get(Feature::AgentCpuShare).unwrap() > 0.0);
        let cost = telemetry.cost();
        assert!(cost.bpf_ns.unwrap() > 0 && cost.sample_ns > 0 && cost.process_ns > cost.sample_ns);
        Ok(())
    });
}
