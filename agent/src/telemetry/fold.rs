//! Folds samples into one vector per tick.
//!
//! Invariants: no clock, no I/O; a level becomes the mean of its samples, a total becomes its rise per second over the
//! time that really passed; a total that fell, or whose source changed, masks its feature for that tick.

use understudy_common::abi::telemetry::Metrics;
use understudy_common::beacon::{Beacon, FEATURE_COUNT, FEATURES, Feature, Source, TICK_MS};
use understudy_common::id::HostId;
use understudy_common::units::BootTime;

use super::histogram::Spread;

/// A tick shorter than this (the first one) goes into the next.
const TICK_NS_MIN: u64 = TICK_MS * 1_000_000 / 2;

/// One reading of one signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Signal {
    /// A state: folded to its mean.
    Level(f64),
    /// Something that only rises: folded to its rise per second, times `scale`.
    Total { value: u64, scale: f64 },
    /// Folded to the rise of `part` over the rise of `whole`; 0 when `whole` stood still.
    Ratio { part: u64, whole: u64 },
    /// A state that is folded to its change per second.
    Slope(f64),
}

impl Signal {
    pub const fn total(value: u64) -> Self {
        Self::Total { value, scale: 1.0 }
    }
}

/// The readings of one instant.
#[derive(Clone, Debug)]
pub struct Sample {
    signals: [Option<(Signal, Source)>; FEATURE_COUNT],
    /// Totals of the kernel programs; the quantiles come out of their histograms.
    pub metrics: Option<Box<Metrics>>,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            signals: [None; FEATURE_COUNT],
            metrics: None,
        }
    }
}

impl Sample {
    pub fn put(&mut self, feature: Feature, source: Source, signal: Signal) {
        self.signals[feature as usize] = Some((signal, source));
    }

    /// Like [`put`](Self::put), unless a better source has given the feature already.
    pub fn put_if_missing(&mut self, feature: Feature, source: Source, signal: Signal) {
        self.signals[feature as usize].get_or_insert((signal, source));
    }

    pub fn source(&self, feature: Feature) -> Option<Source> {
        self.signals[feature as usize].map(|(_, source)| source)
    }
}

#[derive(Debug)]
pub struct Fold {
    host: HostId,
    sequence: u64,
    base: Option<(BootTime, Sample)>,
    levels: [(f64, u32); FEATURE_COUNT],
}

impl Fold {
    pub const fn new(host: HostId) -> Self {
        Self {
            host,
            sequence: 0,
            base: None,
            levels: [(0.0, 0); FEATURE_COUNT],
        }
    }

    /// Whether a sample taken now opens or closes a tick, and should hold every signal.
    pub fn wants_all(&self, now: BootTime) -> bool {
        match &self.base {
            None => true,
            Some((since, _)) => second(*since) != second(now) && now.0.saturating_sub(since.0) >= TICK_NS_MIN,
        }
    }

    /// Takes a sample; returns the beacon of the tick that it closes.
    pub fn take(&mut self, now: BootTime, sample: Sample) -> Option<Beacon> {
        let closes = self.wants_all(now);
        for (mean, signal) in self.levels.iter_mut().zip(&sample.signals) {
            if let Some((Signal::Level(level), _)) = signal {
                mean.0 += level;
                mean.1 += 1;
            }
        }
        if !closes {
            return None;
        }
        let levels = std::mem::replace(&mut self.levels, [(0.0, 0); FEATURE_COUNT]);
        let beacon = self.base.take().map(|(since, base)| {
            self.sequence += 1;
            let mut beacon = Beacon::new(self.host, self.sequence, second(now));
            let seconds = now.since(since).as_secs_f64();
            for (spec, level) in FEATURES.iter().zip(levels) {
                if let Some(value) = folded(spec.feature, &base, &sample, level, seconds) {
                    beacon.set(spec.feature, value as f32);
                }
            }
            quantiles(&base, &sample, &mut beacon);
            beacon
        });
        self.base = Some((now, sample));
        beacon
    }
}

const fn second(now: BootTime) -> u64 {
    now.0 / 1_000_000_000
}

fn folded(feature: Feature, base: &Sample, last: &Sample, level: (f64, u32), seconds: f64) -> Option<f64> {
    let (signal, source) = last.signals[feature as usize]?;
    if let Signal::Level(_) = signal {
        return Some(level.0 / f64::from(level.1));
    }
    let (before, from) = base.signals[feature as usize]?;
    if from != source {
        return None;
    }
    match (before, signal) {
        (Signal::Total { value: before, .. }, Signal::Total { value, scale }) => {
            Some(value.checked_sub(before)? as f64 * scale / seconds)
        }
        (Signal::Ratio { part: p, whole: w }, Signal::Ratio { part, whole }) => {
            let (part, whole) = (part.checked_sub(p)?, whole.checked_sub(w)?);
            Some(if whole == 0 {
                0.0
            } else {
                part as f64 / whole as f64
            })
        }
        (Signal::Slope(before), Signal::Slope(level)) => Some((level - before) / seconds),
        _ => None,
    }
}

fn quantiles(base: &Sample, last: &Sample, beacon: &mut Beacon) {
    let (Some(base), Some(last)) = (&base.metrics, &last.metrics) else {
        return;
    };
    for (before, now, p50, p99) in [
        (
            &base.run_queue,
            &last.run_queue,
            Feature::RunQueueP50,
            Feature::RunQueueP99,
        ),
        (
            &base.block_read,
            &last.block_read,
            Feature::BlockReadP50,
            Feature::BlockReadP99,
        ),
        (
            &base.block_write,
            &last.block_write,
            Feature::BlockWriteP50,
            Feature::BlockWriteP99,
        ),
        (&base.fsync, &last.fsync, Feature::FsyncP50, Feature::FsyncP99),
    ] {
        let spread = Spread::between(before, now);
        if let (Some(median), Some(tail)) = (spread.quantile_us(0.5), spread.quantile_us(0.99)) {
            beacon.set(p50, median as f32);
            beacon.set(p99, tail as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn sample(signals: &[(Feature, Signal)]) -> Sample {
        let mut sample = Sample::default();
        for (feature, signal) in signals {
            sample.put(*feature, Source::Procfs, *signal);
        }
        sample
    }

    fn fold(samples: impl IntoIterator<Item = (u64, Sample)>) -> Vec<Beacon> {
        let mut fold = Fold::new(HostId(1));
        samples
            .into_iter()
            .filter_map(|(ns, sample)| fold.take(BootTime(ns), sample))
            .collect()
    }

    #[test]
    fn a_level_is_the_mean_of_ten_samples_and_a_total_a_rate() {
        let beacons = fold((0..=20).map(|n| {
            let level = if n % 2 == 0 { 0.0 } else { 10.0 };
            (
                n * SECOND / 10,
                sample(&[
                    (Feature::DiskInFlight, Signal::Level(level)),
                    (Feature::DiskReadOpsPerSecond, Signal::total(n * 7)),
                    (Feature::MemoryAnonGrowth, Signal::Slope(-3.0 * n as f64)),
                ]),
            )
        }));
        assert_eq!(
            beacons.iter().map(|b| (b.sequence, b.tick)).collect::<Vec<_>>(),
            [(1, 1), (2, 2)]
        );
        assert_eq!(beacons[1].get(Feature::DiskInFlight), Some(5.0));
        assert_eq!(beacons[1].get(Feature::DiskReadOpsPerSecond), Some(70.0));
        assert_eq!(beacons[1].get(Feature::MemoryAnonGrowth), Some(-30.0));
    }

    #[test]
    fn a_late_sample_gives_rates_over_the_time_that_passed() {
        let at = |value| sample(&[(Feature::ExitsPerSecond, Signal::total(value))]);
        let beacons = fold([(0, at(0)), (5 * SECOND, at(50))]);
        assert_eq!(beacons[0].get(Feature::ExitsPerSecond), Some(10.0));
        assert_eq!(beacons[0].tick, 5);
    }

    #[test]
    fn a_short_first_tick_goes_into_the_next() {
        let at = |value| sample(&[(Feature::ExitsPerSecond, Signal::total(value))]);
        let start = SECOND - SECOND / 10;
        let beacons = fold([
            (start, at(0)),
            (SECOND, at(100)),
            (start + SECOND, at(100)),
            (2 * SECOND, at(110)),
        ]);
        assert_eq!(beacons.len(), 1);
        assert_eq!(beacons[0].get(Feature::ExitsPerSecond), Some(100.0));
    }

    #[test]
    fn a_total_that_fell_or_changed_its_source_is_masked_for_that_tick() {
        let at = |source, value| {
            let mut sample = Sample::default();
            sample.put(Feature::OomKillsPerSecond, source, Signal::total(value));
            sample
        };
        let beacons = fold([
            (0, at(Source::TpBtf, 5)),
            (SECOND, at(Source::TpBtf, 4)),
            (2 * SECOND, at(Source::TpBtf, 6)),
            (3 * SECOND, at(Source::Cgroup, 90)),
            (4 * SECOND, at(Source::Cgroup, 90)),
        ]);
        let values: Vec<_> = beacons
            .iter()
            .map(|b| b.get(Feature::OomKillsPerSecond))
            .collect();
        assert_eq!(values, [None, Some(2.0), None, Some(0.0)]);
    }

    #[test]
    fn a_ratio_of_nothing_is_zero() {
        let at = |part, whole| sample(&[(Feature::CpuThrottledShare, Signal::Ratio { part, whole })]);
        let beacons = fold([(0, at(0, 0)), (SECOND, at(3, 10)), (2 * SECOND, at(3, 10))]);
        assert_eq!(beacons[0].get(Feature::CpuThrottledShare), Some(0.3));
        assert_eq!(beacons[1].get(Feature::CpuThrottledShare), Some(0.0));
    }

    #[test]
    fn quantiles_need_both_ends_of_the_tick_and_an_observation() {
        let with = |count: Option<u64>| {
            let metrics = count.map(|count| {
                let mut metrics = Box::new(Metrics::EMPTY);
                metrics.fsync.buckets[40] = count;
                metrics
            });
            Sample {
                metrics,
                ..Sample::default()
            }
        };
        let beacons = fold([
            (0, with(None)),
            (SECOND, with(Some(1))),
            (2 * SECOND, with(Some(2))),
            (3 * SECOND, with(Some(2))),
        ]);
        let present: Vec<_> = beacons
            .iter()
            .map(|b| b.get(Feature::FsyncP99).is_some())
            .collect();
        assert_eq!(present, [false, true, false]);
    }
}
