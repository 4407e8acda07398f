//! What of a service is on a host outside the agent: disk, page cache, kernel and processes.

use understudy_common::abi::gate::GateEntry;
use understudy_common::id::{Epoch, GenerationId};

use crate::content::{Content, Contents};
use crate::rng::Rng;
use crate::tally::Tally;

/// A generation with what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub id: GenerationId,
    pub content: Content,
}

/// Writes that a power cut can take from files that nobody synced.
const UNSYNCED_MAX: u64 = 4;

#[derive(Debug, Default)]
pub struct Store {
    /// The service's files, as the page cache has them.
    pub files: Content,
    /// The files are this host's own history, not a copy of another's.
    pub own: bool,
    /// Highest epoch that the files were owned in.
    pub floor: Epoch,
    /// Newest generation in the journal that is whole and synced.
    pub sealed: Option<Sealed>,
    /// Being written to the journal.
    pub writing: Option<Sealed>,
    /// The journal ends in the middle of this one.
    pub torn: Option<Sealed>,
    pub kernel: Kernel,
}

/// Survives the agent, not the machine.
#[derive(Debug, Default)]
pub struct Kernel {
    pub gate: GateEntry,
    pub address: bool,
    pub running: bool,
    /// The running workload refuses writes.
    pub read_only: bool,
    /// The copy was compared with its hashes since the machine started.
    pub verified: bool,
}

impl Store {
    /// The machine loses power: what is being written is torn, or just made it.
    pub fn power_off(&mut self, rng: &mut Rng, contents: &Contents, tally: &mut Tally) {
        match self.writing.take() {
            Some(landed) if rng.chance(300) => self.seal(landed),
            torn => self.tear(torn, tally),
        }
        if self.own {
            for _ in 0..rng.between(0, UNSYNCED_MAX) {
                tally.count("unsynced write lost");
                self.files = contents.parent(self.files);
            }
        }
        self.kernel = Kernel::default();
    }

    pub fn tear(&mut self, writing: Option<Sealed>, tally: &mut Tally) {
        if writing.is_some() {
            tally.count("journal of a shadow torn");
            self.torn = writing;
        }
    }

    pub fn seal(&mut self, sealed: Sealed) {
        if self.sealed.is_none_or(|known| known.id < sealed.id) || self.own {
            self.sealed = Some(sealed);
            self.torn = None;
            self.own = false;
        }
    }
}
