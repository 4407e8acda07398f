//! Newcomers, tokens, revocations and the removal of hosts.

use std::collections::BTreeMap;

use serde_json::json;
use understudy_common::id::HostId;
use understudy_common::identity::{Principal, fingerprint};
use understudy_common::revocation::FOR_GOOD;
use understudy_common::units::BootTime;
use understudy_common::wire::{Admitted, Join, Refusal, Response};

use super::operate::OPERATOR;
use super::requests::Answer;
use super::{Replica, RequestId};
use crate::plan::ALIVE;
use crate::state::{Admittance, Change, TokenFate};
use crate::token;

/// Longest life of a token.
const TTL_MS_MAX: u64 = 7 * 24 * 3_600_000;
const TTL_MS_MIN: u64 = 1_000;

impl Replica {
    /// The certificate is signed by the shell once this is answered with [`Response::Admitted`].
    pub(super) fn join(&mut self, now: BootTime, id: RequestId, join: Join) {
        let (hash, request) = (token::hash(&join.secret), fingerprint(&join.request));
        if let Some(used) = self.state.admission.admitted(&hash, &request) {
            // The answer was lost, or the leader that would have given it.
            let response = self.admitted(used);
            self.reply(id, response);
            return;
        }
        match self.admission_of(now, &hash, &join.name) {
            Ok(host) => {
                let change = Change::Admit {
                    token: hash,
                    request,
                    host,
                    name: join.name,
                };
                self.propose_for(id, Answer::Admitted { token: hash, request }, change, "");
            }
            Err(why) => self.reply(id, Response::Refused(Refusal::Invalid(why))),
        }
    }

    fn admission_of(&self, now: BootTime, hash: &[u8; 32], name: &str) -> Result<HostId, String> {
        let host = self
            .state
            .admits(hash, name, self.settings.first_host, self.wall_ms)?;
        let seen = self.leading.as_ref().and_then(|leading| leading.seen.get(&host));
        if seen.is_some_and(|seen| !seen.gone && now.since(seen.arrived) <= ALIVE) {
            return Err(format!(
                "{name} is alive as {host}: stop its agent before another machine takes its place"
            ));
        }
        Ok(host)
    }

    /// The answer to who was just admitted.
    pub(super) fn admission_answer(&self, token: &[u8; 32], request: &[u8; 32]) -> Response {
        match self.state.admission.admitted(token, request) {
            Some(used) => self.admitted(used),
            None => Response::Refused(Refusal::Busy("admissions".to_owned())),
        }
    }

    fn admitted(&self, used: &Admittance) -> Response {
        let members = self.state.coordinators.members.iter();
        Response::Admitted(Admitted {
            host: used.host,
            name: used.name.clone(),
            enrolment: used.enrolment,
            coordinators: members
                .filter_map(|(id, member)| Some((*id, member.addr?)))
                .collect(),
            certificate: String::new(),
            ca: String::new(),
        })
    }

    pub(super) fn issue_token(&mut self, id: RequestId, hash: [u8; 32], name: Option<String>, ttl_ms: u64) {
        if !(TTL_MS_MIN..=TTL_MS_MAX).contains(&ttl_ms) {
            let why = "a token lives for 1 second to 7 days".to_owned();
            self.reply(id, Response::Refused(Refusal::Invalid(why)));
            return;
        }
        let change = Change::IssueToken {
            hash,
            name,
            expires_at_ms: self.wall_ms.saturating_add(ttl_ms),
        };
        self.propose_for(id, Answer::Document, change, OPERATOR);
    }

    pub(super) fn tokens(&self) -> String {
        let tokens = self.state.admission.tokens.iter().map(|(number, token)| {
            let (state, host) = match &token.fate {
                TokenFate::Open if self.wall_ms >= token.expires_at_ms => ("expired", None),
                TokenFate::Open => ("open", None),
                TokenFate::Used(used) => ("used", Some(used.host)),
                TokenFate::Revoked => ("revoked", None),
            };
            json!({
                "number": number,
                "name": token.name,
                "state": state,
                "host": host,
                "expires_in_ms": token.expires_at_ms.saturating_sub(self.wall_ms),
            })
        });
        json!({ "tokens": tokens.collect::<Vec<_>>() }).to_string()
    }

    /// Whom certificates are made for, and what of theirs is refused. Which certificates there are is
    /// known to the shell, from its links.
    pub(super) fn certificates(&self) -> String {
        let state = &self.state;
        let refused = &state.admission.revocations;
        let hosts = state.hosts.iter().map(|(id, host)| {
            let who = Principal::Host(*id);
            (who, Some(host.name.clone()), true)
        });
        let members = state.coordinators.members.keys();
        let coordinators = members.map(|id| (Principal::Coordinator(*id), None, true));
        let operator = std::iter::once((Principal::Operator, None, true));
        let mut rows: BTreeMap<Principal, (Option<String>, bool)> = hosts
            .chain(coordinators)
            .chain(operator)
            .map(|(who, name, member)| (who, (name, member)))
            .collect();
        for (who, _) in refused.floors() {
            rows.entry(who).or_insert((None, false));
        }
        let rows = rows.into_iter().map(|(who, (name, member))| {
            let floor = refused.floor(who);
            json!({
                "principal": who.to_string(),
                "name": name,
                "member": member,
                "revoked": floor > 0,
                "refused_enrolments": (floor > 0 && floor != FOR_GOOD).then_some(floor),
                "refused_for_good": floor == FOR_GOOD,
            })
        });
        json!({ "certificates": rows.collect::<Vec<_>>() }).to_string()
    }

    /// The principal that people mean by `who`: a host's name, or `host-7`, `coordinator-2`, `operator`.
    pub(super) fn principal_called(&self, who: &str) -> Result<Principal, Refusal> {
        match self.state.host_by_name(who) {
            Some((id, _)) => Ok(Principal::Host(id)),
            None => Principal::from_label(who)
                .ok_or_else(|| Refusal::Unknown(format!("host, coordinator or operator called {who}"))),
        }
    }
}
