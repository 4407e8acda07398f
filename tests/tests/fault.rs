//! The fault injectors do what they say, and leave the host as it was.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use understudy_testbed::fault::{Background, Event, Plan, Running, THROTTLE_FLOOR_KIB_S};
use understudy_testbed::{Host, HostSpec, Testbed, skip_without_testbed, wait_for};

const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_understudy-fault"))
}

fn host(bed: &mut Testbed, limit_mib: u64) -> Result<Arc<Host>> {
    bed.add(
        HostSpec::new("h", Ipv4Addr::new(10, 79, 0, 2))
            .disk_mib(128)
            .memory_limit(limit_mib * MIB),
    )
}

#[test]
fn a_leak_grows_until_its_host_has_no_memory_left_and_it_is_killed() -> Result<()> {
    skip_without_testbed!();
    let mut bed = Testbed::start("leak")?;
    let host = host(&mut bed, 96)?;
    let mut leak = Running::fault(program(), &host, &Plan::Leak { kib_s: 64 * 1024 })?;
    wait_for("the leak to be killed", LONG, || leak.ended().then_some(()))?;
    assert!(leak.when(Event::Started).is_some());
    assert!(
        leak.when(Event::Reached).is_none(),
        "a leak has no end of its own"
    );
    Ok(())
}

#[test]
fn a_warm_up_stops_at_its_plateau_and_gives_the_memory_back_when_it_is_ended() -> Result<()> {
    skip_without_testbed!();
    let mut bed = Testbed::start("warm")?;
    let host = host(&mut bed, 256)?;
    let plan = Plan::WarmUp {
        kib_s: 64 * 1024,
        mib: 64,
    };
    let mut warm_up = Running::fault(program(), &host, &plan)?;
    wait_for("the plateau", LONG, || warm_up.when(Event::Reached))?;
    assert!(!warm_up.ended());
    let used = host.cgroups().memory_usage()?;
    assert!((64 * MIB..128 * MIB).contains(&used), "{used} bytes");
    drop(warm_up);
    assert!(host.cgroups().memory_usage()? < 48 * MIB);
    Ok(())
}

#[test]
fn a_throttled_disk_reaches_its_floor_and_is_free_again_afterwards() -> Result<()> {
    skip_without_testbed!();
    let mut bed = Testbed::start("throttle")?;
    let host = host(&mut bed, 256)?;
    let Some(blkio) = host.cgroups().v1("blkio") else {
        println!("skipped: the blkio controller is not on cgroup v1");
        return Ok(());
    };
    let limits = || std::fs::read_to_string(blkio.join("blkio.throttle.write_bps_device"));
    let plan = Plan::Throttle {
        start_kib_s: 8_192,
        step_percent: 50,
        interval_ms: 200,
    };
    let background = Running::background(program(), &host, &Background::for_demo(1))?;
    let throttle = Running::fault(program(), &host, &plan)?;
    wait_for("the floor", LONG, || throttle.when(Event::Reached))?;
    assert!(limits()?.contains(&(THROTTLE_FLOOR_KIB_S * 1024).to_string()));
    drop(throttle);
    assert_eq!(limits()?.trim(), "");
    drop(background);
    Ok(())
}

#[test]
fn a_backup_reads_its_whole_set() -> Result<()> {
    skip_without_testbed!();
    let mut bed = Testbed::start("backup")?;
    let host = host(&mut bed, 256)?;
    let plan = Plan::Backup {
        kib_s: 64 * 1024,
        mib: 40,
    };
    let mut backup = Running::fault(program(), &host, &plan)?;
    wait_for("the end of the set", LONG, || backup.when(Event::Reached))?;
    assert!(!backup.ended());
    assert!(backup.when(Event::Started) < backup.when(Event::Reached));
    Ok(())
}
