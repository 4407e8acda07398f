//! The certificates that this coordinator was shown, and when they end.
//!
//! Invariants: only what was verified is noted, of at most [`PRINCIPALS_MAX`] principals. Nothing is
//! decided by it but that nobody gets two signatures within a second.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use understudy_common::identity::{Certificate, Principal};
use understudy_common::units::BootTime;

/// Every host, and as many others.
const PRINCIPALS_MAX: usize = 2 * crate::state::HOSTS_MAX;
/// Between two signatures for one principal.
const SIGNED_EVERY: Duration = Duration::from_secs(1);

/// What one principal showed last.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) enrolment: u32,
    not_before_s: i64,
    not_after_s: i64,
    /// Wall time of the first link with it, or of its showing.
    shown_at_ms: u64,
    /// The same, if another one of the enrolment was known before.
    renewed_at_ms: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Certificates {
    shown: BTreeMap<Principal, Shown>,
    signed: BTreeMap<Principal, BootTime>,
}

impl Certificates {
    pub(crate) fn note(&mut self, wall_ms: u64, certificate: &Certificate) {
        let who = certificate.identity.principal;
        let (enrolment, lifetime) = (certificate.identity.enrolment, certificate.lifetime);
        let before = self.shown.get(&who);
        if before.is_none() && self.shown.len() >= PRINCIPALS_MAX {
            return;
        }
        if before.is_some_and(|before| before.enrolment > enrolment) {
            return;
        }
        // What is shown is what is shown from then on: the last one counts, though it may end earlier.
        let same = before.filter(|before| before.enrolment == enrolment);
        if same
            .is_some_and(|same| (same.not_before_s, same.not_after_s) == (lifetime.begins_s, lifetime.ends_s))
        {
            return;
        }
        let renewed_at_ms = same.map(|_| wall_ms);
        self.shown.insert(
            who,
            Shown {
                enrolment,
                not_before_s: lifetime.begins_s,
                not_after_s: lifetime.ends_s,
                shown_at_ms: wall_ms,
                renewed_at_ms,
            },
        );
    }

    pub(crate) fn of(&self, who: Principal) -> Option<Shown> {
        self.shown.get(&who).copied()
    }

    /// Whether the principal may have a signature now; then it has had one.
    pub(crate) fn may_sign(&mut self, now: BootTime, who: Principal) -> bool {
        let last = self.signed.get(&who);
        if last.is_some_and(|last| now.since(*last) < SIGNED_EVERY) {
            return false;
        }
        if last.is_none() && self.signed.len() >= PRINCIPALS_MAX {
            return false;
        }
        self.signed.insert(who, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_common::id::HostId;
    use understudy_common::identity::{Identity, Lifetime};

    const WHO: Principal = Principal::Host(HostId(7));

    fn certificate(enrolment: u32, ends_s: i64) -> Certificate {
        Certificate {
            identity: Identity {
                principal: WHO,
                enrolment,
            },
            lifetime: Lifetime { begins_s: 0, ends_s },
            public_key: Vec::new(),
        }
    }

    #[test]
    fn the_last_certificate_of_the_newest_enrolment_counts() {
        let mut known = Certificates::default();
        let mut show = |wall_ms, enrolment, ends_s| {
            known.note(wall_ms, &certificate(enrolment, ends_s));
            let shown = known.of(WHO).unwrap();
            (shown.enrolment, shown.not_after_s, shown.renewed_at_ms)
        };
        assert_eq!(show(1, 1, 100), (1, 100, None));
        assert_eq!(show(2, 1, 100), (1, 100, None));
        assert_eq!(show(3, 1, 200), (1, 200, Some(3)));
        assert_eq!(show(4, 1, 200), (1, 200, Some(3)));
        assert_eq!(show(4, 1, 170), (1, 170, Some(4)));
        // A new enrolment is no renewal, and its end counts though it is earlier.
        assert_eq!(show(5, 2, 150), (2, 150, None));
        assert_eq!(show(6, 1, 900), (2, 150, None));
    }

    #[test]
    fn nobody_gets_two_signatures_within_a_second() {
        let mut known = Certificates::default();
        let at = |ms: u64| BootTime(ms * 1_000_000);
        assert!(known.may_sign(at(5), WHO));
        assert!(!known.may_sign(at(1_004), WHO));
        assert!(known.may_sign(at(1_004), Principal::Operator));
        assert!(known.may_sign(at(1_005), WHO));
    }
}
