//! What a fault process does inside its host.
//!
//! Invariants: it ends when its standard input closes, so nothing outlives a test; what it does to the disk goes
//! to the host's scratch directory alone; whatever it reports is one JSON line stamped with the boot clock.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::boot_ns;
use crate::fault::{Event, PACE, Part, Said, Seeded};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// One file of the set that a backup reads.
const SET_FILE_MIB: u64 = 32;
/// The background's file begins again at this size.
const LOG_BYTES_MAX: u64 = 64 * MIB as u64;
const BULK_MIB: std::ops::RangeInclusive<u64> = 16..=96;

/// Runs `understudy-fault MODE …`; the host is the one that the process was started in.
///
/// # Errors
/// A bad command line, or a disk that cannot be used.
pub fn run(arguments: &[String]) -> Result<()> {
    std::thread::spawn(|| {
        // Whoever started this process holds the other end.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["grow", kib_s, mib] => grow(number(kib_s)?, number(mib)?),
        ["read", set, kib_s, mib] => read(Path::new(set), number(kib_s)?, number(mib)?),
        ["work", scratch, part, numbers @ ..] => work(Path::new(scratch), Part::from_word(part)?, numbers),
        _ => bail!("unknown arguments {words:?}"),
    }
}

fn number(word: &str) -> Result<u64> {
    word.parse().with_context(|| format!("{word} is not a number"))
}

fn say(event: Event) -> Result<()> {
    let mut line = serde_json::to_string(&Said {
        event,
        boot_ns: boot_ns(),
    })?;
    line.push('\n');
    Ok(std::io::stdout().write_all(line.as_bytes())?)
}

fn rest_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Work that must have been done by now at this rate, in bytes.
fn due(started: Instant, kib_s: u64) -> usize {
    (started.elapsed().as_secs_f64() * kib_s as f64) as usize * KIB
}

/// Anonymous memory that grows at a rate, to `mib` or without end.
fn grow(kib_s: u64, mib: u64) -> Result<()> {
    // When the limit is reached it is this process that goes.
    std::fs::write("/proc/self/oom_score_adj", "1000")?;
    say(Event::Started)?;
    let mut held: Vec<Vec<u8>> = Vec::new();
    fill(
        &mut held,
        kib_s,
        if mib == 0 { usize::MAX } else { mib as usize * MIB },
    );
    say(Event::Reached)?;
    rest_for_ever()
}

fn fill(held: &mut Vec<Vec<u8>>, kib_s: u64, bytes_max: usize) {
    let started = Instant::now();
    let mut bytes = 0;
    while bytes < bytes_max {
        let more = due(started, kib_s).min(bytes_max).saturating_sub(bytes);
        if more > 0 {
            held.push(vec![0xA5; more]);
            bytes += more;
        }
        std::thread::sleep(PACE);
    }
}

/// Writes the set of files that a backup reads, and drops it from the page cache.
fn prepare(set: &Path, mib: u64) -> Result<()> {
    std::fs::create_dir_all(set)?;
    let block = vec![0x5A; MIB];
    for (path, mib) in set_files(set, mib) {
        let present = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if present != mib * MIB as u64 {
            let mut file = File::create(&path)?;
            for _ in 0..mib {
                file.write_all(&block)?;
            }
            file.sync_all()?;
        }
        forget(&File::open(&path)?)?;
    }
    Ok(())
}

fn set_files(set: &Path, mib: u64) -> Vec<(PathBuf, u64)> {
    (0..mib.div_ceil(SET_FILE_MIB))
        .map(|n| {
            (
                set.join(format!("{n:03}")),
                SET_FILE_MIB.min(mib - n * SET_FILE_MIB),
            )
        })
        .collect()
}

fn forget(file: &File) -> std::io::Result<()> {
    // SAFETY: no memory is involved.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error)),
    }
}

/// Reads the set once, in sequence, at a rate.
fn read(set: &Path, kib_s: u64, mib: u64) -> Result<()> {
    let files = set_files(set, mib);
    if files.iter().any(|(path, _)| !path.exists()) {
        prepare(set, mib)?;
    }
    say(Event::Started)?;
    let started = Instant::now();
    let mut buffer = vec![0; 256 * KIB];
    let mut bytes = 0;
    for (path, _) in files {
        let mut file = File::open(path)?;
        loop {
            if bytes > due(started, kib_s) {
                std::thread::sleep(PACE);
                continue;
            }
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            bytes += read;
        }
    }
    say(Event::Reached)?;
    rest_for_ever()
}

/// What runs on a host anyway; the numbers are those of [`crate::fault::Background`].
fn work(scratch: &Path, part: Part, numbers: &[&str]) -> Result<()> {
    let numbers = numbers
        .iter()
        .map(|word| number(word))
        .collect::<Result<Vec<_>>>()?;
    let [
        seed,
        cpu_percent,
        resident_mib,
        load_kib_s,
        write_kib_s,
        fsync_ms,
        requests_s,
        burst_s,
        generations_s,
    ] = numbers[..]
    else {
        bail!("work takes nine numbers");
    };
    std::fs::create_dir_all(scratch)?;
    let log = scratch.join("background.log");
    let bulk = scratch.join("background.bulk");
    say(Event::Started)?;
    std::thread::scope(|scope| {
        scope.spawn(|| reside(seed, resident_mib, load_kib_s));
        scope.spawn(|| burn(seed, cpu_percent));
        scope.spawn(|| talk(requests_s));
        scope.spawn(|| burst(seed, burst_s, &bulk));
        scope.spawn(|| replicate(part, generations_s, scratch));
        write_log(seed, &log, write_kib_s, fsync_ms)
    })
}

/// A resident part that is filled fast, stays, and of which some is written again and again.
fn reside(seed: u64, mib: u64, kib_s: u64) {
    let mut seeded = Seeded::new(seed);
    std::thread::sleep(Duration::from_secs(seeded.within(&(0..=25))));
    let mut held = Vec::new();
    fill(&mut held, kib_s, mib as usize * MIB);
    while !held.is_empty() {
        let block = (seeded.draw() % held.len() as u64) as usize;
        held[block].fill(seeded.draw() as u8);
        std::thread::sleep(PACE);
    }
}

fn burn(seed: u64, percent: u64) {
    let mut seeded = Seeded::new(seed ^ 1);
    loop {
        let share = seeded.within(&(0..=2 * percent));
        let until = Instant::now() + Duration::from_millis(share.min(100));
        while Instant::now() < until {
            std::hint::black_box(seeded.draw());
        }
        std::thread::sleep(Duration::from_millis(100 - share.min(99)));
    }
}

/// Small questions and answers over loopback, if the namespace has one.
fn talk(requests_s: u64) {
    let Some(pause) = 1_000_000_u64.checked_div(requests_s) else {
        return;
    };
    let Ok(listener) = TcpListener::bind("127.0.0.1:0") else {
        return;
    };
    let Ok(address) = listener.local_addr() else {
        return;
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let mut message = [0; KIB];
            while stream.read_exact(&mut message).is_ok() && stream.write_all(&message[..64]).is_ok() {}
        });
        let Ok(mut stream) = TcpStream::connect(address) else {
            return;
        };
        let (message, mut answer) = ([1; KIB], [0; 64]);
        while stream.write_all(&message).is_ok() && stream.read_exact(&mut answer).is_ok() {
            std::thread::sleep(Duration::from_micros(pause));
        }
    });
}

/// Now and then a bulk write with a sync at its end, a read of it, or a processor burst.
fn burst(seed: u64, burst_s: u64, path: &Path) {
    let mut seeded = Seeded::new(seed ^ 2);
    if burst_s == 0 {
        return;
    }
    loop {
        std::thread::sleep(Duration::from_secs(
            seeded.within(&(burst_s / 2..=burst_s * 3 / 2)),
        ));
        let mib = seeded.within(&BULK_MIB);
        let done = match seeded.draw() % 3 {
            0 => bulk_write(path, mib),
            1 => std::fs::read(path).map(drop),
            _ => {
                let until = Instant::now() + Duration::from_secs(3);
                while Instant::now() < until {
                    std::hint::black_box(seeded.draw());
                }
                Ok(())
            }
        };
        // A disk that is full or not there yet makes no burst; the next one may.
        drop(done);
    }
}

fn bulk_write(path: &Path, mib: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let block = vec![0x3C; MIB];
    for n in 0..mib {
        file.write_all(&block)?;
        if n % 16 == 15 {
            file.sync_data()?;
        }
    }
    file.sync_all()
}

fn write_log(seed: u64, path: &Path, kib_s: u64, fsync_ms: u64) -> Result<()> {
    let mut seeded = Seeded::new(seed ^ 3);
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path)?;
    let mut level = 100;
    loop {
        // Load wanders between a third and twice its mean.
        level = (level + seeded.within(&(0..=20)) - 10).clamp(33, 200);
        let bytes = (kib_s * level / 100 * fsync_ms / 1_000) as usize * KIB;
        let begun = Instant::now();
        file.write_all(&vec![0x77; bytes])?;
        file.sync_data()?;
        if file.stream_position()? > LOG_BYTES_MAX {
            file.seek(SeekFrom::Start(0))?;
        }
        std::thread::sleep(Duration::from_millis(fsync_ms).saturating_sub(begun.elapsed()));
    }
}

/// A disk that fails ends this part of the work and nothing else.
fn replicate(part: Part, generations_s: u64, scratch: &Path) {
    let pause = Duration::from_millis(1_000 / generations_s.max(1));
    let _ = match part {
        Part::None => Ok(()),
        Part::Primary => keep_log(pause, &scratch.join("service.log")),
        Part::Shadow => keep_copy(pause, scratch),
    };
}

/// Bytes that a primary's log grows by, and how often.
const RECORD: usize = 600;
const RECORD_PAUSE: Duration = Duration::from_millis(10);

fn keep_log(pause: Duration, path: &Path) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    std::thread::scope(|scope| {
        scope.spawn(|| -> std::io::Result<()> {
            loop {
                (&file).write_all(&[0x61; RECORD])?;
                std::thread::sleep(RECORD_PAUSE);
            }
        });
        scope.spawn(|| -> std::io::Result<()> {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                file.sync_data()?;
            }
        });
        const FLAGS: u32 = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let mut from = 0;
        loop {
            let len = file.metadata()?.len() as i64;
            // SAFETY: no pointers are passed.
            unsafe { libc::sync_file_range(file.as_raw_fd(), from, (len - from).max(1), FLAGS) };
            from = len & !4_095;
            std::thread::sleep(pause);
        }
    })
}

/// Bytes of a generation, of the copy that it is patched into, and pre-images that are kept.
const GENERATION: usize = 12 * KIB;
const COPY_BYTES: u64 = 8 * MIB as u64;
const KEPT: u64 = 4;

fn keep_copy(pause: Duration, scratch: &Path) -> Result<()> {
    let mut copy = File::create(scratch.join("copy"))?;
    copy.set_len(COPY_BYTES)?;
    let folder = File::open(scratch)?;
    for n in 0_u64.. {
        let part = scratch.join("incoming");
        let mut journal = File::create(&part)?;
        journal.write_all(&[0x62; GENERATION])?;
        journal.sync_all()?;
        let redo = scratch.join(format!("{n}.redo"));
        std::fs::rename(&part, &redo)?;
        folder.sync_all()?;
        let mut undo = File::create(scratch.join(format!("{n}.undo")))?;
        undo.write_all(&[0x63; GENERATION])?;
        undo.sync_all()?;
        copy.seek(SeekFrom::Start(
            n * GENERATION as u64 % (COPY_BYTES - GENERATION as u64),
        ))?;
        copy.write_all(&[0x64; GENERATION])?;
        copy.sync_data()?;
        std::fs::remove_file(redo)?;
        if let Some(old) = n.checked_sub(KEPT) {
            std::fs::remove_file(scratch.join(format!("{old}.undo")))?;
        }
        std::thread::sleep(pause);
    }
    Ok(())
}
