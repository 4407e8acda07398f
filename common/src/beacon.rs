//! The beacon: one host's telemetry vector for one tick, and how it travels and is kept.
//!
//! Invariants: the vector has a fixed order ([`Feature`], append only) and at most 64 features; a signal that
//! could not be measured has its mask bit clear and is never a zero; every value that is present is finite; a
//! masked slot always holds 0.0, so equal beacons are equal bytes.

mod delta;
mod feature;
mod trace;

pub use delta::{BeaconDecoder, BeaconEncoder, BeaconError, KEYFRAME_EVERY};
pub use feature::{FEATURE_COUNT, FEATURES, Feature, FeatureSpec, Source, Unit, schema_fingerprint};
pub use trace::{TRACE_HEADER_LEN, TRACE_ROW_LEN, TraceError, TraceHeader, TraceRow};

use crate::id::HostId;

/// Length of a tick. Horizons of the model are counted in ticks.
pub const TICK_MS: u64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beacon {
    pub host: HostId,
    /// Rises by one with every beacon of this run of the agent, from 1.
    pub sequence: u64,
    /// Second of the host's boot clock in which the tick ended. A gap in it is a gap in time.
    pub tick: u64,
    mask: u64,
    values: [f32; FEATURE_COUNT],
}

impl Beacon {
    /// A beacon in which everything is masked.
    pub const fn new(host: HostId, sequence: u64, tick: u64) -> Self {
        Self {
            host,
            sequence,
            tick,
            mask: 0,
            values: [0.0; FEATURE_COUNT],
        }
    }

    /// Sets a measured value. A value that is not finite is no measurement and masks the feature.
    pub fn set(&mut self, feature: Feature, value: f32) {
        if value.is_finite() {
            self.mask |= feature.bit();
            // Adding zero turns -0.0 into 0.0: one value, one bit pattern.
            self.values[feature as usize] = value + 0.0;
        } else {
            self.clear(feature);
        }
    }

    pub const fn clear(&mut self, feature: Feature) {
        self.mask &= !feature.bit();
        self.values[feature as usize] = 0.0;
    }

    /// The value, or `None` when it was not measured in this tick.
    pub const fn get(&self, feature: Feature) -> Option<f32> {
        if self.mask & feature.bit() == 0 {
            None
        } else {
            Some(self.values[feature as usize])
        }
    }

    /// Bit `i` is set when [`FEATURES`]`[i]` was measured.
    pub const fn mask(&self) -> u64 {
        self.mask
    }

    /// All slots in the order of [`FEATURES`]; masked ones hold 0.0.
    pub const fn values(&self) -> &[f32; FEATURE_COUNT] {
        &self.values
    }
}

/// All bits that stand for a feature of this schema.
pub const MASK_ALL: u64 = if FEATURE_COUNT == 64 {
    u64::MAX
} else {
    (1 << FEATURE_COUNT) - 1
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_not_finite_masks_its_feature() {
        let mut beacon = Beacon::new(HostId(1), 1, 1);
        beacon.set(Feature::CpuUsedShare, 0.5);
        assert_eq!(beacon.get(Feature::CpuUsedShare), Some(0.5));
        beacon.set(Feature::CpuUsedShare, f32::NAN);
        assert_eq!(beacon, Beacon::new(HostId(1), 1, 1));
    }

    #[test]
    fn feature_names_are_unique_and_in_the_order_of_their_slots() {
        for (slot, spec) in FEATURES.iter().enumerate() {
            assert_eq!(spec.feature as usize, slot);
            assert_eq!(
                Feature::by_name(spec.name),
                Some(spec.feature),
                "{} is not unique",
                spec.name
            );
            assert!(!spec.sources.is_empty(), "{} has no source", spec.name);
        }
    }
}
