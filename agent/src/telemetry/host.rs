//! `/proc` of the whole host, pressure files and the network.

use std::path::{Path, PathBuf};

use procfs::{
    CpuPressure, Current, CurrentSI, FromRead, IoPressure, KernelStats, LoadAverage, Meminfo, MemoryPressure,
    PressureRecord,
};
use understudy_common::beacon::{Feature, Source};

use super::fold::{Sample, Signal};
use super::memory::MemoryUse;

/// Run queue and load; of no use within a scope.
pub fn load(sample: &mut Sample) {
    if let Ok(load) = LoadAverage::current() {
        sample.put(
            Feature::RunningTasks,
            Source::Procfs,
            Signal::Level(f64::from(load.cur)),
        );
        sample.put(
            Feature::LoadOneMinute,
            Source::Procfs,
            Signal::Level(f64::from(load.one)),
        );
    }
}

pub fn cpu(sample: &mut Sample) {
    let Ok(stats) = KernelStats::current() else { return };
    let time = stats.total;
    let idle = time.idle + time.iowait.unwrap_or(0);
    let busy = time.user
        + time.nice
        + time.system
        + time.irq.unwrap_or(0)
        + time.softirq.unwrap_or(0)
        + time.steal.unwrap_or(0);
    let share = Signal::Ratio {
        part: busy,
        whole: busy + idle,
    };
    sample.put(Feature::CpuUsedShare, Source::Procfs, share);
}

pub fn memory(sample: &mut Sample) {
    let Ok(info) = Meminfo::current() else { return };
    let shmem = info.shmem.unwrap_or(0);
    let used = info.mem_total.saturating_sub(info.mem_free);
    let (Some(anon), Some(available)) = (info.anon_pages, info.mem_available) else {
        return;
    };
    MemoryUse {
        limit: info.mem_total,
        used,
        anon: anon.saturating_add(shmem),
        file: (info.cached + info.buffers).saturating_sub(shmem),
        droppable: available.saturating_sub(info.mem_free),
        dirty: Some(info.dirty),
        writeback: Some(info.writeback),
    }
    .put(Source::Procfs, sample);
}

pub fn memory_events(sample: &mut Sample) {
    let Ok(stat) = procfs::vmstat() else { return };
    for (feature, key) in [
        (Feature::MajorFaultsPerSecond, "pgmajfault"),
        (Feature::OomKillsPerSecond, "oom_kill"),
    ] {
        if let Some(total) = stat.get(key).and_then(|total| u64::try_from(*total).ok()) {
            sample.put_if_missing(feature, Source::Procfs, Signal::total(total));
        }
    }
}

/// Interfaces and TCP of the agent's network namespace.
pub fn network(sample: &mut Sample) {
    if let Ok(devices) = procfs::net::dev_status() {
        let mut sums = [0_u64; 5];
        for device in devices.values().filter(|device| device.name != "lo") {
            let errors = device.recv_errs + device.recv_drop + device.sent_errs + device.sent_drop;
            for (sum, value) in sums.iter_mut().zip([
                device.recv_bytes,
                device.sent_bytes,
                device.recv_packets,
                device.sent_packets,
                errors,
            ]) {
                *sum = sum.saturating_add(value);
            }
        }
        for (feature, sum) in [
            Feature::NetRxBytesPerSecond,
            Feature::NetTxBytesPerSecond,
            Feature::NetRxPacketsPerSecond,
            Feature::NetTxPacketsPerSecond,
            Feature::NetErrorsPerSecond,
        ]
        .into_iter()
        .zip(sums)
        {
            sample.put(feature, Source::Procfs, Signal::total(sum));
        }
    }
    if sample.source(Feature::TcpRetransmitsPerSecond).is_none()
        && let Ok(snmp) = procfs::net::snmp()
    {
        let total = Signal::total(snmp.tcp_retrans_segs);
        sample.put(Feature::TcpRetransmitsPerSecond, Source::Procfs, total);
    }
}

/// Pressure stall files of the host or of a cgroup2 directory.
#[derive(Debug)]
pub struct Pressure {
    cpu: PathBuf,
    memory: PathBuf,
    io: PathBuf,
    source: Source,
}

impl Pressure {
    pub fn of_host() -> Self {
        let dir = Path::new("/proc/pressure");
        Self {
            cpu: dir.join("cpu"),
            memory: dir.join("memory"),
            io: dir.join("io"),
            source: Source::Procfs,
        }
    }

    pub fn of_cgroup(dir: &Path) -> Self {
        Self {
            cpu: dir.join("cpu.pressure"),
            memory: dir.join("memory.pressure"),
            io: dir.join("io.pressure"),
            source: Source::Cgroup,
        }
    }

    pub fn sample(&self, sample: &mut Sample) {
        let mut put = |record: &PressureRecord, avg10, micros| {
            let average = Signal::Level(f64::from(record.avg10) / 100.0);
            sample.put(avg10, self.source, average);
            sample.put(micros, self.source, Signal::total(record.total));
        };
        if let Ok(cpu) = CpuPressure::from_file(&self.cpu) {
            put(&cpu.some, Feature::PsiCpuSomeAvg10, Feature::PsiCpuSomeMicros);
        }
        if let Ok(memory) = MemoryPressure::from_file(&self.memory) {
            put(
                &memory.some,
                Feature::PsiMemorySomeAvg10,
                Feature::PsiMemorySomeMicros,
            );
            put(
                &memory.full,
                Feature::PsiMemoryFullAvg10,
                Feature::PsiMemoryFullMicros,
            );
        }
        if let Ok(io) = IoPressure::from_file(&self.io) {
            put(&io.some, Feature::PsiIoSomeAvg10, Feature::PsiIoSomeMicros);
            put(&io.full, Feature::PsiIoFullAvg10, Feature::PsiIoFullMicros);
        }
    }
}
