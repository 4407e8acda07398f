//! Latencies of one run, exact.

use std::time::Duration;

/// More than a run of a minute at any rate that one process can make.
const SAMPLES_MAX: usize = 16 << 20;

#[derive(Debug, Default)]
pub(crate) struct Latencies {
    micros: Vec<u32>,
}

impl Latencies {
    pub(crate) fn push(&mut self, latency: Duration) {
        if self.micros.len() < SAMPLES_MAX {
            self.micros
                .push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        }
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.micros.append(&mut other.micros);
    }

    pub(crate) fn len(&self) -> usize {
        self.micros.len()
    }

    /// Sorted once, then asked.
    pub(crate) fn sorted(mut self) -> Sorted {
        self.micros.sort_unstable();
        Sorted(self.micros)
    }
}

pub(crate) struct Sorted(Vec<u32>);

impl Sorted {
    /// The smallest latency that at least this share of all does not exceed; none of none.
    pub(crate) fn quantile_us(&self, share: f64) -> Option<u32> {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.max(1) - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_ranks() {
        let mut latencies = Latencies::default();
        for n in (1..=200).rev() {
            latencies.push(Duration::from_micros(n));
        }
        let sorted = latencies.sorted();
        assert_eq!(sorted.quantile_us(0.5), Some(100));
        assert_eq!(sorted.quantile_us(0.99), Some(198));
        assert_eq!(sorted.quantile_us(1.0), Some(200));
        assert_eq!(Latencies::default().sorted().quantile_us(0.5), None);
    }
}
