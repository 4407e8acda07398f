//! What clients see of a service is one history: linearizable within an epoch and across a planned
//! move; after a failover it goes on from a prefix of the old one.
//!
//! The register is a log that is only appended to, and every answer names the whole content it saw. So a
//! history is linearizable if all answered contents lie on one line and each has in it whatever was
//! answered before its operation began.

use std::collections::BTreeMap;

use understudy_common::id::{Epoch, ServiceId};

use crate::content::{Content, Contents};
use crate::tally::Tally;

#[derive(Default)]
pub struct Histories(BTreeMap<ServiceId, History>);

#[derive(Clone, Copy, Default)]
struct History {
    /// The last epoch that a client was served in.
    epoch: Epoch,
    /// First epoch since which nothing may have been lost.
    since: Epoch,
    /// The longest content that the primary had.
    newest: Content,
    /// The longest content that a client was told.
    answered: Content,
    /// A host owns the files in an epoch that nobody was served in yet.
    next: Option<Next>,
}

#[derive(Clone, Copy)]
struct Next {
    epoch: Epoch,
    start: Content,
    /// Nothing may be lost on the way to it.
    kept: bool,
}

/// What a client's operation must find when it begins now.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    since: Epoch,
    answered: Content,
}

impl Histories {
    /// A host serves `epoch` from `start` on.
    pub fn began(
        &mut self,
        service: ServiceId,
        epoch: Epoch,
        start: Content,
        planned: bool,
        contents: &Contents,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let history = self.0.entry(service).or_default();
        let (last, whole) = history
            .next
            .map_or((history.epoch, true), |next| (next.epoch, next.kept));
        if epoch < last {
            // A job of an agent that stood still: its gate is closed, and nobody is served from it.
            return Ok(());
        }
        let follows = epoch == last || (planned && epoch == last.next());
        let kept = whole && follows;
        if kept {
            if epoch != last && history.answered != Content::default() {
                tally.count("histories: a planned move of answered writes");
            }
            if !contents.is_prefix(start, history.answered) {
                return Err(format!(
                    "histories: {service} lost answered writes when {epoch} began"
                ));
            }
        } else {
            if history.newest != Content::default() {
                tally.count("histories: a failover of a service with writes");
            }
            if !contents.is_prefix(history.newest, start) {
                return Err(format!(
                    "histories: {service} does not go on from a prefix of its history in {epoch}"
                ));
            }
        }
        history.next = Some(Next { epoch, start, kept });
        Ok(())
    }

    /// The workload did a client's operation.
    pub fn served(&mut self, service: ServiceId, content: Content) {
        let history = self.0.entry(service).or_default();
        if let Some(Next { epoch, start, kept }) = history.next.take() {
            history.epoch = epoch;
            if !kept {
                (history.since, history.answered) = (epoch, start);
            }
        }
        history.newest = content;
    }

    pub fn begin(&self, service: ServiceId) -> Begun {
        let history = self.0.get(&service).copied().unwrap_or_default();
        Begun {
            since: history.since,
            answered: history.answered,
        }
    }

    /// A client got the answer of an operation that was served in `epoch`.
    pub fn answered(
        &mut self,
        service: ServiceId,
        begun: Begun,
        epoch: Epoch,
        content: Content,
        contents: &Contents,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let history = self.0.entry(service).or_default();
        if epoch < history.since {
            // The answer was on its way when a failover took what it told of.
            return Ok(());
        }
        tally.count("histories: an operation was answered");
        let stale = begun.since == history.since && !contents.is_prefix(content, begun.answered);
        if stale {
            return Err(format!(
                "histories: a client of {service} was told of less than was answered before"
            ));
        }
        if contents.is_prefix(content, history.answered) {
            history.answered = content;
        } else if !contents.is_prefix(history.answered, content) {
            return Err(format!(
                "histories: clients of {service} were told of two histories"
            ));
        }
        if !contents.is_prefix(history.newest, content) {
            return Err(format!(
                "histories: {service} has no more what a client was told in {epoch}"
            ));
        }
        Ok(())
    }
}
