//! Which candidate takes over. Field order is the policy; the greatest wins; the id last makes
//! ties deterministic.

use std::cmp::Reverse;

use understudy_common::id::{GenerationId, HostId, ServiceId};
use understudy_common::units::BasisPoints;

use super::View;
use crate::state::Service;

/// After a lease end: lose as little as possible, then prefer healthy hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Takeover {
    pub generation: Option<GenerationId>,
    pub calm: bool,
    pub preference: Reverse<usize>,
    pub host: Reverse<HostId>,
}

/// For a planned move nothing is lost: the healthiest host wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Move {
    pub risk: Reverse<BasisPoints>,
    pub generation: Option<GenerationId>,
    pub preference: Reverse<usize>,
    pub host: Reverse<HostId>,
}

impl Takeover {
    pub(super) fn of(view: &View<'_>, id: ServiceId, service: &Service, host: HostId) -> Self {
        Self {
            generation: view.service_report(host, id).and_then(|report| report.generation),
            calm: !view.is_at_risk(host),
            preference: Reverse(preference(service, host)),
            host: Reverse(host),
        }
    }
}

impl Move {
    pub(super) fn of(view: &View<'_>, id: ServiceId, service: &Service, host: HostId) -> Self {
        let risk = view.state.hosts.get(&host).and_then(|host| host.risk);
        Self {
            risk: Reverse(risk.unwrap_or_default()),
            generation: view.service_report(host, id).and_then(|report| report.generation),
            preference: Reverse(preference(service, host)),
            host: Reverse(host),
        }
    }
}

fn preference(service: &Service, host: HostId) -> usize {
    service
        .spec
        .hosts
        .iter()
        .position(|named| *named == host)
        .unwrap_or(usize::MAX)
}
