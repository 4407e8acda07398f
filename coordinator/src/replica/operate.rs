//! What operators ask for.

use serde_json::json;
use understudy_common::spec::{RawServiceSpec, ServiceSpec};
use understudy_common::units::BootTime;
use understudy_common::wire::{Operate, Refusal, Response};

use super::requests::Answer;
use super::{Replica, RequestId};
use crate::plan;
use crate::state::{Change, MembershipChange, MoveReason};

/// Events in one answer.
const EVENTS_ANSWER_MAX: usize = 256;
/// Longest declaration that is looked at.
const DECLARATION_BYTES_MAX: usize = 64 << 10;

impl Replica {
    pub(super) fn operate(&mut self, now: BootTime, id: RequestId, operate: Operate) {
        let result = match operate {
            Operate::Status => {
                let document = self.status(now).to_string();
                self.reply(id, Response::Document(document));
                return;
            }
            Operate::Events { after } => {
                let events: Vec<_> = self.state.events.after(after).take(EVENTS_ANSWER_MAX).collect();
                let document = json!({ "events": events }).to_string();
                self.reply(id, Response::Document(document));
                return;
            }
            Operate::ApplyService { toml } => declared(&toml).map(Change::ApplyService),
            Operate::Handover { service, to } => self.handover(now, &service, to.as_deref()),
            Operate::Restore { host } => match self.state.host_by_name(&host) {
                Some((host, _)) => Ok(Change::SafeMode { host, on: false }),
                None => Err(Refusal::Unknown(format!("host {host}"))),
            },
            Operate::Pause { on } => Ok(Change::Pause { on }),
            Operate::Note { text } => {
                self.propose_for(id, Answer::Done, Change::Note { text });
                return;
            }
            Operate::AddCoordinator {
                id: coordinator,
                addr,
            } => {
                self.ask_members(
                    now,
                    id,
                    MembershipChange::Add {
                        id: coordinator,
                        addr,
                    },
                );
                return;
            }
            Operate::RemoveCoordinator { id: coordinator } => {
                self.ask_members(now, id, MembershipChange::Remove { id: coordinator });
                return;
            }
            Operate::TransferLeadership { to } => {
                self.ask_transfer(now, id, to);
                return;
            }
        };
        match result {
            Ok(change) => self.propose_for(id, Answer::Document, change),
            Err(refusal) => self.reply(id, Response::Refused(refusal)),
        }
    }

    fn handover(&self, now: BootTime, name: &str, to: Option<&str>) -> Result<Change, Refusal> {
        let (service, known) = self
            .state
            .service_by_name(name)
            .ok_or_else(|| Refusal::Unknown(format!("service {name}")))?;
        let to = to
            .map(|to| {
                self.state
                    .host_by_name(to)
                    .map(|(host, _)| host)
                    .ok_or_else(|| Refusal::Unknown(format!("host {to}")))
            })
            .transpose()?;
        let to = self
            .with_facts(now, |facts| plan::check_target(&self.state, facts, service, to))
            .ok_or_else(|| Refusal::Busy("elections".to_owned()))?
            .map_err(Refusal::Invalid)?;
        Ok(Change::BeginHandover {
            service,
            epoch: known.epoch,
            to,
            reason: MoveReason::Operator,
        })
    }
}

fn declared(text: &str) -> Result<ServiceSpec, Refusal> {
    if text.len() > DECLARATION_BYTES_MAX {
        return Err(Refusal::Invalid(format!(
            "the declaration is longer than {DECLARATION_BYTES_MAX} bytes"
        )));
    }
    let raw: RawServiceSpec = toml::from_str(text).map_err(|error| Refusal::Invalid(error.to_string()))?;
    ServiceSpec::try_from(raw).map_err(|error| Refusal::Invalid(error.to_string()))
}
