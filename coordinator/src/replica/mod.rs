//! One coordinator replica without I/O: raft, the replicated state, the lease table and the planner.
//!
//! Drive it with the `handle_*` functions, each with the boot clock as read *after* the event was
//! received; then take [`Replica::poll_persist`], make it durable, call
//! [`Replica::handle_persisted`], and drain [`Replica::poll_output`]; wait until
//! [`Replica::poll_timeout`] or the next event.
//!
//! Invariants: reads no clock and does no I/O. Nothing that depends on a [`Persist`] is among the
//! outputs before [`Replica::handle_persisted`]. A renewal is answered only after a read-index
//! round that began after it arrived. Every request gets exactly one reply. A host speaks only for
//! itself. Only the leader answers. A replica that is [`Replica::halted`] does nothing any more.

mod admission;
mod announce;
mod bootstrap;
mod decide;
mod holds;
mod log;
mod membership;
mod mirror;
mod operate;
mod outputs;
mod persist;
mod requests;
mod status;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use raft::eraftpb::MessageType;
use raft::{Config, RawNode, ReadOnlyOption, StateRole};
use understudy_common::id::{CoordinatorId, HostId, ServiceId};
use understudy_common::lease::LeaseTimes;
use understudy_common::units::{BasisPoints, BootTime};
use understudy_common::wire::{Order, Response};

use crate::lease::{LeaseTable, Rounds};
use crate::plan::Seen;
use crate::state::{COMMAND_VERSION, SNAPSHOT_VERSION, State};
use holds::Holds;
use mirror::Mirror;
use outputs::Outputs;
use persist::Flights;
pub use raft::eraftpb::{Entry, HardState, Message, Snapshot};
use requests::Waiter;
pub use transfer::TRANSFER_MAX;
use transfer::Transfer;

/// raft's tick.
pub const TICK: Duration = Duration::from_millis(50);
const HEARTBEAT_TICKS: usize = 2;
/// Elections start after 500 to 800 ms of silence.
const ELECTION_TICKS: usize = 10;
const ELECTION_TICKS_MAX: usize = 16;
/// Ticks that raft is given at once after a pause of this process.
const TICKS_MAX: u64 = 4;
/// A longer gap between two ticks means that this process was paused and saw no renewals.
const PAUSE: Duration = Duration::from_millis(400);
/// Entries between two snapshots, by default.
pub const SNAPSHOT_EVERY: u64 = 4_096;
/// Messages and orders that wait for the shell; more are dropped, since both are sent again.
pub const OUTPUTS_MAX: usize = 65_536;
/// Entries proposed and not applied; more requests are answered `Busy`.
pub const PROPOSALS_MAX: u64 = 1_024;
/// How often an order that was not obeyed yet is sent again.
pub const ORDER_EVERY: Duration = Duration::from_millis(200);
/// Bytes of entries in one raft message, well below the frame limit.
const APPEND_BYTES_MAX: u64 = 256 << 10;
/// Append messages on their way to one follower: one that it writes, and one that comes in the meantime. What is
/// proposed while both are under way leaves as one message.
const APPENDS_MAX: usize = 2;

#[derive(Clone, Debug)]
pub struct Settings {
    pub id: CoordinatorId,
    /// The voters of a cluster that begins, this one among them. Once there is a state, it says who they are.
    pub members: BTreeSet<CoordinatorId>,
    /// Where those listen.
    pub addrs: BTreeMap<CoordinatorId, SocketAddr>,
    /// This one joins a cluster that runs: it begins with nothing and waits for the leader's snapshot.
    pub joins: bool,
    /// The lowest number of a host that joins: those below were given by `understudy init`.
    pub first_host: u32,
    /// The newest command version that this program applies. Only tests pretend to be older.
    pub command_version: u32,
    pub lease: LeaseTimes,
    /// Risk from which a host counts as failing. Without one nothing is moved by prediction.
    pub threshold: Option<BasisPoints>,
    pub snapshot_every: u64,
    /// A known bug put back in, for the simulation to catch. Never set by a program.
    #[doc(hidden)]
    pub fault: Option<Fault>,
}

impl Settings {
    pub fn new(id: CoordinatorId, members: BTreeSet<CoordinatorId>) -> Self {
        Self {
            id,
            members,
            addrs: BTreeMap::new(),
            joins: false,
            first_host: 1,
            command_version: COMMAND_VERSION,
            lease: LeaseTimes::DEFAULT,
            threshold: None,
            snapshot_every: SNAPSHOT_EVERY,
            fault: None,
        }
    }
}

#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Renewals are answered by whoever believes to be the leader.
    RenewWithoutReadIndex,
    /// A planned move gives the new holder the epoch of the old one.
    HandoverKeepsEpoch,
    /// What waits for the disk is sent before the disk has it.
    SendBeforePersist,
    /// `apply` takes the time from this replica's own clock.
    ApplyReadsClock,
    /// An order is sent once, whether or not it is obeyed.
    OrdersOnce,
}

/// What the disk gave back. Empty at the first start.
#[derive(Clone, Debug, Default)]
pub struct Durable {
    pub hard_state: HardState,
    pub snapshot: Option<Snapshot>,
    /// In order, without gaps. Any before the last `compact_to` may be missing.
    pub entries: Vec<Entry>,
}

/// To be made durable as a whole, in one write that is waited for.
#[derive(Clone, Debug, Default)]
pub struct Persist {
    /// Replace everything at or after the index of the first of them.
    pub entries: Vec<Entry>,
    pub hard_state: Option<HardState>,
    /// Replaces the one before. One without `compact_to` is the leader's and replaces the log as well.
    pub snapshot: Option<Snapshot>,
    /// Entries with a lower index may be deleted, after the rest is durable.
    pub compact_to: Option<u64>,
}

/// A request's name, given by the shell; the reply carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Send { to: CoordinatorId, message: Message },
    Reply { id: RequestId, response: Response },
    Order { host: HostId, order: Order },
}

#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    #[error("{id} is not among the members {members:?}: check `id` and `members` in the configuration")]
    NotAMember {
        id: CoordinatorId,
        members: Vec<CoordinatorId>,
    },
    #[error(
        "the stored raft log cannot be used: {why}; remove this coordinator from the cluster and add it again under a new number (`understudy coordinators`)"
    )]
    Corrupt { why: String },
    #[error("raft refused to start: {0}")]
    Raft(#[from] raft::Error),
    #[error(
        "the leader's snapshot has version {version}, and this program reads version {SNAPSHOT_VERSION}: start the newer program"
    )]
    SnapshotTooNew { version: u32 },
    #[error(
        "entry {index} of the log needs command version {needs}, and this program applies versions up to {knows}: start the newer program again"
    )]
    TooOld { index: u64, needs: u32, knows: u32 },
}

pub struct Replica {
    settings: Settings,
    seed: u64,
    node: RawNode<Mirror>,
    state: State,
    /// raft's clock: ticks given so far.
    ticks: u64,
    ticked_at: BootTime,
    /// Wall clock as last told, for commands.
    wall_ms: u64,
    outputs: Outputs,
    flights: Flights,
    leading: Option<Leading>,
    leases: LeaseTable,
    rounds: Rounds<RequestId>,
    transfer: Option<Transfer>,
    /// The tick from which this replica may say again which commands it applies.
    announce_at: u64,
    /// The members changed: a snapshot that knows of it is to be made.
    snapshot_due: bool,
    /// The disk takes nothing: no command is taken in.
    disk_full: bool,
    /// Why this replica does nothing any more.
    halted: Option<ReplicaError>,
}

/// What only a leader has; gone with the leadership.
struct Leading {
    term: u64,
    /// When coordinators last said that their disk is full.
    full: BTreeMap<CoordinatorId, BootTime>,
    seen: BTreeMap<HostId, Seen>,
    waiters: BTreeMap<u64, Waiter>,
    /// Index of each service's proposal under way.
    proposed: BTreeMap<ServiceId, u64>,
    /// The step that each service is in, and since when.
    steps: BTreeMap<ServiceId, ((understudy_common::id::Epoch, u8), BootTime)>,
    /// The newest epoch in which each service did not start, and how often in a row it did not.
    failed: BTreeMap<ServiceId, (understudy_common::id::Epoch, u32)>,
    /// The newest revision sent to each host for each service, and when.
    sent: BTreeMap<(HostId, ServiceId), (u64, BootTime)>,
    /// When orders are looked at again even if the state does not change.
    orders_at: BootTime,
    /// The state that orders were last derived from.
    orders_index: u64,
    /// When hosts in safe mode were last counted calm, for want of a model.
    calm_at: BootTime,
    holds: Holds,
}

impl Replica {
    /// # Errors
    /// [`ReplicaError`] when the settings or what the disk gave back cannot be used.
    pub fn new(settings: Settings, durable: Durable, now: BootTime, seed: u64) -> Result<Self, ReplicaError> {
        if !settings.joins && !settings.members.contains(&settings.id) {
            return Err(ReplicaError::NotAMember {
                id: settings.id,
                members: settings.members.iter().copied().collect(),
            });
        }
        let (durable, first) = bootstrap::begin(&settings, durable)?;
        let state = match &durable.snapshot {
            Some(snapshot) => {
                State::from_snapshot(snapshot.get_data()).map_err(|error| ReplicaError::Corrupt {
                    why: error.to_string(),
                })?
            }
            None => State::default(),
        };
        let mirror = Mirror::restore(durable)?;
        let config = Config {
            id: settings.id.0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            min_election_tick: ELECTION_TICKS,
            max_election_tick: ELECTION_TICKS_MAX,
            applied: mirror.snapshot_index(),
            max_size_per_msg: APPEND_BYTES_MAX,
            max_inflight_msgs: APPENDS_MAX,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            ..Config::default()
        };
        let node = RawNode::new(&config, mirror, &log::logger())?;
        let mut replica = Self {
            leases: LeaseTable::new(settings.lease, now),
            seed,
            node,
            state,
            ticks: 0,
            ticked_at: now,
            wall_ms: 0,
            outputs: Outputs::default(),
            flights: Flights::new(first),
            leading: None,
            rounds: Rounds::default(),
            transfer: None,
            announce_at: 0,
            snapshot_due: false,
            disk_full: false,
            halted: None,
            settings,
        };
        replica.draw_election_timeout();
        Ok(replica)
    }

    /// The clock moved. Call it whenever [`Self::poll_timeout`] is due, and as often as you like.
    pub fn handle_tick(&mut self, now: BootTime, wall_ms: u64) {
        self.wall_ms = wall_ms;
        let elapsed = now.since(self.ticked_at);
        let due = elapsed.as_nanos() / TICK.as_nanos();
        if due > 0 {
            if elapsed > PAUSE {
                // Renewals sent in the meantime were not seen: every lease counts from now.
                self.leases.restart(now);
                if let Some(leading) = &mut self.leading {
                    leading.steps.clear();
                }
                self.observe(now);
                self.ticked_at = now;
            } else {
                self.ticked_at = self.ticked_at + TICK * u32::try_from(due).unwrap_or(u32::MAX);
            }
            for _ in 0..u64::try_from(due).unwrap_or(u64::MAX).min(TICKS_MAX) {
                self.ticks += 1;
                self.node.tick();
                self.draw_election_timeout();
            }
        }
        self.drive(now);
        if due > 0 {
            self.count_calm(now);
            self.expire_renewals(now);
            self.announce();
            self.follow_members(now);
            if self.disk_full {
                self.hand_on(now);
            }
            self.decide(now);
        }
        self.start_round(now);
        self.drive(now);
    }

    /// A raft message from another coordinator. Messages that lie about their sender, and those of a
    /// coordinator that was removed, are dropped.
    pub fn handle_message(&mut self, now: BootTime, from: CoordinatorId, message: Message) {
        if !self.listens_to(from) {
            tracing::debug!(%from, "dropped a message of a coordinator that was removed");
            return;
        }
        let kind = message.get_msg_type();
        let honest = message.from == from.0 && message.to == self.settings.id.0 && from != self.settings.id;
        let expected = match kind {
            MessageType::MsgPropose if honest => {
                self.heard(now, from, &message);
                self.drive(now);
                return;
            }
            // Only the leader gives the leadership away.
            MessageType::MsgTimeoutNow => honest && self.leader() == Some(from),
            MessageType::MsgPropose
            | MessageType::MsgReadIndex
            | MessageType::MsgReadIndexResp
            | MessageType::MsgTransferLeader => false,
            MessageType::MsgSnapshot => honest && self.can_read(message.get_snapshot()),
            _ => honest,
        };
        if !expected {
            tracing::warn!(%from, ?kind, "dropped a raft message that makes no sense here");
            return;
        }
        // Refusals are about messages of the past; raft has told what there is to tell.
        let _ = self.node.step(message);
        self.draw_election_timeout();
        self.drive(now);
    }

    /// Whether messages of this coordinator are taken in: it was not removed.
    pub fn listens_to(&self, id: CoordinatorId) -> bool {
        self.state.coordinators.listens_to(id)
    }

    /// Why this replica stopped for good, if it did.
    pub const fn halted(&self) -> Option<&ReplicaError> {
        self.halted.as_ref()
    }

    /// The link to a host closed: evidence that it is dead, not proof.
    pub fn handle_host_gone(&mut self, now: BootTime, host: HostId) {
        if let Some(seen) = self
            .leading
            .as_mut()
            .and_then(|leading| leading.seen.get_mut(&host))
        {
            seen.gone = true;
        }
        self.drive(now);
    }

    /// A message could not be delivered. raft sends entries again by itself, but waits for the fate
    /// of a snapshot: this, or [`Self::handle_snapshot_delivered`].
    pub fn handle_undelivered(&mut self, now: BootTime, to: CoordinatorId, snapshot: bool) {
        self.node.report_unreachable(to.0);
        if snapshot {
            self.node.report_snapshot(to.0, raft::SnapshotStatus::Failure);
        }
        self.drive(now);
    }

    /// A snapshot was taken in by the other side.
    pub fn handle_snapshot_delivered(&mut self, now: BootTime, to: CoordinatorId) {
        self.node.report_snapshot(to.0, raft::SnapshotStatus::Finish);
        self.drive(now);
    }

    /// The disk has no room, or room again. What waits for it goes on waiting; a leader gives the
    /// leadership away, since it can acknowledge nothing.
    pub fn handle_disk_full(&mut self, now: BootTime, full: bool) {
        self.disk_full = full;
        self.announce_at = self.ticks;
        if full {
            self.hand_on(now);
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop()
    }

    /// When [`Self::handle_tick`] is due.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let tick = self.ticked_at + TICK;
        let round = self.rounds.poll_timeout().filter(|_| self.is_settled());
        Some(round.map_or(tick, |round| round.min(tick)))
    }

    pub const fn state(&self) -> &State {
        &self.state
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// The leader as far as this replica knows.
    pub fn leader(&self) -> Option<CoordinatorId> {
        Some(self.node.raft.leader_id)
            .filter(|id| *id != raft::INVALID_ID)
            .map(CoordinatorId)
    }

    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// Raft index of the last entry applied.
    pub const fn applied(&self) -> u64 {
        self.state.index
    }

    /// Entries committed since the cluster began, as far as this replica knows.
    pub fn commits(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Whether this replica leads and has applied everything that was committed before it did.
    fn is_settled(&self) -> bool {
        self.is_leader() && self.node.raft.apply_to_current_term()
    }

    /// raft draws its election timeouts from the thread's generator; here they come from the seed.
    fn draw_election_timeout(&mut self) {
        let span = (ELECTION_TICKS_MAX - ELECTION_TICKS) as u64;
        // A new draw every election's length, so that two replicas do not collide for ever.
        let draw = mix(self.seed ^ mix(self.settings.id.0) ^ mix(self.ticks / ELECTION_TICKS_MAX as u64));
        self.node
            .raft
            .set_randomized_election_timeout(ELECTION_TICKS + usize::try_from(draw % span).unwrap_or(0));
    }

    fn reply(&mut self, id: RequestId, response: Response) {
        self.outputs.reply(Output::Reply { id, response });
    }

    fn push(&mut self, output: Output) {
        self.outputs.push(output);
    }
}

/// The finaliser of splitmix64.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
