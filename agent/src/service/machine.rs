//! What one host does about one service: the order in force against what is known to be true here.
//!
//! Drive it with `handle_*`, then drain [`Machine::poll_action`] and wait until
//! [`Machine::poll_timeout`] or the next event. At most one [`Job`] is under way; fences and guards
//! are instantaneous and wait for none.

use std::time::Duration;

use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::spec::{CoordinatorLoss, Health, ServiceSpec};
use understudy_common::units::BootTime;
use understudy_common::wire::{
    Basis, CopyState, FinalCut, Order, Peer, Refusal, Role, ServiceReport, SyncFigures,
};

use crate::observe::Target;

/// Pause after a first failure; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Failures in a row until the coordinators are told: less may be a hiccup.
const FAILURES_TOLD: u32 = 3;
/// A workload that was well for this long did start.
const SETTLED: Duration = Duration::from_secs(10);

/// At once, and answered by the event of the same name before anything else is polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put the gate around the address and the workload's cgroup.
    Guard,
    /// Close the gate for this epoch and all before it, for ever.
    Fence { epoch: Epoch },
    /// Start to renew the lease of this epoch.
    Hold { epoch: Epoch },
    /// The workload takes no writes, so that this epoch may go on without the coordinators; or it will
    /// take them again. Nothing answers this one.
    Sustain { epoch: Epoch, on: bool },
    /// Give this to the driver; it answers with [`Event::Finished`].
    Do(Job),
    /// The job under way is no longer wanted.
    Interrupt,
}

/// What takes time. Each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Make the files this host's own, from its copy, and ship them to `shadows`.
    Own {
        epoch: Epoch,
        from: Option<GenerationId>,
        shadows: Vec<Peer>,
    },
    SetShadows(Vec<Peer>),
    /// The workload has stopped: cut once more and ship that.
    FinalCut,
    /// End cutting and shipping.
    Disown,
    /// Take generations of `primary`.
    Follow {
        primary: HostId,
        epoch: Epoch,
    },
    Unfollow,
    /// Adopt or start it, and wait until it is well.
    StartWorkload,
    StopWorkload,
    TakeAddress,
    LeaveAddress,
    /// The workload's `read_only` and `read_write` commands.
    RefuseWrites,
    TakeWrites,
}

#[expect(clippy::large_enum_variant, reason = "a handful are alive at a time")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The gate is in force; `floor` is what it is fenced at.
    Guarded {
        floor: Epoch,
    },
    /// The gate is not in force, or not any more.
    Unguarded {
        why: String,
    },
    Fenced {
        epoch: Epoch,
    },
    FenceFailed {
        why: String,
    },
    Held {
        epoch: Epoch,
    },
    HoldRefused {
        why: String,
    },
    /// The gate is open for `epoch` until `deadline`.
    Opened {
        epoch: Epoch,
        deadline: BootTime,
    },
    /// A promise keeps every epoch above `epoch` closed here until `until`.
    Barred {
        epoch: Epoch,
        until: BootTime,
    },
    /// The job under way has ended.
    Finished(Result<Outcome, String>),
    /// A workload that was well has ended.
    WorkloadExited {
        why: String,
    },
    Sync(SyncStatus),
    /// The lease that is held has neither the coordinators nor the promises of all shadows, or has again.
    Lost(bool),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Cut(FinalCut),
}

/// Where the copy stands, from the engine that is at work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncStatus {
    pub copy: CopyState,
    pub generation: Option<GenerationId>,
    pub acked: Vec<(HostId, GenerationId)>,
    pub final_cut: Option<FinalCut>,
    pub figures: SyncFigures,
    pub failure: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    /// No engine runs on them.
    Untouched,
    Following {
        primary: HostId,
        epoch: Epoch,
    },
    Owned(Epoch),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Workload {
    /// An earlier agent, or a start that failed, may have left something running.
    Unknown,
    Stopped,
    Well {
        since: BootTime,
    },
}

/// What the running workload does with writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writes {
    /// It was not told since it was started or adopted.
    Unknown,
    Taken,
    Refused,
}

#[derive(Clone, Debug, Default)]
struct Trouble {
    failures: u32,
    why: String,
    until: Option<BootTime>,
}

impl Trouble {
    fn add(&mut self, now: BootTime, why: String) {
        let doubled = PAUSE_MIN.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + doubled.min(PAUSE_MAX));
        self.why = why;
    }

    /// Whether a pause is still on. One that is over is forgotten.
    fn waits(&mut self, now: BootTime) -> bool {
        self.until = self.until.filter(|until| now < *until);
        self.until.is_some()
    }
}

/// A known bug put back in, for the simulation to catch. Never set by a program.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An order of an old epoch is obeyed.
    ObeysOldEpochs,
    /// The final cut is made while clients are still served.
    CutsBeforeFence,
}

#[derive(Clone, Debug)]
pub struct Machine {
    service: ServiceId,
    fault: Option<Fault>,
    order: Option<Order>,
    guarded: bool,
    fenced: Epoch,
    held: Epoch,
    gate: Option<(Epoch, BootTime)>,
    barred: Option<(Epoch, BootTime)>,
    files: Files,
    shadows: Vec<Peer>,
    workload: Workload,
    writes: Writes,
    lost: bool,
    /// The lease was told that it may go on.
    sustained: bool,
    /// `None` until it was looked at.
    address: Option<bool>,
    final_cut: Option<FinalCut>,
    sync: SyncStatus,
    under_way: Option<Job>,
    interrupted: bool,
    /// Of jobs, and of what is instantaneous.
    trouble: Trouble,
    gate_trouble: Trouble,
}

impl Machine {
    /// Nothing is known yet: not even whether an earlier agent left the workload running.
    pub fn new(service: ServiceId) -> Self {
        Self {
            service,
            fault: None,
            order: None,
            guarded: false,
            fenced: Epoch(0),
            held: Epoch(0),
            gate: None,
            barred: None,
            files: Files::Untouched,
            shadows: Vec::new(),
            workload: Workload::Unknown,
            writes: Writes::Unknown,
            lost: false,
            sustained: false,
            address: None,
            final_cut: None,
            sync: SyncStatus::default(),
            under_way: None,
            interrupted: false,
            trouble: Trouble::default(),
            gate_trouble: Trouble::default(),
        }
    }

    #[doc(hidden)]
    pub const fn set_fault(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    /// What the coordinators want. The same or an older revision changes nothing.
    ///
    /// # Errors
    /// [`Refusal::StaleEpoch`].
    pub fn handle_order(&mut self, order: Order) -> Result<(), Refusal> {
        if let Some(known) = self
            .order
            .as_ref()
            .filter(|_| self.fault != Some(Fault::ObeysOldEpochs))
        {
            if order.epoch < known.epoch {
                return Err(Refusal::StaleEpoch {
                    order: order.epoch,
                    seen: known.epoch,
                });
            }
            if (order.epoch, order.revision) <= (known.epoch, known.revision) {
                return Ok(());
            }
            if order.epoch > known.epoch {
                self.trouble = Trouble::default();
                self.final_cut = None;
            }
        }
        self.order = Some(order);
        Ok(())
    }

    pub fn handle_event(&mut self, now: BootTime, event: Event) {
        match event {
            Event::Guarded { floor } => {
                self.guarded = true;
                self.fenced = self.fenced.max(floor);
                self.gate_trouble = Trouble::default();
            }
            Event::Unguarded { why } => {
                self.guarded = false;
                self.gate_trouble.add(now, why);
            }
            Event::Fenced { epoch } => {
                self.fenced = self.fenced.max(epoch);
                self.gate = self.gate.filter(|(open, _)| *open > self.fenced);
                self.gate_trouble = Trouble::default();
            }
            Event::FenceFailed { why } | Event::HoldRefused { why } => self.gate_trouble.add(now, why),
            Event::Held { epoch } => {
                self.held = epoch;
                self.gate_trouble = Trouble::default();
            }
            Event::Opened { epoch, deadline } => {
                if epoch > self.fenced {
                    self.gate = Some((epoch, deadline));
                }
            }
            Event::Barred { epoch, until } => self.barred = Some((epoch, until)),
            Event::Finished(result) => self.finished(now, result),
            Event::WorkloadExited { why } => {
                if let Workload::Well { since } = self.workload {
                    if now.since(since) >= SETTLED {
                        self.trouble = Trouble::default();
                    }
                    self.workload = Workload::Unknown;
                    self.writes = Writes::Unknown;
                    self.trouble.add(now, why);
                }
            }
            Event::Sync(status) => self.sync = status,
            Event::Lost(lost) => self.lost = lost,
        }
    }

    fn finished(&mut self, now: BootTime, result: Result<Outcome, String>) {
        let Some(job) = self.under_way.take() else { return };
        let interrupted = std::mem::take(&mut self.interrupted);
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(why) => {
                if matches!(job, Job::StartWorkload | Job::StopWorkload) {
                    self.workload = Workload::Unknown;
                }
                if matches!(job, Job::RefuseWrites | Job::TakeWrites) {
                    self.writes = Writes::Unknown;
                }
                if !interrupted {
                    self.trouble.add(now, why);
                }
                return;
            }
        };
        if job != Job::StartWorkload {
            // A workload that keeps dying shows only after it was well for a while.
            self.trouble = Trouble::default();
        }
        match job {
            Job::Own { epoch, shadows, .. } => {
                self.files = Files::Owned(epoch);
                self.shadows = shadows;
            }
            Job::SetShadows(shadows) => self.shadows = shadows,
            Job::FinalCut => {
                if let Outcome::Cut(cut) = outcome {
                    self.final_cut = Some(cut);
                }
            }
            Job::Disown | Job::Unfollow => {
                self.files = Files::Untouched;
                self.sync = SyncStatus::default();
            }
            Job::Follow { primary, epoch } => self.files = Files::Following { primary, epoch },
            Job::StartWorkload => {
                self.workload = Workload::Well { since: now };
                self.writes = Writes::Unknown;
            }
            Job::StopWorkload => self.workload = Workload::Stopped,
            Job::RefuseWrites => self.writes = Writes::Refused,
            Job::TakeWrites => self.writes = Writes::Taken,
            Job::TakeAddress => self.address = Some(true),
            Job::LeaveAddress => self.address = Some(false),
        }
    }

    /// Whether the holder of `epoch` may be promised that no later one is served here: this host follows
    /// it, and has seen none.
    pub fn follows(&self, holder: HostId, epoch: Epoch) -> bool {
        self.order.as_ref().is_some_and(|order| {
            order.epoch == epoch && matches!(order.role, Role::Shadow { primary } if primary == holder)
        })
    }

    /// The next thing to do now, if any.
    pub fn poll_action(&mut self, now: BootTime) -> Option<Action> {
        self.barred = self.barred.filter(|(_, until)| now < *until);
        let order = self.order.as_ref()?;
        if !self.gate_trouble.waits(now) {
            if !self.guarded {
                return Some(Action::Guard);
            }
            let floor = match order.role {
                Role::Serve { .. } => Epoch(0),
                Role::Release { .. } if self.cuts_too_early() => Epoch(0),
                Role::Release { .. } | Role::Shadow { .. } | Role::Idle => order.epoch,
            };
            if self.fenced < floor {
                return Some(Action::Fence { epoch: floor });
            }
            if self.may_serve() && self.held != order.epoch {
                return Some(Action::Hold { epoch: order.epoch });
            }
        }
        let sustained = self.lost && self.writes == Writes::Refused && self.may_serve();
        if self.sustained != sustained {
            self.sustained = sustained;
            let epoch = order.epoch;
            return Some(Action::Sustain { epoch, on: sustained });
        }
        if let Some(job) = &self.under_way {
            let wanted = *job != Job::StartWorkload || self.may_serve();
            if wanted || self.interrupted {
                return None;
            }
            self.interrupted = true;
            return Some(Action::Interrupt);
        }
        if self.trouble.waits(now) {
            return None;
        }
        let job = self.next_job(now)?;
        self.under_way = Some(job.clone());
        Some(Action::Do(job))
    }

    /// When to poll again though nothing happened.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let jobs = self.trouble.until.filter(|_| self.under_way.is_none());
        let barred = self.barred.map(|(_, until)| until);
        jobs.into_iter()
            .chain(self.gate_trouble.until)
            .chain(barred)
            .min()
    }

    fn may_serve(&self) -> bool {
        self.order.as_ref().is_some_and(|order| {
            self.guarded && matches!(order.role, Role::Serve { .. }) && order.epoch > self.fenced
        })
    }

    fn next_job(&self, now: BootTime) -> Option<Job> {
        let order = self.order.as_ref()?;
        if !self.guarded {
            // Without a gate the address is what clients could reach: it goes first.
            if self.address != Some(false) {
                return Some(Job::LeaveAddress);
            }
            return (self.workload != Workload::Stopped).then_some(Job::StopWorkload);
        }
        match &order.role {
            Role::Serve { from, shadows } => {
                // Until the promise is over its holder may be serving: what it ships still arrives.
                if !self.may_serve() || self.is_barred(now, order.epoch) {
                    return None;
                }
                self.own(order.epoch, *from, shadows)
                    .or_else(|| self.is_not_well().then_some(Job::StartWorkload))
                    .or_else(|| (self.lost && self.wants(Writes::Refused)).then_some(Job::RefuseWrites))
                    .or_else(|| {
                        let closed = !self.gate_is_open(now, order.epoch) || self.address == Some(true);
                        (!closed).then_some(Job::TakeAddress)
                    })
                    .or_else(|| (!self.lost && self.wants(Writes::Taken)).then_some(Job::TakeWrites))
            }
            Role::Release { shadows } => {
                if self.workload != Workload::Stopped && !self.cuts_too_early() {
                    return Some(Job::StopWorkload);
                }
                let cut = self
                    .final_cut
                    .as_ref()
                    .is_some_and(|cut| cut.epoch == order.epoch);
                self.own(order.epoch, None, shadows)
                    .or_else(|| (!cut).then_some(Job::FinalCut))
            }
            Role::Shadow { primary } => self.step_down().or_else(|| {
                let wanted = Files::Following {
                    primary: *primary,
                    epoch: order.epoch,
                };
                (self.files != wanted).then_some(Job::Follow {
                    primary: *primary,
                    epoch: order.epoch,
                })
            }),
            Role::Idle => self
                .step_down()
                .or_else(|| matches!(self.files, Files::Following { .. }).then_some(Job::Unfollow)),
        }
    }

    fn own(&self, epoch: Epoch, from: Option<GenerationId>, shadows: &[Peer]) -> Option<Job> {
        match self.files {
            Files::Owned(owned) if owned == epoch => {
                (self.shadows != shadows).then(|| Job::SetShadows(shadows.to_vec()))
            }
            Files::Owned(_) if self.workload != Workload::Stopped => Some(Job::StopWorkload),
            Files::Owned(_) => Some(Job::Disown),
            Files::Untouched | Files::Following { .. } => Some(Job::Own {
                epoch,
                from,
                shadows: shadows.to_vec(),
            }),
        }
    }

    fn cuts_too_early(&self) -> bool {
        self.fault == Some(Fault::CutsBeforeFence) && self.final_cut.is_none()
    }

    fn leave_traffic(&self) -> Option<Job> {
        if self.workload != Workload::Stopped {
            Some(Job::StopWorkload)
        } else if self.address != Some(false) {
            Some(Job::LeaveAddress)
        } else {
            None
        }
    }

    fn step_down(&self) -> Option<Job> {
        self.leave_traffic()
            .or_else(|| matches!(self.files, Files::Owned(_)).then_some(Job::Disown))
    }

    /// Whether the workload has to be told, which only one policy asks for.
    fn wants(&self, writes: Writes) -> bool {
        let read_only = self
            .spec()
            .is_some_and(|spec| spec.policy.coordinator_loss == CoordinatorLoss::ReadOnly);
        read_only && self.writes != writes
    }

    const fn is_not_well(&self) -> bool {
        !matches!(self.workload, Workload::Well { .. })
    }

    fn gate_is_open(&self, now: BootTime, epoch: Epoch) -> bool {
        self.gate
            .is_some_and(|(open, deadline)| open == epoch && now < deadline)
            && !self.is_barred(now, epoch)
    }

    fn is_barred(&self, now: BootTime, epoch: Epoch) -> bool {
        self.barred
            .is_some_and(|(promised, until)| epoch > promised && now < until)
    }

    pub const fn order(&self) -> Option<&Order> {
        self.order.as_ref()
    }

    /// Whom this host watches for the service: the holder that its newest order names.
    pub fn target(&self, own: HostId) -> Option<Target> {
        let order = self.order.as_ref()?;
        let holder = order.holder.filter(|holder| holder.host != own)?;
        let spec = &order.spec;
        let address = match &spec.workload.health {
            Health::Tcp(at) => Some((spec.address, at.port()).into()),
            Health::Exec(_) => None,
        };
        Some(Target {
            service: self.service,
            epoch: order.epoch,
            holder,
            address,
        })
    }

    pub fn spec(&self) -> Option<&ServiceSpec> {
        Some(&self.order.as_ref()?.spec)
    }

    /// What the coordinators are told; nothing before the first order.
    pub fn report(&self, now: BootTime) -> Option<ServiceReport> {
        let order = self.order.as_ref()?;
        let serves = self.may_serve()
            && self.files == Files::Owned(order.epoch)
            && !self.is_not_well()
            && self.address == Some(true)
            && self.gate_is_open(now, order.epoch);
        // While a takeover is under way the copy's old primary is gone: no failure of the takeover.
        let follows =
            matches!(self.files, Files::Following { .. }) && matches!(order.role, Role::Shadow { .. });
        Some(ServiceReport {
            service: self.service,
            epoch: order.epoch,
            revision: order.revision,
            serving: serves.then_some(order.epoch),
            fenced: self.fenced,
            final_cut: self
                .sync
                .final_cut
                .clone()
                .or_else(|| self.final_cut.clone())
                .filter(|cut| cut.epoch == order.epoch),
            copy: self.sync.copy,
            generation: self.sync.generation,
            acked: self.sync.acked.clone(),
            failure: self
                .failure()
                // Of a holder it is told while it serves: it is no reason to move then.
                .or_else(|| self.sync.failure.clone().filter(|_| follows || serves)),
            sync: self.sync.figures.clone(),
            basis: Basis::Lease,
            apart: None,
        })
    }

    fn failure(&self) -> Option<String> {
        let told = |trouble: &Trouble, from: u32| (trouble.failures >= from).then(|| trouble.why.clone());
        told(&self.gate_trouble, 1).or_else(|| told(&self.trouble, FAILURES_TOLD))
    }
}
