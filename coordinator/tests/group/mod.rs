//! Replicas in one thread: messages take a step of 10 ms, disks keep what was written to them.

// Each test program uses its own part of this.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft::eraftpb::MessageType;
use understudy_common::id::CoordinatorId;
use understudy_common::identity::Principal;
use understudy_common::units::BootTime;
use understudy_common::wire::{Operate, Request, Response};
use understudy_coordinator::replica::{
    Durable, Message, Output, Persist, Replica, ReplicaError, RequestId, Settings,
};

const STEP: Duration = Duration::from_millis(10);
/// Steps that any of these tests may take to get anywhere: a minute.
const PATIENCE_STEPS: usize = 6_000;

pub struct Group {
    pub nodes: BTreeMap<CoordinatorId, Node>,
    pub now: BootTime,
    /// Nothing gets from the first to the second.
    pub cuts: BTreeSet<(CoordinatorId, CoordinatorId)>,
    travelling: Vec<(CoordinatorId, CoordinatorId, Message)>,
    pub replies: BTreeMap<RequestId, Response>,
    /// Every message that a replica let go, by kind.
    pub sent: BTreeMap<(CoordinatorId, String), usize>,
    last_request: u64,
}

pub struct Node {
    pub settings: Settings,
    /// None: it is down.
    pub replica: Option<Replica>,
    pub disk: Durable,
    /// The disk takes nothing for now.
    pub stuck: bool,
    writing: Option<Persist>,
}

pub fn id(n: u64) -> CoordinatorId {
    CoordinatorId(n)
}

fn addr(id: CoordinatorId) -> std::net::SocketAddr {
    ([192, 0, 2, id.0 as u8], 7400).into()
}

pub fn add(n: u64) -> Operate {
    Operate::AddCoordinator {
        id: id(n),
        addr: addr(id(n)),
    }
}

pub fn remove(n: u64) -> Operate {
    Operate::RemoveCoordinator { id: id(n) }
}

pub fn note(text: &str) -> Operate {
    Operate::Note {
        text: text.to_owned(),
    }
}

/// Settings of one among the voters 1 to `size`.
pub fn settings(n: u64, size: u64) -> Settings {
    let members: BTreeSet<_> = (1..=size).map(id).collect();
    Settings {
        addrs: members.iter().map(|member| (*member, addr(*member))).collect(),
        snapshot_every: 64,
        ..Settings::new(id(n), members)
    }
}

impl Group {
    /// The voters 1 to `size`, started, with a leader, and all heard.
    pub fn new(size: u64) -> Self {
        let mut group = Self::of((1..=size).map(|n| settings(n, size)));
        group.await_announced();
        group
    }

    pub fn of(all: impl IntoIterator<Item = Settings>) -> Self {
        let mut group = Self {
            nodes: BTreeMap::new(),
            now: BootTime(1_000_000_000),
            cuts: BTreeSet::new(),
            travelling: Vec::new(),
            replies: BTreeMap::new(),
            sent: BTreeMap::new(),
            last_request: 0,
        };
        for settings in all {
            group.install(settings);
        }
        group
    }

    /// A new machine with an empty disk.
    pub fn install(&mut self, settings: Settings) {
        let id = settings.id;
        let node = Node {
            settings,
            replica: None,
            disk: Durable::default(),
            stuck: false,
            writing: None,
        };
        self.nodes.insert(id, node);
        self.start(id).expect("an empty disk will do");
    }

    /// A new machine that joins.
    pub fn install_newcomer(&mut self, n: u64) {
        self.install(Settings {
            joins: true,
            snapshot_every: 64,
            ..Settings::new(id(n), BTreeSet::new())
        });
    }

    pub fn start(&mut self, id: CoordinatorId) -> Result<(), ReplicaError> {
        let now = self.now;
        let node = self.nodes.get_mut(&id).expect("a node");
        let replica = Replica::new(node.settings.clone(), node.disk.clone(), now, 7 + id.0)?;
        node.replica = Some(replica);
        Ok(())
    }

    /// What was not on its disk is lost.
    pub fn crash(&mut self, id: CoordinatorId) {
        let node = self.nodes.get_mut(&id).expect("a node");
        node.replica = None;
        node.writing = None;
    }

    pub fn cut_off(&mut self, id: CoordinatorId) {
        for other in self.nodes.keys().copied() {
            self.cuts.insert((id, other));
            self.cuts.insert((other, id));
        }
    }

    pub fn replica(&self, id: CoordinatorId) -> &Replica {
        self.nodes[&id].replica.as_ref().expect("it runs")
    }

    /// The leader of the highest term.
    pub fn leader(&self) -> Option<CoordinatorId> {
        let running = self
            .nodes
            .iter()
            .filter_map(|(id, node)| Some((id, node.replica.as_ref()?)));
        running
            .filter(|(_, replica)| replica.is_leader())
            .max_by_key(|(_, replica)| replica.term())
            .map(|(id, _)| *id)
    }

    pub fn await_leader(&mut self) -> CoordinatorId {
        self.run_until("a leader", |group| group.leader().is_some());
        self.leader().expect("there is one")
    }

    /// Every running member has said which commands it applies.
    pub fn await_announced(&mut self) {
        self.run_until("all announced", |group| {
            let Some(leader) = group.leader() else {
                return false;
            };
            let members = &group.replica(leader).state().coordinators.members;
            members.values().all(|member| member.version.is_some())
        });
    }

    /// The disk has no room, or room again, and the replica is told.
    pub fn fill_disk(&mut self, id: CoordinatorId, full: bool) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).expect("a node");
        node.stuck = full;
        let replica = node.replica.as_mut().expect("it runs");
        replica.handle_disk_full(now, full);
    }

    pub fn ask(&mut self, at: CoordinatorId, operate: Operate) -> RequestId {
        self.ask_as(at, Principal::Operator, Request::Operate(operate))
    }

    pub fn ask_as(&mut self, at: CoordinatorId, who: Principal, request: Request) -> RequestId {
        self.last_request += 1;
        let id = RequestId(self.last_request);
        let now = self.now;
        let node = self.nodes.get_mut(&at).expect("a node");
        let replica = node.replica.as_mut().expect("it runs");
        replica.handle_request(now, 0, who, id, request);
        id
    }

    pub fn await_reply(&mut self, request: RequestId) -> Response {
        self.run_until("a reply", |group| group.replies.contains_key(&request));
        self.replies[&request].clone()
    }

    /// Asks as an operator does: whoever leads, again while nobody or another one does.
    pub fn operate(&mut self, operate: Operate) -> Response {
        for _ in 0..100 {
            let leader = self.await_leader();
            let request = self.ask(leader, operate.clone());
            match self.await_reply(request) {
                Response::NotLeader(_) | Response::Refused(understudy_common::wire::Refusal::Busy(_)) => {
                    self.run(Duration::from_millis(200));
                }
                other => return other,
            }
        }
        panic!("nobody took {operate:?}");
    }

    /// The words of a refusal.
    pub fn refused(&mut self, operate: Operate) -> String {
        match self.operate(operate) {
            Response::Refused(refusal) => refusal.to_string(),
            other => panic!("not refused: {other:?}"),
        }
    }

    pub fn done(&mut self, operate: Operate) {
        let response = self.operate(operate.clone());
        assert!(
            matches!(response, Response::Done | Response::Document(_)),
            "{operate:?}: {response:?}"
        );
    }

    /// The numbers and standings of the members, as `at` knows them.
    pub fn members(&self, at: CoordinatorId) -> Vec<(u64, String)> {
        let members = &self.replica(at).state().coordinators.members;
        members
            .iter()
            .map(|(id, member)| (id.0, format!("{:?}", member.standing).to_lowercase()))
            .collect()
    }

    pub fn run_until(&mut self, what: &str, ready: impl Fn(&Self) -> bool) {
        for _ in 0..PATIENCE_STEPS {
            if ready(self) {
                return;
            }
            self.step();
        }
        let states: Vec<_> = self
            .nodes
            .values()
            .filter_map(|node| node.replica.as_ref())
            .map(|replica| replica.status(self.now).to_string())
            .collect();
        panic!("in vain: {what}\n{}", states.join("\n"));
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    pub fn step(&mut self) {
        self.now = self.now + STEP;
        for (from, to, message) in std::mem::take(&mut self.travelling) {
            let (now, cut) = (self.now, self.cuts.contains(&(from, to)));
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            let receiver = self.nodes.get_mut(&to).and_then(|node| node.replica.as_mut());
            let arrives = receiver
                .filter(|_| !cut)
                .map(|replica| replica.handle_message(now, from, message));
            let sender = self.nodes.get_mut(&from).and_then(|node| node.replica.as_mut());
            // What became of a snapshot is told by the network.
            match sender.filter(|_| snapshot) {
                Some(sender) if arrives.is_some() => sender.handle_snapshot_delivered(now, to),
                Some(sender) => sender.handle_undelivered(now, to, true),
                None => {}
            }
        }
        for node in self.nodes.values_mut() {
            let Some(replica) = &mut node.replica else {
                continue;
            };
            if replica.poll_timeout().is_some_and(|at| at <= self.now) {
                replica.handle_tick(self.now, 0);
            }
            loop {
                while let Some(output) = replica.poll_output() {
                    match output {
                        Output::Send { to, message } => {
                            let kind = format!("{:?}", message.get_msg_type());
                            *self.sent.entry((node.settings.id, kind)).or_default() += 1;
                            self.travelling.push((node.settings.id, to, message));
                        }
                        Output::Reply { id, response } => {
                            let before = self.replies.insert(id, response);
                            assert!(before.is_none(), "{id:?} was answered twice");
                        }
                        Output::Order { .. } => {}
                    }
                }
                if node.writing.is_none() {
                    node.writing = replica.poll_persist();
                }
                if node.stuck {
                    break;
                }
                let Some(persist) = node.writing.take() else { break };
                write(&mut node.disk, persist);
                replica.handle_persisted(self.now);
            }
        }
    }
}

pub fn write(disk: &mut Durable, persist: Persist) {
    if let Some(snapshot) = persist.snapshot {
        // One of the leader replaces the log.
        if persist.compact_to.is_none() {
            disk.entries.clear();
        }
        disk.snapshot = Some(snapshot);
    }
    if let Some(first) = persist.entries.first() {
        disk.entries.retain(|entry| entry.index < first.index);
        disk.entries.extend(persist.entries);
    }
    if let Some(hard_state) = persist.hard_state {
        disk.hard_state = hard_state;
    }
    if let Some(index) = persist.compact_to {
        disk.entries.retain(|entry| entry.index >= index);
    }
}
