//! One node's boot clock: an offset and a rate, within ρ of every other's.

use understudy_common::units::BootTime;

pub const MS: u64 = 1_000_000;

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// True time at which this clock read zero.
    zero: u64,
    /// How much faster than true time, in parts per million.
    drift_ppm: i64,
}

impl Clock {
    pub const fn new(zero: u64, drift_ppm: i64) -> Self {
        Self { zero, drift_ppm }
    }

    pub fn read(&self, truth: u64) -> BootTime {
        let elapsed = i128::from(truth - self.zero);
        let drift = elapsed * i128::from(self.drift_ppm) / 1_000_000;
        BootTime(u64::try_from(elapsed + drift).expect("clocks run forward"))
    }

    /// True time at which this clock reads at least `local`.
    pub fn truth(&self, local: BootTime) -> u64 {
        let scale = 1_000_000 + i128::from(self.drift_ppm);
        let elapsed = (i128::from(local.0) * 1_000_000).div_euclid(scale) + 2;
        self.zero + u64::try_from(elapsed).expect("clocks run forward")
    }

    /// The clock of the same machine after a reboot at `truth`.
    pub const fn rebooted(self, truth: u64) -> Self {
        Self {
            zero: truth,
            drift_ppm: self.drift_ppm,
        }
    }
}
