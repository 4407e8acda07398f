//! The lease gate's map entry (DESIGN §7).

/// State of one service address in the pinned map `GATE`, keyed by its IPv4 address in network
/// byte order. The gate is open while `epoch > floor` and the kernel's boot clock is before
/// `deadline_ns`. A missing entry for a guarded address means closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateEntry {
    /// Epoch of the lease that the last renewal was for.
    pub epoch: u64,
    /// Highest epoch that was fenced here. It only rises.
    pub floor: u64,
    /// Lease deadline, `CLOCK_BOOTTIME` nanoseconds as `bpf_ktime_get_boot_ns` reads it.
    pub deadline_ns: u64,
    /// Until this boot time a closed gate answers TCP with RST instead of silence. The agent
    /// refreshes it while it is alive.
    pub reset_until_ns: u64,
}

const _: () = assert!(core::mem::size_of::<GateEntry>() == 32);

impl GateEntry {
    /// Whether traffic of the address passes at boot time `now_ns`.
    #[inline(always)]
    pub const fn is_open(&self, now_ns: u64) -> bool {
        self.epoch > self.floor && now_ns < self.deadline_ns
    }
}

/// Counters of the gate programs, one per-CPU struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateCounters {
    pub passed: u64,
    pub dropped_ingress: u64,
    pub dropped_egress: u64,
    pub dropped_arp: u64,
    pub dropped_workload: u64,
    pub resets: u64,
}

const _: () = assert!(core::mem::size_of::<GateCounters>() == 48);
