//! The lease gate: what the data path lets through, decided in the kernel (DESIGN §7).
//!
//! Invariants: a guarded address is closed unless a lease of an unfenced epoch lasts. Nothing here
//! decides whether traffic passes: the agent only writes leases and fences into the map. Only
//! `gate/kernel.rs` and `gate/pin.rs` import aya.

mod kernel;
mod memory;
mod pin;

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use understudy_common::abi::gate::{ADDRESSES_MAX, GateCounters, GateEntry};
use understudy_common::id::Epoch;
use understudy_common::units::BootTime;

pub use kernel::{Guard, KernelGate, Repair};
pub use memory::MemoryGate;

/// The operations on guarded addresses. Each is done when it returns: the next packet meets it.
pub trait Gate: Send + Sync {
    /// Guards the address, closed. Keeps what is already known of it.
    ///
    /// # Errors
    /// [`GateError::Full`], or a refusal of the kernel.
    fn arm(&self, address: Ipv4Addr) -> Result<(), GateError>;

    /// Opens until `deadline`. False, and nothing changed, when the epoch is fenced or an old one.
    ///
    /// # Errors
    /// [`GateError::NotArmed`], or a refusal of the kernel.
    fn open(&self, address: Ipv4Addr, epoch: Epoch, deadline: BootTime) -> Result<bool, GateError>;

    /// Closes for `epoch` and all before it, for ever. Arms the address if need be.
    ///
    /// # Errors
    /// [`GateError::Full`], or a refusal of the kernel: the gate may be open then.
    fn fence(&self, address: Ipv4Addr, epoch: Epoch) -> Result<(), GateError>;

    /// An order of this epoch and revision is taken: false, and nothing changed, when a newer one was.
    /// Arms the address if need be.
    ///
    /// # Errors
    /// [`GateError::Full`], or a refusal of the kernel.
    fn see(&self, address: Ipv4Addr, epoch: Epoch, revision: u64) -> Result<bool, GateError>;

    /// Promises the holder of `epoch` that no later one opens here before `until`. False, and nothing is
    /// promised, when a later epoch was seen. Once it is true the kernel keeps the promise.
    ///
    /// # Errors
    /// [`GateError::NotArmed`], or a refusal of the kernel: nothing is promised then.
    fn promise(
        &self,
        address: Ipv4Addr,
        now: BootTime,
        epoch: Epoch,
        until: BootTime,
    ) -> Result<bool, GateError>;

    /// What was promised before the pins were lost is unknown: nothing opens before `until`.
    ///
    /// # Errors
    /// [`GateError::NotArmed`], or a refusal of the kernel.
    fn forgotten(&self, address: Ipv4Addr, now: BootTime, until: BootTime) -> Result<(), GateError>;

    /// Until then closed addresses answer TCP with RST rather than silence.
    ///
    /// # Errors
    /// A refusal of the kernel.
    fn keep_alive(&self, until: BootTime) -> Result<(), GateError>;

    /// What the gate knows of the address; `None` when it is not guarded.
    ///
    /// # Errors
    /// A refusal of the kernel.
    fn entry(&self, address: Ipv4Addr) -> Result<Option<GateEntry>, GateError>;

    /// Sums over all CPUs since the gate was first loaded.
    ///
    /// # Errors
    /// A refusal of the kernel.
    fn counters(&self) -> Result<GateCounters, GateError>;
}

#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("{0} is not guarded here: it must be armed before it can be opened")]
    NotArmed(Ipv4Addr),
    #[error("this host already guards {ADDRESSES_MAX} addresses; move some services to another host")]
    Full,
    #[error(
        "{} is not on a bpffs, so the gate would not outlive the agent: mount one (`mount -t bpf bpf /sys/fs/bpf`) and set bpf.pin_dir below it",
        .0.display()
    )]
    NotBpffs(PathBuf),
    #[error("cannot {what} {}", path.display())]
    Pin {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the kernel refused to load the gate: it needs CAP_BPF and CAP_NET_ADMIN")]
    Load(#[source] Box<aya::EbpfError>),
    #[error("the gate's object has no {0}: build it again with `cargo xtask build-ebpf`")]
    Object(&'static str),
    #[error("the kernel refused the gate's program {program} on {target}")]
    Attach {
        program: &'static str,
        target: String,
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    #[error("the kernel refused to change the gate's map")]
    Map(#[from] aya::maps::MapError),
}

#[cfg(test)]
mod reset_tests;
#[cfg(test)]
pub(crate) mod testnet;
#[cfg(test)]
mod tests;
