//! The test bed itself: hosts reach each other, power cuts lose what was not synced, and nothing
//! is left behind.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use understudy_testbed::{CgroupRoots, HostSpec, Testbed, skip_without_testbed, wait_for};

const A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 12);

#[test]
fn hosts_talk_over_the_bridge_until_the_cable_is_pulled() -> Result<()> {
    skip_without_testbed!();
    let mut bed = Testbed::start("cable")?;
    let a = bed.add(HostSpec::new("a", A))?;
    let b = bed.add(HostSpec::new("b", B))?;
    let listener = a.inside(|| Ok(TcpListener::bind((A, 7000))?))?;
    let connect = || {
        b.inside(|| {
            Ok(TcpStream::connect_timeout(
                &(A, 7000).into(),
                Duration::from_millis(500),
            )?)
        })
    };
    let mut out = wait_for("a connection", Duration::from_secs(20), || connect().ok())?;
    let (mut into, from) = listener.accept()?;
    assert_eq!(from.ip(), B);
    out.write_all(b"hi")?;
    let mut got = [0; 2];
    into.read_exact(&mut got)?;
    assert_eq!(&got, b"hi");
    a.set_link(false)?;
    assert!(connect().is_err());
    a.set_link(true)?;
    wait_for("the link to be back", Duration::from_secs(20), || connect().ok())?;
    Ok(())
}

#[test]
fn a_power_cut_loses_what_was_not_synced_and_kills_every_process() -> Result<()> {
    skip_without_testbed!();
    let mut bed = Testbed::start("power")?;
    let host = bed.add(HostSpec::new("a", A).disk_mib(64).memory_limit(256 << 20))?;
    let disk = bed.disk_mount_point();
    let mut command = host.command("/bin/sh")?;
    command.args(["-c", "sleep 1000 & sleep 1000"]);
    let mut process = host.spawn("sleepers", command)?;
    let held = wait_for(
        "the processes to be in the cgroup",
        Duration::from_secs(20),
        || {
            let text = fs::read_to_string(host.cgroups().unified().join("cgroup.procs")).ok()?;
            (text.lines().count() >= 3).then_some(text)
        },
    )?;
    let synced = File::create(host.path(&disk.join("synced")))?;
    (&synced).write_all(b"kept")?;
    synced.sync_all()?;
    File::open(host.path(&disk))?.sync_all()?;
    drop(synced);
    fs::write(host.path(&disk.join("unsynced")), b"lost")?;
    host.cut_power()?;
    process.wait(Duration::from_secs(20))?;
    assert!(held.lines().all(is_gone));
    host.restore_power()?;
    assert_eq!(fs::read(host.path(&disk.join("synced")))?, b"kept");
    let unsynced = fs::read(host.path(&disk.join("unsynced"))).unwrap_or_default();
    assert!(unsynced.is_empty(), "the power cut kept unsynced bytes");
    fs::write(host.path(&disk.join("again")), b"works")?;
    Ok(())
}

#[test]
fn hosts_see_their_own_disk_at_the_same_path() -> Result<()> {
    skip_without_testbed!();
    let mut bed = Testbed::start("disks")?;
    let a = bed.add(HostSpec::new("a", A).disk_mib(32))?;
    let b = bed.add(HostSpec::new("b", B).disk_mib(32))?;
    let file = bed.disk_mount_point().join("who");
    for host in [&a, &b] {
        let line = format!("echo {} > {}", host.name(), file.display());
        host.run(&["sh", "-c", &line])?;
    }
    assert_eq!(fs::read_to_string(a.path(&file))?, "a\n");
    assert_eq!(fs::read_to_string(b.path(&file))?, "b\n");
    assert!(!file.exists(), "the disks are mounted in the hosts only");
    Ok(())
}

#[test]
fn nothing_is_left_behind_even_when_the_owner_is_killed() -> Result<()> {
    skip_without_testbed!();
    if std::env::var_os("TESTBED_VICTIM").is_some() {
        let mut bed = Testbed::start("victim")?;
        let host = bed.add(HostSpec::new("a", A).disk_mib(32))?;
        let mut command = host.command("/bin/sleep")?;
        command.arg("1000");
        let _process = host.spawn("sleeper", command)?;
        println!("victim {}", bed.directory().display());
        loop {
            std::thread::park();
        }
    }
    for signal in [libc::SIGKILL, libc::SIGINT] {
        let mut victim = Command::new(std::env::current_exe()?)
            .args([
                "nothing_is_left_behind_even_when_the_owner_is_killed",
                "--exact",
                "--nocapture",
            ])
            .env("TESTBED_VICTIM", "1")
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let directory = victim_directory(&mut victim)?;
        let name = directory
            .file_name()
            .context("a directory has a name")?
            .to_owned();
        let cgroup = CgroupRoots::discover()?.unified.join(&name);
        let sleeper = fs::read_to_string(cgroup.join("a/cgroup.procs"))?;
        // SAFETY: our own child, not reaped yet.
        unsafe { libc::kill(victim.id() as i32, signal) };
        victim.wait()?;
        if signal == libc::SIGKILL {
            wait_for(
                "the victim's processes to die with it",
                Duration::from_secs(20),
                || is_gone(sleeper.trim()).then_some(()),
            )?;
            drop(Testbed::start("sweeper")?);
        }
        assert!(!directory.exists(), "the directory is still there");
        assert!(!cgroup.exists(), "the cgroup is still there");
    }
    Ok(())
}

fn victim_directory(victim: &mut std::process::Child) -> Result<std::path::PathBuf> {
    use std::io::BufRead;
    let out = victim.stdout.take().context("its output is a pipe")?;
    for line in std::io::BufReader::new(out).lines() {
        if let Some((_, directory)) = line?.split_once("victim /") {
            return Ok(Path::new("/").join(directory));
        }
    }
    anyhow::bail!("the victim ended before its test bed stood")
}

fn is_gone(pid: &str) -> bool {
    !Path::new("/proc").join(pid).exists() || is_zombie(pid)
}

fn is_zombie(pid: &str) -> bool {
    fs::read_to_string(Path::new("/proc").join(pid).join("stat")).is_ok_and(|stat| stat.contains(") Z "))
}
