//! The delta codec of `Beacon` streams: a keyframe first and every [`KEYFRAME_EVERY`] beacons, in between only
//! what changed.
//!
//! Frame, little-endian: kind `u8` (1 keyframe, 2 delta), schema fingerprint `u64`, host `u32`, sequence `u64`,
//! tick `u64`, mask `u64`, carried `u64`, then one `f32` per set bit of `carried`, lowest bit first. A keyframe
//! carries every bit of the mask; a delta carries those whose value differs from the beacon before it.
//!
//! One encoder and one decoder belong to one stream: QUIC delivers in order, so a delta always follows the beacon
//! that it is based on, and anything else is refused.

use super::{Beacon, FEATURE_COUNT, MASK_ALL, schema_fingerprint};
use crate::id::HostId;

/// A keyframe is sent first and after this many beacons.
pub const KEYFRAME_EVERY: u32 = 60;

const KEYFRAME: u8 = 1;
const DELTA: u8 = 2;
const HEAD: usize = 1 + 8 + 4 + 8 + 8 + 8 + 8;
const SCHEMA: u64 = schema_fingerprint(FEATURE_COUNT);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeaconError {
    #[error("a beacon frame of {len} bytes where {expected} are needed")]
    Length { len: usize, expected: usize },
    #[error("beacon frame kind {0} is unknown")]
    Kind(u8),
    #[error("the sender's feature list differs from ours: run the same version on both sides")]
    Schema,
    #[error("the beacon's mask names features that do not exist")]
    Mask,
    #[error("a beacon value is not a finite number")]
    NotFinite,
    #[error("a delta without the beacon it is based on")]
    NoBase,
}

/// Sending end of one stream.
#[derive(Clone, Debug, Default)]
pub struct BeaconEncoder {
    last: Option<Beacon>,
    since_keyframe: u32,
}

impl BeaconEncoder {
    /// The frame for the next beacon of this stream.
    pub fn encode(&mut self, beacon: &Beacon) -> Vec<u8> {
        let base = self.last.filter(|last| {
            self.since_keyframe < KEYFRAME_EVERY
                && last.host == beacon.host
                && last.sequence.checked_add(1) == Some(beacon.sequence)
        });
        let (kind, carried) = match &base {
            Some(base) => (DELTA, beacon.mask & differing(base, beacon)),
            None => (KEYFRAME, beacon.mask),
        };
        self.since_keyframe = if kind == KEYFRAME {
            1
        } else {
            self.since_keyframe + 1
        };
        self.last = Some(*beacon);

        let mut frame = Vec::with_capacity(HEAD + 4 * carried.count_ones() as usize);
        frame.push(kind);
        frame.extend_from_slice(&SCHEMA.to_le_bytes());
        frame.extend_from_slice(&beacon.host.0.to_le_bytes());
        for word in [beacon.sequence, beacon.tick, beacon.mask, carried] {
            frame.extend_from_slice(&word.to_le_bytes());
        }
        for slot in bits(carried) {
            frame.extend_from_slice(&beacon.values[slot].to_le_bytes());
        }
        frame
    }
}

/// Receiving end of one stream.
#[derive(Clone, Debug, Default)]
pub struct BeaconDecoder {
    last: Option<Beacon>,
}

impl BeaconDecoder {
    /// Reads the next frame. After an error only a keyframe is accepted.
    ///
    /// # Errors
    /// [`BeaconError`] for anything that an encoder of this schema did not write.
    pub fn decode(&mut self, frame: &[u8]) -> Result<Beacon, BeaconError> {
        let base = self.last.take();
        let beacon = read(frame, base)?;
        self.last = Some(beacon);
        Ok(beacon)
    }
}

fn read(frame: &[u8], base: Option<Beacon>) -> Result<Beacon, BeaconError> {
    let mut rest = frame;
    let short = BeaconError::Length {
        len: frame.len(),
        expected: HEAD,
    };
    let [kind] = take::<1>(&mut rest).ok_or(short)?;
    let schema = u64::from_le_bytes(take(&mut rest).ok_or(short)?);
    let host = HostId(u32::from_le_bytes(take(&mut rest).ok_or(short)?));
    let mut word = || take(&mut rest).map(u64::from_le_bytes).ok_or(short);
    let (sequence, tick, mask, carried) = (word()?, word()?, word()?, word()?);

    if schema != SCHEMA {
        return Err(BeaconError::Schema);
    }
    if mask & !MASK_ALL != 0 || carried & !mask != 0 {
        return Err(BeaconError::Mask);
    }
    let expected = HEAD + 4 * carried.count_ones() as usize;
    if frame.len() != expected {
        return Err(BeaconError::Length {
            len: frame.len(),
            expected,
        });
    }
    let mut beacon = Beacon::new(host, sequence, tick);
    beacon.mask = mask;
    match kind {
        KEYFRAME if carried != mask => return Err(BeaconError::Mask),
        KEYFRAME => {}
        DELTA => {
            let base = base
                .filter(|base| base.host == host && base.sequence.checked_add(1) == Some(sequence))
                .ok_or(BeaconError::NoBase)?;
            // A feature that was masked before has no old value to keep.
            if mask & !carried & !base.mask != 0 {
                return Err(BeaconError::Mask);
            }
            for slot in bits(mask & !carried) {
                beacon.values[slot] = base.values[slot];
            }
        }
        other => return Err(BeaconError::Kind(other)),
    }
    for slot in bits(carried) {
        let value = f32::from_le_bytes(take(&mut rest).ok_or(short)?);
        if !value.is_finite() {
            return Err(BeaconError::NotFinite);
        }
        beacon.values[slot] = value;
    }
    Ok(beacon)
}

/// Slots whose value or presence differs.
fn differing(a: &Beacon, b: &Beacon) -> u64 {
    let values = bits(MASK_ALL)
        .filter(|&slot| a.values[slot].to_bits() != b.values[slot].to_bits())
        .fold(0, |set, slot| set | 1 << slot);
    values | (a.mask ^ b.mask)
}

fn bits(set: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |slot| set >> slot & 1 == 1)
}

pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::beacon::{FEATURES, Feature};

    fn beacon(sequence: u64, values: &[Option<f32>]) -> Beacon {
        let mut beacon = Beacon::new(HostId(3), sequence, sequence + 100);
        for (spec, value) in FEATURES.iter().zip(values) {
            if let Some(value) = value {
                beacon.set(spec.feature, *value);
            }
        }
        beacon
    }

    /// Few distinct values, so that many stay the same from one beacon to the next.
    fn vectors() -> impl Strategy<Value = Vec<Vec<Option<f32>>>> {
        let value = prop_oneof![
            Just(None),
            Just(Some(0.0)),
            (0..4_i32).prop_map(|n| Some(n as f32 * 1.5))
        ];
        proptest::collection::vec(proptest::collection::vec(value, FEATURE_COUNT), 1..150)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_encoded_is_decoded(series in vectors()) {
            let (mut encoder, mut decoder) = (BeaconEncoder::default(), BeaconDecoder::default());
            for (n, values) in series.iter().enumerate() {
                let sent = beacon(n as u64 + 1, values);
                prop_assert_eq!(decoder.decode(&encoder.encode(&sent)), Ok(sent));
            }
        }

        #[test]
        fn hostile_bytes_are_refused_without_a_panic(
            series in vectors(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let (mut encoder, mut decoder) = (BeaconEncoder::default(), BeaconDecoder::default());
            for (n, values) in series.iter().enumerate() {
                let mut frame = encoder.encode(&beacon(n as u64 + 1, values));
                let at = at.index(frame.len());
                frame[at] ^= byte;
                frame.truncate(cut.index(frame.len()) + 1);
                if let Ok(read) = decoder.decode(&frame) {
                    prop_assert!(read.values().iter().all(|value| value.is_finite()));
                    prop_assert_eq!(read.mask() & !MASK_ALL, 0);
                }
            }
        }

        #[test]
        fn noise_is_refused_without_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(BeaconDecoder::default().decode(&noise).is_err());
        }
    }

    #[test]
    fn a_keyframe_comes_first_and_every_sixty_beacons() {
        let mut encoder = BeaconEncoder::default();
        let kinds: Vec<u8> = (1..=121).map(|n| encoder.encode(&beacon(n, &[]))[0]).collect();
        let keyframes: Vec<usize> = (0..121).filter(|&n| kinds[n] == KEYFRAME).collect();
        assert_eq!(keyframes, [0, 60, 120]);
    }

    #[test]
    fn a_quiet_host_costs_only_the_head() {
        let mut encoder = BeaconEncoder::default();
        let full: Vec<_> = (0..FEATURE_COUNT).map(|n| Some(n as f32)).collect();
        assert_eq!(encoder.encode(&beacon(1, &full)).len(), HEAD + 4 * FEATURE_COUNT);
        assert_eq!(encoder.encode(&beacon(2, &full)).len(), HEAD);
    }

    #[test]
    fn a_lost_or_repeated_frame_is_noticed_and_the_next_keyframe_heals() {
        let (mut encoder, mut decoder) = (BeaconEncoder::default(), BeaconDecoder::default());
        let frames: Vec<_> = (1..=61)
            .map(|n| encoder.encode(&beacon(n, &[Some(1.0)])))
            .collect();
        assert!(decoder.decode(&frames[0]).is_ok());
        assert_eq!(decoder.decode(&frames[2]), Err(BeaconError::NoBase));
        assert_eq!(decoder.decode(&frames[3]), Err(BeaconError::NoBase));
        assert_eq!(
            decoder.decode(&frames[60]).map(|b| b.get(Feature::CpuUsedShare)),
            Ok(Some(1.0))
        );
    }

    #[test]
    fn another_schema_and_impossible_values_are_refused() {
        let frame = BeaconEncoder::default().encode(&beacon(1, &[Some(1.0)]));
        let refuse = |at: usize, bytes: &[u8]| {
            let mut frame = frame.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            BeaconDecoder::default().decode(&frame).unwrap_err()
        };
        assert_eq!(refuse(0, &[9]), BeaconError::Kind(9));
        assert_eq!(refuse(1, &[0; 8]), BeaconError::Schema);
        assert_eq!(refuse(HEAD, &f32::NAN.to_le_bytes()), BeaconError::NotFinite);
        assert_eq!(refuse(HEAD - 16, &u64::MAX.to_le_bytes()), BeaconError::Mask);
    }
}
