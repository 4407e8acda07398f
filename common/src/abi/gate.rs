//! The lease gate's map entry and its one rule (DESIGN §7).

/// Addresses that one host can guard.
pub const ADDRESSES_MAX: u32 = 256;

/// State of one service address in the pinned map `GATE`, keyed by its IPv4 address in network
/// byte order. The gate is open while `epoch > floor`, the kernel's boot clock is before
/// `deadline_ns`, and no promise bars the epoch. An address without an entry is not guarded; arming
/// inserts a closed one. All times are `CLOCK_BOOTTIME` nanoseconds as `bpf_ktime_get_boot_ns` reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GateEntry {
    /// Epoch of the lease that the last renewal was for.
    pub epoch: u64,
    /// Highest epoch that was fenced here. It only rises.
    pub floor: u64,
    /// Lease deadline.
    pub deadline_ns: u64,
    /// Until this boot time a closed gate answers TCP with RST instead of silence. The agent
    /// refreshes it while it is alive.
    pub reset_until_ns: u64,
    /// Highest epoch of any order that was taken here. No promise is given to the holder of an older one.
    pub seen: u64,
    /// Revision of the newest order that was taken here: an agent that starts again knows by it whether
    /// what its disk kept is the newest.
    pub revision: u64,
    /// While a promise lasts, no later epoch than this one opens here.
    pub promised: u64,
    /// End of that promise.
    pub promised_until_ns: u64,
}

const _: () = assert!(core::mem::size_of::<GateEntry>() == 64);

impl GateEntry {
    /// Whether traffic of the address passes at boot time `now_ns`.
    #[inline(always)]
    pub const fn is_open(&self, now_ns: u64) -> bool {
        self.epoch > self.floor && now_ns < self.deadline_ns && !self.is_barred(self.epoch, now_ns)
    }

    /// Whether a promise keeps `epoch` from opening at boot time `now_ns`.
    #[inline(always)]
    pub const fn is_barred(&self, epoch: u64, now_ns: u64) -> bool {
        now_ns < self.promised_until_ns && epoch > self.promised
    }

    /// Opens for `epoch` until `deadline_ns`, once no promise bars it. False, and nothing changed, when
    /// that epoch is fenced or older than the one already here. A late renewal never shortens.
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

    /// An order of this epoch and revision is taken. False, and nothing changed, when it is older than
    /// one that was: `(epoch, revision)` only rises.
    pub const fn apply_seen(&mut self, epoch: u64, revision: u64) -> bool {
        if epoch < self.seen || (epoch == self.seen && revision < self.revision) {
            return false;
        }
        self.seen = epoch;
        self.revision = revision;
        true
    }

    /// Promises the holder of `epoch` that no later one opens here before `until_ns`. False, and nothing
    /// changed, when a later epoch was seen, or when this host held that epoch itself.
    ///
    /// Of two promises that overlap the earlier epoch and the later end count: what lies between the two
    /// epochs is of no use to anybody any more.
    pub const fn apply_promise(&mut self, now_ns: u64, epoch: u64, until_ns: u64) -> bool {
        if epoch < self.seen || epoch <= self.epoch || epoch < self.floor {
            return false;
        }
        self.bar(now_ns, epoch, until_ns);
        true
    }

    /// Keeps everything closed until `until_ns`: what was promised here before the pins were lost.
    pub const fn apply_forgotten(&mut self, now_ns: u64, until_ns: u64) {
        if now_ns < until_ns {
            self.bar(now_ns, 0, until_ns);
        }
    }

    const fn bar(&mut self, now_ns: u64, epoch: u64, until_ns: u64) {
        let lasts = now_ns < self.promised_until_ns;
        if !lasts || epoch < self.promised {
            self.promised = epoch;
        }
        if !lasts || until_ns > self.promised_until_ns {
            self.promised_until_ns = until_ns;
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
        Pass(u64),
        Open(u64, u64),
        Fence(u64),
        See(u64, u64),
        Promise(u64, u64),
        Forget(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..20_u64).prop_map(Op::Pass),
            (0..6_u64, 0..100_u64).prop_map(|(epoch, deadline)| Op::Open(epoch, deadline)),
            (0..6_u64).prop_map(Op::Fence),
            (0..6_u64, 0..4_u64).prop_map(|(epoch, revision)| Op::See(epoch, revision)),
            (0..6_u64, 0..40_u64).prop_map(|(epoch, length)| Op::Promise(epoch, length)),
            (0..40_u64).prop_map(Op::Forget),
        ]
    }

    proptest! {
        #[test]
        fn the_floor_and_the_epochs_only_rise_and_what_is_fenced_or_promised_away_never_opens(
            ops in prop::collection::vec(op(), 0..60),
        ) {
            let mut entry = GateEntry::default();
            let (mut now, mut fenced) = (1, 0);
            // Every promise ever given: no epoch above the first opens before the second.
            let mut promises: Vec<(u64, u64)> = Vec::new();
            for op in ops {
                let before = entry;
                match op {
                    Op::Pass(by) => now += by,
                    Op::Open(epoch, length) => {
                        let opened = entry.apply_open(epoch, now + length);
                        prop_assert!(opened || entry == before);
                        prop_assert!(!opened || epoch > fenced);
                    }
                    Op::Fence(epoch) => {
                        entry.apply_fence(epoch);
                        fenced = fenced.max(epoch);
                    }
                    Op::See(epoch, revision) => {
                        let newer = entry.apply_seen(epoch, revision);
                        prop_assert_eq!(newer, (epoch, revision) >= (before.seen, before.revision));
                        prop_assert!(newer || entry == before);
                    }
                    Op::Promise(epoch, length) => {
                        if entry.apply_promise(now, epoch, now + length) {
                            prop_assert!(epoch >= before.seen && epoch > before.epoch);
                            promises.push((epoch, now + length));
                        } else {
                            prop_assert_eq!(entry, before);
                        }
                    }
                    Op::Forget(length) => {
                        entry.apply_forgotten(now, now + length);
                        promises.push((0, now + length));
                    }
                }
                prop_assert_eq!(entry.floor, fenced);
                prop_assert!(entry.epoch >= before.epoch && entry.seen >= before.seen);
                prop_assert!(!entry.is_open(now) || entry.epoch > fenced);
                prop_assert!(entry.epoch > before.epoch || entry.deadline_ns >= before.deadline_ns);
                for at in [now, now + 7, now + 31] {
                    let barred = promises.iter().any(|(epoch, until)| at < *until && entry.epoch > *epoch);
                    prop_assert!(!(barred && entry.is_open(at)), "open against a promise");
                }
            }
        }
    }

    #[test]
    fn a_promise_that_is_over_bars_nothing() {
        let mut entry = GateEntry::default();
        assert!(entry.apply_promise(10, 3, 20));
        assert!(entry.apply_open(4, 100));
        assert!(!entry.is_open(19) && entry.is_open(20));
    }
}
