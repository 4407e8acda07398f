//! What is checked after each round.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;

use super::expected;
use super::history::{Ack, Facts, PowerCut, follows};
use super::logs::{Line, Logs};
use super::owners::attribute;
use super::report::Report;
use super::stage::Stage;
use super::traffic::Heard;
use crate::agent_log;
use crate::{boot_ns, wait_for};

const DUMP_MAX: Duration = Duration::from_secs(30);
/// Lines of one kind that are told one by one in a round.
const TOLD_MAX: usize = 5;

#[derive(Default)]
pub struct Checks {
    facts: Facts,
    logs: Option<Logs>,
    /// The ledger as it was at the last check.
    ledger: Vec<u64>,
    /// Each is told once.
    told: BTreeSet<String>,
}

/// The ledger as one epoch has it, and everything that was answered before it was read.
struct Snapshot {
    heard: Heard,
    place: usize,
    ledger: Vec<u64>,
    /// Highest number that may be in it.
    asked: u64,
}

impl Checks {
    pub fn power_cut(&mut self, host: usize, at_ns: u64) {
        let host = host as u8 + 1;
        self.facts.power_cuts.push(PowerCut { host, at_ns });
    }

    /// Everything that is wrong and was not told before.
    pub fn check(&mut self, stage: &mut Stage, report: &mut Report) -> Result<Vec<String>> {
        stage.traffic.check()?;
        let mut wrong = Vec::new();
        match self.snapshot(stage) {
            Ok(snapshot) => {
                // After the ledger was read: what tells of its epoch is in the logs by now.
                wrong.extend(self.read_logs(stage, report)?);
                wrong.extend(self.facts.promoted_too_old());
                wrong.extend(self.history(snapshot, report));
            }
            Err(why) => {
                wrong.extend(self.read_logs(stage, report)?);
                wrong.push(format!("the ledger cannot be read: {why:#}"));
            }
        }
        let events = stage.watch.events();
        report.moves = (events.grants.len() as u64).saturating_sub(1);
        report.planned_moves = events.planned;
        report.refused = stage.traffic.refused();
        wrong.retain(|what| self.told.insert(what.clone()));
        Ok(wrong)
    }

    /// Reads the ledger within one epoch of which everything is known.
    fn snapshot(&mut self, stage: &Stage) -> Result<Snapshot> {
        wait_for("a ledger that one epoch served", DUMP_MAX, || {
            let heard = stage.traffic.heard();
            let (said, ledger) = stage.traffic.dump().ok()?;
            let (asked, read_ns) = (stage.traffic.asked(), boot_ns());
            wait_for("the events", DUMP_MAX, || {
                stage.watch.knows_until(read_ns).then_some(())
            })
            .ok()?;
            self.facts.grants = stage.watch.events().grants;
            let place = self.facts.grants.len().checked_sub(1)?;
            (self.facts.grants[place].host == said.host).then_some(Snapshot {
                heard,
                place,
                ledger,
                asked,
            })
        })
    }

    fn history(&mut self, snapshot: Snapshot, report: &mut Report) -> Vec<String> {
        let Snapshot {
            heard,
            place,
            ledger,
            asked,
        } = snapshot;
        let mut wrong = Vec::new();
        report.acknowledged = heard.acks.len() as u64;
        report.answers_checked = heard.answers.len() as u64;
        match attribute(&self.facts.grants, &heard.answers) {
            Ok(places) => {
                let required = self
                    .facts
                    .required(place, &heard.acks, &places[..heard.acks.len()]);
                wrong.extend(self.missing(place, &required, &ledger));
                note_loss(&heard.acks, &ledger, report);
            }
            Err(second_server) => wrong.push(second_server),
        }
        if let Err(why) = follows(&self.ledger, &ledger) {
            wrong.push(format!("in {}: {why}", self.epoch(place)));
        }
        if let Some(unknown) = ledger.last().filter(|last| **last > asked) {
            wrong.push(format!("{unknown} was never asked to be appended"));
        }
        self.ledger = ledger;
        wrong
    }

    fn missing(&self, place: usize, required: &BTreeSet<u64>, ledger: &[u64]) -> Option<String> {
        let there: BTreeSet<u64> = ledger.iter().copied().collect();
        let missing: Vec<u64> = required.difference(&there).copied().collect();
        let (first, last) = (missing.first()?, missing.last()?);
        let from = self.facts.promotions.get(&self.facts.grants[place].epoch);
        Some(format!(
            "{} of {} numbers that {} must have are missing, from {first} to {last}; it started from {}",
            missing.len(),
            required.len(),
            self.epoch(place),
            from.map_or("its own files".to_owned(), |one| format!(
                "e{}.{}",
                one.generation.0, one.generation.1
            )),
        ))
    }

    fn epoch(&self, place: usize) -> String {
        let grant = self.facts.grants[place];
        format!("e{} on host {}", grant.epoch, grant.host)
    }

    fn read_logs(&mut self, stage: &Stage, report: &mut Report) -> Result<Vec<String>> {
        let logs = self
            .logs
            .get_or_insert_with(|| Logs::new(stage.cluster.bed.logs()));
        let lines = logs.fresh()?;
        let mut unlisted = BTreeMap::<String, Vec<&Line>>::new();
        for line in &lines {
            self.facts.sealed.extend(agent_log::sealed(&line.text));
            if let Some(promotion) = agent_log::promotion(&line.text) {
                self.facts.promotions.insert(promotion.epoch, promotion);
            }
            if expected::is_unlisted(line) {
                unlisted.entry(line.of.clone()).or_default().push(line);
            } else if let Some(reason) = expected::reason(&line.text) {
                *report.expected_warnings.entry(reason).or_default() += 1;
            }
        }
        let told = unlisted.values().flat_map(|lines| lines.iter().take(TOLD_MAX));
        Ok(told
            .map(|line| format!("{} says: {}", line.of, line.text))
            .collect())
    }
}

fn note_loss(acks: &[Ack], ledger: &[u64], report: &mut Report) {
    let there: BTreeSet<u64> = ledger.iter().copied().collect();
    let is_lost = |ack: &Ack| !there.contains(&ack.id);
    report.lost_after_the_cut = acks.iter().filter(|ack| is_lost(ack)).count() as u64;
    for run in acks.chunk_by(|one, next| is_lost(one) && is_lost(next)) {
        if let ([first, ..], [.., last]) = (run, run)
            && is_lost(first)
        {
            let ms = (last.answered_ns - first.answered_ns) as f64 / 1e6;
            report.loss_window_ms_max = report.loss_window_ms_max.max(ms);
        }
    }
}
