//! The status document for people and the CLI.

use serde_json::{Value, json};
use understudy_common::id::{CoordinatorId, HostId, ServiceId};
use understudy_common::units::BootTime;
use understudy_common::wire::{ServiceReport, Sight};

use super::{Leading, Replica};
use crate::plan::ALIVE;
use crate::state::{Coordinator, Host, Service, Standing};

impl Replica {
    /// What this replica knows, as JSON.
    pub fn status(&self, now: BootTime) -> Value {
        json!({
            "leader": self.leader(),
            "paused": self.state.paused,
            "coordinators": self.coordinators(now),
            "hosts": self.state.hosts.iter().map(|(id, host)| self.host(now, *id, host)).collect::<Vec<_>>(),
            "services": self
                .state
                .services
                .iter()
                .map(|(id, service)| self.service(*id, service))
                .collect::<Vec<_>>(),
        })
    }

    fn coordinators(&self, now: BootTime) -> Vec<Value> {
        let me = self.settings.id;
        let members = &self.state.coordinators.members;
        let mut rows: Vec<_> = members
            .iter()
            .map(|(id, member)| self.coordinator(now, *id, member))
            .collect();
        if !members.contains_key(&me) {
            let role = if self.is_member() { "joining" } else { "removed" };
            rows.push(json!({ "id": me, "role": role, "term": self.term(), "applied": self.applied() }));
        }
        rows
    }

    fn coordinator(&self, now: BootTime, id: CoordinatorId, member: &Coordinator) -> Value {
        let me = id == self.settings.id;
        let role = if self.leader() == Some(id) {
            "leader"
        } else if member.standing == Standing::Learner {
            "learner"
        } else if me || self.is_leader() {
            "follower"
        } else {
            "unknown"
        };
        // Of the others a leader knows what they acknowledged.
        let progress = self.node.raft.prs().get(id.0).filter(|_| self.is_leader());
        let applied = if me {
            Some(self.applied())
        } else {
            progress.map(|progress| progress.matched)
        };
        let commits = if me {
            Some(self.commits())
        } else {
            progress.map(|progress| progress.committed_index)
        };
        let reachable = me || progress.is_some_and(|progress| progress.recent_active);
        json!({
            "id": id,
            "addr": member.addr,
            "role": role,
            "standing": member.standing,
            "term": self.term(),
            "applied": applied,
            "commits": commits,
            "reachable": reachable,
            "disk_full": self.has_full_disk(now, id),
            "command_version": member.version,
            "software": member.software,
        })
    }

    fn host(&self, now: BootTime, id: HostId, host: &Host) -> Value {
        let alive = self
            .leading
            .as_ref()
            .and_then(|leading| leading.seen.get(&id))
            .is_some_and(|seen| !seen.gone && seen.report.is_some() && now.since(seen.arrived) <= ALIVE);
        json!({
            "id": id,
            "name": host.name,
            "addr": host.addr,
            "version": host.version,
            "alive": alive,
            "risk_bp": host.risk,
            "safe_mode": host.safe_mode,
            "ebpf_source": host.inventory.ebpf_source,
            "ebpf_programs": host.inventory.ebpf_programs,
            "inventory": host.inventory,
            "domain": host.domain,
        })
    }

    fn service(&self, id: ServiceId, service: &Service) -> Value {
        let leading = self.leading.as_ref();
        let primary = service
            .holder
            .and_then(|holder| last_report(leading, holder.host, id));
        let serving = primary.is_some_and(|report| report.serving == Some(service.epoch));
        let shadows: Vec<_> = service
            .spec
            .hosts
            .iter()
            .filter(|host| service.is_shadow(**host))
            .map(|host| shadow(leading, *host, id, service))
            .collect();
        json!({
            "id": id,
            "name": service.spec.name,
            "address": service.spec.address,
            "ack": service.spec.ack,
            "phase": service.phase.label(),
            "epoch": service.epoch,
            "holder": service.holder.map(|holder| holder.host),
            "serving": serving,
            "generation": primary.and_then(|report| report.generation).map(|id| id.to_string()),
            "failure": primary.and_then(|report| report.failure.clone()),
            "shadows": shadows,
            "evidence": evidence(leading, id, service),
            "sync": primary.map(|report| &report.sync),
            "basis": primary.map(|report| report.basis),
            "coordinator_loss": service.spec.policy.coordinator_loss,
        })
    }
}

fn shadow(leading: Option<&Leading>, host: HostId, id: ServiceId, service: &Service) -> Value {
    let report = last_report(leading, host, id);
    json!({
        "host": host,
        "copy": report.map(|report| report.copy),
        "generation": report.and_then(|report| report.generation).map(|id| id.to_string()),
        "promotable": service.shadows.contains(&host),
        "diverged_files": report.map(|report| report.sync.diverged_files),
    })
}

/// What the other hosts see of the holder; ages are theirs.
fn evidence(leading: Option<&Leading>, id: ServiceId, service: &Service) -> Vec<Value> {
    let reports = service.spec.hosts.iter().filter_map(|host| {
        let report = leading?.seen.get(host)?.report.as_ref()?;
        Some((*host, report))
    });
    reports
        .flat_map(|(host, report)| {
            let about = report
                .evidence
                .iter()
                .filter(|seen| seen.service == id && seen.epoch == service.epoch);
            about.map(move |seen| {
                let sight = |sight: &Sight| {
                    json!({
                        "reach": sight.reach,
                        "for_ms": u64::try_from(report.at.since(sight.since).as_millis()).unwrap_or(u64::MAX),
                    })
                };
                json!({
                    "observer": host,
                    "holder": seen.holder,
                    "agent": sight(&seen.agent),
                    "address": seen.address.as_ref().map(sight),
                })
            })
        })
        .collect()
}

fn last_report(leading: Option<&Leading>, host: HostId, id: ServiceId) -> Option<&ServiceReport> {
    let report = leading?.seen.get(&host)?.report.as_ref()?;
    report.services.iter().find(|report| report.service == id)
}
