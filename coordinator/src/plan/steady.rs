//! Why nothing is done about a service for which nothing speaks, in words for people.

use understudy_common::id::ServiceId;

use super::{OVER_TICKS, View};
use crate::state::{Phase, Service, Step};

pub(super) fn why(view: &View<'_>, id: ServiceId, service: &Service) -> String {
    let Some(holder) = service.holder else {
        return "none of its hosts is alive and out of safe mode".to_owned();
    };
    let (name, epoch) = (view.name(holder.host), service.epoch);
    match &service.phase {
        Phase::Handover { to, step, .. } => {
            let to = view.name(*to);
            match step {
                Step::Release => format!("{name} closes its gate for the handover to {to}"),
                Step::Fenced => format!("{name} makes the final cut for {to}"),
                Step::Cut(_) => format!("{to} is given a moment to take the final cut"),
                Step::Activate => format!("{name} starts it in {epoch}"),
            }
        }
        Phase::Failover => format!("{name} starts it in {epoch}"),
        Phase::Steady if !holder.served => format!("{name} starts it in {epoch}"),
        Phase::Steady if view.facts.leases.is_condemned(id, epoch) => {
            format!("the lease of {name} for {epoch} is being waited out")
        }
        Phase::Steady => {
            let shadows = if service.shadows.is_empty() {
                "nobody is ready to take over".to_owned()
            } else {
                let shadows = service.shadows.iter().copied();
                format!("ready to take over: {}", view.names(shadows))
            };
            format!("{name} serves {epoch}; {}; {shadows}", risk(view, service))
        }
    }
}

fn risk(view: &View<'_>, service: &Service) -> String {
    let host = service
        .holder
        .and_then(|holder| view.state.hosts.get(&holder.host));
    match (view.facts.threshold, host.and_then(|host| host.risk)) {
        (None, _) => "nothing is predicted".to_owned(),
        (Some(_), None) => "its risk is not known yet".to_owned(),
        (Some(threshold), Some(risk)) if risk >= threshold => {
            format!("its risk has not been at or above {threshold} for {OVER_TICKS} ticks yet")
        }
        (Some(threshold), Some(_)) => format!("its risk is below {threshold}"),
    }
}
