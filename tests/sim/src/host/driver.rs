//! Does one service's jobs, one after the other, as the agent's driver does, in simulated time.

use understudy_agent::service::{self, Job, Outcome, SyncStatus};
use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::units::BootTime;
use understudy_common::wire::Peer;

use super::engine::{Engine, Frame, Primary, Shadow};
use super::store::{Sealed, Store};
use super::{Out, Step};
use crate::clock::MS;

/// Bugs of the parts that are simulated here, and those that the agent's machine has switches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Machine(service::Fault),
    /// A generation is acknowledged when it arrives, not when it is on disk.
    AcknowledgesBeforeSeal,
    /// A promotion takes what was being written to the journal as well.
    PromotesUnsealed,
    /// What is promised is not kept.
    ForgetsPromises,
    /// An order for another boot of the host is obeyed.
    ObeysOtherBoots,
}

impl Fault {
    pub const fn of_machine(self) -> Option<service::Fault> {
        match self {
            Self::Machine(fault) => Some(fault),
            Self::AcknowledgesBeforeSeal
            | Self::PromotesUnsealed
            | Self::ForgetsPromises
            | Self::ObeysOtherBoots => None,
        }
    }

    /// The pinned entry refuses old epochs before the machine does.
    pub fn is_about_epochs(self) -> bool {
        self == Self::Machine(service::Fault::ObeysOldEpochs)
    }
}

type Finished = Result<Outcome, String>;

#[derive(Default)]
pub struct Driver {
    pub engine: Engine,
    job: Option<(u64, Job)>,
    number: u64,
    /// The final cut is made and waits for shadows.
    ships_final: bool,
    told: SyncStatus,
}

impl Driver {
    pub fn give(&mut self, step: &mut Step<'_>, service: ServiceId, job: Job) {
        let (low, high) = match job {
            Job::SetShadows(_) => (0, 1),
            Job::TakeAddress | Job::LeaveAddress => (1, 5),
            Job::RefuseWrites | Job::TakeWrites => (1, 40),
            Job::Disown | Job::Unfollow | Job::Follow { .. } => (1, 20),
            Job::Own { .. } | Job::FinalCut => (5, 60),
            Job::StopWorkload => (10, 200),
            Job::StartWorkload => (30, 400),
        };
        self.number += 1;
        let after = step.rng.between(low * MS, high * MS);
        let number = self.number;
        self.job = Some((number, job));
        step.out.push(Out::Job {
            service,
            number,
            after,
        });
    }

    /// A start that is no longer wanted ends, and what was started with it.
    pub fn interrupt(&mut self, store: &mut Store) -> Option<Finished> {
        let (_, job) = self.job.take()?;
        if job != Job::StartWorkload {
            self.job = Some((self.number, job));
            return None;
        }
        store.kernel.running = false;
        Some(Err("it is no longer wanted".to_owned()))
    }

    /// The job's time is over; its result, if it is not one that goes on.
    pub fn job_done(
        &mut self,
        step: &mut Step<'_>,
        host: HostId,
        service: ServiceId,
        store: &mut Store,
        number: u64,
        broken: bool,
    ) -> Result<Option<Finished>, String> {
        let Some((_, job)) = self.job.take_if(|(known, _)| *known == number) else {
            return Ok(None);
        };
        let done = Ok(Outcome::Done);
        Ok(Some(match job {
            Job::Own { epoch, from, shadows } => {
                match self.own(step, host, service, store, epoch, from, &shadows)? {
                    Ok(()) => done,
                    Err(why) => Err(why),
                }
            }
            Job::SetShadows(shadows) => {
                if let Engine::Primary(primary) = &mut self.engine {
                    primary.set_shadows(hosts(&shadows));
                }
                done
            }
            Job::FinalCut => match &mut self.engine {
                Engine::Primary(primary) => {
                    primary.final_cut(step.now, store);
                    self.ships_final = true;
                    self.job = Some((number, Job::FinalCut));
                    return Ok(None);
                }
                Engine::None | Engine::Shadow(_) => Err("nothing is being cut".to_owned()),
            },
            Job::Disown | Job::Unfollow => {
                self.end(store);
                done
            }
            Job::Follow { primary, epoch } => {
                self.follow(step, primary, epoch, store);
                done
            }
            Job::StartWorkload if broken => Err("it does not become well".to_owned()),
            Job::StartWorkload => {
                // Adopted as it is, or started anew.
                store.kernel.read_only &= store.kernel.running;
                store.kernel.running = true;
                done
            }
            Job::RefuseWrites | Job::TakeWrites if !store.kernel.running => Err("it does not run".to_owned()),
            Job::RefuseWrites => {
                store.kernel.read_only = true;
                done
            }
            Job::TakeWrites => {
                store.kernel.read_only = false;
                done
            }
            Job::StopWorkload => {
                store.kernel.running = false;
                done
            }
            Job::TakeAddress => {
                store.kernel.address = true;
                done
            }
            Job::LeaveAddress => {
                store.kernel.address = false;
                done
            }
        }))
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the job's own fields and where it is done"
    )]
    fn own(
        &mut self,
        step: &mut Step<'_>,
        host: HostId,
        service: ServiceId,
        store: &mut Store,
        epoch: Epoch,
        from: Option<GenerationId>,
        shadows: &[Peer],
    ) -> Result<Result<(), String>, String> {
        let mut start = None;
        if !store.own && (from.is_some() || store.sealed.is_some()) {
            let torn = store.writing.take().or(store.torn.take());
            let Some(sealed) = store.sealed else {
                return Ok(Err("there is no sealed generation here".to_owned()));
            };
            if from.is_some_and(|from| sealed.id < from) {
                return Ok(Err(format!("the copy here is at {}", sealed.id)));
            }
            store.files = sealed.content;
            if torn.is_some() && step.fault == Some(Fault::PromotesUnsealed) {
                // Half of a frame is what nobody ever wrote.
                store.files = step.contents.append(sealed.content);
            }
            start = Some(sealed);
        }
        // One that ran in this epoch before may have used any number below its clock's milliseconds.
        let again = store.own && store.floor >= epoch;
        let taken = if again { step.now.0 / MS } else { 0 };
        store.own = true;
        store.floor = epoch.max(store.floor);
        store.writing = None;
        self.engine = Engine::Primary(Primary::new(epoch, start, taken, hosts(shadows)));
        step.invariants
            .owned(host, service, epoch, store.files, step.contents, step.tally)?;
        Ok(Ok(()))
    }

    fn follow(&mut self, step: &Step<'_>, primary: HostId, epoch: Epoch, store: &mut Store) {
        if let Engine::Shadow(shadow) = &mut self.engine {
            (shadow.primary, shadow.epoch) = (primary, epoch);
            return;
        }
        self.end(store);
        if step.fault != Some(Fault::PromotesUnsealed) {
            store.torn = None;
        }
        self.engine = Engine::Shadow(Shadow::open(primary, epoch, step.now, store));
    }

    fn end(&mut self, store: &mut Store) {
        self.engine = Engine::None;
        store.writing = None;
    }

    /// What goes on between jobs; the result of a final cut whose shadows have answered.
    pub fn go_on(&mut self, step: &mut Step<'_>, service: ServiceId, store: &mut Store) -> Option<Finished> {
        match &mut self.engine {
            Engine::None => None,
            Engine::Shadow(shadow) => {
                shadow.warm(step.now, store);
                None
            }
            Engine::Primary(primary) => {
                if store.kernel.running {
                    primary.cut(step.now, store);
                }
                if let Some((frame, to)) = primary.ship(step.now) {
                    step.out
                        .extend(to.into_iter().map(|to| Out::Frame { to, service, frame }));
                }
                let cut = primary.final_cut_done(step.now).filter(|_| self.ships_final)?;
                self.ships_final = false;
                primary.final_until = BootTime(u64::MAX);
                if let Some(sealed) = primary.settled() {
                    store.seal(sealed);
                    store.kernel.verified = true;
                }
                self.job = None;
                Some(Ok(Outcome::Cut(cut)))
            }
        }
    }

    /// Where the engine stands, if that has changed.
    pub fn news(&mut self, store: &Store) -> Option<SyncStatus> {
        let status = self.engine.status(store);
        if status == self.told {
            return None;
        }
        self.told = status.clone();
        Some(status)
    }

    pub fn frame(
        &mut self,
        step: &mut Step<'_>,
        host: HostId,
        from: HostId,
        service: ServiceId,
        store: &mut Store,
        frame: Frame,
    ) -> Result<(), String> {
        let Engine::Shadow(shadow) = &mut self.engine else {
            return Ok(());
        };
        if !shadow.takes(step.now, from, &frame) {
            return Ok(());
        }
        let generation = frame.sealed.id;
        let known = store
            .sealed
            .filter(|sealed| sealed.id >= generation && !store.own);
        if known.is_some() {
            step.out.push(Out::Acked {
                to: from,
                service,
                generation,
            });
            return Ok(());
        }
        if step.fault == Some(Fault::AcknowledgesBeforeSeal) {
            step.invariants
                .generations
                .acknowledged(host, service, frame.sealed, step.tally);
            step.out.push(Out::Acked {
                to: from,
                service,
                generation,
            });
        }
        if store.writing.is_none() {
            store.writing = Some(frame.sealed);
            // Now and then a disk takes its time.
            let slowest = step.disk_ms_max.max(if step.rng.chance(100) { 60 } else { 0 });
            let after = step.rng.between(MS / 20, slowest * MS);
            step.out.push(Out::Sealing { service, after });
        }
        Ok(())
    }

    /// What was written to the journal is on disk, if there was room for it.
    pub fn sealed(
        &mut self,
        step: &mut Step<'_>,
        host: HostId,
        service: ServiceId,
        store: &mut Store,
        full: bool,
    ) {
        let (Engine::Shadow(shadow), Some(sealed)) = (&mut self.engine, store.writing.take()) else {
            return;
        };
        if full {
            step.tally.count("generation met a full disk");
            shadow.failed("no space left on device");
            return;
        }
        store.seal(sealed);
        shadow.became_ready(store);
        let Sealed { id: generation, .. } = sealed;
        step.invariants
            .generations
            .acknowledged(host, service, sealed, step.tally);
        let to = shadow.primary;
        step.out.push(Out::Acked {
            to,
            service,
            generation,
        });
    }

    pub fn acked(&mut self, from: HostId, generation: GenerationId) {
        if let Engine::Primary(primary) = &mut self.engine {
            primary.acked(from, generation);
        }
    }
}

fn hosts(peers: &[Peer]) -> Vec<HostId> {
    peers.iter().map(|peer| peer.host).collect()
}
