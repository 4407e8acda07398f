//! Tells the event log what is held back: once when it begins, not at every look.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use understudy_common::units::BootTime;

use super::Replica;
use crate::plan::Held;
use crate::state::{Change, Hold};

/// A hold that was absent for this long is over; if it comes back later it is told again.
const OVER_AFTER: Duration = Duration::from_secs(30);

/// What this leader has on its way about holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Holds {
    /// Index of the newest command about each.
    proposed: BTreeMap<Hold, u64>,
    /// Holds that the log knows and the plan no longer has, and since when.
    absent: BTreeMap<Hold, BootTime>,
}

impl Holds {
    /// What to tell: holds that began, with their place in `now_held`, and holds that are over.
    fn news(
        &mut self,
        now: BootTime,
        applied: u64,
        known: &BTreeSet<Hold>,
        now_held: &[Hold],
    ) -> (Vec<usize>, Vec<Hold>) {
        self.proposed.retain(|_, index| *index > applied);
        let held: BTreeSet<Hold> = now_held.iter().copied().collect();
        self.absent
            .retain(|hold, _| known.contains(hold) && !held.contains(hold));
        for hold in known.difference(&held) {
            self.absent.entry(*hold).or_insert(now);
        }
        let over = self
            .absent
            .iter()
            .filter(|(hold, since)| now.since(**since) >= OVER_AFTER && !self.proposed.contains_key(hold))
            .map(|(hold, _)| *hold)
            .collect();
        let began = |hold: &Hold| !known.contains(hold) && !self.proposed.contains_key(hold);
        let began = now_held.iter().enumerate().filter(|(_, hold)| began(hold));
        (began.map(|(at, _)| at).collect(), over)
    }
}

impl Replica {
    pub(super) fn tell_holds(&mut self, now: BootTime, held: &[Held]) {
        let told: Vec<(Hold, &str)> = held
            .iter()
            .filter_map(|held| Some((held.hold()?, held.why.as_str())))
            .collect();
        let holds: Vec<Hold> = told.iter().map(|(hold, _)| *hold).collect();
        let Some(leading) = &mut self.leading else { return };
        let (began, over) = leading
            .holds
            .news(now, self.state.index, &self.state.held, &holds);
        for at in began {
            let (hold, why) = told[at];
            tracing::info!(?hold, why, "held back");
            self.tell_hold(hold, true, why);
        }
        for hold in over {
            self.tell_hold(hold, false, "");
        }
    }

    fn tell_hold(&mut self, hold: Hold, on: bool, why: &str) {
        if let Ok(index) = self.propose(Change::Held { hold, on }, why)
            && let Some(leading) = &mut self.leading
        {
            leading.holds.proposed.insert(hold, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use understudy_common::id::ServiceId;

    use super::*;
    use crate::state::Cause;

    const HOLD: Hold = Hold {
        service: Some(ServiceId(1)),
        cause: Cause::Paused,
    };

    #[test]
    fn a_hold_is_told_once_and_is_over_only_when_it_stays_away() {
        let mut holds = Holds::default();
        let (nothing, known) = (BTreeSet::new(), BTreeSet::from([HOLD]));
        let at = |ms| BootTime::from_ms(ms);
        assert_eq!(holds.news(at(0), 1, &nothing, &[HOLD]), (vec![0], vec![]));
        holds.proposed.insert(HOLD, 2);
        assert_eq!(
            holds.news(at(50), 1, &nothing, &[HOLD]),
            (vec![], vec![]),
            "on its way"
        );
        assert_eq!(holds.news(at(100), 2, &known, &[HOLD]), (vec![], vec![]), "known");
        assert_eq!(
            holds.news(at(200), 2, &known, &[]),
            (vec![], vec![]),
            "gone just now"
        );
        assert_eq!(
            holds.news(at(29_000), 2, &known, &[HOLD]),
            (vec![], vec![]),
            "back"
        );
        assert_eq!(holds.news(at(30_000), 2, &known, &[]), (vec![], vec![]));
        assert_eq!(
            holds.news(at(60_000), 2, &known, &[]),
            (vec![], vec![HOLD]),
            "over"
        );
        holds.proposed.insert(HOLD, 3);
        assert_eq!(holds.news(at(60_050), 2, &known, &[]), (vec![], vec![]));
        assert_eq!(
            holds.news(at(60_100), 3, &nothing, &[HOLD]),
            (vec![0], vec![]),
            "again"
        );
    }
}
