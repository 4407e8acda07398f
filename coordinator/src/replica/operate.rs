//! What operators ask for.

use serde_json::json;
use understudy_common::identity::Principal;
use understudy_common::spec::{RawServiceSpec, ServiceSpec};
use understudy_common::units::BootTime;
use understudy_common::wire::{Fate, Operate, Refusal, Response, Supposition};

use super::requests::Answer;
use super::{Replica, RequestId};
use crate::plan::{self, PlanDocument, Supposed};
use crate::state::{Change, MembershipChange, MoveReason};

/// Events in one answer.
const EVENTS_ANSWER_MAX: usize = 256;
/// Suppositions of one dry run.
const SUPPOSITIONS_MAX: usize = 64;
/// Why a change that an operator asked for is made.
pub(super) const OPERATOR: &str = "an operator asked for it";
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
            Operate::Plan { suppositions } => {
                let response = match self.dry_run(now, &suppositions) {
                    Ok(document) => Response::Document(document),
                    Err(refusal) => Response::Refused(refusal),
                };
                self.reply(id, response);
                return;
            }
            Operate::Note { text } => {
                self.propose_for(id, Answer::Done, Change::Note { text }, "");
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
            Operate::IssueToken { hash, name, ttl_ms } => {
                self.issue_token(id, hash, name, ttl_ms);
                return;
            }
            Operate::Tokens => {
                let document = self.tokens();
                self.reply(id, Response::Document(document));
                return;
            }
            Operate::Certificates => {
                let document = self.certificates();
                self.reply(id, Response::Document(document));
                return;
            }
            Operate::RevokeToken { number } => Ok(Change::RevokeToken { number }),
            Operate::Revoke { who } => self.principal_called(&who).map(|who| Change::Revoke { who }),
            Operate::RemoveHost { host, force } => match self.principal_called(&host) {
                Ok(Principal::Host(host)) => Ok(Change::RemoveHost { host, force }),
                _ => Err(Refusal::Unknown(format!("host {host}"))),
            },
            Operate::TransferLeadership { to } => {
                self.ask_transfer(now, id, to);
                return;
            }
            Operate::ConfirmDead { host } => self.confirm_dead(now, &host),
        };
        match result {
            Ok(change) => self.propose_for(id, Answer::Document, change, OPERATOR),
            Err(refusal) => self.reply(id, Response::Refused(refusal)),
        }
    }

    /// What would be done now, and what not, if these things were so.
    fn dry_run(&self, now: BootTime, suppositions: &[Supposition]) -> Result<String, Refusal> {
        if suppositions.len() > SUPPOSITIONS_MAX {
            let rule = format!("more than {SUPPOSITIONS_MAX} suppositions");
            return Err(Refusal::Invalid(rule));
        }
        let mut fates = Vec::new();
        for Supposition { host, fate } in suppositions {
            let (id, _) = self
                .state
                .host_by_name(host)
                .ok_or_else(|| Refusal::Unknown(format!("host {host}")))?;
            if matches!(fate, Fate::Risk(_)) && self.settings.threshold.is_none() {
                let why = "no model is in use, so that no risk moves anything: see `understudy status`";
                return Err(Refusal::Invalid(why.to_owned()));
            }
            fates.push((id, *fate));
        }
        let supposed = suppositions.iter().map(|supposition| match supposition.fate {
            Fate::Risk(risk) => format!("the risk of {} is {risk}", supposition.host),
            Fate::Dead => format!("{} is dead", supposition.host),
        });
        let supposed = supposed.collect();
        self.with_facts(now, |facts| {
            let mut world = Supposed::new(&self.state, facts);
            for (host, fate) in fates {
                world.host(host, fate);
            }
            serde_json::json!(PlanDocument::of(&world.plan(facts), &self.state, supposed)).to_string()
        })
        .ok_or_else(|| Refusal::Busy("elections".to_owned()))
    }

    fn confirm_dead(&self, now: BootTime, name: &str) -> Result<Change, Refusal> {
        let (host, known) = self
            .state
            .host_by_name(name)
            .ok_or_else(|| Refusal::Unknown(format!("host {name}")))?;
        let heard = self.with_facts(now, |facts| plan::is_alive(&self.state, facts, host));
        if heard.unwrap_or(true) {
            let why = format!("{name} is heard of: it is not dead; `understudy handover` moves its services");
            return Err(Refusal::Invalid(why));
        }
        let boot = known.boot;
        Ok(Change::ConfirmDead { host, boot })
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
