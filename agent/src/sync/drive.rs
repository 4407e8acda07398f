//! The engine thread: when to cut, what to ship, what was acknowledged.

use std::collections::BTreeMap;
use std::sync::mpsc as engine;
use std::time::{Duration, Instant};
use std::{fs, io};

use tokio::sync::{oneshot, watch};
use understudy_common::delta::{Answer, Digest};
use understudy_common::id::{GenerationId, HostId, ServiceId};
use understudy_common::units::BootTime;
use understudy_common::wire::FinalCut;

use super::cutter::Cutter;
use super::identity;
use super::primary::{PrimaryError, PrimarySettings, PrimaryStatus};
use super::roots::Roots;
use super::shipper::{Cut, Pipe, Shipper};
use crate::clock::boot_time;

/// Bounds of the pause between two cycles.
const INTERVAL_MIN: Duration = Duration::from_millis(50);
const INTERVAL_MAX: Duration = Duration::from_millis(250);
/// After a cycle that failed.
const ERROR_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A cycle may take this share of the time.
const CYCLE_SHARE: u32 = 4;
/// A cut of a stopped workload fails only when others move its files meanwhile.
const FINAL_TRIES_MAX: u32 = 5;
/// Who asks for a cut at once beyond these is not answered.
const BARRIERS_MAX: usize = 64;
/// While something waits to be shipped.
const SHIP_PAUSE: Duration = Duration::from_millis(5);
/// Pauses that a cycle waits for a shadow to take what the one before read.
const HOLD_UPS_MAX: u32 = 100;
/// Cuts of which the time is remembered for the lag.
const CUT_TIMES_MAX: usize = 256;

pub enum Event {
    Linked {
        host: HostId,
        pipe: Pipe,
    },
    Unlinked {
        host: HostId,
    },
    /// Exactly these hosts are shadows.
    Wanted(std::collections::BTreeSet<HostId>),
    Answer {
        host: HostId,
        answer: Answer,
    },
    FinalCut {
        limit: Duration,
        reply: oneshot::Sender<FinalCut>,
    },
    /// Everything that was written before is wanted on the shadows, without waiting for the interval.
    Barrier {
        limit: Duration,
        reply: oneshot::Sender<FinalCut>,
    },
    Stop(Option<oneshot::Sender<()>>),
}

pub struct Engine {
    settings: Fixed,
    cutter: Cutter,
    cut: Option<Cut>,
    cut_times: BTreeMap<GenerationId, BootTime>,
    shippers: BTreeMap<HostId, Shipper>,
    acked: BTreeMap<HostId, GenerationId>,
    /// Content bytes sent to each shadow since it last sealed.
    unsealed: BTreeMap<HostId, u64>,
    shadows: std::collections::BTreeSet<HostId>,
    status: watch::Sender<PrimaryStatus>,
    failure: Option<String>,
    /// Numbers up to this one may be in use in this epoch, from before this agent started: generations
    /// are far fewer than milliseconds.
    numbers_taken: u64,
    /// The final cut was made: nothing is cut any more.
    finished: bool,
    waiting: Option<(Instant, oneshot::Sender<FinalCut>)>,
    /// At most [`BARRIERS_MAX`].
    barriers: Vec<Barrier>,
    /// Pauses in a row that a cycle waited for.
    held_up: u32,
    scrubbed_at: Instant,
}

struct Barrier {
    /// The first cut that was begun afterwards, once it is made.
    cut: Option<GenerationId>,
    deadline: Instant,
    reply: oneshot::Sender<FinalCut>,
}

struct Fixed {
    service: ServiceId,
    epoch: understudy_common::id::Epoch,
    dir: std::path::PathBuf,
}

impl Engine {
    pub fn start(
        settings: PrimarySettings,
        status: watch::Sender<PrimaryStatus>,
    ) -> Result<Self, PrimaryError> {
        let dir = identity::service_dir(&settings.state_dir, &settings.name);
        let numbers_taken = own(&dir, settings.epoch).map_err(|source| PrimaryError::State {
            dir: dir.clone(),
            source,
        })?;
        let mut cutter = Cutter::new(
            Roots::new(settings.paths),
            settings.source,
            settings.freezer,
            settings.consistency,
            Duration::from_millis(u64::from(settings.freeze_ms_max)),
        );
        cutter.set_scrub_rate(settings.scrub_bytes_s);
        cutter
            .start(settings.start.as_ref().map(|(_, manifest)| manifest))
            .map_err(PrimaryError::Watch)?;
        Ok(Self {
            settings: Fixed {
                service: settings.service,
                epoch: settings.epoch,
                dir,
            },
            cutter,
            cut: None,
            cut_times: BTreeMap::new(),
            shippers: BTreeMap::new(),
            acked: BTreeMap::new(),
            unsealed: BTreeMap::new(),
            shadows: std::collections::BTreeSet::new(),
            status,
            failure: None,
            numbers_taken,
            finished: false,
            waiting: None,
            barriers: Vec::new(),
            held_up: 0,
            scrubbed_at: Instant::now(),
        })
    }

    pub fn run(mut self, inbox: &engine::Receiver<Event>) {
        let mut next = Instant::now();
        loop {
            let until = if self.ships_more() {
                next.min(Instant::now() + SHIP_PAUSE)
            } else {
                next
            };
            let mut event = inbox.recv_timeout(until.saturating_duration_since(Instant::now()));
            // All that has come: a cycle that takes long must not make the answers queue up.
            while let Ok(happened) = event {
                if let Event::Stop(reply) = happened {
                    if let Some(reply) = reply {
                        // Whoever asked has gone when this fails.
                        let _ = reply.send(());
                    }
                    return;
                }
                if matches!(happened, Event::Barrier { .. }) {
                    next = Instant::now();
                }
                self.handle(happened);
                event = inbox.try_recv().map_err(|error| match error {
                    engine::TryRecvError::Empty => engine::RecvTimeoutError::Timeout,
                    engine::TryRecvError::Disconnected => engine::RecvTimeoutError::Disconnected,
                });
            }
            if event.is_err_and(|error| error == engine::RecvTimeoutError::Disconnected) {
                return;
            }
            if Instant::now() >= next {
                let pause = self.tick();
                next = Instant::now() + pause;
            }
            self.ship();
            self.answer_final();
            self.answer_barriers();
            self.publish();
        }
    }

    fn ships_more(&self) -> bool {
        let wanted = self.cut.as_ref().map(|cut| cut.generation);
        self.waiting.is_some()
            || !self.barriers.is_empty()
            || self.shippers.values().any(|shipper| shipper.sealed() != wanted)
    }

    /// One cycle; returns the pause until the next.
    fn tick(&mut self) -> Duration {
        if self.finished {
            return INTERVAL_MAX;
        }
        let begun = Instant::now();
        // What would be read now could not be sent before it is read again.
        if self.cutter.is_behind()
            && self.held_up < HOLD_UPS_MAX
            && self.shippers.values().any(Shipper::holds_up_drafts)
        {
            self.held_up += 1;
            return SHIP_PAUSE;
        }
        self.held_up = 0;
        let since = begun.saturating_duration_since(self.scrubbed_at);
        if let Err(error) = self.cutter.scrub(since) {
            tracing::debug!(error = super::chain(&error), "a file could not be read again");
        }
        self.scrubbed_at = begun;
        let wanted = self.barriers.iter().any(|barrier| barrier.cut.is_none());
        let cut = self.make_cut(self.cut.is_none() || wanted, false);
        let pause = begun.elapsed() * (CYCLE_SHARE - 1);
        match cut {
            Ok(true) => {
                self.failure = None;
                pause.clamp(INTERVAL_MIN, INTERVAL_MAX)
            }
            // There is much to be read and nothing to lose: half of the time is its.
            Ok(false) if self.cutter.is_behind() => begun.elapsed().min(INTERVAL_MIN),
            Ok(false) => pause.clamp(INTERVAL_MIN * 2, INTERVAL_MAX),
            Err(error) => {
                let why = super::chain(&error);
                tracing::warn!(service = %self.settings.service, error = why, "no generation was cut");
                self.failure = Some(why);
                // What follows is a re-read of much: it keeps to its share of the time as well.
                pause.clamp(INTERVAL_MAX, ERROR_PAUSE_MAX)
            }
        }
    }

    fn make_cut(&mut self, forced: bool, stopped: bool) -> io::Result<bool> {
        let Some(delta) = self.cutter.cycle(forced, stopped)? else {
            if self.cutter.is_behind() {
                self.draft();
            }
            return Ok(false);
        };
        let previous = self.cut.as_ref().map(|cut| cut.generation);
        let generation = self.next_generation();
        let manifest = self.cutter.manifest().clone();
        let digest = manifest.digest();
        self.cut = Some(Cut {
            generation,
            manifest,
            digest,
            delta,
            previous,
        });
        self.cut_times.insert(generation, self.cutter.cut_at());
        if self.cut_times.len() > CUT_TIMES_MAX {
            self.cut_times.pop_first();
        }
        for barrier in &mut self.barriers {
            barrier.cut.get_or_insert(generation);
        }
        self.cutter.figures.generations += 1;
        Ok(true)
    }

    fn next_generation(&self) -> GenerationId {
        let previous = self.cut.as_ref().map_or(0, |cut| cut.generation.n);
        GenerationId {
            epoch: self.settings.epoch,
            n: previous.max(self.numbers_taken) + 1,
        }
    }

    /// Ships what was read to shadows that have nothing, while the rest is still to be read.
    fn draft(&mut self) {
        let (generation, fresh) = (self.next_generation(), self.cutter.take_fresh());
        for (host, shipper) in &mut self.shippers {
            let sent = shipper.draft(generation, self.cutter.manifest(), &fresh, &self.cutter);
            *self.unsealed.entry(*host).or_default() += sent.full_bytes;
            self.cutter.figures.full_bytes += sent.full_bytes;
        }
    }

    /// The last cut, of a workload that has stopped.
    fn make_final_cut(&mut self) -> io::Result<()> {
        for _ in 0..FINAL_TRIES_MAX {
            if self.make_cut(true, true)? {
                return Ok(());
            }
        }
        Err(io::Error::other(
            "files are still being renamed by something else than the workload, which has stopped",
        ))
    }

    fn ship(&mut self) {
        let Some(cut) = &self.cut else { return };
        let mut most = 0;
        let (mut full, mut delta) = (0, 0);
        for (host, shipper) in &mut self.shippers {
            let sent = shipper.ship(cut, &self.cutter);
            *self.unsealed.entry(*host).or_default() += sent.full_bytes + sent.delta_bytes;
            full += sent.full_bytes;
            delta += sent.delta_bytes;
            most = most.max(sent.delta_bytes);
        }
        self.cutter.figures.full_bytes += full;
        self.cutter.figures.delta_bytes += delta;
        if self.finished {
            self.cutter.figures.final_delta_bytes += most;
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Linked { host, pipe } => {
                if self.shadows.contains(&host) {
                    self.shippers.insert(host, Shipper::new(pipe));
                }
            }
            Event::Unlinked { host } => {
                self.shippers.remove(&host);
            }
            Event::Wanted(hosts) => {
                self.shippers.retain(|host, _| hosts.contains(host));
                self.acked.retain(|host, _| hosts.contains(host));
                self.unsealed.retain(|host, _| hosts.contains(host));
                self.shadows = hosts;
            }
            Event::Answer { host, answer } => self.answer(host, answer),
            Event::FinalCut { limit, reply } => {
                if !self.finished {
                    if let Err(error) = self.make_final_cut() {
                        self.failure = Some(super::chain(&error));
                        // Dropping the reply tells the caller that there is no final cut.
                        return;
                    }
                    self.finished = true;
                }
                self.waiting = Some((Instant::now() + limit, reply));
            }
            Event::Barrier { limit, reply } => {
                if self.barriers.len() < BARRIERS_MAX {
                    let cut = self.cut.as_ref().filter(|_| self.finished);
                    self.barriers.push(Barrier {
                        cut: cut.map(|cut| cut.generation),
                        deadline: Instant::now() + limit,
                        reply,
                    });
                }
            }
            Event::Stop(_) => {}
        }
    }

    fn answer(&mut self, host: HostId, answer: Answer) {
        if let Answer::Refused { why } = &answer {
            self.failure = Some(format!("{host}: {why}"));
        }
        if let Answer::Sealed { generation } = answer {
            self.acked.insert(host, generation);
            let bytes = self.unsealed.remove(&host).unwrap_or(0);
            if let Some(&cut_at) = self.cut_times.get(&generation) {
                let now = boot_time();
                let lag_us = now.since(cut_at).as_micros();
                self.cutter.figures.lag_us_last = u64::try_from(lag_us).unwrap_or(u64::MAX);
                tracing::debug!(target: "understudy_agent::generation", service = %self.settings.service,
                    generation = %generation, cut_ns = cut_at.0, acked_ns = now.0, shadow = %host,
                    bytes);
            }
        }
        if let Answer::State {
            identifiers, digest, ..
        } = &answer
        {
            self.meet(host, identifiers.current, *digest);
        }
        if let Some(shipper) = self.shippers.get_mut(&host)
            && !shipper.answer(answer, self.cut.as_ref())
        {
            // Dropping its pipe ends the stream; the task dials again.
            self.shippers.remove(&host);
        }
    }

    /// A shadow told where it stands.
    fn meet(&mut self, host: HostId, at: Option<GenerationId>, digest: Digest) {
        let Some(at) = at.filter(|at| at.epoch == self.settings.epoch) else {
            return;
        };
        let cut = self.cut.as_ref().map(|cut| (cut.generation, cut.digest));
        if cut == Some((at, digest)) {
            self.acked.insert(host, at);
        } else if cut.is_none_or(|(generation, _)| at >= generation) {
            // This agent was restarted within its epoch: numbers are never used twice.
            self.numbers_taken = self.numbers_taken.max(at.n);
            self.cut = self.cut.take().filter(|_| self.finished);
        }
    }

    fn answer_final(&mut self) {
        let Some((cut, digest)) = self.final_cut() else {
            return;
        };
        let Some((deadline, _)) = &self.waiting else {
            return;
        };
        let all = self.shadows.iter().all(|host| cut.acked_by.contains(host));
        if !all && Instant::now() < *deadline {
            return;
        }
        if !cut.acked_by.is_empty() {
            // Another host has everything: this copy is an ordinary one from here on.
            let saved = identity::load(&self.settings.dir).and_then(|mut identity| {
                identity.identifiers.advance(cut.generation);
                identity.digest = Some(digest);
                identity.diverging = false;
                identity::save(&self.settings.dir, &identity)
            });
            if let Err(error) = saved {
                self.failure = Some(format!("the final generation cannot be noted: {error}"));
            }
        }
        if let Some((_, reply)) = self.waiting.take() {
            // Whoever asked has gone when this fails; the cut stays.
            let _ = reply.send(cut);
        }
    }

    /// Who asked is told once all shadows have it, or when its time is over: who has it by then. Without a cut
    /// until then the reply is dropped.
    fn answer_barriers(&mut self) {
        let now = Instant::now();
        for barrier in std::mem::take(&mut self.barriers) {
            let has_it = |host: &&HostId| self.acked.get(*host).copied() >= barrier.cut;
            let acked_by: Vec<HostId> = self.shadows.iter().filter(has_it).copied().collect();
            match barrier.cut {
                Some(generation) if acked_by.len() == self.shadows.len() || now >= barrier.deadline => {
                    // Whoever asked has gone when this fails.
                    let _ = barrier.reply.send(FinalCut {
                        epoch: self.settings.epoch,
                        generation,
                        acked_by,
                    });
                }
                None if now >= barrier.deadline => {}
                _ => self.barriers.push(barrier),
            }
        }
    }

    /// The final cut with those who have it by now, and its content.
    fn final_cut(&self) -> Option<(FinalCut, Digest)> {
        let cut = self.cut.as_ref().filter(|_| self.finished)?;
        let has_it = |(host, acked): (&HostId, &GenerationId)| (*acked == cut.generation).then_some(*host);
        let made = FinalCut {
            epoch: self.settings.epoch,
            generation: cut.generation,
            acked_by: self.acked.iter().filter_map(has_it).collect(),
        };
        Some((made, cut.digest))
    }

    fn publish(&self) {
        let now = PrimaryStatus {
            generation: self.cut.as_ref().map(|cut| cut.generation),
            acked: self
                .acked
                .iter()
                .map(|(host, generation)| (*host, *generation))
                .collect(),
            final_cut: self.final_cut().map(|(cut, _)| cut),
            figures: self.cutter.figures.clone(),
            failure: self.failure.clone(),
        };
        self.status.send_if_modified(|was| {
            let changed = *was != now;
            *was = now;
            changed
        });
    }
}

/// From here on the files are a workload's: what a shadow's journal knows of them is void. Returns up to
/// which number generations of this epoch may be in use.
fn own(dir: &std::path::Path, epoch: understudy_common::id::Epoch) -> io::Result<u64> {
    fs::create_dir_all(dir)?;
    let mut identity = identity::load(dir)?;
    let known = identity.identifiers.current.filter(|known| known.epoch == epoch);
    let taken = if identity.diverging && identity.floor >= epoch {
        // It ran in this epoch before: there have been fewer generations than milliseconds.
        boot_time().0 / 1_000_000
    } else {
        known.map_or(0, |known| known.n)
    };
    identity.digest = None;
    identity.diverging = true;
    identity.floor = identity.floor.max(epoch);
    identity::save(dir, &identity)?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|ending| ending == "redo" || ending == "undo")
        {
            fs::remove_file(path)?;
        }
    }
    Ok(taken)
}
