//! A beacon of the past in half the room: sixteen bits a value.
//!
//! A value has a sign, six bits of exponent and nine of fraction: from 2^-20 to 2^44 (a millionth of a share, sixteen
//! terabytes) it is right to one part in a thousand. Smaller ones become zero, larger ones the largest.

use understudy_common::beacon::{Beacon, FEATURE_COUNT, FEATURES};

const SIGN: u16 = 1 << 15;
/// Bits of an `f32`'s fraction that are not kept.
const DROPPED: u32 = 14;
/// What an `f32` of 2^-20 has above the dropped bits, less one: the code of zero.
const ZERO: u32 = ((127 - 20) << 9) - 1;

#[derive(Clone, Copy, Debug)]
pub(super) struct Packed {
    /// Low halves: a history is never longer than they count.
    tick: u32,
    sequence: u32,
    mask: [u32; 2],
    values: [u16; FEATURE_COUNT],
}

impl Packed {
    pub(super) fn of(beacon: &Beacon) -> Self {
        let mask = beacon.mask();
        Self {
            tick: beacon.tick as u32,
            sequence: beacon.sequence as u32,
            mask: [mask as u32, (mask >> 32) as u32],
            values: beacon.values().map(pack),
        }
    }

    /// Its tick, given that of a newer beacon of the same history.
    pub(super) const fn tick(&self, newer: u64) -> u64 {
        before(newer, self.tick)
    }

    pub(super) fn unpack(&self, newer: &Beacon) -> Beacon {
        let mut beacon = Beacon::new(
            newer.host,
            before(newer.sequence, self.sequence),
            self.tick(newer.tick),
        );
        let mask = u64::from(self.mask[0]) | u64::from(self.mask[1]) << 32;
        for spec in &FEATURES {
            if mask & spec.feature.bit() != 0 {
                beacon.set(spec.feature, unpack(self.values[spec.feature as usize]));
            }
        }
        beacon
    }
}

/// The last number up to `newer` that has this low half.
const fn before(newer: u64, low: u32) -> u64 {
    newer.saturating_sub((newer as u32).wrapping_sub(low) as u64)
}

fn pack(value: f32) -> u16 {
    let magnitude = value.abs().to_bits();
    let rounded = (magnitude + (1 << (DROPPED - 1))) >> DROPPED;
    let code = rounded.saturating_sub(ZERO).min(u32::from(!SIGN));
    let sign = if value < 0.0 { SIGN } else { 0 };
    // The code has fifteen bits.
    sign | code as u16
}

fn unpack(code: u16) -> f32 {
    let magnitude = match u32::from(code & !SIGN) {
        0 => 0.0,
        kept => f32::from_bits((kept + ZERO) << DROPPED),
    };
    if code & SIGN == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use understudy_common::beacon::Feature;
    use understudy_common::id::HostId;

    use super::*;

    const LEAST: f32 = 1.0 / (1 << 20) as f32;
    const MOST: f32 = (1_u64 << 44) as f32;

    proptest! {
        #[test]
        fn a_value_in_range_keeps_its_sign_and_three_digits(exponent in -20.0_f32..43.9, negative: bool) {
            let value = exponent.exp2() * if negative { -1.0 } else { 1.0 };
            let kept = unpack(pack(value));
            prop_assert!((kept - value).abs() <= value.abs() / 1_000.0, "{value} became {kept}");
        }

        #[test]
        fn any_finite_value_stays_finite_and_close_to_the_range(value in proptest::num::f32::NORMAL) {
            let kept = unpack(pack(value));
            prop_assert!(kept.abs() <= MOST && kept.abs() <= value.abs().max(LEAST) * 1.001);
        }
    }

    #[test]
    fn zero_and_what_is_packed_already_do_not_change() {
        for value in [0.0, 0.5, -3.0, LEAST, 1_048_576.0, 0.999_023_44] {
            assert_eq!(unpack(pack(value)).to_bits(), f32::to_bits(value), "{value}");
        }
        assert_eq!(unpack(pack(f32::MIN_POSITIVE)), 0.0);
    }

    #[test]
    fn a_beacon_comes_back_with_its_numbers_and_its_mask() {
        let start = u64::from(u32::MAX) - 1;
        let mut old = Beacon::new(HostId(3), start, start - 7);
        old.set(Feature::CpuUsedShare, 0.5);
        let newer = Beacon::new(HostId(3), start + 9, start + 5);
        assert_eq!(Packed::of(&old).unpack(&newer), old);
    }

    #[test]
    fn a_packed_beacon_takes_sixteen_bits_a_value() {
        assert!(size_of::<Packed>() <= 16 + 2 * FEATURE_COUNT + 2);
    }
}
