//! When a certificate is renewed.
//!
//! Invariants: no clock is read here. A certificate is asked for again in its last third, and after a
//! failure in at most an hour; never more often than once in half a second.

use crate::identity::Lifetime;

/// Pause after the first failure; each further one doubles it.
const PAUSE_MS_MIN: i64 = 1_000;
const PAUSE_MS_MAX: i64 = 3_600_000;
/// Pause once the certificate has ended.
const PAUSE_MS_ENDED: i64 = 60_000;
/// So many attempts fit into what is left, at least.
const ATTEMPTS_LEFT: i64 = 8;
/// Failures in a row that people have to hear of.
const FAILURES_TOLD: u32 = 3;

/// The renewal of one certificate. Times are milliseconds of the wall clock since 1970.
#[derive(Clone, Debug)]
pub struct Renewal {
    lifetime: Lifetime,
    due_ms: i64,
    failures: u32,
}

impl Renewal {
    /// Due between two thirds and three quarters of its lifetime, as `chance` (0 to 1) says: a fleet
    /// does not ask at once.
    pub fn of(lifetime: Lifetime, chance: f64) -> Self {
        let span = lifetime.ends_s.saturating_sub(lifetime.begins_s).max(0);
        let ends = lifetime.ends_s.saturating_mul(1_000);
        Self {
            lifetime,
            due_ms: ends
                .saturating_sub(span.saturating_mul(1_000) / 3)
                .saturating_add((span as f64 * 1_000.0 / 12.0 * chance.clamp(0.0, 1.0)) as i64),
            failures: 0,
        }
    }

    pub const fn due_ms(&self) -> i64 {
        self.due_ms
    }

    /// What is left of the certificate; negative when it has ended.
    pub const fn left_ms(&self, now_ms: i64) -> i64 {
        self.lifetime.ends_s.saturating_mul(1_000).saturating_sub(now_ms)
    }

    /// It could not be had; whether that has to be told.
    pub fn failed(&mut self, now_ms: i64, chance: f64) -> bool {
        self.failures = self.failures.saturating_add(1);
        let most = match self.left_ms(now_ms) {
            ..=0 => PAUSE_MS_ENDED,
            left => (left / ATTEMPTS_LEFT).clamp(PAUSE_MS_MIN, PAUSE_MS_MAX),
        };
        let doubled = PAUSE_MS_MIN << (self.failures - 1).min(20);
        let pause = doubled.min(most) as f64 * (0.5 + chance.clamp(0.0, 1.0) / 2.0);
        self.due_ms = now_ms.saturating_add(pause as i64);
        self.failures >= FAILURES_TOLD
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY_S: i64 = 86_400;

    #[test]
    fn it_is_due_in_the_last_third() {
        let lifetime = Lifetime {
            begins_s: 10 * DAY_S,
            ends_s: 100 * DAY_S,
        };
        assert_eq!(Renewal::of(lifetime, 0.0).due_ms(), 70 * DAY_S * 1_000);
        assert_eq!(
            Renewal::of(lifetime, 1.0).due_ms(),
            77 * DAY_S * 1_000 + DAY_S * 500
        );
    }

    #[test]
    fn failures_are_told_from_the_third_on_and_pauses_stay_bounded() {
        let ends_s = 100 * DAY_S;
        let mut renewal = Renewal::of(Lifetime { begins_s: 0, ends_s }, 0.0);
        let mut now = renewal.due_ms();
        let mut pauses = Vec::new();
        for n in 1..=20 {
            assert_eq!(renewal.failed(now, 1.0), n >= 3);
            pauses.push(renewal.due_ms() - now);
            now = renewal.due_ms();
        }
        assert_eq!(pauses[..4], [1_000, 2_000, 4_000, 8_000]);
        assert_eq!(pauses[19], PAUSE_MS_MAX);
        // Close to the end it is asked for more often, and after it without haste.
        renewal.failed(ends_s * 1_000 - 80_000, 1.0);
        assert_eq!(renewal.due_ms(), ends_s * 1_000 - 70_000);
        renewal.failed(ends_s * 1_000 + 5, 1.0);
        assert_eq!(renewal.due_ms(), ends_s * 1_000 + 5 + PAUSE_MS_ENDED);
    }

    proptest! {
        #[test]
        fn any_lifetime_has_a_due_time_and_a_pause(
            begins_s: i64, ends_s: i64, now_ms in -1_i64 << 60..1 << 60, chance in 0.0..1.0_f64, failures in 1..80_u32,
        ) {
            let mut renewal = Renewal::of(Lifetime { begins_s, ends_s }, chance);
            for _ in 0..failures {
                renewal.failed(now_ms, chance);
                let pause = renewal.due_ms() - now_ms;
                prop_assert!((PAUSE_MS_MIN / 2..=PAUSE_MS_MAX).contains(&pause), "{pause}");
            }
        }
    }
}
