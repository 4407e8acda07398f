//! Identifiers. All are plain numbers so that they are cheap, ordered and the same everywhere;
//! names are for people and live in the replicated state.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
            serde::Serialize, serde::Deserialize,
        )]
        #[rkyv(derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash))]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A machine that runs the agent. Numbered from 1 by `understudy init`, then by those that join;
    /// a number is never used for another machine.
    HostId(u32), "host-"
);
id!(
    /// A coordinator replica; also its raft id. Numbered from 1.
    CoordinatorId(u64), "coordinator-"
);
id!(
    /// A protected service, numbered from 1 in the order of declaration.
    ServiceId(u32), "service-"
);
id!(
    /// The fencing token of a service's ownership. Only Raft hands out a higher one; 0 is "never
    /// owned".
    Epoch(u64), "e"
);

impl Epoch {
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One consistent state of a service's paths. Ordered by epoch, then number.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[rkyv(derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash))]
pub struct GenerationId {
    pub epoch: Epoch,
    pub n: u64,
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.n)
    }
}
