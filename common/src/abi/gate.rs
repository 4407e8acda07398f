//! The lease gate's map entry and its one rule (DESIGN §7).

/// Addresses that one host can guard.
pub const ADDRESSES_MAX: u32 = 256;

/// State of one service address in the pinned map `GATE`, keyed by its IPv4 address in network
/// byte order. The gate is open while `epoch > floor` and the kernel's boot clock is before
/// `deadline_ns`. An address without an entry is not guarded; arming inserts a closed one.
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

    /// Opens for `epoch` until `deadline_ns`. False, and nothing changed, when that epoch is fenced
    /// or older than the one already here. A late renewal never shortens.
    pub const fn apply_open(&mut self, epoch: u64, deadline_ns: u64) -> bool {
        if epoch <= self.floor || epoch < self.epoch {
            return false;
        }
        if epoch > self.epoch || deadline_ns > self.deadline_ns {
            self.deadline_ns = deadline_ns;
        }
        self.epoch = epoch;
        true
    }

    /// Closes for `epoch` and all before it, for ever.
    pub const fn apply_fence(&mut self, epoch: u64) {
        if epoch > self.floor {
            self.floor = epoch;
        }
    }
}

/// Counters of the gate programs, one per-CPU struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateCounters {
    /// Packets and ARP messages of a guarded address that an open gate let through.
    pub passed: u64,
    pub dropped_ingress: u64,
    pub dropped_egress: u64,
    pub dropped_arp: u64,
    /// Packets that a workload's cgroup tried to send while its gate was closed.
    pub dropped_workload: u64,
    /// RST answers sent in place of silence.
    pub resets: u64,
}

const _: () = assert!(core::mem::size_of::<GateCounters>() == 48);

#[cfg(all(test, feature = "std"))]
mod tests {
    use proptest::prelude::*;

    use super::GateEntry;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Open(u64, u64),
        Fence(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..6_u64, 0..100_u64).prop_map(|(epoch, deadline)| Op::Open(epoch, deadline)),
            (0..6_u64).prop_map(Op::Fence),
        ]
    }

    proptest! {
        #[test]
        fn the_floor_and_the_epoch_only_rise_and_a_fenced_epoch_never_opens(ops in prop::collection::vec(op(), 0..40)) {
            let mut entry = GateEntry::default();
            let mut fenced = 0;
            for op in ops {
                let before = entry;
                match op {
                    Op::Open(epoch, deadline) => {
                        let opened = entry.apply_open(epoch, deadline);
                        prop_assert!(opened || entry == before);
                        prop_assert!(!opened || epoch > fenced);
                    }
                    Op::Fence(epoch) => {
                        entry.apply_fence(epoch);
                        fenced = fenced.max(epoch);
                    }
                }
                prop_assert_eq!(entry.floor, fenced);
                prop_assert!(entry.epoch >= before.epoch);
                prop_assert!(!entry.is_open(0) || entry.epoch > fenced);
                prop_assert!(entry.epoch > before.epoch || entry.deadline_ns >= before.deadline_ns);
            }
        }
    }
}
