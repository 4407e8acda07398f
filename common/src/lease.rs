//! The lease's times (DESIGN §5), in one place because the holder and the coordinators must agree.
//!
//! The holder may serve until `s + L` on its own boot clock, where `s` is when it *sent* the renewal.
//! The leader noted the arrival `r` of that renewal on its own clock. Since sending comes before
//! arrival, the lease has surely ended once the leader's clock is at `r + L(1+ρ) + F`.

use core::time::Duration;

/// Times of the lease protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LeaseTimes {
    /// `L`: how long one renewal lasts, from its sending, on the holder's clock.
    pub lease: Duration,
    /// How often a holder renews.
    pub renewal: Duration,
    /// `ρ`: how much faster one host's boot clock may run than another's, in parts per million.
    pub rho_ppm: u32,
    /// `F`: how long a packet that passed the gate may still be on its way.
    pub flight: Duration,
}

impl LeaseTimes {
    pub const DEFAULT: Self = Self {
        lease: Duration::from_millis(1_000),
        renewal: Duration::from_millis(200),
        rho_ppm: 1_000,
        flight: Duration::from_millis(20),
    };

    /// `L(1+ρ) + F`, rounded up: how long after the last thing that may have extended a lease
    /// (arrival of a renewal, becoming leader, process start) the next epoch may be proposed.
    pub const fn wait_out(&self) -> Duration {
        let lease = self.lease.as_nanos();
        let drift = (lease * self.rho_ppm as u128).div_ceil(1_000_000);
        Duration::from_nanos((lease + drift) as u64).saturating_add(self.flight)
    }

    /// How long a promise binds a shadow, from its receipt: until a lease that began to last before it
    /// was sent is surely over on every clock, and its packets have landed.
    pub const fn promise(&self) -> Duration {
        self.wait_out()
    }
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_wait_out_is_a_lease_its_drift_and_the_flight() {
        assert_eq!(LeaseTimes::DEFAULT.wait_out(), Duration::from_millis(1_021));
    }

    #[test]
    fn drift_is_rounded_up() {
        let times = LeaseTimes {
            lease: Duration::from_nanos(1),
            rho_ppm: 1,
            flight: Duration::ZERO,
            ..LeaseTimes::DEFAULT
        };
        assert_eq!(times.wait_out(), Duration::from_nanos(2));
    }
}
