//! The story while it happens: chapters, events as they come, and one live line with phase, risk,
//! lag and bytes. On a terminal the live line is redrawn in place; elsewhere it is printed rarely.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::cluster::NAMES;
use super::watch::Seen;

const REDRAW: Duration = Duration::from_millis(250);
const REPRINT: Duration = Duration::from_secs(5);
const BAR: usize = 10;

pub(super) struct Timeline {
    to: Box<dyn Write>,
    terminal: bool,
    began: Instant,
    drawn: Option<Instant>,
    writes: (Instant, usize),
    rate: f64,
}

impl Timeline {
    /// With `json` standard output belongs to the report.
    pub(super) fn new(json: bool) -> Self {
        let to: Box<dyn Write> = if json {
            Box::new(io::stderr())
        } else {
            Box::new(io::stdout())
        };
        let terminal = if json {
            io::stderr().is_terminal()
        } else {
            io::stdout().is_terminal()
        };
        let now = Instant::now();
        Self {
            to,
            terminal,
            began: now,
            drawn: None,
            writes: (now, 0),
            rate: 0.0,
        }
    }

    pub(super) fn chapter(&mut self, title: &str) {
        let title = if self.terminal {
            format!("\x1b[1m{title}\x1b[0m")
        } else {
            title.to_owned()
        };
        self.line(&format!("\n      {title}"));
    }

    pub(super) fn note(&mut self, text: impl std::fmt::Display) {
        let clock = self.clock();
        self.line(&format!("{clock}  {text}"));
    }

    /// A line without a time, as in a table.
    pub(super) fn plain(&mut self, text: &str) {
        self.line(text);
    }

    /// Colours a word where there is a terminal.
    pub(super) fn verdict(&self, good: bool, text: &str) -> String {
        match (self.terminal, good) {
            (true, true) => format!("\x1b[32m{text}\x1b[0m"),
            (true, false) => format!("\x1b[31m{text}\x1b[0m"),
            (false, _) => text.to_owned(),
        }
    }

    /// Shows how things stand; `writes` is how many were answered so far.
    pub(super) fn live(&mut self, seen: &Seen, writes: usize) {
        let pause = if self.terminal { REDRAW } else { REPRINT };
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < pause) {
            return;
        }
        self.measure_rate(writes);
        let text = format!("{}  {}", self.clock(), standing(seen, self.rate));
        if self.terminal {
            let _ = write!(self.to, "\r\x1b[2K{text}");
            let _ = self.to.flush();
        } else {
            let _ = writeln!(self.to, "{text}");
        }
        self.drawn = Some(Instant::now());
    }

    fn measure_rate(&mut self, writes: usize) {
        let (since, before) = self.writes;
        let seconds = since.elapsed().as_secs_f64();
        if seconds >= 0.9 {
            self.rate = writes.saturating_sub(before) as f64 / seconds;
            self.writes = (Instant::now(), writes);
        }
    }

    fn clock(&self) -> String {
        let seconds = self.began.elapsed().as_secs();
        format!("{:02}:{:02}", seconds / 60, seconds % 60)
    }

    fn line(&mut self, text: &str) {
        let clear = if self.terminal { "\r\x1b[2K" } else { "" };
        // Nobody reads on a closed pipe; the report decides the outcome.
        let _ = writeln!(self.to, "{clear}{text}");
    }
}

fn standing(seen: &Seen, rate: f64) -> String {
    let service = seen.service();
    let phase = service["phase"].as_str().unwrap_or("-");
    let risks: Vec<String> = (1..)
        .zip(NAMES)
        .map(|(id, name)| {
            let mark = match (seen.serving() == Some(id), seen.in_safe_mode(id)) {
                (true, _) => '*',
                (_, true) => '!',
                _ => ' ',
            };
            format!("{mark}{name} {}", bar(seen.risk_bp(id)))
        })
        .collect();
    let lag = seen
        .sync("lag_us_last")
        .map_or("-".to_owned(), |us| format!("{} ms", us / 1_000));
    let bytes = seen.sync("delta_bytes").unwrap_or(0) + seen.sync("full_bytes").unwrap_or(0);
    format!(
        "{phase:<9} {}  lag {lag:>7}  shipped {:>7.1} MiB  {rate:>5.0} writes/s",
        risks.join(" "),
        bytes as f64 / f64::from(1 << 20),
    )
}

fn bar(risk_bp: Option<u64>) -> String {
    let Some(risk) = risk_bp else {
        return format!("[{}]   -  ", " ".repeat(BAR));
    };
    let full = (risk as usize * BAR).div_ceil(10_000).min(BAR);
    format!(
        "[{}{}] {:>3} %",
        "#".repeat(full),
        ".".repeat(BAR - full),
        risk / 100
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_risk_is_a_bar() {
        assert_eq!(bar(Some(0)), "[..........]   0 %");
        assert_eq!(bar(Some(5_000)), "[#####.....]  50 %");
        assert_eq!(bar(Some(10_000)), "[##########] 100 %");
        assert_eq!(bar(None).len(), bar(Some(1)).len());
    }
}
