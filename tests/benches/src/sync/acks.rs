//! When each generation was cut and acknowledged, as the engine itself says in its trace.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

const TARGET: &str = "understudy_agent::generation";
/// Generations that are remembered, the newest ones: more than an hour of them at the shortest interval.
const ACKS_MAX: usize = 1 << 17;

/// One acknowledgement, both times on the boot clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ack {
    pub(super) cut_ns: u64,
    pub(super) acked_ns: u64,
}

/// Clones share what they remember, oldest acknowledgement first.
#[derive(Clone, Default)]
pub(super) struct Acks(Arc<Mutex<VecDeque<Ack>>>);

impl Acks {
    /// Listens from here on, for the whole process.
    pub(super) fn listen() -> Result<Self> {
        let acks = Self::default();
        let only = Targets::new().with_target(TARGET, Level::DEBUG);
        let subscriber = tracing_subscriber::registry().with(acks.clone().with_filter(only));
        tracing::subscriber::set_global_default(subscriber).context("listening to the engine")?;
        Ok(acks)
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn newest(&self) -> Option<Ack> {
        let acks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        acks.back().copied()
    }

    pub(super) fn all(&self) -> Vec<Ack> {
        let acks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        acks.iter().copied().collect()
    }
}

impl<S: Subscriber> Layer<S> for Acks {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut ack = Ack::default();
        event.record(&mut ack);
        let mut acks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if acks.len() == ACKS_MAX {
            acks.pop_front();
        }
        acks.push_back(ack);
    }
}

impl Visit for Ack {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "cut_ns" => self.cut_ns = value,
            "acked_ns" => self.acked_ns = value,
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}
