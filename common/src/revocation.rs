//! Whose certificates count no more.
//!
//! Invariant: floors only rise, so that lists which met in any order come out the same, and a list
//! that is out of date takes nothing back.

use std::collections::BTreeMap;

use crate::identity::{Identity, Principal};

/// Principals with floors; one that is removed for good keeps its floor.
pub const REVOCATIONS_MAX: usize = 16_384;
/// No later enrolment of the principal will ever be accepted.
pub const FOR_GOOD: u32 = u32::MAX;

/// The highest enrolment of each principal that is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Revocations {
    floors: BTreeMap<Principal, u32>,
}

impl Revocations {
    pub fn floor(&self, principal: Principal) -> u32 {
        self.floors.get(&principal).copied().unwrap_or(0)
    }

    /// Each principal of which certificates are refused, with its floor.
    pub fn floors(&self) -> impl Iterator<Item = (Principal, u32)> {
        self.floors.iter().map(|(principal, floor)| (*principal, *floor))
    }

    /// A certificate that carries no enrolment is refused with the first revocation of its principal.
    pub fn refuses(&self, identity: Identity) -> bool {
        let floor = self.floor(identity.principal);
        floor > 0 && identity.enrolment <= floor
    }

    /// Whether it has room for one more principal.
    pub fn has_room_for(&self, principal: Principal) -> bool {
        self.floors.len() < REVOCATIONS_MAX || self.floors.contains_key(&principal)
    }

    pub fn raise(&mut self, principal: Principal, floor: u32) {
        let known = self.floors.entry(principal).or_default();
        *known = floor.max(*known);
    }

    /// Takes over what another list refuses; whether that was news.
    pub fn merge(&mut self, other: &Self) -> bool {
        let mut news = false;
        for (principal, floor) in &other.floors {
            if *floor > self.floor(*principal) && self.has_room_for(*principal) {
                self.raise(*principal, *floor);
                news = true;
            }
        }
        news
    }

    pub fn is_empty(&self) -> bool {
        self.floors.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::HostId;
    use proptest::prelude::*;

    fn list(floors: &[(u32, u32)]) -> Revocations {
        let mut list = Revocations::default();
        for (host, floor) in floors {
            list.raise(Principal::Host(HostId(*host)), *floor);
        }
        list
    }

    fn floors() -> impl Strategy<Value = Vec<(u32, u32)>> {
        prop::collection::vec((1_u32..5, 0_u32..4), 0..8)
    }

    proptest! {
        #[test]
        fn the_order_in_which_lists_meet_does_not_matter(a in floors(), b in floors(), c in floors()) {
            let (a, b, c) = (list(&a), list(&b), list(&c));
            let (mut one, mut other) = (a.clone(), c.clone());
            one.merge(&b);
            one.merge(&c);
            other.merge(&a);
            other.merge(&b);
            for host in 1..5 {
                let principal = Principal::Host(HostId(host));
                prop_assert_eq!(one.floor(principal), other.floor(principal));
            }
            prop_assert!(!one.merge(&a), "nothing is news twice");
        }

        #[test]
        fn what_is_refused_once_is_refused_for_ever(a in floors(), b in floors(), host in 1_u32..5, enrolment in 0_u32..5) {
            let identity = Identity { principal: Principal::Host(HostId(host)), enrolment };
            let mut grown = list(&a);
            let before = grown.refuses(identity);
            grown.merge(&list(&b));
            prop_assert!(!before || grown.refuses(identity));
        }
    }

    #[test]
    fn only_enrolments_up_to_the_floor_are_refused() {
        let list = list(&[(1, 1)]);
        let of = |host, enrolment| Identity {
            principal: Principal::Host(HostId(host)),
            enrolment,
        };
        assert!(list.refuses(of(1, 0)) && list.refuses(of(1, 1)));
        assert!(!list.refuses(of(1, 2)) && !list.refuses(of(2, 0)));
    }
}
