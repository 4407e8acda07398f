//! `understudy-agent record`: telemetry alone, written as a trace (format: `understudy_common::beacon`).

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use understudy_common::beacon::{TRACE_HEADER_LEN, TRACE_ROW_LEN, TraceError, TraceHeader};
use understudy_common::id::HostId;

use crate::clock::boot_time;

use super::{SAMPLE_INTERVAL_MS, Telemetry, TelemetryConfig, TelemetryError};

/// The part of `agent.toml` that recording needs; the rest of the file is not looked at.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct RecordConfig {
    pub host: u32,
    #[serde(default)]
    pub telemetry: TelemetryConfig,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{path} cannot be read")]
    Config { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a valid configuration: {why}")]
    Toml { path: PathBuf, why: String },
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("{path} cannot be appended to")]
    Trace { path: PathBuf, source: TraceError },
    #[error("{path} holds the trace of {found}, not of {host}")]
    OtherHost {
        path: PathBuf,
        found: HostId,
        host: HostId,
    },
    #[error("{path} cannot be written")]
    Write { path: PathBuf, source: std::io::Error },
}

impl RecordError {
    /// Whether the configuration or the arguments are to blame.
    pub const fn is_usage(&self) -> bool {
        !matches!(self, Self::Write { .. })
    }
}

impl RecordConfig {
    /// # Errors
    /// [`RecordError::Config`], [`RecordError::Toml`].
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let text = std::fs::read_to_string(path).map_err(|source| RecordError::Config {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| RecordError::Toml {
            path: path.to_owned(),
            why: error.to_string(),
        })
    }
}

/// Appends one row per tick to `out`, for so many ticks or until the process is told to stop.
///
/// # Errors
/// [`RecordError`]. Rows written before an error stay.
pub async fn record(config: &RecordConfig, out: &Path, ticks: Option<u64>) -> Result<(), RecordError> {
    let host = HostId(config.host);
    let written = |source| RecordError::Write {
        path: out.to_owned(),
        source,
    };
    let mut telemetry = Telemetry::open(host, &config.telemetry)?;
    let sources = telemetry.sources();
    tracing::info!(
        programs = sources.programs,
        source = sources.source,
        "recording {host}"
    );
    let mut trace = open_trace(out, host)?;
    let mut stop = (
        signal(SignalKind::interrupt()).map_err(written)?,
        signal(SignalKind::terminate()).map_err(written)?,
    );
    let mut interval = tokio::time::interval(Duration::from_millis(SAMPLE_INTERVAL_MS));
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut rows = 0;
    while ticks.is_none_or(|ticks| rows < ticks) {
        tokio::select! {
            _ = stop.0.recv() => break,
            _ = stop.1.recv() => break,
            _ = interval.tick() => {}
        }
        if let Some(beacon) = telemetry.sample(boot_time()) {
            trace.write_all(&beacon.to_trace_row()).map_err(written)?;
            rows += 1;
        }
    }
    let cost = telemetry.cost();
    let (sample_ms, bpf_ms) = (cost.sample_ns / 1_000_000, cost.bpf_ns.map(|ns| ns / 1_000_000));
    tracing::info!(rows, sample_ms, bpf_ms, "recorded");
    Ok(())
}

/// Opens a trace for appending: a new one gets its header, an old one must fit and loses a torn last row.
fn open_trace(path: &Path, host: HostId) -> Result<File, RecordError> {
    let written = |source| RecordError::Write {
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(written)?;
    let mut head = Vec::with_capacity(TRACE_HEADER_LEN);
    (&mut file)
        .take(TRACE_HEADER_LEN as u64)
        .read_to_end(&mut head)
        .map_err(written)?;
    if head.is_empty() {
        file.write_all(&TraceHeader::new(host).to_bytes())
            .map_err(written)?;
        return Ok(file);
    }
    let refuse = |source| RecordError::Trace {
        path: path.to_owned(),
        source,
    };
    let (header, _) = TraceHeader::read(&head).map_err(refuse)?;
    if header.host != host {
        return Err(RecordError::OtherHost {
            path: path.to_owned(),
            found: header.host,
            host,
        });
    }
    // Rows of another length cannot follow.
    if header != TraceHeader::new(host) {
        return Err(refuse(TraceError::Schema));
    }
    let rows = file.metadata().map_err(written)?.len() - TRACE_HEADER_LEN as u64;
    let whole = rows - rows % TRACE_ROW_LEN as u64;
    file.set_len(TRACE_HEADER_LEN as u64 + whole).map_err(written)?;
    file.seek(SeekFrom::End(0)).map_err(written)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_continued_after_its_last_whole_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.trace");
        let beacon = understudy_common::beacon::Beacon::new(HostId(2), 1, 9);
        open_trace(&path, HostId(2))
            .unwrap()
            .write_all(&beacon.to_trace_row())
            .unwrap();
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(&[1; 30])
            .unwrap();
        open_trace(&path, HostId(2))
            .unwrap()
            .write_all(&beacon.to_trace_row())
            .unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (header, rows) = TraceHeader::read(&bytes).unwrap();
        assert_eq!(header.rows(rows).unwrap().len(), 2);
        assert_eq!(rows.len(), 2 * TRACE_ROW_LEN);
    }

    #[test]
    fn another_hosts_trace_and_other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.trace");
        open_trace(&path, HostId(2)).unwrap();
        assert!(matches!(
            open_trace(&path, HostId(3)),
            Err(RecordError::OtherHost { .. })
        ));
        std::fs::write(&path, "notes\n").unwrap();
        assert!(matches!(
            open_trace(&path, HostId(2)),
            Err(RecordError::Trace { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"notes\n");
    }

    #[test]
    fn an_unknown_key_of_the_telemetry_table_is_refused_and_other_tables_are_not_looked_at() {
        let read = |text: &str| toml::from_str::<RecordConfig>(text);
        let whole = "host = 3\nname = \"c\"\n[identity]\nca = \"x\"\n[telemetry]\nbpf = false\n\
                     [telemetry.scope]\ndevices = [\"7:1\"]\nnetns = true\n";
        let config = read(whole).unwrap();
        assert!(!config.telemetry.bpf);
        assert_eq!(config.telemetry.scope.unwrap().devices, ["7:1"]);
        assert!(
            read("host = 1\n[telemetry]\nbfp = true\n")
                .unwrap_err()
                .to_string()
                .contains("bfp")
        );
        assert!(read("[telemetry]\n").unwrap_err().to_string().contains("host"));
    }
}
