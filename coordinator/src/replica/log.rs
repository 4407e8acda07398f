//! raft's own log lines, as tracing events of the target `raft`.

use std::fmt::Write;

use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record};

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error if tracing::enabled!(target: "raft", tracing::Level::ERROR) => {
                tracing::error!(target: "raft", "{}", line(record, values));
            }
            Level::Warning if tracing::enabled!(target: "raft", tracing::Level::WARN) => {
                tracing::warn!(target: "raft", "{}", line(record, values));
            }
            // What raft calls information is a step of its protocol.
            Level::Info if tracing::enabled!(target: "raft", tracing::Level::DEBUG) => {
                tracing::debug!(target: "raft", "{}", line(record, values));
            }
            _ => {}
        }
        Ok(())
    }
}

fn line(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut line = record.msg().to_string();
    let mut pairs = Pairs(&mut line);
    // Writing into a string does not fail.
    let _ = record.kv().serialize(record, &mut pairs);
    let _ = values.serialize(record, &mut pairs);
    line
}

struct Pairs<'a>(&'a mut String);

impl slog::Serializer for Pairs<'_> {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}")?;
        Ok(())
    }
}

pub(super) fn logger() -> Logger {
    Logger::root(ToTracing, slog::o!())
}
