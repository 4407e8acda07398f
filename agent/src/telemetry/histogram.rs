//! Quantiles out of the programs' histograms.

use understudy_common::abi::telemetry::{BUCKETS, Histogram, Metrics, bucket_floor_ns};

/// What was observed between two readings of a histogram.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    buckets: [u64; BUCKETS],
}

impl Spread {
    /// Buckets only rise; one that fell counts nothing.
    pub fn between(before: &Histogram, now: &Histogram) -> Self {
        let mut buckets = now.buckets;
        for (bucket, before) in buckets.iter_mut().zip(&before.buckets) {
            *bucket = bucket.saturating_sub(*before);
        }
        Self { buckets }
    }

    pub fn count(&self) -> u64 {
        self.buckets
            .iter()
            .fold(0, |sum, bucket| sum.saturating_add(*bucket))
    }

    /// The `q`-quantile in microseconds, as the middle of its bucket; `None` when nothing was observed.
    pub fn quantile_us(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((count as f64 * q).ceil() as u64).clamp(1, count);
        let mut seen = 0_u64;
        let bucket = self.buckets.iter().position(|bucket| {
            seen = seen.saturating_add(*bucket);
            seen >= rank
        })?;
        let floor = bucket_floor_ns(bucket) as f64;
        let next = bucket_floor_ns((bucket + 1).min(BUCKETS - 1)) as f64;
        Some((floor + next) / 2_000.0)
    }
}

/// Adds the record of one CPU to a sum.
pub fn accumulate(sum: &mut Metrics, cpu: &Metrics) {
    for (sum, cpu) in [
        (&mut sum.run_queue, &cpu.run_queue),
        (&mut sum.block_read, &cpu.block_read),
        (&mut sum.block_write, &cpu.block_write),
        (&mut sum.fsync, &cpu.fsync),
    ] {
        for (sum, cpu) in sum.buckets.iter_mut().zip(&cpu.buckets) {
            *sum = sum.wrapping_add(*cpu);
        }
    }
    for (sum, cpu) in [
        (&mut sum.block_errors, cpu.block_errors),
        (&mut sum.reclaim_stalls, cpu.reclaim_stalls),
        (&mut sum.reclaim_ns, cpu.reclaim_ns),
        (&mut sum.tcp_retransmits, cpu.tcp_retransmits),
        (&mut sum.oom_kills, cpu.oom_kills),
        (&mut sum.exits, cpu.exits),
        (&mut sum.exits_by_signal, cpu.exits_by_signal),
        (&mut sum.stamps_lost, cpu.stamps_lost),
        (&mut sum.exits_lost, cpu.exits_lost),
    ] {
        *sum = sum.wrapping_add(cpu);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use understudy_common::abi::telemetry::bucket_of;

    use super::*;

    proptest! {
        #[test]
        fn a_quantile_is_within_a_quarter_of_the_exact_one(
            mut ns in proptest::collection::vec(2_000..5_000_000_000_u64, 1..300),
            q in 0.01..0.99_f64,
        ) {
            let mut histogram = Histogram::EMPTY;
            for ns in &ns {
                histogram.buckets[bucket_of(*ns)] += 1;
            }
            ns.sort_unstable();
            let exact = ns[((ns.len() as f64 * q).ceil() as usize).clamp(1, ns.len()) - 1] as f64 / 1_000.0;
            let found = Spread::between(&Histogram::EMPTY, &histogram).quantile_us(q).unwrap();
            prop_assert!((found - exact).abs() <= exact * 0.25, "{found} for {exact}");
        }
    }

    #[test]
    fn nothing_observed_has_no_quantile() {
        let mut histogram = Histogram::EMPTY;
        histogram.buckets[5] = 3;
        assert_eq!(Spread::between(&histogram, &histogram).quantile_us(0.5), None);
    }
}
