//! Does one service's jobs, one after the other: the thin shell between the machine and the engines.
//!
//! Invariants: decides nothing. A job is answered by exactly one [`Event::Finished`]; what goes on
//! between jobs (an engine's progress, the end of a workload) is told as it happens.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use understudy_common::delta::Manifest;
use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::spec::ServiceSpec;
use understudy_common::wire::{CopyState, FinalCut, Peer};
use understudy_transport::Endpoint;

use super::{Event, Job, Outcome, SyncStatus};
use crate::sync::scan::ScanSource;
use crate::sync::tracker::{ChangeSource, KernelTracker, TrackerLimits};
use crate::sync::{self, Primary, PrimarySettings, PrimaryStatus, Shadow, ShadowSettings, ShadowStatus};
use crate::telemetry::{ExitWatch, heaviest};
use crate::traffic::{TrafficDriver as _, VirtualIp};
use crate::workload::{
    Cgroup, CgroupFreezer, CommandWorkload, ThawGuard, WorkloadError, switch, wait_healthy,
};

/// How long the final cut waits for shadows that do not answer.
const FINAL_CUT_MAX: Duration = Duration::from_secs(10);

/// Processes that are named when a service leaves a host.
const HEAVIEST: usize = 5;

/// How long an engine that is told to stop may take.
const ENGINE_STOP_MAX: Duration = Duration::from_secs(5);

/// The copies on this host that take generations, for whoever accepts streams.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<BTreeMap<ServiceId, Shadow>>>);

impl Registry {
    pub fn get(&self, service: ServiceId) -> Option<Shadow> {
        self.lock().get(&service).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceId, Shadow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
pub struct DriverSettings {
    pub service: ServiceId,
    pub host: HostId,
    pub spec: ServiceSpec,
    pub state_dir: PathBuf,
    pub scrub_bytes_s: u64,
    pub cgroup: Cgroup,
    pub thaw_guard: Arc<ThawGuard>,
    pub endpoint: Endpoint,
    pub registry: Registry,
    /// Where the kernel pushes ends of processes, if it does.
    pub exits: ExitWatch,
    /// Bounded; what does not fit is waited for.
    pub events: mpsc::Sender<(ServiceId, Event)>,
}

/// The agent's end.
#[derive(Debug)]
pub struct Driver {
    jobs: mpsc::Sender<(Job, Arc<Notify>)>,
    /// Of the job given last, so that none is ended for another's sake.
    interrupt: Arc<Notify>,
}

impl Driver {
    /// # Errors
    /// [`WorkloadError::Io`] when the cgroup cannot be used.
    pub fn start(settings: DriverSettings) -> Result<Self, WorkloadError> {
        let log = settings
            .state_dir
            .join("log")
            .join(format!("{}.log", settings.spec.name));
        let mut workload =
            CommandWorkload::adopt(settings.cgroup.clone(), settings.spec.workload.clone(), log)?;
        match settings.exits.watch(settings.cgroup.path()) {
            Ok(exits) => workload = workload.heed(exits),
            Err(error) => {
                tracing::warn!(service = %settings.spec.name, %error, "the kernel does not tell how its processes end");
            }
        }
        let spec = &settings.spec;
        let address = VirtualIp::new(spec.address, spec.prefix_len, spec.interface.clone());
        // One job is under way at a time, so one place is enough.
        let (jobs, inbox) = mpsc::channel(1);
        let worker = Worker {
            workload: Arc::new(workload),
            address,
            engine: Engine::None,
            warm: None,
            settings,
        };
        tokio::spawn(worker.run(inbox));
        let interrupt = Arc::default();
        Ok(Self { jobs, interrupt })
    }

    /// Gives it the next job. The machine asks for one only after the last has finished.
    ///
    /// # Errors
    /// When the worker is gone, which is a bug: the job will never finish.
    pub fn give(&mut self, job: Job) -> Result<(), String> {
        self.interrupt = Arc::default();
        let given = self.jobs.try_send((job, Arc::clone(&self.interrupt)));
        given.map_err(|_| "the driver has ended; restart the agent".to_owned())
    }

    pub fn interrupt(&self) {
        self.interrupt.notify_one();
    }
}

enum Engine {
    None,
    Primary(Primary, Forward),
    Shadow { copy: Shadow, _forward: Forward },
}

/// Passes an engine's status on until it is dropped.
struct Forward(JoinHandle<()>);

impl Drop for Forward {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A change source that is ready before it is needed: loading kernel programs takes most of a second.
struct Warm(JoinHandle<Option<Box<dyn ChangeSource>>>);

impl Drop for Warm {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Warm {
    /// Opens the source once the copy is ready, when its directories exist.
    fn up(mut status: watch::Receiver<ShadowStatus>, paths: Vec<PathBuf>) -> Self {
        Self(tokio::spawn(async move {
            status.wait_for(|now| now.copy == CopyState::Ready).await.ok()?;
            tokio::task::spawn_blocking(|| change_source(paths)).await.ok()
        }))
    }

    async fn ready(mut self) -> Option<Box<dyn ChangeSource>> {
        if !self.0.is_finished() {
            return None;
        }
        (&mut self.0).await.ok().flatten()
    }
}

struct Worker {
    settings: DriverSettings,
    workload: Arc<CommandWorkload>,
    address: VirtualIp,
    engine: Engine,
    /// While it follows.
    warm: Option<Warm>,
}

impl Worker {
    async fn run(mut self, mut jobs: mpsc::Receiver<(Job, Arc<Notify>)>) {
        let mut watching = false;
        loop {
            let workload = Arc::clone(&self.workload);
            let job = tokio::select! {
                job = jobs.recv() => job,
                exited = workload.exited(), if watching => {
                    watching = false;
                    let why = match exited {
                        Ok(ended) => format!("the workload ended: {ended}"),
                        Err(error) => sync::chain(&error),
                    };
                    self.tell(Event::WorkloadExited { why }).await;
                    continue;
                }
            };
            let Some((job, interrupt)) = job else { return };
            let starts = job == Job::StartWorkload;
            let begun = tokio::time::Instant::now();
            tracing::info!(service = %self.settings.spec.name, ?job, "begins");
            let result = self.perform(job, &interrupt).await;
            let took_ms = begun.elapsed().as_millis();
            match &result {
                Ok(_) => tracing::info!(service = %self.settings.spec.name, took_ms, "done"),
                Err(why) => tracing::warn!(service = %self.settings.spec.name, took_ms, why, "failed"),
            }
            watching = if starts { result.is_ok() } else { watching };
            self.tell(Event::Finished(result)).await;
        }
    }

    async fn tell(&self, event: Event) {
        // The agent's loop is gone only when the agent stops.
        let _ = self.settings.events.send((self.settings.service, event)).await;
    }

    async fn perform(&mut self, job: Job, interrupt: &Notify) -> Result<Outcome, String> {
        let done = |()| Outcome::Done;
        match job {
            Job::Own { epoch, from, shadows } => self.own(epoch, from, shadows).await.map(done),
            Job::SetShadows(shadows) => {
                if let Engine::Primary(primary, _) = &mut self.engine {
                    primary.set_shadows(shadows);
                }
                Ok(Outcome::Done)
            }
            Job::FinalCut => self.final_cut().await.map(Outcome::Cut),
            Job::Disown | Job::Unfollow => {
                self.end_engine().await;
                Ok(Outcome::Done)
            }
            Job::Follow { primary, epoch } => self.follow(primary, epoch).await.map(done),
            Job::StartWorkload => self.start_workload(interrupt).await.map(done),
            Job::StopWorkload => {
                let stopped = self.workload.stop().await;
                stopped
                    .map(|_| Outcome::Done)
                    .map_err(|error| sync::chain(&error))
            }
            Job::RefuseWrites => {
                let switched = switch(&self.settings.spec.workload.read_only).await;
                switched.map(done).map_err(|error| sync::chain(&error))
            }
            Job::TakeWrites => {
                let switched = switch(&self.settings.spec.workload.read_write).await;
                switched.map(done).map_err(|error| sync::chain(&error))
            }
            Job::TakeAddress => {
                let taken = self.address.take().await;
                taken.map(done).map_err(|error| sync::chain(&error))
            }
            Job::LeaveAddress => {
                let left = self.address.leave().await;
                left.map(done).map_err(|error| sync::chain(&error))
            }
        }
    }

    async fn final_cut(&self) -> Result<FinalCut, String> {
        let Engine::Primary(primary, _) = &self.engine else {
            return Err("nothing is being cut".to_owned());
        };
        let name = self.settings.spec.name.clone();
        // For whoever asks afterwards what was wrong with this host; the cut does not wait for it.
        tokio::task::spawn_blocking(move || {
            let heaviest: Vec<String> = heaviest(HEAVIEST).iter().map(ToString::to_string).collect();
            tracing::info!(
                service = name,
                ?heaviest,
                "leaves this host; its heaviest processes"
            );
        });
        let cut = primary.final_cut(FINAL_CUT_MAX);
        match tokio::time::timeout(FINAL_CUT_MAX + ENGINE_STOP_MAX, cut).await {
            Ok(cut) => cut.map_err(|error| sync::chain(&error)),
            Err(_) => Err("the disk does not let the final cut be made".to_owned()),
        }
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.settings.spec.paths.iter().map(PathBuf::from).collect()
    }

    async fn own(
        &mut self,
        epoch: Epoch,
        from: Option<GenerationId>,
        shadows: Vec<Peer>,
    ) -> Result<(), String> {
        let start = self.promote(epoch, from).await?;
        let warm = match self.warm.take() {
            Some(warm) => warm.ready().await,
            None => None,
        };
        let paths = self.paths();
        let source = match warm {
            Some(source) => source,
            None => blocking(move || Ok(change_source(paths))).await?,
        };
        let DriverSettings { spec, cgroup, .. } = &self.settings;
        let freezer = CgroupFreezer::new(cgroup.path(), Arc::clone(&self.settings.thaw_guard));
        let settings = PrimarySettings {
            service: self.settings.service,
            name: spec.name.clone(),
            epoch,
            host: self.settings.host,
            paths: self.paths(),
            state_dir: self.settings.state_dir.clone(),
            consistency: spec.consistency,
            freeze_ms_max: spec.freeze_ms_max,
            scrub_bytes_s: self.settings.scrub_bytes_s,
            freezer: Some(Arc::new(freezer)),
            source,
            start,
        };
        let started = Primary::start(settings, self.settings.endpoint.clone()).await;
        let mut primary = started.map_err(|error| sync::chain(&error))?;
        self.end_engine().await;
        primary.set_shadows(shadows);
        let forward = self.forward(primary.status(), of_primary);
        self.engine = Engine::Primary(primary, forward);
        Ok(())
    }

    /// What the primary starts from: the copy's newest sealed generation, or nothing known when the
    /// files are already this host's own.
    async fn promote(
        &mut self,
        epoch: Epoch,
        from: Option<GenerationId>,
    ) -> Result<Option<(GenerationId, Manifest)>, String> {
        let (state_dir, name) = (self.settings.state_dir.clone(), self.settings.spec.name.clone());
        let own =
            blocking(move || sync::is_own(&state_dir, &name).map_err(|error| sync::chain(&error))).await?;
        let known = match &self.engine {
            Engine::Shadow { copy, .. } => Some(copy.clone()),
            Engine::None | Engine::Primary(..) => None,
        };
        if own {
            if let Some(copy) = known {
                copy.close().await;
            }
            return Ok(None);
        }
        // Also finishes what a crash interrupted, which is what makes the files those of a generation.
        let copy = match known {
            Some(copy) => copy,
            None => self.open_shadow().await?,
        };
        if from.is_none() && !copy.has_sealed() {
            // Nobody ever served it: the files are as somebody put them there.
            copy.close().await;
            return Ok(None);
        }
        let promoted = copy.promote(epoch).await;
        let promoted = promoted.map_err(|error| sync::chain(&error))?;
        if let Some(from) = from.filter(|from| promoted.generation < *from) {
            return Err(format!(
                "the copy here is at {}, but {from} was to take over",
                promoted.generation
            ));
        }
        tracing::info!(service = %self.settings.spec.name, %epoch, generation = %promoted.generation, "promoted");
        Ok(Some((promoted.generation, promoted.manifest)))
    }

    async fn open_shadow(&self) -> Result<Shadow, String> {
        let settings = ShadowSettings {
            service: self.settings.service,
            name: self.settings.spec.name.clone(),
            paths: self.paths(),
            state_dir: self.settings.state_dir.clone(),
            scrub_bytes_s: self.settings.scrub_bytes_s,
        };
        Shadow::open(settings).await.map_err(|error| sync::chain(&error))
    }

    async fn follow(&mut self, primary: HostId, epoch: Epoch) -> Result<(), String> {
        if let Engine::Shadow { copy, .. } = &self.engine {
            copy.set_primary(primary, epoch);
            return Ok(());
        }
        self.end_engine().await;
        let copy = self.open_shadow().await?;
        copy.set_primary(primary, epoch);
        let registered = copy.clone();
        self.settings
            .registry
            .lock()
            .insert(self.settings.service, registered);
        self.warm = Some(Warm::up(copy.status(), self.paths()));
        self.engine = Engine::Shadow {
            _forward: self.forward(copy.status(), of_shadow),
            copy,
        };
        Ok(())
    }

    async fn end_engine(&mut self) {
        self.settings.registry.lock().remove(&self.settings.service);
        self.warm = None;
        match std::mem::replace(&mut self.engine, Engine::None) {
            Engine::None => {}
            Engine::Primary(primary, forward) => {
                drop(forward);
                // One that hangs on its disk ends when that answers; nothing is cut any more.
                let _ = tokio::time::timeout(ENGINE_STOP_MAX, primary.stop()).await;
            }
            Engine::Shadow { copy, .. } => copy.close().await,
        }
    }

    fn forward<T: Send + Sync + 'static>(
        &self,
        mut status: watch::Receiver<T>,
        read: fn(&T) -> SyncStatus,
    ) -> Forward {
        let (service, events) = (self.settings.service, self.settings.events.clone());
        Forward(tokio::spawn(async move {
            status.mark_changed();
            while status.changed().await.is_ok() {
                let now = read(&status.borrow_and_update());
                if events.send((service, Event::Sync(now))).await.is_err() {
                    return;
                }
            }
            tracing::error!(%service, "the sync engine has ended: nothing is copied until the agent is restarted");
        }))
    }

    async fn start_workload(&self, interrupt: &Notify) -> Result<(), String> {
        let result = self.start_and_wait(interrupt).await;
        if result.is_err()
            && let Err(error) = self.workload.stop().await
        {
            tracing::warn!(service = %self.settings.spec.name, error = sync::chain(&error), "cannot end what did not start");
        }
        result
    }

    async fn start_and_wait(&self, interrupt: &Notify) -> Result<(), String> {
        let failed = |error: WorkloadError| sync::chain(&error);
        if !self.workload.is_running().map_err(failed)? {
            self.workload.start().await.map_err(failed)?;
        }
        let spec = &self.settings.spec.workload;
        tokio::select! {
            well = wait_healthy(&spec.health, spec.start_timeout) => {
                well.map_err(|error| format!("it does not become well: {}", sync::chain(&error)))
            }
            exited = self.workload.exited() => {
                let (ended, log) = (exited.map_err(failed)?, self.workload.log().display());
                Err(format!("it ended while it started: {ended}; its output is in {log}"))
            }
            () = interrupt.notified() => Err("it is no longer wanted".to_owned()),
        }
    }
}

/// The kernel's dirty ranges where the file system has them, else a scan.
fn change_source(paths: Vec<PathBuf>) -> Box<dyn ChangeSource> {
    match KernelTracker::open(&paths, TrackerLimits::default()) {
        Ok(tracker) => Box::new(tracker),
        Err(error) => {
            tracing::warn!(why = sync::chain(&error), "changes are found by scanning");
            Box::new(ScanSource::new(paths))
        }
    }
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let stopping = |_| "the agent is stopping".to_owned();
    tokio::task::spawn_blocking(act).await.map_err(stopping)?
}

fn of_primary(status: &PrimaryStatus) -> SyncStatus {
    SyncStatus {
        // A primary's files are no copy of anybody's.
        copy: CopyState::Cold,
        generation: status.generation,
        acked: status.acked.clone(),
        final_cut: status.final_cut.clone(),
        figures: status.figures.clone(),
        failure: status.failure.clone(),
    }
}

fn of_shadow(status: &ShadowStatus) -> SyncStatus {
    SyncStatus {
        copy: status.copy,
        generation: status.generation,
        figures: status.figures.clone(),
        failure: status.failure.clone(),
        ..SyncStatus::default()
    }
}
