//! From what was recorded to what is reported. Pure: no clock, no I/O. All times are nanoseconds
//! of the boot clock.

use std::collections::{BTreeMap, HashMap};

use understudy_testbed::agent_log::Sealed;

/// Width of the slots in which two accepted writes mean two owners.
const SLOT_NS: u64 = 10_000_000;

/// A write that was answered +OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) number: u64,
    pub(super) ok_ns: u64,
}

/// A shadow that acknowledged a generation cut so shortly before a write counts for its lag.
const ACTIVE_NS: u64 = 1_000_000_000;

/// How long each write was on the primary alone: from its answer until every shadow that was active
/// then had acknowledged a generation cut after it; the first one to do so when none was active. Writes
/// that no generation holds are left out; none holds one across `power_cut`.
pub(super) fn lags(acks: &[Ack], sealed: &[Sealed], power_cut: Option<u64>) -> Vec<u64> {
    let mut by_shadow: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for seal in sealed {
        by_shadow
            .entry(&seal.shadow)
            .or_default()
            .push((seal.cut_ns, seal.acked_ns));
    }
    by_shadow.values_mut().for_each(|seals| seals.sort_unstable());
    acks.iter()
        .filter_map(|ack| {
            let (mut active, mut first) = (None, None);
            for seals in by_shadow.values() {
                let at = seals.partition_point(|(cut, _)| *cut <= ack.ok_ns);
                let Some(&(cut, acked)) = seals.get(at) else {
                    continue;
                };
                if power_cut.is_some_and(|dead| ack.ok_ns <= dead && dead < cut) {
                    continue;
                }
                let lag = acked.saturating_sub(ack.ok_ns);
                if at > 0 && seals[at - 1].0 + ACTIVE_NS >= ack.ok_ns {
                    active = active.max(Some(lag));
                }
                first = Some(first.map_or(lag, |first: u64| first.min(lag)));
            }
            active.or(first)
        })
        .collect()
}

/// The value that a share `p` of the values does not exceed.
pub(super) fn percentile(values: &mut [u64], p: f64) -> Option<u64> {
    values.sort_unstable();
    let rank = (values.len() as f64 * p).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

/// Answered writes that the new primary does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) lost: Vec<Ack>,
    /// Nothing that was answered after a lost write survived.
    pub(super) is_suffix: bool,
}

/// `acked` in the order of the answers; `present` says whether the number was read back.
pub(super) fn loss(acked: &[Ack], present: impl Fn(u64) -> bool) -> Loss {
    let first = acked
        .iter()
        .position(|ack| !present(ack.number))
        .unwrap_or(acked.len());
    let tail = &acked[first..];
    let lost: Vec<Ack> = tail.iter().copied().filter(|ack| !present(ack.number)).collect();
    Loss {
        is_suffix: lost.len() == tail.len(),
        lost,
    }
}

/// What a power cut cost, split by whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Power cut minus the answer of the oldest write lost after the promoted generation's cut.
    pub(super) ours_ns: u64,
    /// How much further back writes were lost that Redis had answered and not yet written.
    pub(super) redis_ns: u64,
}

pub(super) fn window(loss: &Loss, power_cut: u64, promoted_cut: u64) -> Window {
    let oldest = loss.lost.first().map_or(power_cut, |ack| ack.ok_ns);
    let ours = loss.lost.iter().find(|ack| ack.ok_ns >= promoted_cut);
    let ours = ours.map_or(power_cut, |ack| ack.ok_ns);
    Window {
        ours_ns: power_cut.saturating_sub(ours),
        redis_ns: ours.saturating_sub(oldest),
    }
}

/// The longest time without an answer that began in the span: last good and first good answer.
pub(super) fn widest_gap(acks: &[Ack], from_ns: u64, to_ns: u64) -> Option<(u64, u64)> {
    acks.windows(2)
        .map(|pair| (pair[0].ok_ns, pair[1].ok_ns))
        .filter(|(last, _)| (from_ns..=to_ns).contains(last))
        .max_by_key(|(last, first)| first - last)
}

/// Slots in which more than one host accepted a write; one list of times for each host.
pub(super) fn shared_slots(accepts: &[Vec<u64>]) -> usize {
    let mut owner = HashMap::new();
    let mut shared = std::collections::BTreeSet::new();
    for (host, times) in accepts.iter().enumerate() {
        for slot in times.iter().map(|time| time / SLOT_NS) {
            if *owner.entry(slot).or_insert(host) != host {
                shared.insert(slot);
            }
        }
    }
    shared.len()
}

/// When a leak and what the service held would together have filled the limit.
pub(super) fn leak_failure_ns(started_ns: u64, kib_s: u64, limit: u64, resident: u64) -> u64 {
    let room = u128::from(limit.saturating_sub(resident));
    let took = room * 1_000_000_000 / u128::from(kib_s.max(1) * 1024);
    started_ns.saturating_add(u64::try_from(took).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acks(times: &[u64]) -> Vec<Ack> {
        (0..)
            .zip(times)
            .map(|(number, ok_ns)| Ack {
                number,
                ok_ns: *ok_ns,
            })
            .collect()
    }

    fn seal(n: u64, cut_ns: u64, acked_ns: u64, shadow: &str) -> Sealed {
        Sealed {
            generation: (1, n),
            cut_ns,
            acked_ns,
            shadow: shadow.to_owned(),
            bytes: 0,
        }
    }

    #[test]
    fn a_write_is_in_the_first_generation_cut_after_it() {
        let sealed = [
            seal(1, 100, 150, "b"),
            seal(2, 200, 230, "b"),
            seal(2, 200, 260, "c"),
        ];
        // At 90 nobody was active yet: the first to acknowledge counts.
        assert_eq!(lags(&acks(&[90, 100, 199, 200]), &sealed, None), [60, 130, 31]);
    }

    #[test]
    fn the_slowest_active_shadow_counts_even_if_it_skipped_a_generation() {
        let sealed = [
            seal(1, 100, 110, "b"),
            seal(1, 100, 120, "c"),
            seal(2, 200, 210, "b"),
            seal(3, 300, 310, "b"),
            seal(3, 300, 390, "c"),
        ];
        assert_eq!(lags(&acks(&[150]), &sealed, None), [240]);
    }

    #[test]
    fn no_generation_holds_a_write_across_a_power_cut() {
        let sealed = [seal(1, 100, 150, "b"), seal(2, 900, 950, "a")];
        assert_eq!(lags(&acks(&[90, 110, 890]), &sealed, Some(500)), [60, 60]);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let mut values: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut values, 0.5), Some(50));
        assert_eq!(percentile(&mut values, 0.99), Some(99));
        assert_eq!(percentile(&mut [], 0.5), None);
    }

    #[test]
    fn a_lost_tail_is_a_suffix_and_a_hole_is_not() {
        let acked = acks(&[1, 2, 3, 4]);
        let tail = loss(&acked, |number| number < 2);
        assert_eq!((tail.lost.len(), tail.is_suffix), (2, true));
        let hole = loss(&acked, |number| number != 1);
        assert_eq!((hole.lost.len(), hole.is_suffix), (1, false));
        let none = loss(&acked, |_| true);
        assert_eq!((none.lost.len(), none.is_suffix), (0, true));
    }

    #[test]
    fn what_redis_had_not_written_is_shown_apart() {
        let lost = loss(&acks(&[100, 200, 300]), |_| false);
        assert_eq!(
            window(&lost, 350, 250),
            Window {
                ours_ns: 50,
                redis_ns: 200
            }
        );
        assert_eq!(
            window(&lost, 350, 0),
            Window {
                ours_ns: 250,
                redis_ns: 0
            }
        );
        let nothing = loss(&acks(&[100]), |_| true);
        assert_eq!(
            window(&nothing, 350, 0),
            Window {
                ours_ns: 0,
                redis_ns: 0
            }
        );
    }

    #[test]
    fn an_outage_is_the_widest_gap_of_its_span() {
        let acks = acks(&[0, 10, 500, 510, 9_000]);
        assert_eq!(widest_gap(&acks, 0, 505), Some((10, 500)));
        assert_eq!(widest_gap(&acks, 0, 600), Some((510, 9_000)));
        assert_eq!(widest_gap(&acks, 600, 700), None);
    }

    #[test]
    fn two_owners_in_one_slot_are_counted_once() {
        let (a, b) = (vec![5, 12_000_000, 13_000_000], vec![19_999_999, 25_000_000]);
        assert_eq!(shared_slots(&[a.clone(), b]), 1);
        assert_eq!(shared_slots(&[a, vec![25_000_000], vec![]]), 0);
    }

    #[test]
    fn a_leak_fails_when_the_room_is_used_up() {
        let mib = 1 << 20;
        assert_eq!(leak_failure_ns(7, 1024, 300 * mib, 290 * mib), 10_000_000_007);
        assert_eq!(leak_failure_ns(7, 1024, mib, 2 * mib), 7);
    }
}
