//! What consensus agrees on about the one service, without consensus.

/// A set of hosts, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hosts(pub u8);

impl Hosts {
    pub const fn of(host: usize) -> Self {
        Self(1 << host)
    }

    pub const fn has(self, host: usize) -> bool {
        self.0 >> host & 1 == 1
    }

    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of the other are in this one.
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Steady,
    Release,
    Fenced,
    Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Log {
    pub epoch: u64,
    pub holder: usize,
    /// The holder's boot when the epoch was granted, and the registered boots.
    pub boot: u8,
    pub boots: [u8; 3],
    pub step: Step,
    /// Who may be promoted.
    pub set: Hosts,
    /// Being filled.
    pub joining: Hosts,
    pub joined_at: u8,
    pub revision: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant {
    pub epoch: u64,
    pub to: usize,
    pub planned: bool,
}

impl Log {
    pub const fn first() -> Self {
        Self {
            epoch: 1,
            holder: 0,
            boot: 0,
            boots: [0; 3],
            step: Step::Steady,
            set: Hosts::of(1),
            joining: Hosts(0),
            joined_at: 0,
            revision: 1,
        }
    }

    pub fn holder_rebooted(&self) -> bool {
        self.boots[self.holder] != self.boot
    }

    pub const fn is_fenced(&self) -> bool {
        matches!(self.step, Step::Fenced | Step::Cut)
    }

    /// The hosts that the holder ships to.
    pub const fn list(&self) -> Hosts {
        self.set.with(self.joining)
    }

    /// Like `apply`: whole, or not at all.
    pub fn grant(&mut self, grant: Grant) {
        let planned = !grant.planned || self.step == Step::Cut;
        if grant.epoch != self.epoch + 1 || !self.set.has(grant.to) || !planned {
            return;
        }
        let previous = Hosts::of(self.holder);
        self.epoch = grant.epoch;
        self.holder = grant.to;
        self.boot = self.boots[grant.to];
        self.step = Step::Steady;
        self.set = self.set.without(Hosts::of(grant.to));
        self.joining = self.joining.with(previous);
        self.joined_at = self.revision + 1;
        self.revision += 1;
    }

    pub fn step(&mut self, step: Step) {
        self.step = step;
        self.revision += 1;
    }

    pub fn register(&mut self, host: usize, boot: u8) {
        self.boots[host] = boot;
        if self.set.has(host) {
            self.set = self.set.without(Hosts::of(host));
            self.join(host);
        } else {
            self.revision += 1;
        }
    }

    pub fn join(&mut self, host: usize) {
        self.revision += 1;
        self.joining = self.joining.with(Hosts::of(host));
        self.joined_at = self.revision;
    }

    pub const fn ready(&mut self, host: usize) {
        self.joining = self.joining.without(Hosts::of(host));
        self.set = self.set.with(Hosts::of(host));
    }
}
