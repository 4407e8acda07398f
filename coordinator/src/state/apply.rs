//! `apply`: checks a command against the state and carries it out whole, or not at all.

mod apart;

use std::collections::{BTreeMap, BTreeSet};

use understudy_common::id::{CoordinatorId, Epoch, GenerationId, HostId, ServiceId};
use understudy_common::identity::Principal;
use understudy_common::revocation::FOR_GOOD;
use understudy_common::spec::{Ack, ServiceSpec};
use understudy_common::wire::{FinalCut, NOTE_BYTES_MAX};

use super::{
    Change, Command, EventKind, GrantReason, HOSTS_MAX, Holder, Host, MoveReason, Phase, SERVICES_MAX,
    SOFTWARE_BYTES_MAX, Service, State, Step, WHY_BYTES_MAX,
};

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    /// The check failed; why, for people.
    Refused(String),
    /// The bytes are no command.
    Garbage,
}

pub(super) type Checked = Result<(), String>;

impl State {
    /// Applies the entry at `index`. Empty entries (a new leader's) only advance the index.
    pub fn apply(&mut self, index: u64, data: &[u8]) -> Outcome {
        self.index = index;
        if data.is_empty() {
            return Outcome::Applied;
        }
        let Ok(command) = Command::decode(data) else {
            self.garbage += 1;
            return Outcome::Garbage;
        };
        match self.carry_out(index, command) {
            Ok(()) => Outcome::Applied,
            Err(why) => {
                self.refused += 1;
                Outcome::Refused(why)
            }
        }
    }

    fn carry_out(&mut self, index: u64, Command { at_ms, change, why }: Command) -> Checked {
        let mut step = Applying {
            state: self,
            index,
            at_ms,
            why,
        };
        match change {
            Change::RegisterHost {
                host,
                name,
                boot,
                addr,
                version,
                inventory,
                domain,
            } => step.register(
                host,
                Host {
                    name,
                    boot,
                    addr,
                    version,
                    inventory,
                    risk: None,
                    safe_mode: false,
                    domain,
                },
            ),
            Change::ApplyService(spec) => step.apply_service(spec),
            Change::Grant {
                service,
                epoch,
                holder,
                boot,
                from,
                reason,
            } => step.grant(service, epoch, holder, boot, from, reason),
            Change::BeginHandover {
                service,
                epoch,
                to,
                reason,
            } => step.begin_handover(service, epoch, to, reason),
            Change::HolderFenced { service, epoch } => step.holder_fenced(service, epoch),
            Change::FinalCut { service, epoch, cut } => step.final_cut(service, epoch, cut),
            Change::Served { service, epoch } => step.served(service, epoch),
            Change::AddShadow { service, host } => step.add_shadow(service, host),
            Change::ShadowReady { service, epoch, host } => step.shadow_ready(service, epoch, host),
            Change::ShadowUnready { service, host } => step.shadow_unready(service, host),
            Change::Risks(risks) => step.risks(&risks),
            Change::SafeMode { host, on } => step.safe_mode(host, on),
            Change::Pause { on } => step.pause(on),
            Change::Condemned {
                service,
                epoch,
                by_evidence,
            } => step.condemned(service, epoch, by_evidence),
            Change::Held { hold, on } => step.held(hold, on),
            Change::Note { text } => step.note(text),
            Change::Announce {
                coordinator,
                version,
                software,
            } => step.announce(coordinator, version, software),
            Change::RemoveShadow { service, host } => step.remove_shadow(service, host),
            Change::ConfirmDead { host, boot } => step.confirm_dead(host, boot),
            Change::ServedApart {
                service,
                host,
                boot,
                apart,
            } => step.served_apart(service, host, boot, apart),
            Change::IssueToken {
                hash,
                name,
                expires_at_ms,
            } => step.issue_token(hash, name, expires_at_ms),
            Change::RevokeToken { number } => step.revoke_token(number),
            Change::Admit {
                token,
                request,
                host,
                name,
            } => step.admit(token, request, host, name),
            Change::Revoke { who } => step.revoke(who),
            Change::RemoveHost { host, force } => step.remove_host(host, force),
        }
    }
}

pub(super) struct Applying<'a> {
    pub(super) state: &'a mut State,
    pub(super) index: u64,
    pub(super) at_ms: u64,
    /// Goes into the first event, which is about the change itself.
    why: String,
}

impl Applying<'_> {
    pub(super) fn event(
        &mut self,
        kind: EventKind,
        service: Option<ServiceId>,
        host: Option<HostId>,
        mut text: String,
    ) {
        let why = std::mem::take(&mut self.why);
        if !why.is_empty() {
            text.push_str(", because ");
            text.push_str(&why[..why.floor_char_boundary(WHY_BYTES_MAX)]);
        }
        self.state.events.push(self.at_ms, kind, service, host, text);
    }

    fn service(&mut self, id: ServiceId) -> Result<&mut Service, String> {
        self.state
            .services
            .get_mut(&id)
            .ok_or_else(|| format!("there is no {id}"))
    }

    /// The service, if the command was meant for its current epoch.
    pub(super) fn service_at(&mut self, id: ServiceId, epoch: Epoch) -> Result<&mut Service, String> {
        let service = self.service(id)?;
        if service.epoch != epoch {
            return Err(format!("{id} is at epoch {}, not {epoch}", service.epoch));
        }
        Ok(service)
    }

    fn register(&mut self, id: HostId, mut host: Host) -> Checked {
        if self.state.hosts.len() >= HOSTS_MAX && !self.state.hosts.contains_key(&id) {
            return Err(format!("{HOSTS_MAX} hosts are registered already"));
        }
        if self.state.admission.revocations.floor(Principal::Host(id)) == FOR_GOOD {
            return Err(format!("{id} was removed"));
        }
        if self
            .state
            .hosts
            .iter()
            .any(|(other, known)| *other != id && known.name == host.name)
        {
            return Err(format!("another host is called {}", host.name));
        }
        let name = host.name.clone();
        let known = self.state.hosts.get(&id);
        let rebooted = known.is_some_and(|known| known.boot != host.boot);
        let moved = known.is_none_or(|known| known.addr != host.addr);
        let joined = known.is_none();
        if let Some(known) = known {
            host.risk = known.risk;
            host.safe_mode = known.safe_mode;
        }
        self.state.hosts.insert(id, host);
        self.state.admission.last_host = self.state.admission.last_host.max(id.0);
        if rebooted || moved {
            let index = self.index;
            for service in self.state.services.values_mut() {
                if !service.spec.hosts.contains(&id) {
                    continue;
                }
                service.revision = index;
                // Its copy has to be checked before it can be promoted again.
                if rebooted && service.is_shadow(id) {
                    service.shadows.remove(&id);
                    service.joining.insert(id, index);
                }
            }
        }
        if joined {
            self.event(EventKind::HostJoined, None, Some(id), format!("{name} joined"));
        } else if rebooted {
            self.event(
                EventKind::HostReturned,
                None,
                Some(id),
                format!("{name} is back after a reboot"),
            );
        }
        Ok(())
    }

    fn apply_service(&mut self, spec: ServiceSpec) -> Checked {
        if let Some((_, known)) = self.state.service_by_name(&spec.name) {
            return if known.spec == spec {
                Ok(())
            } else {
                Err(format!(
                    "the service {} is declared differently already",
                    spec.name
                ))
            };
        }
        if self.state.services.len() >= SERVICES_MAX {
            return Err(format!("{SERVICES_MAX} services are declared already"));
        }
        for other in self.state.services.values() {
            if other.spec.address == spec.address {
                return Err(format!(
                    "the service {} has the address {} already",
                    other.spec.name, spec.address
                ));
            }
            if let Some(path) = spec
                .paths
                .iter()
                .find(|path| other.spec.paths.iter().any(|theirs| overlap(path, theirs)))
            {
                return Err(format!("the service {} keeps {path} already", other.spec.name));
            }
        }
        let last = self.state.services.keys().next_back().map_or(0, |id| id.0);
        let id = ServiceId(last + 1);
        let text = format!("{} is protected from now on", spec.name);
        self.state.services.insert(
            id,
            Service {
                spec,
                epoch: Epoch(0),
                holder: None,
                ever_served: false,
                shadows: BTreeSet::new(),
                joining: BTreeMap::new(),
                phase: Phase::Steady,
                revision: self.index,
                predicted_at_ms: None,
                leaving: None,
                distrusted_at_ms: None,
                apart: None,
            },
        );
        self.event(EventKind::ServiceApplied, Some(id), None, text);
        Ok(())
    }

    fn grant(
        &mut self,
        id: ServiceId,
        epoch: Epoch,
        to: HostId,
        boot: u128,
        from: Option<GenerationId>,
        reason: GrantReason,
    ) -> Checked {
        let host = self
            .state
            .hosts
            .get(&to)
            .ok_or_else(|| format!("{to} is not registered"))?;
        if host.boot != boot {
            return Err(format!("{to} has rebooted since it was chosen"));
        }
        let name = host.name.clone();
        let index = self.index;
        let service = self.service(id)?;
        if epoch != service.epoch.next() {
            return Err(format!(
                "the next epoch of {id} is {}, not {epoch}",
                service.epoch.next()
            ));
        }
        if !service.spec.hosts.contains(&to) {
            return Err(format!("{to} is not among the hosts of {}", service.spec.name));
        }
        let previous = service.holder.map(|holder| holder.host);
        if service.ever_served && !service.shadows.contains(&to) && previous != Some(to) {
            return Err(format!(
                "{to} is not in the promotable set of {}",
                service.spec.name
            ));
        }
        let planned = match (&service.phase, reason) {
            (
                Phase::Handover {
                    step: Step::Cut(_), ..
                },
                GrantReason::Handover,
            ) => true,
            (_, GrantReason::Handover) => return Err(format!("{id} has made no final cut")),
            (_, GrantReason::First | GrantReason::LeaseEnded) => false,
        };
        service.phase = match (&service.phase, reason) {
            (Phase::Handover { reason, .. }, GrantReason::Handover) => Phase::Handover {
                to,
                reason: *reason,
                step: Step::Activate,
            },
            (_, GrantReason::First) => Phase::Steady,
            _ => Phase::Failover,
        };
        service.epoch = epoch;
        service.holder = Some(Holder {
            host: to,
            boot,
            from,
            served: false,
            dead: false,
        });
        let leaves = previous.filter(|previous| planned && *previous != to);
        service.leaving = leaves.or(service.leaving).filter(|leaving| *leaving != to);
        service.shadows.remove(&to);
        service.joining.remove(&to);
        for revision in service.joining.values_mut() {
            *revision = index;
        }
        service.revision = index;
        let what = service.spec.name.clone();
        let why = match reason {
            GrantReason::First => "first holder".to_owned(),
            GrantReason::Handover => "planned handover".to_owned(),
            GrantReason::LeaseEnded => {
                format!("the lease before it ended{}", loss(service.spec.ack, from))
            }
        };
        self.event(
            EventKind::Granted,
            Some(id),
            Some(to),
            format!("{what}: {epoch} goes to {name} ({why})"),
        );
        if let Some(previous) = leaves {
            self.enter_safe_mode(previous);
        }
        Ok(())
    }

    fn begin_handover(&mut self, id: ServiceId, epoch: Epoch, to: HostId, reason: MoveReason) -> Checked {
        let (index, at_ms) = (self.index, self.at_ms);
        let target = self.state.host_name(to);
        let paused = self.state.paused;
        let service = self.service_at(id, epoch)?;
        let Some(holder) = service.holder.filter(|holder| holder.served) else {
            return Err(format!("{} is not served yet", service.spec.name));
        };
        // The proposer looked at both, but not at what was under way in the log.
        if matches!(reason, MoveReason::Predicted { .. }) {
            if paused {
                return Err("moves by prediction are paused".to_owned());
            }
            if !service.may_be_predicted(at_ms) {
                return Err(format!("{} was moved by prediction just now", service.spec.name));
            }
        }
        if service.phase != Phase::Steady {
            return Err(format!(
                "{} is in {} already",
                service.spec.name,
                service.phase.label()
            ));
        }
        if !service.shadows.contains(&to) {
            return Err(format!(
                "{target} is not in the promotable set of {}",
                service.spec.name
            ));
        }
        service.phase = Phase::Handover {
            to,
            reason,
            step: Step::Release,
        };
        service.revision = index;
        let how = match reason {
            MoveReason::Predicted { risk } => {
                service.predicted_at_ms = Some(at_ms);
                format!("by prediction at a risk of {risk}")
            }
            MoveReason::Operator => "as ordered".to_owned(),
        };
        let what = service.spec.name.clone();
        let source = self.state.host_name(holder.host);
        self.event(
            EventKind::HandoverBegan,
            Some(id),
            Some(holder.host),
            format!("{what}: handover from {source} to {target} {how}"),
        );
        Ok(())
    }

    fn holder_fenced(&mut self, id: ServiceId, epoch: Epoch) -> Checked {
        let service = self.service_at(id, epoch)?;
        let Phase::Handover { step, .. } = &mut service.phase else {
            return Err(format!("{id} is not in handover"));
        };
        if *step != Step::Release {
            return Ok(());
        }
        *step = Step::Fenced;
        let host = service.holder.map(|holder| holder.host);
        let text = format!("{}: {epoch} is fenced", service.spec.name);
        self.event(EventKind::HolderFenced, Some(id), host, text);
        Ok(())
    }

    fn final_cut(&mut self, id: ServiceId, epoch: Epoch, cut: FinalCut) -> Checked {
        let service = self.service_at(id, epoch)?;
        let Phase::Handover { step, .. } = &mut service.phase else {
            return Err(format!("{id} is not in handover"));
        };
        if cut.epoch != epoch || *step == Step::Activate {
            return Err(format!("{id} expects no final cut of {}", cut.epoch));
        }
        let text = format!(
            "{}: the final cut {} is on {} shadow(s)",
            service.spec.name,
            cut.generation,
            cut.acked_by.len()
        );
        *step = Step::Cut(cut);
        let host = service.holder.map(|holder| holder.host);
        self.event(EventKind::FinalCut, Some(id), host, text);
        Ok(())
    }

    fn served(&mut self, id: ServiceId, epoch: Epoch) -> Checked {
        let index = self.index;
        let service = self.service_at(id, epoch)?;
        let Some(holder) = &mut service.holder else {
            return Err(format!("{id} has no holder"));
        };
        if holder.served {
            return Ok(());
        }
        holder.served = true;
        let host = holder.host;
        if !service.ever_served || service.leaving.is_some() {
            // From now on its order tells the holder that its shadows bound who can be promoted, and the
            // host before it is done.
            service.ever_served = true;
            service.leaving = None;
            service.revision = index;
        }
        service.phase = Phase::Steady;
        let what = service.spec.name.clone();
        let text = format!("{what}: {} serves {epoch}", self.state.host_name(host));
        self.event(EventKind::Serving, Some(id), Some(host), text);
        Ok(())
    }

    fn add_shadow(&mut self, id: ServiceId, host: HostId) -> Checked {
        let index = self.index;
        let known = self
            .state
            .hosts
            .get(&host)
            .ok_or_else(|| format!("{host} is not registered"))?;
        if known.safe_mode {
            return Err(format!("{host} is in safe mode"));
        }
        let name = known.name.clone();
        let service = self.service(id)?;
        if service.is_shadow(host) || service.holder.is_none_or(|holder| holder.host == host) {
            return Err(format!("{host} cannot become a shadow of {id} now"));
        }
        if !service.spec.hosts.contains(&host) {
            return Err(format!("{host} is not among the hosts of {}", service.spec.name));
        }
        service.joining.insert(host, index);
        service.revision = index;
        let text = format!("{}: {name} becomes a shadow", service.spec.name);
        self.event(EventKind::ShadowAdded, Some(id), Some(host), text);
        Ok(())
    }

    fn shadow_ready(&mut self, id: ServiceId, epoch: Epoch, host: HostId) -> Checked {
        let name = self.state.host_name(host);
        let service = self.service_at(id, epoch)?;
        if service.joining.remove(&host).is_none() {
            return Err(format!("{host} is not joining {id}"));
        }
        service.shadows.insert(host);
        let text = format!("{}: {name} is ready to take over", service.spec.name);
        self.event(EventKind::ShadowReady, Some(id), Some(host), text);
        Ok(())
    }

    fn shadow_unready(&mut self, id: ServiceId, host: HostId) -> Checked {
        let index = self.index;
        let name = self.state.host_name(host);
        let service = self.service(id)?;
        if !service.shadows.remove(&host) {
            return Err(format!("{host} is not in the promotable set of {id}"));
        }
        service.joining.insert(host, index);
        service.revision = index;
        let text = format!("{}: {name} is not ready to take over", service.spec.name);
        self.event(EventKind::ShadowUnready, Some(id), Some(host), text);
        Ok(())
    }

    fn remove_shadow(&mut self, id: ServiceId, host: HostId) -> Checked {
        let index = self.index;
        let name = self.state.host_name(host);
        let service = self.service(id)?;
        if !service.is_shadow(host) {
            return Err(format!("{host} is no shadow of {id}"));
        }
        service.shadows.remove(&host);
        service.joining.remove(&host);
        service.revision = index;
        let text = format!("{}: {name} is a shadow no more", service.spec.name);
        self.event(EventKind::ShadowRemoved, Some(id), Some(host), text);
        Ok(())
    }

    fn risks(&mut self, risks: &[(HostId, understudy_common::units::BasisPoints)]) -> Checked {
        for (id, risk) in risks {
            if let Some(host) = self.state.hosts.get_mut(id) {
                host.risk = Some(*risk);
            }
        }
        Ok(())
    }

    fn safe_mode(&mut self, id: HostId, on: bool) -> Checked {
        if !self.state.hosts.contains_key(&id) {
            return Err(format!("{id} is not registered"));
        }
        if on {
            self.enter_safe_mode(id);
        } else if let Some(host) = self.state.hosts.get_mut(&id).filter(|host| host.safe_mode) {
            host.safe_mode = false;
            let text = format!("{} may be used again", host.name);
            self.event(EventKind::SafeModeEnded, None, Some(id), text);
        }
        Ok(())
    }

    fn enter_safe_mode(&mut self, id: HostId) {
        let index = self.index;
        let Some(host) = self.state.hosts.get_mut(&id).filter(|host| !host.safe_mode) else {
            return;
        };
        host.safe_mode = true;
        let text = format!("{} is in safe mode: it serves nobody", host.name);
        for service in self.state.services.values_mut() {
            let was = service.shadows.remove(&id) | service.joining.remove(&id).is_some();
            if was {
                service.revision = index;
            }
        }
        self.event(EventKind::SafeModeBegan, None, Some(id), text);
    }

    fn pause(&mut self, on: bool) -> Checked {
        if self.state.paused != on {
            self.state.paused = on;
            let (kind, text) = if on {
                (EventKind::Paused, "moves by prediction are paused")
            } else {
                (EventKind::Resumed, "moves by prediction are on again")
            };
            self.event(kind, None, None, text.to_owned());
        }
        Ok(())
    }

    fn announce(&mut self, id: CoordinatorId, version: u32, software: String) -> Checked {
        if software.len() > SOFTWARE_BYTES_MAX {
            return Err(format!(
                "the name of a version has at most {SOFTWARE_BYTES_MAX} bytes"
            ));
        }
        let Some(member) = self.state.coordinators.members.get_mut(&id) else {
            return Err(format!("{id} is no member"));
        };
        if member.version == Some(version) && member.software == software {
            return Ok(());
        }
        member.version = Some(version);
        let text = format!("{id} runs {software} and applies commands up to version {version}");
        member.software = software;
        self.event(EventKind::CoordinatorAnnounced, None, None, text);
        Ok(())
    }

    fn note(&mut self, text: String) -> Checked {
        if text.is_empty() || text.len() > NOTE_BYTES_MAX {
            return Err(format!(
                "a note has 1 to {NOTE_BYTES_MAX} bytes, not {}",
                text.len()
            ));
        }
        // It is printed on people's terminals.
        if text.chars().any(char::is_control) {
            return Err("a note is one line without control characters".to_owned());
        }
        self.event(EventKind::Noted, None, None, text);
        Ok(())
    }
}

/// What an unplanned takeover from this generation costs, by what the service's answers promise.
fn loss(ack: Ack, from: Option<GenerationId>) -> String {
    let Some(from) = from else {
        return String::new();
    };
    let lost = match ack {
        Ack::Memory => "what was answered after it, and what was not yet written before it, is lost",
        Ack::Written | Ack::Synced => "what was answered after it is lost",
    };
    format!("; {from} takes over: {lost}")
}

/// Whether one of two absolute directories is the other or inside it.
fn overlap(a: &str, b: &str) -> bool {
    let inside = |inner: &str, outer: &str| {
        inner
            .strip_prefix(outer)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    inside(a, b) || inside(b, a)
}
