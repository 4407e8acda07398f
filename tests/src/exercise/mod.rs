//! The exerciser: a cluster of real programs, a ledger that it keeps alive, and faults that a seed deals.
//!
//! Invariants: the schedule is a pure function of the seed; nothing outside the test bed is touched, least of all
//! the machine's clock; a fault that could not be done is an error, not a pass. After each round the faults are
//! ended, the cluster must heal, and what was answered since the beginning is checked anew.

mod check;
mod expected;
pub(crate) mod fault;
mod history;
mod inject;
mod logs;
pub(crate) mod network;
mod owners;
mod report;
pub(crate) mod stage;
mod traffic;
mod watch;

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::boot_ns;
use crate::fault::Seeded;
use check::Checks;
use fault::{Deal, Fault, Round};
use inject::Begun;
use stage::{Machine, Stage};

pub use report::{Report, Violation};

/// From the end of the faults until the client must be served again.
const SERVED_MAX: Duration = Duration::from_secs(30);
/// And until everybody is heard and both shadows could take over.
const WHOLE_MAX: Duration = Duration::from_secs(90);
const PROGRAMS: [&str; 4] = ["nft", "tc", "ip", "mount"];

#[derive(Clone, Debug)]
pub struct Settings {
    pub seed: u64,
    /// No round begins after this.
    pub at_most: Duration,
    /// Where the logs go when something was violated.
    pub keep_logs: PathBuf,
}

/// What is missing on this machine, in words.
pub fn missing() -> Option<String> {
    crate::missing()
        .or_else(|| {
            let absent = PROGRAMS
                .iter()
                .find(|program| !crate::requirements::in_path(program));
            absent.map(|program| format!("the program `{program}` is not installed"))
        })
        .or_else(|| match stage::faketime() {
            Some(_) => None,
            None => Some("libfaketime is not installed".to_owned()),
        })
}

/// Runs to its end, or until the cluster cannot heal; `tell` gets a line at a time.
///
/// # Errors
/// When the exerciser itself failed: nothing is known of the cluster then.
pub fn run(settings: &Settings, tell: &mut dyn FnMut(&str)) -> Result<Report> {
    let mut run = Run {
        report: Report {
            seed: settings.seed,
            command: format!(
                "cargo xtask exercise --minutes {} --seed {}",
                settings.at_most.as_secs().div_ceil(60),
                settings.seed
            ),
            ..Report::default()
        },
        checks: Checks::default(),
        tell,
    };
    let began = Instant::now();
    let mut stage = Stage::open("exercise")?;
    (run.tell)(&format!(
        "the cluster stands after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    let outcome = run.rounds(&mut stage, settings, began);
    run.report.seconds = began.elapsed().as_secs_f64();
    run.report.exercise_violations = run.report.violations.len() as u64;
    if outcome.is_err() || !run.report.held() {
        let place = settings.keep_logs.display();
        (run.tell)(&match stage.cluster.keep(&settings.keep_logs) {
            Ok(()) => format!("the logs and the copies are in {place}"),
            Err(error) => format!("not all could be kept in {place}: {error:#}"),
        });
        (run.tell)(&format!("again: {}", run.report.command));
    }
    outcome.map(|()| run.report)
}

struct Run<'a> {
    report: Report,
    checks: Checks,
    tell: &'a mut dyn FnMut(&str),
}

impl Run<'_> {
    fn rounds(&mut self, stage: &mut Stage, settings: &Settings, began: Instant) -> Result<()> {
        let mut deal = Deal::new(settings.seed);
        while began.elapsed() < settings.at_most {
            let round = deal.round();
            self.report.rounds += 1;
            if !self.round(stage, round)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether the cluster healed.
    fn round(&mut self, stage: &mut Stage, round: Round) -> Result<bool> {
        let mut seeded = Seeded::new(round.seed);
        let began_ns = boot_ns();
        let mut names = Vec::new();
        let mut under_way = vec![self.begin(stage, round.first, None, &mut seeded, &mut names)?];
        if let Some((second, after_ms)) = round.second {
            sleep(Duration::from_millis(after_ms));
            let but = under_way[0].machine;
            under_way.push(self.begin(stage, second, but, &mut seeded, &mut names)?);
            self.report.double_failures += 1;
        }
        sleep(Duration::from_millis(round.hold_ms));
        let may_end = under_way.iter().any(|begun| ends_programs(begun.fault));
        while let Some(begun) = under_way.pop() {
            stage.end(begun, &mut self.report.in_force)?;
        }
        let faults = names.join(" and ");
        let healed = self.heal(stage, &faults, may_end)?;
        let gap_ns = stage.traffic.longest_gap_ns(began_ns);
        if round.second.is_none() {
            self.report.widest_outage(round.first.kind(), gap_ns);
        }
        for what in self.checks.check(stage, &mut self.report)? {
            self.violated(&faults, what);
        }
        let (round, ms) = (self.report.rounds, gap_ns / 1_000_000);
        (self.tell)(&format!("{round:>4}  {faults}: longest gap {ms} ms"));
        Ok(healed)
    }

    fn begin(
        &mut self,
        stage: &mut Stage,
        fault: Fault,
        but: Option<Machine>,
        seeded: &mut Seeded,
        names: &mut Vec<String>,
    ) -> Result<Begun> {
        let at_ns = boot_ns();
        let begun = stage.begin(fault, but, seeded, &mut self.report.in_force)?;
        if let (Fault::PowerCut(_), Some(Machine::Host(n))) = (fault, begun.machine) {
            self.checks.power_cut(n, at_ns);
        }
        *self.report.faults.entry(fault.kind()).or_default() += 1;
        let on = begun.machine.map_or(String::new(), |machine| {
            format!(" on {}", stage.host(machine).name())
        });
        names.push(format!("{fault:?}{on} {}", begun.detail).trim_end().to_owned());
        Ok(begun)
    }

    fn heal(&mut self, stage: &mut Stage, faults: &str, may_end: bool) -> Result<bool> {
        let began = Instant::now();
        for log in stage.revive()? {
            self.report.programs_ended += 1;
            if !may_end {
                self.violated(faults, format!("{log} ended by itself"));
            }
        }
        let since_ns = boot_ns();
        let served = stage.until_served(since_ns, SERVED_MAX);
        self.report.served_again_s_max = self.report.served_again_s_max.max(began.elapsed().as_secs_f64());
        let whole = served.and_then(|()| {
            stage.end_safe_modes()?;
            stage.until_whole(WHOLE_MAX.saturating_sub(began.elapsed()))
        });
        self.report.whole_again_s_max = self.report.whole_again_s_max.max(began.elapsed().as_secs_f64());
        if let Err(why) = &whole {
            let (s, workloads) = (began.elapsed().as_secs_f64(), stage.workloads());
            self.violated(
                faults,
                format!("stuck after {s:.0} s: {why:#}; workloads: {workloads}"),
            );
        }
        Ok(whole.is_ok())
    }

    fn violated(&mut self, faults: &str, what: String) {
        (self.tell)(&format!("VIOLATION in round {}: {what}", self.report.rounds));
        self.report.violations.push(Violation {
            round: self.report.rounds,
            faults: faults.to_owned(),
            what,
        });
    }
}

/// A coordinator stops when it cannot keep what it must not forget; an agent that starts on a dead or a full disk
/// does as well.
fn ends_programs(fault: Fault) -> bool {
    matches!(fault, Fault::DiskFull(_) | Fault::PowerCut(_))
}
