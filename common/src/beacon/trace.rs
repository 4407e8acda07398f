//! Recorded beacons: one header and rows of fixed length, all little-endian.
//!
//! | part | bytes |
//! |---|---|
//! | header | magic `USTRACE1`, feature count `u32`, host `u32`, [`schema_fingerprint`] of that count `u64` |
//! | row | tick `u64`, mask `u64`, one `f32` per feature |
//!
//! Features are append only, so a trace with fewer features than this program knows is read with the rest masked.
//! A torn last row (the recorder was killed) is left out by [`TraceHeader::rows`].

use super::delta::take;
use super::{Beacon, FEATURE_COUNT, FEATURES, schema_fingerprint};
use crate::id::HostId;

const MAGIC: [u8; 8] = *b"USTRACE1";

pub const TRACE_HEADER_LEN: usize = 8 + 4 + 4 + 8;
/// Length of a row as this program writes it.
pub const TRACE_ROW_LEN: usize = row_len(FEATURE_COUNT);

const fn row_len(features: usize) -> usize {
    8 + 8 + 4 * features
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    #[error("not a trace: it does not begin with the header that `understudy-agent record` writes")]
    NotATrace,
    #[error(
        "the trace has other features than this program: record it again or use the version that recorded it"
    )]
    Schema,
    #[error("row {row} of the trace is damaged")]
    Row { row: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceHeader {
    pub host: HostId,
    pub features: usize,
}

/// One recorded tick.
pub type TraceRow = [u8; TRACE_ROW_LEN];

impl TraceHeader {
    /// The header of a trace that this program records.
    pub const fn new(host: HostId) -> Self {
        Self {
            host,
            features: FEATURE_COUNT,
        }
    }

    pub fn to_bytes(self) -> [u8; TRACE_HEADER_LEN] {
        let mut bytes = [0; TRACE_HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&(self.features as u32).to_le_bytes());
        bytes[12..16].copy_from_slice(&self.host.0.to_le_bytes());
        bytes[16..].copy_from_slice(&schema_fingerprint(self.features).to_le_bytes());
        bytes
    }

    /// Splits a trace into its header and the bytes of its rows.
    ///
    /// # Errors
    /// [`TraceError::NotATrace`], [`TraceError::Schema`].
    pub fn read(trace: &[u8]) -> Result<(Self, &[u8]), TraceError> {
        let mut rest = trace;
        if take(&mut rest) != Some(MAGIC) {
            return Err(TraceError::NotATrace);
        }
        let mut word = || {
            take(&mut rest)
                .map(u32::from_le_bytes)
                .ok_or(TraceError::NotATrace)
        };
        let (features, host) = (word()? as usize, HostId(word()?));
        let fingerprint = take(&mut rest)
            .map(u64::from_le_bytes)
            .ok_or(TraceError::NotATrace)?;
        if features > FEATURE_COUNT || fingerprint != schema_fingerprint(features) {
            return Err(TraceError::Schema);
        }
        Ok((Self { host, features }, rest))
    }

    /// The beacons of a trace's row bytes, in order; their sequence counts rows from 1.
    ///
    /// # Errors
    /// [`TraceError::Row`] for a row that no recorder wrote.
    pub fn rows(self, rows: &[u8]) -> Result<Vec<Beacon>, TraceError> {
        rows.chunks_exact(row_len(self.features))
            .enumerate()
            .map(|(n, row)| self.row(n, row).ok_or(TraceError::Row { row: n }))
            .collect()
    }

    fn row(self, n: usize, row: &[u8]) -> Option<Beacon> {
        let mut rest = row;
        let tick = u64::from_le_bytes(take(&mut rest)?);
        let mask = u64::from_le_bytes(take(&mut rest)?);
        let mut beacon = Beacon::new(self.host, n as u64 + 1, tick);
        for spec in &FEATURES[..self.features] {
            let value = f32::from_le_bytes(take(&mut rest)?);
            if mask & spec.feature.bit() != 0 {
                beacon.set(spec.feature, value);
            }
        }
        (beacon.mask() == mask).then_some(beacon)
    }
}

impl Beacon {
    /// The beacon as a row of a trace.
    pub fn to_trace_row(&self) -> TraceRow {
        let mut row = [0; TRACE_ROW_LEN];
        row[..8].copy_from_slice(&self.tick.to_le_bytes());
        row[8..16].copy_from_slice(&self.mask().to_le_bytes());
        for (slot, value) in row[16..].chunks_exact_mut(4).zip(self.values()) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beacon::Feature;

    fn trace() -> (Vec<Beacon>, Vec<u8>) {
        let mut bytes = TraceHeader::new(HostId(2)).to_bytes().to_vec();
        let beacons: Vec<_> = (1..=3)
            .map(|n| {
                let mut beacon = Beacon::new(HostId(2), n, 50 + n);
                beacon.set(Feature::MemoryAnonShare, n as f32 / 10.0);
                beacon.set(Feature::BpfCpuShare, 0.001);
                bytes.extend_from_slice(&beacon.to_trace_row());
                beacon
            })
            .collect();
        (beacons, bytes)
    }

    #[test]
    fn a_trace_is_read_as_it_was_recorded_and_a_torn_row_is_left_out() {
        let (beacons, mut bytes) = trace();
        bytes.extend_from_slice(&[7; 20]);
        let (header, rows) = TraceHeader::read(&bytes).unwrap();
        assert_eq!(header, TraceHeader::new(HostId(2)));
        assert_eq!(header.rows(rows).unwrap(), beacons);
    }

    #[test]
    fn a_trace_with_fewer_features_is_read_with_the_rest_masked() {
        let (_, bytes) = trace();
        let older = TraceHeader {
            host: HostId(2),
            features: FEATURE_COUNT - 1,
        };
        let mut row = bytes[TRACE_HEADER_LEN..][..row_len(older.features)].to_vec();
        row[8..16].copy_from_slice(&Feature::MemoryAnonShare.bit().to_le_bytes());
        let beacon = older.rows(&row).unwrap()[0];
        assert_eq!(beacon.get(Feature::MemoryAnonShare), Some(0.1));
        assert_eq!(beacon.get(Feature::BpfCpuShare), None);
    }

    #[test]
    fn a_file_that_is_no_trace_and_a_damaged_row_are_refused() {
        assert_eq!(
            TraceHeader::read(b"tick,mask\n1,2\n").unwrap_err(),
            TraceError::NotATrace
        );
        let (_, mut bytes) = trace();
        bytes[20] ^= 1;
        assert_eq!(TraceHeader::read(&bytes).unwrap_err(), TraceError::Schema);
        bytes[20] ^= 1;
        bytes[TRACE_HEADER_LEN + 15] = 0xff;
        let (header, rows) = TraceHeader::read(&bytes).unwrap();
        assert_eq!(header.rows(rows).unwrap_err(), TraceError::Row { row: 0 });
    }
}
