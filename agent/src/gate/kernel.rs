//! The gate in the kernel: a TCX program each way on the interface, one on the workload's cgroup.
//!
//! Invariants: maps are adopted from their pins, so a live lease survives a restart of the agent;
//! links are attached anew and then take the place of the old pins, so there is no instant without a
//! gate. The agent keeps every link's descriptor as well: a removed pin alone opens nothing while the
//! agent lives, and [`KernelGate::repair`] puts it back.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, MapData, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
};
use aya::{Ebpf, EbpfLoader, Pod};
use understudy_common::abi::gate::{ADDRESSES_MAX, GateCounters, GateEntry};
use understudy_common::id::Epoch;
use understudy_common::units::BootTime;

use super::{Gate, GateError, pin};
use crate::object;

/// One address to guard, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    pub address: Ipv4Addr,
    /// The interface that carries the address on this host.
    pub interface: String,
    /// The workload's cgroup v2 directory.
    pub cgroup: PathBuf,
}

/// Something that was found missing and put back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Repair {
    #[error("the pin {} was removed; it is back, and traffic was guarded meanwhile", .0.display())]
    Pin(PathBuf),
    #[error("the gate was no longer attached to {0}; it is attached again, but traffic may have passed")]
    Interface(String),
    #[error("the gate was no longer attached to the cgroup {}; it is attached again", .0.display())]
    Cgroup(PathBuf),
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Entry(GateEntry);
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Counters(GateCounters);
// SAFETY: `repr(C)` records of u64 alone.
unsafe impl Pod for Entry {}
// SAFETY: as above.
unsafe impl Pod for Counters {}

struct Attached {
    link: FdLink,
    path: PathBuf,
}

struct AttachedCgroup {
    attached: Attached,
    cgroup: PathBuf,
    inode: u64,
}

struct Inner {
    bpf: Ebpf,
    interfaces: BTreeMap<String, [Attached; 2]>,
    cgroups: BTreeMap<Ipv4Addr, AttachedCgroup>,
}

/// The programs and maps of one agent, pinned below one directory.
pub struct KernelGate {
    dir: PathBuf,
    inner: Mutex<Inner>,
}

const DIRECTIONS: [(TcAttachType, &str, &str); 2] = [
    (TcAttachType::Ingress, "gate_ingress", "ingress"),
    (TcAttachType::Egress, "gate_egress", "egress"),
];
const ENTRIES: &str = "GATE";
const COUNTERS: &str = "COUNTERS";

impl KernelGate {
    /// Makes the maps, or adopts those that an earlier agent pinned below `pin_dir`.
    ///
    /// # Errors
    /// [`GateError`] when the directory is not on a bpffs or the kernel refuses the maps.
    pub fn load(pin_dir: &Path) -> Result<Self, GateError> {
        pin::make_dir(pin_dir)?;
        let bpf = load_object(pin_dir, Ipv4Addr::UNSPECIFIED)?;
        let inner = Inner {
            bpf,
            interfaces: BTreeMap::new(),
            cgroups: BTreeMap::new(),
        };
        Ok(Self {
            dir: pin_dir.to_owned(),
            inner: Mutex::new(inner),
        })
    }

    /// Arms the address and attaches to its interface and to the workload's cgroup, both of which
    /// must exist. Harmless to repeat. Call it in the agent's own network namespace.
    ///
    /// # Errors
    /// [`GateError`]; what was in force before still is.
    pub fn guard(&self, guard: &Guard) -> Result<(), GateError> {
        self.guard_interface(guard.address, &guard.interface)?;
        let mut inner = self.lock();
        let known = inner.cgroups.get(&guard.address);
        let in_force = known.is_some_and(|known| {
            known.cgroup == guard.cgroup && inode(&guard.cgroup).is_ok_and(|inode| inode == known.inode)
        });
        if !in_force {
            let attached = self.attach_cgroup(guard.address, &guard.cgroup)?;
            inner.cgroups.insert(guard.address, attached);
        }
        Ok(())
    }

    /// The part of [`Self::guard`] that needs no workload on this host.
    ///
    /// # Errors
    /// [`GateError`]; what was in force before still is.
    pub fn guard_interface(&self, address: Ipv4Addr, interface: &str) -> Result<(), GateError> {
        self.arm(address)?;
        let mut inner = self.lock();
        // Programs must find these maps at their pins, not make their own.
        self.repin_maps(&inner.bpf, &mut Vec::new())?;
        let known = inner.interfaces.get(interface);
        if !known.is_some_and(|attached| is_attached(interface, attached)) {
            let attached = self.attach_interface(interface)?;
            inner.interfaces.insert(interface.to_owned(), attached);
        }
        Ok(())
    }

    /// Looks whether everything is still in force, and puts back what is not.
    ///
    /// # Errors
    /// [`GateError`] when something cannot be put back: the host must not serve then.
    pub fn repair(&self) -> Result<Vec<Repair>, GateError> {
        let mut inner = self.lock();
        let mut repairs = Vec::new();
        let Inner {
            bpf,
            interfaces,
            cgroups,
        } = &mut *inner;
        self.repin_maps(bpf, &mut repairs)?;
        for (interface, attached) in interfaces.iter_mut() {
            let lost = attached
                .iter()
                .find(|one| !one.path.exists())
                .map(|one| one.path.clone());
            let repair = match lost {
                _ if !is_attached(interface, attached) => Repair::Interface(interface.clone()),
                Some(path) => Repair::Pin(path),
                None => continue,
            };
            *attached = self.attach_interface(interface)?;
            repairs.push(repair);
        }
        for (address, known) in cgroups.iter_mut() {
            let repair = if inode(&known.cgroup)? != known.inode {
                Repair::Cgroup(known.cgroup.clone())
            } else if !known.attached.path.exists() {
                Repair::Pin(known.attached.path.clone())
            } else {
                continue;
            };
            *known = self.attach_cgroup(*address, &known.cgroup)?;
            repairs.push(repair);
        }
        Ok(repairs)
    }

    fn repin_maps(&self, bpf: &Ebpf, repairs: &mut Vec<Repair>) -> Result<(), GateError> {
        for name in [ENTRIES, COUNTERS] {
            let path = self.dir.join(name);
            if !path.exists() {
                let map = bpf.map(name).ok_or(GateError::Object(name))?;
                map.pin(&path).map_err(|error| GateError::Pin {
                    what: "pin the map at",
                    path: path.clone(),
                    source: std::io::Error::other(error),
                })?;
                repairs.push(Repair::Pin(path));
            }
        }
        Ok(())
    }

    /// With programs of its own each time: the kernel attaches one program to an interface once, and
    /// the old ones must stay until the new ones are there.
    fn attach_interface(&self, interface: &str) -> Result<[Attached; 2], GateError> {
        let mut bpf = load_object(&self.dir, Ipv4Addr::UNSPECIFIED)?;
        let mut one = |(kind, name, direction): (TcAttachType, &'static str, &str)| {
            let program: &mut SchedClassifier = program(&mut bpf, name)?;
            let failed = attach(name, interface);
            program.load().map_err(&failed)?;
            let link = program
                .attach_with_options(interface, kind, TcAttachOptions::TcxOrder(LinkOrder::first()))
                .and_then(|id| program.take_link(id))
                .and_then(|link| FdLink::try_from(link).map_err(|_| ProgramError::NotAttached))
                .map_err(failed)?;
            let path = pin::interface_pin(&self.dir, direction, interface);
            Ok::<_, GateError>(Attached {
                link: pin::replace(link, &path)?,
                path,
            })
        };
        Ok([one(DIRECTIONS[0])?, one(DIRECTIONS[1])?])
    }

    /// Each service has its own program, whose address is a constant: there is no second map whose
    /// loss could open it, and processes in cgroups below are covered as well.
    fn attach_cgroup(&self, address: Ipv4Addr, cgroup: &Path) -> Result<AttachedCgroup, GateError> {
        const NAME: &str = "gate_workload";
        let failed = |what| {
            move |source| GateError::Pin {
                what,
                path: cgroup.to_owned(),
                source,
            }
        };
        let directory = File::open(cgroup).map_err(failed("open the cgroup"))?;
        let mut bpf = load_object(&self.dir, address)?;
        let program: &mut CgroupSkb = program(&mut bpf, NAME)?;
        let target = cgroup.display().to_string();
        program.load().map_err(attach(NAME, &target))?;
        // A cgroup link stands beside others by itself; the kernel refuses to be told so.
        let link = program
            .attach(&directory, CgroupSkbAttachType::Egress, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .and_then(|link| FdLink::try_from(link).map_err(|_| ProgramError::NotAttached))
            .map_err(attach(NAME, &target))?;
        let path = pin::workload_pin(&self.dir, address);
        let attached = Attached {
            link: pin::replace(link, &path)?,
            path,
        };
        Ok(AttachedCgroup {
            attached,
            cgroup: cgroup.to_owned(),
            inode: inode(cgroup)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate for KernelGate {
    fn arm(&self, address: Ipv4Addr) -> Result<(), GateError> {
        self.lock().change(address, true, |_| ()).map(|_| ())
    }

    fn open(&self, address: Ipv4Addr, epoch: Epoch, deadline: BootTime) -> Result<bool, GateError> {
        self.lock()
            .change(address, false, |entry| entry.apply_open(epoch.0, deadline.0))
    }

    fn fence(&self, address: Ipv4Addr, epoch: Epoch) -> Result<(), GateError> {
        self.lock()
            .change(address, true, |entry| entry.apply_fence(epoch.0))
    }

    fn see(&self, address: Ipv4Addr, epoch: Epoch, revision: u64) -> Result<bool, GateError> {
        self.lock()
            .change(address, true, |entry| entry.apply_seen(epoch.0, revision))
    }

    fn promise(
        &self,
        address: Ipv4Addr,
        now: BootTime,
        epoch: Epoch,
        until: BootTime,
    ) -> Result<bool, GateError> {
        self.lock().change(address, false, |entry| {
            entry.apply_promise(now.0, epoch.0, until.0)
        })
    }

    fn forgotten(&self, address: Ipv4Addr, now: BootTime, until: BootTime) -> Result<(), GateError> {
        self.lock()
            .change(address, false, |entry| entry.apply_forgotten(now.0, until.0))
    }

    fn keep_alive(&self, until: BootTime) -> Result<(), GateError> {
        let mut inner = self.lock();
        let addresses = inner.entries()?.keys().collect::<Result<Vec<_>, _>>()?;
        for key in addresses {
            let address = Ipv4Addr::from(key.to_ne_bytes());
            inner.change(address, false, |entry| entry.reset_until_ns = until.0)?;
        }
        Ok(())
    }

    fn entry(&self, address: Ipv4Addr) -> Result<Option<GateEntry>, GateError> {
        self.lock().get(address)
    }

    fn counters(&self) -> Result<GateCounters, GateError> {
        let inner = self.lock();
        let map = inner.bpf.map(COUNTERS).ok_or(GateError::Object(COUNTERS))?;
        let counters: PerCpuArray<_, Counters> = PerCpuArray::try_from(map)?;
        let mut sum = GateCounters::default();
        for Counters(cpu) in counters.get(&0, 0)?.iter() {
            sum.passed += cpu.passed;
            sum.dropped_ingress += cpu.dropped_ingress;
            sum.dropped_egress += cpu.dropped_egress;
            sum.dropped_arp += cpu.dropped_arp;
            sum.dropped_workload += cpu.dropped_workload;
            sum.resets += cpu.resets;
        }
        Ok(sum)
    }
}

impl Inner {
    fn entries(&mut self) -> Result<HashMap<&mut MapData, u32, Entry>, GateError> {
        let map = self.bpf.map_mut(ENTRIES).ok_or(GateError::Object(ENTRIES))?;
        Ok(HashMap::try_from(map)?)
    }

    fn get(&mut self, address: Ipv4Addr) -> Result<Option<GateEntry>, GateError> {
        match self.entries()?.get(&key(address), 0) {
            Ok(Entry(entry)) => Ok(Some(entry)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn change<R>(
        &mut self,
        address: Ipv4Addr,
        arm: bool,
        apply: impl FnOnce(&mut GateEntry) -> R,
    ) -> Result<R, GateError> {
        let known = self.get(address)?;
        let mut entry = match known {
            None if !arm => return Err(GateError::NotArmed(address)),
            None if self.entries()?.keys().count() >= ADDRESSES_MAX as usize => return Err(GateError::Full),
            known => known.unwrap_or_default(),
        };
        let result = apply(&mut entry);
        if known != Some(entry) {
            self.entries()?.insert(key(address), Entry(entry), 0)?;
        }
        Ok(result)
    }
}

/// The address as the bytes stand in a packet.
fn key(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn load_object(dir: &Path, address: Ipv4Addr) -> Result<Ebpf, GateError> {
    EbpfLoader::new()
        .map_pin_path(ENTRIES, dir.join(ENTRIES))
        .map_pin_path(COUNTERS, dir.join(COUNTERS))
        .override_global("ADDRESS", &key(address), true)
        .load(object::GATE)
        .map_err(|error| GateError::Load(Box::new(error)))
}

fn program<'a, P>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, GateError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    let program = bpf.program_mut(name).ok_or(GateError::Object(name))?;
    program.try_into().map_err(|_| GateError::Object(name))
}

fn attach(program: &'static str, target: &str) -> impl Fn(ProgramError) -> GateError + Clone {
    let target = target.to_owned();
    move |source| GateError::Attach {
        program,
        target: target.clone(),
        source: Box::new(source),
    }
}

/// Whether both links' programs are what the interface of that name runs now.
fn is_attached(interface: &str, attached: &[Attached; 2]) -> bool {
    DIRECTIONS.iter().zip(attached).all(|((kind, _, _), one)| {
        let Ok((_, running)) = SchedClassifier::query_tcx(interface, *kind) else {
            return false;
        };
        let Ok(ours) = one.link.info() else { return false };
        running.iter().any(|program| program.id() == ours.program_id())
    })
}

fn inode(cgroup: &Path) -> Result<u64, GateError> {
    let metadata = std::fs::metadata(cgroup);
    let failed = |source| GateError::Pin {
        what: "look at the cgroup",
        path: cgroup.to_owned(),
        source,
    };
    metadata.map(|metadata| metadata.ino()).map_err(failed)
}
