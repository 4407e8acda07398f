//! Discrete time. A slow clock ticks twice while the others tick three times, which is as far
//! apart as ρ allows.

use std::time::Duration;

use understudy_common::lease::LeaseTimes;
use understudy_common::units::BootTime;

/// One tick of a clock, so long that sequences, which count up by one, never reach the next tick.
pub const TICK: u64 = 100;

pub const TIMES: LeaseTimes = LeaseTimes {
    lease: Duration::from_nanos(2 * TICK),
    renewal: Duration::from_nanos(TICK),
    rho_ppm: 500_000,
    flight: Duration::ZERO,
};

/// The same, for a leader that trusts all clocks to run alike.
pub const NO_DRIFT: LeaseTimes = LeaseTimes { rho_ppm: 0, ..TIMES };

/// Clocks of hosts 0 to 2 and of coordinators 0 and 1, one bit each.
pub const RATES: [u8; 3] = [0b00000, 0b00001, 0b11110];

pub const fn host_clock(slow: u8, host: usize, time: u64) -> BootTime {
    read(slow, host, time)
}

pub const fn leader_clock(slow: u8, leader: usize, time: u64) -> BootTime {
    read(slow, 3 + leader, time)
}

const fn read(slow: u8, clock: usize, time: u64) -> BootTime {
    let ticks = if slow >> clock & 1 == 1 {
        time * 2 / 3
    } else {
        time
    };
    BootTime(ticks * TICK)
}
