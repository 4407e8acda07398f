//! The Understudy coordinator and the operator's CLI: a replicated state of hosts, services and
//! epochs, the leases and plans on it, and the thin shells around them.
//!
//! | module | what it is | what it never does |
//! |---|---|---|
//! | `state` | the replicated state and its deterministic `apply` | read a clock, use floats |
//! | `lease`, `plan` | who may serve; what to do next | act |
//! | `replica` | raft with all of the above, sans I/O | read a clock, touch disk or network |
//! | `storage` | the raft log on disk, and persist-before-send | know what entries mean |
//! | `window` | the last beacons of each host | read a clock |
//! | `coordinator` | the loop that owns the replica | await while state is half changed |
//! | `forecast` | the thread that runs the model | hold up the loop |
//! | `issuer` | the key that signs for newcomers and renews | sign what the state did not admit |
//! | `certificates` | what was shown to this coordinator, and when it ends | note what was not verified |
//! | `net`, `api` | links, streams, queues; documents | decide anything |
//! | `authority`, `token` | the cluster's CA and issuer; join tokens as text | touch the disk |
//! | `config` | files that people write, validated | guess or clamp |
//! | `cli` | `understudy` | decide anything |

mod api;
pub mod authority;
mod certificates;
pub mod cli;
pub mod clock;
pub mod config;
pub mod coordinator;
mod forecast;
pub mod issuer;
pub mod lease;
mod net;
pub mod plan;
pub mod predict;
pub mod replica;
mod run;
pub mod state;
pub mod storage;
pub mod token;
pub mod window;

pub(crate) use run::random;
pub use run::{RunError, run};
