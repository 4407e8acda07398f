//! Time and share units.

use core::time::Duration;

/// A reading of one machine's boot clock (`CLOCK_BOOTTIME`), in nanoseconds. Readings of two
/// machines must never be compared.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct BootTime(pub u64);

impl BootTime {
    pub const ZERO: Self = Self(0);

    pub const fn from_ms(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000_000))
    }

    /// Time since `earlier`, zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for BootTime {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl core::ops::Sub<Duration> for BootTime {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// A probability in basis points, 0..=10_000. The replicated state holds no floats.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct BasisPoints(pub u16);

impl BasisPoints {
    pub const MAX: Self = Self(10_000);

    /// Quantises a probability. `None` for NaN, which is no score.
    pub fn from_probability(p: f32) -> Option<Self> {
        if p.is_nan() {
            return None;
        }
        Some(Self((p.clamp(0.0, 1.0) * 10_000.0).round() as u16))
    }

    pub fn probability(self) -> f32 {
        f32::from(self.0) / 10_000.0
    }
}

impl core::fmt::Display for BasisPoints {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{:02} %", self.0 / 100, self.0 % 100)
    }
}
