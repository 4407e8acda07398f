//! What watching costs: the agent's processor time and the run time of its kernel programs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::FromRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Ticks of `/proc/PID/stat`, the same on every Linux that has userspace.
const TICKS_PER_S: f64 = 100.0;
const BPF_ENABLE_STATS: i64 = 32;

/// Share of one processor, in percent, that the process and its kernel programs took.
pub(super) fn percent(pid: u32, over: Duration) -> Result<f64> {
    let _counting = count_run_time().context("having the kernel measure its programs")?;
    let (ticks, programs) = (ticks(pid)?, programs(pid)?);
    let began = Instant::now();
    sleep(over);
    let own = (self::ticks(pid)? - ticks) as f64 / TICKS_PER_S;
    let kernel: u64 = self::programs(pid)?
        .iter()
        .map(|(id, ns)| ns - programs.get(id).copied().unwrap_or(0).min(*ns))
        .sum();
    Ok((own + kernel as f64 / 1e9) / began.elapsed().as_secs_f64() * 100.0)
}

/// The kernel measures while the descriptor is open.
fn count_run_time() -> io::Result<File> {
    let run_time = 0_u32;
    let size = std::mem::size_of_val(&run_time);
    // SAFETY: the kernel reads one u32, the kind of statistics.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_ENABLE_STATS, &raw const run_time, size) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd as i32) })
}

fn ticks(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after_name.split(' ').collect();
    let field = |n: usize| fields.get(n).and_then(|word| word.parse::<u64>().ok());
    // Fields 14 and 15 of the file: user and system time.
    field(11)
        .zip(field(12))
        .map(|(user, system)| user + system)
        .context(path)
}

/// Run time of each kernel program that the process holds, by its id.
fn programs(pid: u32) -> Result<BTreeMap<u64, u64>> {
    let path = format!("/proc/{pid}/fdinfo");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&path).with_context(|| path.clone())?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        if let (Some(id), Some(ns)) = (field("prog_id:"), field("run_time_ns:")) {
            found.insert(id, ns);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_costs_more_than_nothing() -> Result<()> {
        if !crate::shell::is_root() {
            println!("skipped: measuring kernel programs needs root");
            return Ok(());
        }
        let stop = std::sync::atomic::AtomicBool::new(false);
        let percent = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
            let percent = percent(std::process::id(), Duration::from_secs(1));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            percent
        })?;
        assert!((1.0..=200.0).contains(&percent), "{percent}");
        Ok(())
    }
}
