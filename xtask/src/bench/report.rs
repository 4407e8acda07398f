//! Rows: what was measured, the peer's figure beside it, and what it must be.

use std::env::consts::ARCH;

use serde_json::{Value, json};

use crate::shell::{ask, command};

/// Which figures are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

/// What must and goal are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    Ours,
    /// How many times better ours is than the peer's.
    Ratio,
}

/// What a row is, before anything is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) id: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    pub(super) judged: Judged,
    /// None: the row is there to be read, not to be met.
    pub(super) must: Option<f64>,
    pub(super) goal: Option<f64>,
}

#[derive(Debug)]
pub(super) struct Row {
    kind: Kind,
    ours: Vec<f64>,
    /// What stands for the runs where that is not their median.
    figure: Option<f64>,
    peer: Option<(String, Vec<f64>)>,
    why: Option<String>,
    note: Option<String>,
}

impl Row {
    /// One figure for each run.
    pub(super) fn measured(kind: Kind, ours: Vec<f64>) -> Self {
        let why = ours.is_empty().then(|| "nothing was measured".to_owned());
        Self {
            kind,
            ours,
            figure: None,
            peer: None,
            why,
            note: None,
        }
    }

    /// Another quantile of the runs than their median.
    pub(super) fn standing_for(mut self, figure: f64) -> Self {
        self.figure = Some(figure);
        self
    }

    pub(super) fn beside(mut self, peer_name: &str, peer: Vec<f64>) -> Self {
        self.peer = Some((peer_name.to_owned(), peer));
        self
    }

    /// Says why a figure, or the peer's beside it, is not there.
    pub(super) fn because(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// Says more of a figure that is there.
    pub(super) fn noting(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    pub(super) fn missing(kind: Kind, why: impl Into<String>) -> Self {
        Self::measured(kind, Vec::new()).because(why)
    }

    pub(super) const fn id(&self) -> &'static str {
        self.kind.id
    }

    fn figure(&self) -> Option<f64> {
        self.figure.or_else(|| median(&self.ours))
    }

    fn ratio(&self) -> Option<f64> {
        let (_, peer) = self.peer.as_ref()?;
        let (ours, peer) = (self.figure()?, median(peer)?);
        let ratio = match self.kind.better {
            Better::Higher => ours / peer,
            Better::Lower => peer / ours,
        };
        ratio.is_finite().then_some(ratio)
    }

    fn met(&self) -> bool {
        let judged = match self.kind.judged {
            Judged::Ours => self.figure(),
            Judged::Ratio => self.ratio(),
        };
        let Some(must) = self.kind.must else {
            return !self.ours.is_empty();
        };
        judged.is_some_and(|figure| match (self.kind.judged, self.kind.better) {
            (Judged::Ratio, _) | (_, Better::Higher) => figure >= must,
            (Judged::Ours, Better::Lower) => figure <= must,
        })
    }

    fn json(&self) -> Value {
        let mut row = json!({
            "id": self.kind.id,
            "unit": self.kind.unit,
            "ours": self.figure(),
            "spread": spread(&self.ours),
            "runs": self.ours.len(),
            "peer": self.peer.as_ref().and_then(|(_, figures)| median(figures)),
            "peer_name": self.peer.as_ref().map(|(name, _)| name),
            "ratio": self.ratio(),
            "must": self.kind.must,
            "goal": self.kind.goal,
            "met": self.met(),
        });
        if let Some(why) = &self.why {
            row["why"] = json!(why);
        }
        if let Some(note) = &self.note {
            row["note"] = json!(note);
        }
        row
    }

    fn words(&self) -> [String; 7] {
        let times = |figure: Option<f64>| match (figure, self.kind.judged, self.kind.better) {
            (None, ..) => "-".to_owned(),
            (Some(figure), Judged::Ratio, _) => format!("≥ {}×", short(figure)),
            (Some(figure), Judged::Ours, Better::Higher) => format!("≥ {}", short(figure)),
            (Some(figure), Judged::Ours, Better::Lower) => format!("≤ {}", short(figure)),
        };
        let peer = self.peer.as_ref().and_then(|(name, figures)| {
            let figure = median(figures)?;
            Some(format!("{} ({name})", short(figure)))
        });
        [
            self.kind.id.to_owned(),
            format!(
                "{} {}",
                self.figure().map_or("-".to_owned(), short),
                self.kind.unit
            ),
            peer.unwrap_or_else(|| "-".to_owned()),
            self.ratio()
                .map_or("-".to_owned(), |ratio| format!("{ratio:.2}×")),
            times(self.kind.must),
            times(self.kind.goal),
            if self.met() { "yes" } else { "NO" }.to_owned(),
        ]
    }
}

pub(super) struct Report {
    bench: String,
    rows: Vec<Row>,
}

impl Report {
    pub(super) const fn new(bench: String, rows: Vec<Row>) -> Self {
        Self { bench, rows }
    }

    /// Whether every row that must be something is.
    pub(super) fn met(&self) -> bool {
        self.rows.iter().all(Row::met)
    }

    pub(super) fn json(&self) -> Value {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        json!({
            "bench": self.bench,
            "commit": ask(command("git").args(["describe", "--always", "--dirty", "--abbrev=12"])),
            "machine": {
                "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
                "arch": ARCH,
                "cpus": cpus,
            },
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        })
    }

    /// For people, on standard error.
    pub(super) fn table(&self, quick: bool) {
        let head = ["id", "ours", "peer", "better", "must", "goal", "met"].map(str::to_owned);
        let lines: Vec<_> = std::iter::once(head)
            .chain(self.rows.iter().map(Row::words))
            .collect();
        let width = |column: usize| {
            lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<_> = (0..7).map(width).collect();
        for line in &lines {
            let cells: Vec<_> = line
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            eprintln!("{}", cells.join("  ").trim_end());
        }
        for row in &self.rows {
            for said in row.why.iter().chain(&row.note) {
                eprintln!("{}: {said}", row.kind.id);
            }
        }
        if quick {
            eprintln!("--quick: these figures show that the bench works, and nothing else");
        }
    }
}

pub(super) fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

fn spread(figures: &[f64]) -> Option<[f64; 2]> {
    let least = figures.iter().copied().reduce(f64::min)?;
    let most = figures.iter().copied().reduce(f64::max)?;
    Some([least, most])
}

/// Three digits and more.
fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Kind = Kind {
        id: "rate",
        unit: "1/s",
        better: Better::Higher,
        judged: Judged::Ratio,
        must: Some(1.5),
        goal: Some(5.0),
    };
    const TIME: Kind = Kind {
        id: "time_s",
        unit: "s",
        better: Better::Lower,
        judged: Judged::Ours,
        must: Some(1.5),
        goal: None,
    };

    #[test]
    fn a_ratio_above_one_is_better_for_rates_and_times_alike() {
        let rate = Row::measured(RATE, vec![30.0, 10.0, 20.0]).beside("peer", vec![10.0]);
        assert_eq!((rate.ratio(), rate.met()), (Some(2.0), true));
        let time = Row::measured(TIME, vec![2.0]).beside("peer", vec![4.0]);
        assert_eq!((time.ratio(), time.met()), (Some(2.0), false));
    }

    #[test]
    fn a_row_has_every_key_of_the_form() {
        let row = Row::measured(RATE, vec![10.0, 30.0])
            .beside("peer", vec![10.0])
            .json();
        assert_eq!(
            row,
            json!({"id": "rate", "unit": "1/s", "ours": 20.0, "spread": [10.0, 30.0], "runs": 2, "peer": 10.0,
                "peer_name": "peer", "ratio": 2.0, "must": 1.5, "goal": 5.0, "met": true})
        );
    }

    #[test]
    fn what_was_not_measured_is_null_says_why_and_is_not_met() {
        let row = Row::missing(RATE, "no peer here").json();
        assert_eq!((&row["ours"], &row["met"]), (&Value::Null, &json!(false)));
        assert_eq!(row["why"], "no peer here");
        assert!(!Report::new("x".to_owned(), vec![Row::missing(TIME, "")]).met());
    }
}
