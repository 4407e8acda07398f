//! Who may become a host, and whose certificates count no more.
//!
//! Invariants: a token admits one host, once, and only within its time on the proposer's wall clock.
//! A host's number is never given to another machine. A principal's enrolments so far are refused
//! before a new one is admitted; a host that was removed is refused for good.

use std::collections::BTreeMap;

use understudy_common::id::HostId;
use understudy_common::identity::Principal;
use understudy_common::revocation::{FOR_GOOD, Revocations};

use super::apply::{Applying, Checked};
use super::{EventKind, HOSTS_MAX, State};

/// Tokens kept, spent ones included so that their holders are told why.
pub const TOKENS_MAX: usize = 64;
/// Longest name of a host that joins.
pub const HOST_NAME_BYTES_MAX: usize = 32;

#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Admission {
    /// By number, from 1.
    pub tokens: BTreeMap<u64, Token>,
    pub last_token: u64,
    /// The highest number that any host had.
    pub last_host: u32,
    pub revocations: Revocations,
    /// Raft index of the last revocation.
    pub revision: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Token {
    /// BLAKE3 of its secret.
    pub hash: [u8; 32],
    /// The only name that it admits.
    pub name: Option<String>,
    pub expires_at_ms: u64,
    pub fate: TokenFate,
}

#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum TokenFate {
    Open,
    Used(Admittance),
    Revoked,
}

/// What a token was used for.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Admittance {
    pub host: HostId,
    pub name: String,
    pub enrolment: u32,
    /// BLAKE3 of the certificate request: who asks again with the same one gets the same answer.
    pub request: [u8; 32],
}

impl Token {
    /// Why nobody is admitted with it any more; none while somebody can be.
    fn refusal(&self, number: u64, at_ms: u64) -> Option<String> {
        match &self.fate {
            TokenFate::Used(used) => Some(format!(
                "token {number} was used before, by {} ({})",
                used.host, used.name
            )),
            TokenFate::Revoked => Some(format!("token {number} was revoked")),
            TokenFate::Open if at_ms >= self.expires_at_ms => Some(format!(
                "token {number} has expired: make a new one with `understudy token`"
            )),
            TokenFate::Open => None,
        }
    }
}

impl Admission {
    fn token(&self, hash: &[u8; 32]) -> Option<(u64, &Token)> {
        let found = self.tokens.iter().find(|(_, token)| token.hash == *hash);
        found.map(|(number, token)| (*number, token))
    }

    /// What the token was used for with this very request.
    pub fn admitted(&self, hash: &[u8; 32], request: &[u8; 32]) -> Option<&Admittance> {
        match &self.token(hash)?.1.fate {
            TokenFate::Used(used) if used.request == *request => Some(used),
            _ => None,
        }
    }

    fn free_slot(&mut self, at_ms: u64) -> Checked {
        if self.tokens.len() < TOKENS_MAX {
            return Ok(());
        }
        let spent = self
            .tokens
            .iter()
            .find(|(number, token)| token.refusal(**number, at_ms).is_some())
            .map(|(number, _)| *number)
            .ok_or_else(|| format!("{TOKENS_MAX} tokens are open: revoke one, or wait until one expires"))?;
        self.tokens.remove(&spent);
        Ok(())
    }
}

impl State {
    /// The host that a newcomer of this name would be, if the token admits it now. `first` is the
    /// lowest number that no configuration file of the beginning has.
    ///
    /// # Errors
    /// Why not, in plain words.
    pub fn admits(&self, hash: &[u8; 32], name: &str, first: u32, at_ms: u64) -> Result<HostId, String> {
        let (number, token) = self.admission.token(hash).ok_or(
            "the cluster does not know this token: it is of another cluster, or so old that it was forgotten",
        )?;
        if let Some(refusal) = token.refusal(number, at_ms) {
            return Err(refusal);
        }
        if !is_host_name(name) {
            return Err(format!(
                "a host's name is 1 to {HOST_NAME_BYTES_MAX} lower-case letters, digits and hyphens, not `{name}`"
            ));
        }
        if token.name.as_ref().is_some_and(|only| only != name) {
            return Err(format!(
                "token {number} is for a host called {}, not {name}",
                token.name.as_deref().unwrap_or_default()
            ));
        }
        let known = self.host_by_name(name).map(|(id, _)| id);
        match known {
            Some(id) if token.name.is_some() => {
                // Another machine under its number would pass for a new boot of it, and a boot that is
                // over counts as proof that it serves nothing any more.
                let held = self.services.values().find(|service| {
                    service.holder.is_some_and(|holder| holder.host == id) || service.leaving == Some(id)
                });
                match held {
                    Some(service) => Err(format!(
                        "{name} holds {}: it has to be moved first",
                        service.spec.name
                    )),
                    None => Ok(id),
                }
            }
            Some(id) => Err(format!(
                "{id} is called {name} already; a token made with `--name {name}` makes the newcomer that host"
            )),
            None if self.hosts.len() >= HOSTS_MAX => Err(format!("{HOSTS_MAX} hosts are registered already")),
            None => self
                .admission
                .last_host
                .max(first.saturating_sub(1))
                .checked_add(1)
                .map(HostId)
                .ok_or_else(|| "there are no more host numbers".to_owned()),
        }
    }
}

pub fn is_host_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=HOST_NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(plain)
}

impl Applying<'_> {
    pub(super) fn issue_token(
        &mut self,
        hash: [u8; 32],
        name: Option<String>,
        expires_at_ms: u64,
    ) -> Checked {
        if let Some(name) = name.as_ref().filter(|name| !is_host_name(name)) {
            return Err(format!(
                "a host's name is 1 to {HOST_NAME_BYTES_MAX} lower-case letters, digits and hyphens, not `{name}`"
            ));
        }
        let (at_ms, admission) = (self.at_ms, &mut self.state.admission);
        if admission.token(&hash).is_some() {
            return Err("this token is known already".to_owned());
        }
        admission.free_slot(at_ms)?;
        admission.last_token += 1;
        let number = admission.last_token;
        let text = match &name {
            Some(name) => format!("token {number} admits a host called {name}"),
            None => format!("token {number} admits a host"),
        };
        admission.tokens.insert(
            number,
            Token {
                hash,
                name,
                expires_at_ms,
                fate: TokenFate::Open,
            },
        );
        self.event(EventKind::TokenIssued, None, None, text);
        Ok(())
    }

    pub(super) fn revoke_token(&mut self, number: u64) -> Checked {
        let token = self.state.admission.tokens.get_mut(&number);
        let token = token.ok_or_else(|| format!("there is no token {number}"))?;
        if let TokenFate::Used(used) = &token.fate {
            return Err(format!(
                "token {number} was used by {} ({}): `understudy hosts remove` or `understudy revoke` ends that",
                used.host, used.name
            ));
        }
        if token.fate == TokenFate::Open {
            token.fate = TokenFate::Revoked;
            let text = format!("token {number} was revoked");
            self.event(EventKind::TokenRevoked, None, None, text);
        }
        Ok(())
    }

    pub(super) fn admit(&mut self, hash: [u8; 32], request: [u8; 32], host: HostId, name: String) -> Checked {
        // The number was chosen by the proposer; a lower one may have been given away since.
        let chosen = self.state.admits(&hash, &name, host.0, self.at_ms)?;
        if chosen != host {
            return Err(format!(
                "{host} was given to another host in the meantime: try again"
            ));
        }
        let known = self.state.hosts.contains_key(&host);
        if known {
            self.raise(Principal::Host(host), 1)?;
        }
        let admission = &mut self.state.admission;
        let enrolment = admission.revocations.floor(Principal::Host(host)) + 1;
        admission.last_host = admission.last_host.max(host.0);
        let Some((number, _)) = admission.token(&hash) else {
            return Err("the token is gone".to_owned());
        };
        let text = if known {
            format!(
                "{name} is enrolled anew as {host} by token {number}: its certificates so far are refused"
            )
        } else {
            format!("{name} is admitted as {host} by token {number}")
        };
        if let Some(token) = admission.tokens.get_mut(&number) {
            token.fate = TokenFate::Used(Admittance {
                host,
                name,
                enrolment,
                request,
            });
        }
        self.event(EventKind::HostAdmitted, None, Some(host), text);
        Ok(())
    }

    pub(super) fn revoke(&mut self, who: Principal) -> Checked {
        match who {
            Principal::Coordinator(id) => {
                if self.state.coordinators.members.contains_key(&id) {
                    let number = id.0;
                    return Err(format!(
                        "{id} is a member: remove it first (`understudy coordinators remove {number}`), then revoke it"
                    ));
                }
                self.raise(who, FOR_GOOD)?;
            }
            Principal::Host(_) | Principal::Operator => self.raise(who, 1)?,
            Principal::Newcomer => return Err("a newcomer has no certificate".to_owned()),
        }
        let host = match who {
            Principal::Host(host) => Some(host),
            _ => None,
        };
        let name = host.map_or_else(|| who.to_string(), |host| self.state.host_name(host));
        let text = format!("the certificates that {name} has so far are refused");
        self.event(EventKind::Revoked, None, host, text);
        Ok(())
    }

    /// Takes a host out for good. What it holds is moved first; its membership in shadow sets ends as
    /// it does for a host in safe mode.
    pub(super) fn remove_host(&mut self, id: HostId, force: bool) -> Checked {
        let name = match self.state.hosts.get(&id) {
            Some(host) => host.name.clone(),
            None => return Err(format!("{id} is not registered")),
        };
        for service in self.state.services.values() {
            let what = &service.spec.name;
            if service.holder.is_some_and(|holder| holder.host == id) {
                return Err(format!(
                    "{name} holds {what}: move it first (`understudy handover {what}`)"
                ));
            }
            if service.leaving == Some(id) {
                return Err(format!("{what} is just leaving {name}: try again in a moment"));
            }
            if matches!(&service.phase, super::Phase::Handover { to, .. } if *to == id) {
                return Err(format!("{what} is being moved to {name}"));
            }
            let others = service.shadows.iter().any(|other| *other != id);
            if service.is_shadow(id) && !others && !force {
                return Err(format!(
                    "{name} is the last shadow of {what}: wait until another is ready, or say `--force`"
                ));
            }
        }
        self.raise(Principal::Host(id), FOR_GOOD)?;
        let index = self.index;
        for service in self.state.services.values_mut() {
            if service.shadows.remove(&id) | service.joining.remove(&id).is_some() {
                service.revision = index;
            }
        }
        self.state.hosts.remove(&id);
        let text = format!("{name} was removed: it can come back only with a new token, as another host");
        self.event(EventKind::HostRemoved, None, Some(id), text);
        Ok(())
    }

    /// Refuses `more` enrolments of the principal than so far.
    fn raise(&mut self, principal: Principal, more: u32) -> Checked {
        let revocations = &mut self.state.admission.revocations;
        if !revocations.has_room_for(principal) {
            return Err("the list of revocations is full".to_owned());
        }
        let floor = revocations.floor(principal).saturating_add(more);
        if floor == FOR_GOOD && more != FOR_GOOD {
            return Err(format!("{principal} was refused for good"));
        }
        revocations.raise(principal, floor);
        self.state.admission.revision = self.index;
        Ok(())
    }
}
