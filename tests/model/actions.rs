//! What can happen next, and what it does.

use understudy_common::id::Epoch;

use super::host::{Role, SERVICE};
use super::log::{Grant, Hosts, Log, Step};
use super::state::{Renewal, State};
use super::{Broken, Protocol};

const WRITES_MAX: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Tick,
    /// A renewal arrives at a coordinator.
    Arrive(Renewal, usize),
    /// A read-index round ends: the coordinator answers what waited for it.
    Answer(usize),
    /// An answer arrives at the holder.
    Extend(Renewal),
    /// A later holder renews, and is answered, in one step.
    Serve(usize),
    Elect {
        with_proposal: bool,
    },
    Propose(Grant),
    Commit,
    /// An order of this coordinator's view arrives.
    Obey(usize, usize),
    /// An order of the log before its last change arrives.
    ObeyLate(usize),
    Restart(usize),
    Reboot(usize),
    Register(usize),
    BeginHandover,
    /// The coordinator hears that the holder's gate is closed.
    HearFence,
    Fence(usize),
    Write(usize),
    Cut(usize),
    Ship(usize),
    HearCut,
    Join(usize),
    Ready(usize),
    Ask(usize),
    Promise(usize),
    Promised(usize),
}

impl State {
    pub fn enabled(&self, model: &Protocol, actions: &mut Vec<Action>) {
        let slice = &model.slice;
        if self.time < slice.until {
            actions.push(Action::Tick);
        }
        for (renewal, to) in &self.renewals {
            actions.push(Action::Arrive(*renewal, *to));
        }
        for leader in 0..2 {
            let confirmed = leader == self.reigns || model.is(Broken::AnswersWithoutReadIndex);
            if confirmed && !self.leaders[leader].waiting.is_empty() {
                actions.push(Action::Answer(leader));
            }
        }
        for answer in &self.answers {
            actions.push(Action::Extend(*answer));
        }
        let next = self.log.holder;
        if next != 0 && self.hosts[next].client.held(SERVICE).is_some() && !self.is_open(next) {
            actions.push(Action::Serve(next));
        }
        let proposed = self.leaders[self.reigns].proposal;
        if self.elections < slice.elections {
            actions.push(Action::Elect { with_proposal: false });
            if proposed.is_some() {
                actions.push(Action::Elect { with_proposal: true });
            }
        }
        if proposed.is_some() {
            actions.push(Action::Commit);
        } else {
            self.decisions(model, actions);
        }
        for host in 0..self.hosts.len() {
            self.orders(slice.elections == 0, host, actions);
            self.failures(model, host, actions);
        }
        if slice.handover {
            self.handover(model, actions);
        }
        if slice.promises {
            self.promising(actions);
        }
    }

    fn decisions(&self, model: &Protocol, actions: &mut Vec<Action>) {
        let (slice, log) = (&model.slice, &self.log);
        for (id, host) in self.hosts.iter().enumerate() {
            if log.boots[id] != host.boot {
                actions.push(Action::Register(id));
            }
            if log.epoch < slice.epoch_max && log.set.has(id) && self.may_grant(model, id) {
                let planned = log.step == Step::Cut && self.cut_on.has(id);
                let epoch = log.epoch + 1;
                actions.push(Action::Propose(Grant {
                    epoch,
                    to: id,
                    planned,
                }));
            }
        }
    }

    /// Whether the planner of the reigning coordinator may grant the next epoch.
    fn may_grant(&self, model: &Protocol, to: usize) -> bool {
        if model.is(Broken::GrantsWithoutWaiting) || (self.log.step == Step::Cut && self.cut_on.has(to)) {
            return true;
        }
        let leader = &self.leaders[self.reigns];
        let mut table = leader.table.clone();
        table.handle_tick(self.leader_clock(self.reigns));
        table.ended_at(SERVICE, Epoch(leader.view.epoch)).is_some()
    }

    fn orders(&self, late: bool, host: usize, actions: &mut Vec<Action>) {
        let known = (self.hosts[host].epoch, self.hosts[host].revision);
        let news = |log: &Log| (log.epoch, log.revision) > known;
        let (reigns, other) = (self.reigns, 1 - self.reigns);
        if news(&self.leaders[reigns].view) {
            actions.push(Action::Obey(reigns, host));
        }
        if news(&self.leaders[other].view) && self.leaders[other].view != self.log {
            actions.push(Action::Obey(other, host));
        }
        if late && news(&self.late) && self.late != self.leaders[other].view {
            actions.push(Action::ObeyLate(host));
        }
    }

    fn failures(&self, model: &Protocol, host: usize, actions: &mut Vec<Action>) {
        // Sequences begin at the clock: a process never begins in the instant that the one before did.
        let later = self.clock(host).0 > 0;
        if self.restarts < model.slice.restarts && host == 0 && later {
            actions.push(Action::Restart(host));
        }
        // With promises it is the shadows that must not forget theirs.
        let reboots = if model.slice.promises {
            host != 0
        } else {
            host == 0
        };
        if self.reboots < model.slice.reboots && reboots && later {
            actions.push(Action::Reboot(host));
        }
    }

    fn handover(&self, model: &Protocol, actions: &mut Vec<Action>) {
        let holder = &self.hosts[self.log.holder];
        match self.log.step {
            Step::Steady if self.log.epoch == 1 => actions.push(Action::BeginHandover),
            Step::Release if holder.epoch == self.log.epoch && holder.is_fenced(model) => {
                actions.push(Action::HearFence);
            }
            Step::Release if model.is(Broken::GrantsBeforeFence) => actions.push(Action::HearFence),
            Step::Fenced if self.cut_on != Hosts(0) => actions.push(Action::HearCut),
            _ => {}
        }
        for (id, host) in self.hosts.iter().enumerate() {
            if self.is_open(id) && self.acknowledged < WRITES_MAX && host.epoch == self.log.epoch {
                actions.push(Action::Write(id));
            }
            let early = model.is(Broken::GrantsBeforeFence) && id == self.log.holder;
            let releases = host.role == Role::Release || early;
            if releases && !early && !host.is_fenced(model) {
                actions.push(Action::Fence(id));
            }
            let fenced = host.is_fenced(model) || model.is(Broken::GrantsBeforeFence);
            if releases && fenced && host.cut.is_none() {
                actions.push(Action::Cut(id));
            }
            if releases && host.cut.is_some() && host.epoch == self.log.epoch && self.cut_on == Hosts(0) {
                actions.push(Action::Ship(id));
            }
        }
    }

    fn promising(&self, actions: &mut Vec<Action>) {
        if self.hosts.len() == 3 && self.log.epoch == 1 && !self.log.list().has(2) {
            actions.push(Action::Join(2));
        }
        if self.log.joining.has(2) && self.log.epoch == 1 {
            actions.push(Action::Ready(2));
        }
        // The first holder asks for as long as it knows of no other.
        let (holder, now) = (&self.hosts[0], self.clock(0));
        let stale = holder.asked.is_none_or(|(sent, _)| sent < now);
        if holder.role == Role::Serve && holder.epoch == 1 && stale {
            actions.push(Action::Ask(0));
        }
        for host in 0..self.hosts.len() {
            if self.asks.has(host) {
                actions.push(Action::Promise(host));
            }
            if self.promises.has(host) {
                actions.push(Action::Promised(host));
            }
        }
    }

    pub fn act(&mut self, model: &Protocol, action: Action) {
        match action {
            Action::Tick => self.tick(&model.slice),
            Action::Arrive(renewal, leader) => {
                self.renewals.remove(&(renewal, leader));
                let now = self.leader_clock(leader);
                // The newest that waits is the one that matters.
                self.leaders[leader].waiting = [(renewal, now)].into();
            }
            Action::Answer(leader) => self.answer(leader),
            Action::Extend(answer) => {
                self.answers.remove(&answer);
                let now = self.clock(answer.host);
                self.hosts[answer.host].renewed(model, now, answer.sequence, answer.epoch);
            }
            Action::Serve(host) => {
                let (now, arrived) = (self.clock(host), self.leader_clock(self.reigns));
                let epoch = self.log.epoch;
                let client = &mut self.hosts[host].client;
                client.handle_tick(now);
                if let Some(renew) = client.poll_renew() {
                    self.sequences[host] = renew.sequence;
                }
                let leader = &mut self.leaders[self.reigns];
                if leader.table.may_renew(arrived, SERVICE, Epoch(epoch)) {
                    leader.table.renew(SERVICE, arrived);
                    let sequence = self.sequences[host];
                    self.hosts[host].renewed(model, now, sequence, epoch);
                }
            }
            Action::Elect { with_proposal } => self.elect(model, with_proposal),
            Action::Propose(grant) => {
                let leader = &mut self.leaders[self.reigns];
                leader.table.succeed(SERVICE, Epoch(leader.view.epoch));
                leader.proposal = Some(grant);
            }
            Action::Commit => {
                if let Some(grant) = self.leaders[self.reigns].proposal.take() {
                    self.granted(grant);
                    self.committed(self.leader_clock(self.reigns));
                }
            }
            Action::Obey(leader, host) => {
                let view = self.leaders[leader].view;
                self.obey(model, host, &view);
            }
            Action::ObeyLate(host) => {
                let late = self.late;
                self.obey(model, host, &late);
            }
            Action::Restart(host) => {
                self.restarts += 1;
                let now = self.clock(host);
                self.hosts[host].restart(now);
            }
            Action::Reboot(host) => {
                self.reboots += 1;
                let now = self.clock(host);
                self.hosts[host].reboot(model, now);
            }
            Action::Write(host) => {
                self.hosts[host].data += 1;
                self.acknowledged = self.hosts[host].data;
            }
            Action::Fence(host) => self.hosts[host].fence(model),
            Action::Cut(host) => self.hosts[host].cut = Some(self.hosts[host].data),
            Action::Ship(host) => {
                for shadow in 0..self.hosts.len() {
                    if self.log.set.has(shadow) {
                        self.hosts[shadow].data = self.hosts[host].cut.unwrap_or_default();
                        self.cut_on = self.cut_on.with(Hosts::of(shadow));
                    }
                }
            }
            Action::Ask(host) => {
                let now = self.clock(host);
                self.hosts[host].asked = Some((now, Hosts(0)));
                self.asks = self.hosts[host].list;
                self.promises = Hosts(0);
            }
            Action::Promise(host) => {
                self.asks = self.asks.without(Hosts::of(host));
                let now = self.clock(host);
                if self.hosts[host].promise(model, now, 1) {
                    self.promises = self.promises.with(Hosts::of(host));
                }
            }
            Action::Promised(shadow) => {
                self.promises = self.promises.without(Hosts::of(shadow));
                let (holder, now) = (0, self.clock(0));
                let before = self.is_open(holder);
                self.hosts[holder].promised_by(model, now, shadow);
                let leased = self.hosts[holder].client.held(SERVICE);
                let lapsed = leased.is_some_and(|(_, deadline)| deadline <= now);
                self.kept_by_promises |= lapsed && before && self.is_open(holder);
            }
            Action::Register(_)
            | Action::BeginHandover
            | Action::HearFence
            | Action::HearCut
            | Action::Join(_)
            | Action::Ready(_) => self.change(model, action),
        }
    }

    /// Changes of the log that need no proposal of their own to be told apart.
    fn change(&mut self, model: &Protocol, action: Action) {
        let before = self.log;
        let holder = &self.hosts[self.log.holder];
        match action {
            Action::Register(host) => self.log.register(host, self.hosts[host].boot),
            Action::BeginHandover => self.log.step(Step::Release),
            Action::HearFence => self.log.step(Step::Fenced),
            Action::HearCut => self.log.step(Step::Cut),
            Action::Join(host) => self.log.join(host),
            Action::Ready(host) => {
                let listed = holder.epoch == self.log.epoch && holder.revision >= self.log.joined_at;
                if listed || model.is(Broken::PromoteesNeedNoListing) {
                    self.log.ready(host);
                }
            }
            _ => {}
        }
        if self.log != before {
            self.late = before;
            self.committed(self.leader_clock(self.reigns));
        }
    }

    fn obey(&mut self, model: &Protocol, host: usize, log: &Log) {
        let now = self.clock(host);
        self.hosts[host].obey(model, now, log);
        let host = &self.hosts[host];
        self.refused_by_promise |= host.role == Role::Serve && now < host.promised;
    }

    fn answer(&mut self, leader: usize) {
        let now = self.leader_clock(leader);
        let Self { leaders, answers, .. } = self;
        let leader = &mut leaders[leader];
        for (renewal, arrived) in std::mem::take(&mut leader.waiting) {
            let epoch = Epoch(renewal.epoch);
            let held = leader.view.epoch == renewal.epoch
                && leader.view.holder == renewal.host
                && !leader.view.holder_rebooted();
            if held && leader.table.may_renew(now, SERVICE, epoch) {
                leader.table.renew(SERVICE, arrived);
                *answers = [renewal].into();
            }
        }
    }
}
