//! The fixed, ordered list of features.

/// What a value counts. Rates and times have long tails: models take their logarithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Fraction of a whole. One that is measured as a rate may pass 1 by the error of its clocks, and CPU time "of one
    /// CPU" by the number of CPUs used.
    Share,
    /// A duration in microseconds.
    Micros,
    /// Microseconds lost per second.
    MicrosPerSecond,
    Bytes,
    /// May be negative where the doc says so.
    BytesPerSecond,
    PerSecond,
    Count,
}

/// Where a signal comes from, best first; the ladder of DESIGN §3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A BTF tracepoint program.
    TpBtf,
    /// The control group files of the scope, v1 or v2.
    Cgroup,
    /// `/proc`.
    Procfs,
    /// A system call of the agent (`statvfs`, `getrusage`).
    Syscall,
}

impl Source {
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Cgroup => "cgroup",
            Self::Procfs => "procfs",
            Self::Syscall => "syscall",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureSpec {
    pub feature: Feature,
    pub name: &'static str,
    pub unit: Unit,
    /// The sources that can give it, best first. With none of them there, it is masked.
    pub sources: &'static [Source],
    pub doc: &'static str,
}

macro_rules! features {
    ($($variant:ident $name:literal $unit:ident [$($source:ident)+] $doc:literal;)+) => {
        /// One slot of the vector. New ones are appended; none is ever removed or given another meaning,
        /// because recorded traces and trained models depend on the order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Feature { $(#[doc = $doc] $variant,)+ }

        pub const FEATURE_COUNT: usize = [$(Feature::$variant),+].len();

        pub const FEATURES: [FeatureSpec; FEATURE_COUNT] = [$(FeatureSpec {
            feature: Feature::$variant,
            name: $name,
            unit: Unit::$unit,
            sources: &[$(Source::$source),+],
            doc: $doc,
        }),+];
    };
}

features! {
    CpuUsedShare "cpu_used_share" Share [Cgroup Procfs] "CPU time used, of the scope's quota or of all CPUs.";
    CpuThrottledShare "cpu_throttled_share" Share [Cgroup] "Quota periods in which the scope was throttled, of all periods.";
    RunningTasks "running_tasks" Count [Procfs] "Runnable tasks; whole host only.";
    LoadOneMinute "load_1m" Count [Procfs] "One-minute load average; whole host only.";
    RunQueueP50 "run_queue_p50_us" Micros [TpBtf] "Wait from runnable to running, median of the tick; masked when nobody waited.";
    RunQueueP99 "run_queue_p99_us" Micros [TpBtf] "Wait from runnable to running, 99th percentile.";
    BlockReadP50 "block_read_p50_us" Micros [TpBtf] "Block read request, start to done, median; masked when there was none.";
    BlockReadP99 "block_read_p99_us" Micros [TpBtf] "Block read request, 99th percentile.";
    BlockWriteP50 "block_write_p50_us" Micros [TpBtf] "Block write request, start to done, median; does not hold the wait in a cgroup throttle.";
    BlockWriteP99 "block_write_p99_us" Micros [TpBtf] "Block write request, 99th percentile.";
    FsyncP50 "fsync_p50_us" Micros [TpBtf] "fsync and fdatasync on ext4, median; holds throttle and journal waits; masked when none ended.";
    FsyncP99 "fsync_p99_us" Micros [TpBtf] "fsync and fdatasync on ext4, 99th percentile.";
    FsyncsPerSecond "fsyncs_per_s" PerSecond [TpBtf] "fsync and fdatasync calls on ext4 that ended.";
    BlockErrorsPerSecond "block_errors_per_s" PerSecond [TpBtf] "Block requests that ended with an error.";
    DiskReadBytesPerSecond "disk_read_bytes_per_s" BytesPerSecond [Procfs] "Bytes read from the scope's devices.";
    DiskWriteBytesPerSecond "disk_write_bytes_per_s" BytesPerSecond [Procfs] "Bytes written to the scope's devices.";
    DiskReadOpsPerSecond "disk_read_ops_per_s" PerSecond [Procfs] "Read requests completed.";
    DiskWriteOpsPerSecond "disk_write_ops_per_s" PerSecond [Procfs] "Write requests completed.";
    DiskInFlight "disk_in_flight" Count [Procfs] "Requests in flight, mean of the tick's samples.";
    DiskBusyShare "disk_busy_share" Share [Procfs] "Time in which the busiest device had a request in flight.";
    DiskUsedShare "disk_used_share" Share [Syscall] "Used blocks of the fullest file system watched.";
    ReclaimStallsPerSecond "reclaim_stalls_per_s" PerSecond [TpBtf] "Tasks that had to reclaim memory themselves, for the host or for a cgroup limit.";
    ReclaimStallMicros "reclaim_stall_us_per_s" MicrosPerSecond [TpBtf] "Time that tasks lost to reclaiming memory themselves.";
    MajorFaultsPerSecond "major_faults_per_s" PerSecond [Cgroup Procfs] "Page faults that needed the disk.";
    OomKillsPerSecond "oom_kills_per_s" PerSecond [TpBtf Cgroup Procfs] "Processes chosen by the out-of-memory killer.";
    ExitsPerSecond "exits_per_s" PerSecond [TpBtf] "Processes that ended.";
    ExitsBySignalPerSecond "exits_by_signal_per_s" PerSecond [TpBtf] "Processes that were ended by a signal.";
    TcpRetransmitsPerSecond "tcp_retransmits_per_s" PerSecond [TpBtf Procfs] "TCP segments sent again.";
    NetRxBytesPerSecond "net_rx_bytes_per_s" BytesPerSecond [Procfs] "Bytes received on all interfaces but loopback.";
    NetTxBytesPerSecond "net_tx_bytes_per_s" BytesPerSecond [Procfs] "Bytes sent on all interfaces but loopback.";
    NetRxPacketsPerSecond "net_rx_packets_per_s" PerSecond [Procfs] "Packets received.";
    NetTxPacketsPerSecond "net_tx_packets_per_s" PerSecond [Procfs] "Packets sent.";
    NetErrorsPerSecond "net_errors_per_s" PerSecond [Procfs] "Packets with errors or dropped, both directions.";
    PsiCpuSomeAvg10 "psi_cpu_some_avg10" Share [Cgroup Procfs] "Pressure stall, CPU, some, 10 s average.";
    PsiCpuSomeMicros "psi_cpu_some_us_per_s" MicrosPerSecond [Cgroup Procfs] "Pressure stall time, CPU, some.";
    PsiMemorySomeAvg10 "psi_memory_some_avg10" Share [Cgroup Procfs] "Pressure stall, memory, some, 10 s average.";
    PsiMemoryFullAvg10 "psi_memory_full_avg10" Share [Cgroup Procfs] "Pressure stall, memory, full, 10 s average.";
    PsiMemorySomeMicros "psi_memory_some_us_per_s" MicrosPerSecond [Cgroup Procfs] "Pressure stall time, memory, some.";
    PsiMemoryFullMicros "psi_memory_full_us_per_s" MicrosPerSecond [Cgroup Procfs] "Pressure stall time, memory, full.";
    PsiIoSomeAvg10 "psi_io_some_avg10" Share [Cgroup Procfs] "Pressure stall, I/O, some, 10 s average.";
    PsiIoFullAvg10 "psi_io_full_avg10" Share [Cgroup Procfs] "Pressure stall, I/O, full, 10 s average.";
    PsiIoSomeMicros "psi_io_some_us_per_s" MicrosPerSecond [Cgroup Procfs] "Pressure stall time, I/O, some.";
    PsiIoFullMicros "psi_io_full_us_per_s" MicrosPerSecond [Cgroup Procfs] "Pressure stall time, I/O, full.";
    MemoryUsedShare "memory_used_share" Share [Cgroup Procfs] "Memory charged, page cache included, of the limit; mean of the tick's samples.";
    MemoryAnonShare "memory_anon_share" Share [Cgroup Procfs] "Anonymous memory, of the limit: what a leak fills.";
    MemoryFileShare "memory_file_share" Share [Cgroup Procfs] "Page cache, of the limit: what backups and warm-ups fill.";
    MemoryAvailableShare "memory_available_share" Share [Cgroup Procfs] "What can still be had without killing: free plus droppable page cache, of the limit.";
    MemoryAnonGrowth "memory_anon_growth_bytes_per_s" BytesPerSecond [Cgroup Procfs] "Growth of anonymous memory; negative when it shrinks.";
    MemoryLimitHitsPerSecond "memory_limit_hits_per_s" PerSecond [Cgroup] "Charges that met the memory limit.";
    DirtyBytes "dirty_bytes" Bytes [Cgroup Procfs] "Page cache not written yet; mean of the tick's samples.";
    WritebackBytes "writeback_bytes" Bytes [Cgroup Procfs] "Page cache being written; mean of the tick's samples.";
    AgentCpuShare "agent_cpu_share" Share [Syscall] "CPU time of the agent itself, of one CPU.";
    BpfCpuShare "bpf_cpu_share" Share [TpBtf] "CPU time of the agent's kernel programs, of one CPU; masked unless the kernel's BPF statistics are on.";
}

const _: () = assert!(FEATURE_COUNT <= 64, "the mask has 64 bits");

impl Feature {
    pub const fn bit(self) -> u64 {
        1 << self as u8
    }

    pub const fn spec(self) -> &'static FeatureSpec {
        const TABLE: &[FeatureSpec; FEATURE_COUNT] = &FEATURES;
        &TABLE[self as usize]
    }

    pub fn by_name(name: &str) -> Option<Self> {
        FEATURES
            .iter()
            .find(|spec| spec.name == name)
            .map(|spec| spec.feature)
    }
}

/// FNV-1a over the first `count` feature names: two programs agree on the meaning of the first `count` slots
/// when their fingerprints are equal. Counts over [`FEATURE_COUNT`] are cut to it.
pub const fn schema_fingerprint(count: usize) -> u64 {
    const PRIME: u64 = 0x0100_0000_01b3;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut slot = 0;
    while slot < count && slot < FEATURE_COUNT {
        let name = FEATURES[slot].name.as_bytes();
        let mut at = 0;
        while at < name.len() {
            hash = (hash ^ name[at] as u64).wrapping_mul(PRIME);
            at += 1;
        }
        // A separator, so that moving a letter between two names changes the fingerprint.
        hash = (hash ^ 0xff).wrapping_mul(PRIME);
        slot += 1;
    }
    hash
}
