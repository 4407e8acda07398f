//! What a ledger must hold, given what was promised. Pure.
//!
//! An epoch starts from a generation of an earlier one, which starts from a generation of a still earlier one.
//! A number must be there when it was answered in one of these epochs before the cut of every generation that
//! was started from since. A host that goes on with its own files must hold all that it answered, unless it lost
//! its power: then what was cut before the newest generation that any shadow had acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use super::owners::Grant;
use crate::agent_log::{Generation, Promotion, Sealed};

/// How long after it was made a grant may become known here while somebody leads.
const KNOWN_AFTER_NS_MAX: u64 = 2_000_000_000;

/// A number that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub id: u64,
    pub answered_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerCut {
    pub host: u8,
    pub at_ns: u64,
}

/// Everything that is known of the epochs.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// In the order of their epochs.
    pub grants: Vec<Grant>,
    /// By epoch.
    pub promotions: BTreeMap<u64, Promotion>,
    pub sealed: Vec<Sealed>,
    pub power_cuts: Vec<PowerCut>,
}

/// An epoch whose content counts, and until when what was answered in it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ancestor {
    /// In `grants`.
    place: usize,
    before_ns: u64,
}

impl Facts {
    /// The numbers that must be there in the epoch at `place`; `places` are those of `acks`.
    pub fn required(&self, place: usize, acks: &[Ack], places: &[usize]) -> BTreeSet<u64> {
        let mut required = BTreeSet::new();
        for ancestor in self.ancestry(place) {
            let counts = |(ack, place): &(&Ack, &usize)| {
                **place == ancestor.place && ack.answered_ns < ancestor.before_ns
            };
            required.extend(acks.iter().zip(places).filter(counts).map(|(ack, _)| ack.id));
        }
        required
    }

    fn ancestry(&self, place: usize) -> Vec<Ancestor> {
        let mut found = vec![Ancestor {
            place,
            before_ns: u64::MAX,
        }];
        let mut youngest = found[0];
        while let Some(parent) = self.parent(youngest) {
            found.push(parent);
            youngest = parent;
        }
        found
    }

    fn parent(&self, child: Ancestor) -> Option<Ancestor> {
        let grant = self.grants.get(child.place)?;
        let earlier = &self.grants[..child.place];
        let (place, before_ns) = match self.promotions.get(&grant.epoch) {
            Some(promotion) => {
                let of = |grant: &Grant| grant.epoch == promotion.generation.0;
                (
                    earlier.iter().position(of)?,
                    self.cut_ns(grant.host, promotion.generation),
                )
            }
            None => {
                let place = earlier.iter().rposition(|one| one.host == grant.host)?;
                (place, self.own_until_ns(earlier[place]))
            }
        };
        Some(Ancestor {
            place,
            before_ns: before_ns.min(child.before_ns),
        })
    }

    /// When a generation was cut, or the newest one before it that the host was seen to acknowledge.
    fn cut_ns(&self, host: u8, generation: Generation) -> u64 {
        let exact = self.sealed.iter().find(|one| one.generation == generation);
        let before = || {
            let known = self
                .acknowledged(host)
                .filter(|one| one.generation.0 == generation.0 && one.generation < generation);
            known.max_by_key(|one| one.generation)
        };
        exact.or_else(before).map_or(0, |one| one.cut_ns)
    }

    /// Until when the own files of the host that held this epoch are sure to hold what it answered.
    fn own_until_ns(&self, held: Grant) -> u64 {
        let since = |cut: &&PowerCut| {
            cut.host == held.host && cut.at_ns.saturating_add(KNOWN_AFTER_NS_MAX) > held.known_ns
        };
        let cuts = self.power_cuts.iter().filter(since);
        let Some(dark) = cuts.map(|cut| cut.at_ns).max() else {
            return u64::MAX;
        };
        let safe = self
            .sealed
            .iter()
            .filter(|one| one.generation.0 == held.epoch && one.acked_ns <= dark);
        safe.map(|one| one.cut_ns).max().unwrap_or(0)
    }

    fn acknowledged(&self, host: u8) -> impl Iterator<Item = &Sealed> {
        let name = format!("host-{host}");
        self.sealed.iter().filter(move |one| one.shadow == name)
    }

    /// Promotions from an older generation than the newest one that the host had acknowledged, in words.
    pub fn promoted_too_old(&self) -> Vec<String> {
        let too_old = |promotion: &Promotion| {
            let grant = self.grants.iter().find(|grant| grant.epoch == promotion.epoch)?;
            let newest = self
                .acknowledged(grant.host)
                .map(|one| one.generation)
                .filter(|one| one.0 < promotion.epoch)
                .max()?;
            (newest > promotion.generation).then(|| {
                format!(
                    "host {} took over in e{} from e{}.{}, but had acknowledged e{}.{}",
                    grant.host,
                    promotion.epoch,
                    promotion.generation.0,
                    promotion.generation.1,
                    newest.0,
                    newest.1
                )
            })
        };
        self.promotions.values().filter_map(too_old).collect()
    }
}

/// Whether what is there now follows from what was there before: nothing changed in the part that both share, and
/// nothing that was lost on the way came back.
///
/// # Errors
/// What is wrong, in words.
pub fn follows(before: &[u64], now: &[u64]) -> Result<(), String> {
    if let Some(at) = now.windows(2).position(|pair| pair[0] >= pair[1]) {
        return Err(format!("{} comes after {}", now[at + 1], now[at]));
    }
    let shared = before.iter().zip(now).take_while(|(old, new)| old == new).count();
    let lost: BTreeSet<u64> = before[shared..].iter().copied().collect();
    match now[shared..].iter().find(|id| lost.contains(id)) {
        Some(id) => Err(format!(
            "{id} is there, but {} that was before it is not",
            before[shared]
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(generation: Generation, cut_ns: u64, shadow: u8) -> Sealed {
        Sealed {
            generation,
            cut_ns,
            acked_ns: cut_ns + 5,
            shadow: format!("host-{shadow}"),
            bytes: 0,
        }
    }

    fn grant(epoch: u64, host: u8) -> Grant {
        Grant {
            epoch,
            host,
            known_ns: 0,
        }
    }

    fn promotion(epoch: u64, generation: Generation) -> (u64, Promotion) {
        (epoch, Promotion { epoch, generation })
    }

    fn acks(times: &[u64]) -> Vec<Ack> {
        let ack = |at: &u64| Ack {
            id: *at,
            answered_ns: *at,
        };
        times.iter().map(ack).collect()
    }

    fn ids(required: BTreeSet<u64>) -> Vec<u64> {
        required.into_iter().collect()
    }

    #[test]
    fn a_failover_keeps_what_was_answered_before_the_cut() {
        let facts = Facts {
            grants: vec![grant(1, 1), grant(2, 2)],
            promotions: [promotion(2, (1, 7))].into(),
            sealed: vec![seal((1, 7), 100, 2), seal((1, 8), 200, 3)],
            power_cuts: Vec::new(),
        };
        let acks = acks(&[50, 99, 100, 150, 300]);
        assert_eq!(ids(facts.required(1, &acks, &[0, 0, 0, 0, 1])), [50, 99, 300]);
        assert_eq!(
            ids(facts.required(0, &acks, &[0, 0, 0, 0, 1])),
            [50, 99, 100, 150]
        );
    }

    #[test]
    fn a_cut_counts_for_all_epochs_before_it() {
        let facts = Facts {
            grants: vec![grant(1, 1), grant(2, 1), grant(3, 2)],
            promotions: [promotion(3, (2, 4))].into(),
            sealed: vec![seal((2, 4), 100, 2)],
            power_cuts: Vec::new(),
        };
        // e2 went on with its own files, so all of e1 is in its generations.
        let acks = acks(&[10, 90, 110]);
        assert_eq!(ids(facts.required(2, &acks, &[0, 1, 1])), [10, 90]);
    }

    #[test]
    fn own_files_after_a_power_cut_hold_at_least_what_a_shadow_acknowledged() {
        let facts = Facts {
            grants: vec![grant(1, 1), grant(2, 1)],
            promotions: BTreeMap::new(),
            sealed: vec![seal((1, 4), 100, 2)],
            power_cuts: vec![PowerCut { host: 1, at_ns: 150 }],
        };
        let acks = acks(&[90, 110, 200]);
        assert_eq!(ids(facts.required(1, &acks, &[0, 0, 1])), [90, 200]);
        let lit = Facts {
            power_cuts: Vec::new(),
            ..facts
        };
        assert_eq!(ids(lit.required(1, &acks, &[0, 0, 1])), [90, 110, 200]);
    }

    #[test]
    fn a_shadow_may_not_take_over_from_less_than_it_acknowledged() {
        let facts = Facts {
            grants: vec![grant(1, 1), grant(2, 2)],
            promotions: [promotion(2, (1, 7))].into(),
            sealed: vec![seal((1, 8), 200, 2), seal((1, 9), 300, 3)],
            power_cuts: Vec::new(),
        };
        assert_eq!(facts.promoted_too_old().len(), 1);
        let fine = Facts {
            promotions: [promotion(2, (1, 8))].into(),
            ..facts
        };
        assert!(fine.promoted_too_old().is_empty());
    }

    #[test]
    fn a_hole_is_told_from_a_lost_tail() {
        assert!(follows(&[1, 2, 3, 4], &[1, 2, 5]).is_ok());
        assert!(follows(&[1, 2], &[1, 2, 3]).is_ok());
        assert!(follows(&[1, 2, 3, 4], &[1, 2, 4]).is_err());
        assert!(follows(&[], &[2, 1]).is_err());
    }
}
