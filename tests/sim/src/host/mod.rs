//! A host: the agent's real machines, the gate's rule as the kernel has it, and simulated drivers.
//!
//! Invariant: whatever the agent decides is decided by [`Machine`] and [`LeaseClient`]; this module only
//! carries out, as `agent.rs` and the driver do.

pub mod agent;
pub mod driver;
pub mod engine;
pub mod store;

use std::collections::BTreeMap;
use std::rc::Rc;

use understudy_common::id::{Epoch, GenerationId, HostId, ServiceId};
use understudy_common::units::BootTime;
use understudy_common::wire::{Order, PromiseRequest, Promised, Request};

use crate::clock::{Clock, MS};
use crate::content::{Content, Contents};
use crate::invariants::Invariants;
use crate::rng::Rng;
use crate::tally::Tally;
use agent::Agent;
use driver::Fault;
use engine::Frame;
use store::Store;

pub struct Host {
    pub id: HostId,
    pub clock: Clock,
    pub boot: u128,
    /// When an agent first ran in this boot.
    pub up_since: BootTime,
    /// Rises with every upgrade of the agent.
    pub program: u32,
    pub powered: bool,
    /// Rises with every start of the agent.
    pub incarnation: u64,
    /// True time of the wake-up that counts; others are of the past.
    pub wake_at: u64,
    /// Every start of a workload fails.
    pub broken: bool,
    pub disk_full: bool,
    /// The power goes in the middle of the next generation that is written to a journal.
    pub dies_writing: bool,
    pub stores: BTreeMap<ServiceId, Store>,
    /// The newest order of each service, on disk.
    pub kept: BTreeMap<ServiceId, Order>,
    pub agent: Option<Agent>,
}

/// What a host's step may use, and what comes of it.
pub struct Step<'a> {
    pub now: BootTime,
    pub rng: &'a mut Rng,
    pub contents: &'a mut Contents,
    pub tally: &'a mut Tally,
    pub invariants: &'a mut Invariants,
    pub disk_ms_max: u64,
    pub fault: Option<Fault>,
    pub out: Vec<Out>,
    /// Who does it and when, if somebody wants to read it.
    pub told: Option<(HostId, u64)>,
}

impl Step<'_> {
    /// A line of the trace for people.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if let Some((host, truth)) = self.told {
            eprintln!("{:>10.3} ms  {host}: {}", truth as f64 / MS as f64, what());
        }
    }
}

pub enum Out {
    /// To all coordinators.
    Request(Rc<Request>),
    Frame {
        to: HostId,
        service: ServiceId,
        frame: Frame,
    },
    Acked {
        to: HostId,
        service: ServiceId,
        generation: GenerationId,
    },
    /// Asks a shadow for promises.
    Ask {
        to: HostId,
        request: PromiseRequest,
    },
    Promised {
        to: HostId,
        promised: Promised,
    },
    /// An order is on disk after this many nanoseconds.
    Keep {
        order: Box<Order>,
        after: u64,
    },
    /// A job ends after this many nanoseconds.
    Job {
        service: ServiceId,
        number: u64,
        after: u64,
    },
    /// A generation is on disk after this many nanoseconds.
    Sealing {
        service: ServiceId,
        after: u64,
    },
}

impl Host {
    pub fn new(id: HostId, clock: Clock, boot: u128) -> Self {
        Self {
            id,
            clock,
            boot,
            up_since: clock.read(0),
            program: 1,
            powered: true,
            incarnation: 1,
            wake_at: u64::MAX,
            broken: false,
            disk_full: false,
            dies_writing: false,
            stores: BTreeMap::new(),
            kept: BTreeMap::new(),
            agent: Some(Agent::new(id, clock.read(0))),
        }
    }

    /// The agent is gone; the kernel and the workloads go on.
    pub fn crash(&mut self, tally: &mut Tally) {
        self.agent = None;
        self.incarnation += 1;
        for store in self.stores.values_mut() {
            let torn = store.writing.take();
            store.tear(torn, tally);
        }
    }

    /// Everything but what is on disk is gone.
    pub fn power_off(&mut self, rng: &mut Rng, contents: &Contents, tally: &mut Tally) {
        for store in self.stores.values_mut() {
            store.power_off(rng, contents, tally);
        }
        self.crash(tally);
        self.powered = false;
    }

    /// Starts the agent, after a boot of the machine if the power was off.
    pub fn start(&mut self, truth: u64, boot: u128) {
        if !self.powered {
            self.powered = true;
            self.boot = boot;
            self.clock = self.clock.rebooted(truth);
            self.up_since = self.clock.read(truth);
        }
        self.incarnation += 1;
        self.agent = Some(Agent::new(self.id, self.clock.read(truth)));
    }

    pub fn is_open(&self, service: ServiceId, truth: u64) -> bool {
        let now = self.clock.read(truth).0;
        self.powered
            && self
                .stores
                .get(&service)
                .is_some_and(|store| store.kernel.gate.is_open(now))
    }

    /// Whether a lease lasts here that a promise keeps from opening the gate.
    pub fn is_barred(&self, service: ServiceId, truth: u64) -> bool {
        let now = self.clock.read(truth).0;
        let gate = self.stores.get(&service).map(|store| store.kernel.gate);
        self.powered && gate.is_some_and(|gate| now < gate.deadline_ns && gate.is_barred(gate.epoch, now))
    }

    /// Whether clients reach a running workload here.
    pub fn serves(&self, service: ServiceId, truth: u64) -> bool {
        self.is_open(service, truth)
            && self
                .stores
                .get(&service)
                .is_some_and(|store| store.kernel.running && store.kernel.address)
    }

    /// A client's request gets through the gate: the content after it, and the epoch it was served in.
    pub fn serve(
        &mut self,
        service: ServiceId,
        write: bool,
        truth: u64,
        contents: &mut Contents,
    ) -> Option<(Content, Epoch)> {
        if !self.serves(service, truth) {
            return None;
        }
        let store = self.stores.get_mut(&service)?;
        if write && store.kernel.read_only {
            return None;
        }
        if write {
            store.files = contents.append(store.files);
        }
        Some((store.files, Epoch(store.kernel.gate.epoch)))
    }
}
