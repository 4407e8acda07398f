//! Promises of a holder's shadows, for when the coordinators do not answer (DESIGN §5).
//!
//! # Why no two hosts serve
//!
//! A holder `P` of epoch `e` asks the shadows in the newest order that it obeyed, and stamps `s` on its own
//! clock when it sends. A shadow `Q` promises only if it has seen no order of a later epoch, and then opens
//! its gate for no epoch above `e` before its clock is at `receipt + L(1+ρ) + F`. `P` extends its deadline
//! to `min(s) + L` over *all* shadows of that order, and only if there are any.
//!
//! 1. Who gets `e+1` is in the promotable set, or is `P` itself. The set is within the list of the newest
//!    order that `P` obeyed: a host enters it only after `P` acknowledged an order that names it, and the
//!    leader then counts `P`'s lease from that moment, so that a promise which `P` sent for *before* it
//!    obeyed that order is over before the newcomer can be granted anything. A service that nobody served
//!    has no such set: its orders say so, and `P` extends nothing by promises.
//! 2. So the host of `e+1` promised, if `P`'s gate is open at all. It sees `e+1` before it opens for it, and
//!    from then on promises `e` to nobody. Its last promise was received after it was sent, so it ends
//!    later than `P`'s deadline on every clock whose rate differs by at most `ρ`, plus the flight `F`.
//! 3. Only a host that served in `e+1` brings others into the set, and by 2. `P` is closed for good by
//!    then. Until one serves, every further epoch goes to a host of the list of `P`, which by 2. is bound.
//! 4. The promise is in the pinned map and the kernel compares, so an agent that dies keeps it. A host that
//!    lost its pins opens nothing for the length of a promise after its agent's first start.
//!
//! What a model of a host must do: ask [`GateEntry::apply_promise`] before answering, pin what it changed,
//! open by [`GateEntry::is_open`] alone, call [`GateEntry::apply_seen`] with each order before it obeys it,
//! and after a loss of pins [`GateEntry::apply_forgotten`].
//!
//! [`GateEntry::apply_promise`]: understudy_common::abi::gate::GateEntry::apply_promise
//! [`GateEntry::apply_forgotten`]: understudy_common::abi::gate::GateEntry::apply_forgotten
//! [`GateEntry::apply_seen`]: understudy_common::abi::gate::GateEntry::apply_seen
//! [`GateEntry::is_open`]: understudy_common::abi::gate::GateEntry::is_open

use std::collections::{BTreeMap, BTreeSet};

use understudy_common::id::HostId;
use understudy_common::units::BootTime;

/// What the shadows of one epoch promised its holder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Promises {
    /// Of the newest order. Empty when the set bounds nobody.
    shadows: BTreeSet<HostId>,
    /// When the newest request that each of them granted was sent.
    granted: BTreeMap<HostId, BootTime>,
}

impl Promises {
    /// A newer order of the same epoch. What was granted stays granted.
    pub(super) fn name(&mut self, shadows: BTreeSet<HostId>) {
        self.granted.retain(|host, _| shadows.contains(host));
        self.shadows = shadows;
    }

    /// `host` promised on a request that was sent at `sent`.
    pub(super) fn grant(&mut self, host: HostId, sent: BootTime) {
        if self.shadows.contains(&host) {
            let newest = self.granted.entry(host).or_default();
            *newest = sent.max(*newest);
        }
    }

    pub(super) const fn shadows(&self) -> &BTreeSet<HostId> {
        &self.shadows
    }

    /// When the oldest of the newest promises of all shadows was sent for; none if one is missing.
    pub(super) fn all_since(&self) -> Option<BootTime> {
        if self.granted.len() < self.shadows.len() {
            return None;
        }
        self.granted.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: HostId = HostId(2);
    const B: HostId = HostId(3);

    fn at(ms: u64) -> BootTime {
        BootTime::from_ms(ms)
    }

    #[test]
    fn the_oldest_promise_of_all_shadows_counts() {
        let mut promises = Promises::default();
        promises.name([A, B].into());
        promises.grant(A, at(5));
        assert_eq!(promises.all_since(), None);
        promises.grant(B, at(9));
        assert_eq!(promises.all_since(), Some(at(5)));
        promises.grant(A, at(7));
        promises.grant(A, at(6));
        assert_eq!(promises.all_since(), Some(at(7)));
    }

    #[test]
    fn without_shadows_there_is_no_promise() {
        let mut promises = Promises::default();
        promises.grant(A, at(5));
        assert_eq!(promises.all_since(), None);
        promises.name([A].into());
        assert_eq!(promises.all_since(), None, "a stranger's promise is not kept");
    }

    #[test]
    fn a_newcomer_has_to_promise_as_well() {
        let mut promises = Promises::default();
        promises.name([A].into());
        promises.grant(A, at(5));
        promises.name([A, B].into());
        assert_eq!(promises.all_since(), None);
        promises.name([A].into());
        assert_eq!(promises.all_since(), Some(at(5)));
    }
}
