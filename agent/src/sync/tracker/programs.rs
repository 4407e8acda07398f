//! Loading the dirty tracker's programs and talking to their maps.
//!
//! Invariants: all programs attach or none stays; the retired maps are read only after every program
//! that could still mark in them has left.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{Ordering, fence};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::BtfTracePoint;
use aya::{Ebpf, EbpfLoader, Pod};
use understudy_common::abi::dirty::{ChunkKey, DirtyCounters, Note, Watch, WatchKey};

use super::TrackError;
use super::TrackerLimits;
use super::hooks::{COMMON, FAULTS, FileSystem, TIMES};
use super::syscall::{ProgramInfo, drain, program_info};
use crate::btf::{Btf, BtfError};

/// Looks at the processors before a retired epoch is given up; each takes a few microseconds and a
/// program stays for less than one.
const SETTLE_TRIES_MAX: u32 = 100_000;

/// A record as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);

// SAFETY: the records of `abi::dirty` are `repr(C)` without padding, and any bytes are a valid value.
unsafe impl Pod for Plain<WatchKey> {}
unsafe impl Pod for Plain<Watch> {}
unsafe impl Pod for Plain<DirtyCounters> {}

/// The attached programs.
pub struct Programs {
    watched: HashMap<MapData, Plain<WatchKey>, Plain<Watch>>,
    epoch: Array<MapData, u64>,
    counters: PerCpuArray<MapData, Plain<DirtyCounters>>,
    marks: [MapData; 2],
    notes: [MapData; 2],
    /// Dropping it detaches the programs.
    ebpf: Ebpf,
}

fn unavailable<E: std::error::Error + Send + Sync + 'static>(what: &str) -> impl FnOnce(E) -> TrackError {
    let what = what.to_owned();
    move |source| TrackError::Unavailable {
        what,
        source: Some(Box::new(source)),
    }
}

fn offsets(btf: &Btf) -> Result<Vec<(&'static str, u32)>, BtfError> {
    Ok(vec![
        ("INODE_SB", btf.offset("inode", "i_sb")?),
        ("INODE_INO", btf.offset("inode", "i_ino")?),
        ("INODE_GENERATION", btf.offset("inode", "i_generation")?),
        ("INODE_SIZE", btf.offset("inode", "i_size")?),
        ("SB_DEV", btf.offset("super_block", "s_dev")?),
        ("FOLIO_FLAGS", btf.offset("folio", "flags")?),
        ("FOLIO_FLAGS_1", btf.offset("folio", "_flags_1")?),
        ("FOLIO_INDEX", btf.offset("folio", "index")?),
        ("MAPPING_HOST", btf.offset("address_space", "host")?),
        ("PG_HEAD", btf.enum_value("pageflags", "PG_head")? as u32),
        ("KIOCB_FILE", btf.offset("kiocb", "ki_filp")?),
        ("KIOCB_POS", btf.offset("kiocb", "ki_pos")?),
        ("FILE_INODE", btf.offset("file", "f_inode")?),
        (
            "MAPPING_WRITABLE",
            btf.offset("address_space", "i_mmap_writable")?,
        ),
        (
            "INODE_LOCK_OWNER",
            // Locks are built differently with PREEMPT_RT.
            btf.offset("inode", "i_rwsem.owner").unwrap_or(0),
        ),
        ("FAULTS_SEEN", u32::from(sees_faults(btf))),
        ("ITER_SOURCE", btf.offset("iov_iter", "data_source")?),
    ])
}

/// Whether stores through mappings can be told from what marks its exact range by itself. Folios count
/// whole otherwise.
fn sees_faults(btf: &Btf) -> bool {
    FAULTS
        .iter()
        .all(|(_, tracepoint)| btf.tracepoint_arguments(tracepoint).is_ok())
}

impl Programs {
    /// Loads and attaches what shows the writes to these file systems.
    pub fn attach(file_systems: &BTreeSet<FileSystem>, limits: TrackerLimits) -> Result<Self, TrackError> {
        let layout = Btf::load().map_err(unavailable("the kernel's layout"))?;
        let mut offsets = offsets(&layout).map_err(unavailable("the kernel's layout"))?;
        for file_system in file_systems {
            let more = file_system.offsets(&layout);
            offsets.extend(more.map_err(unavailable(&format!("the layout of {file_system}")))?);
        }
        let mut loader = EbpfLoader::new();
        for (name, offset) in &offsets {
            loader.override_global(name, offset, true);
        }
        for (name, entries) in [
            ("WATCHED", limits.files_max),
            ("NOTES_0", limits.notes_max),
            ("NOTES_1", limits.notes_max),
            ("MARKS_0", limits.chunks_max),
            ("MARKS_1", limits.chunks_max),
        ] {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader
            .load(crate::object::DIRTY)
            .map_err(unavailable("loading the kernel programs"))?;
        let btf = aya::Btf::from_sys_fs().map_err(unavailable("reading the kernel's BTF"))?;
        let faults = FAULTS.iter().filter(|_| sees_faults(&layout));
        let own = file_systems.iter().flat_map(|known| known.hooks());
        let optional = file_systems
            .iter()
            .flat_map(|known| known.optional_hooks())
            .chain(&TIMES)
            .filter(|(_, tracepoint)| layout.tracepoint_arguments(tracepoint).is_ok());
        // Faults first: a folio counts for less than the whole only when they are seen.
        for (name, tracepoint) in faults.chain(&COMMON).chain(own).chain(optional) {
            let program: &mut BtfTracePoint = ebpf
                .program_mut(name)
                .ok_or_else(|| missing(name))?
                .try_into()
                .map_err(unavailable(name))?;
            program.load(tracepoint, &btf).map_err(unavailable(tracepoint))?;
            program.attach().map_err(unavailable(tracepoint))?;
        }
        Ok(Self {
            watched: typed(&mut ebpf, "WATCHED")?,
            epoch: typed(&mut ebpf, "EPOCH")?,
            counters: typed(&mut ebpf, "COUNTERS")?,
            marks: [hash(&mut ebpf, "MARKS_0")?, hash(&mut ebpf, "MARKS_1")?],
            notes: [hash(&mut ebpf, "NOTES_0")?, hash(&mut ebpf, "NOTES_1")?],
            ebpf,
        })
    }

    pub fn watch(&mut self, key: WatchKey, watch: Watch) -> Result<(), TrackError> {
        self.watched
            .insert(Plain(key), Plain(watch), 0)
            .map_err(unavailable("adding a file to the watched ones"))
    }

    /// What the programs know of a watched inode; none when it cannot be read.
    pub fn state(&self, key: WatchKey) -> Option<Watch> {
        self.watched.get(&Plain(key), 0).ok().map(|watch| watch.0)
    }

    pub fn unwatch(&mut self, key: WatchKey) {
        // A missing entry is what was wanted.
        let _ = self.watched.remove(&Plain(key));
    }

    /// Makes `epoch` the current one, and waits for the programs that may have seen the other.
    pub fn flip(&mut self, epoch: u64) -> Result<(), TrackError> {
        self.epoch
            .set(0, epoch, 0)
            .map_err(unavailable("changing the epoch"))?;
        fence(Ordering::SeqCst);
        let mut busy: Vec<bool> = Vec::new();
        for _ in 0..SETTLE_TRIES_MAX {
            // What had left at first, and had entered afterwards: equal, and nothing ran in between.
            let left = self.per_cpu()?;
            fence(Ordering::SeqCst);
            let entered = self.per_cpu()?;
            busy.resize(left.len(), true);
            for (cpu, busy) in busy.iter_mut().enumerate() {
                *busy &= left[cpu].left != entered[cpu].entered;
            }
            if !busy.contains(&true) {
                return Ok(());
            }
            std::thread::yield_now();
        }
        Err(TrackError::Unavailable {
            what: "a kernel program did not finish marking in a retired epoch".into(),
            source: None,
        })
    }

    /// The sum over all processors.
    pub fn counters(&self) -> Result<DirtyCounters, TrackError> {
        Ok(self
            .per_cpu()?
            .into_iter()
            .fold(DirtyCounters::default(), |sum, cpu| DirtyCounters {
                entered: sum.entered + cpu.entered,
                left: sum.left + cpu.left,
                marked: [sum.marked[0] + cpu.marked[0], sum.marked[1] + cpu.marked[1]],
                lost: sum.lost + cpu.lost,
                lost_all: sum.lost_all + cpu.lost_all,
                barrier: 0,
            }))
    }

    fn per_cpu(&self) -> Result<Vec<DirtyCounters>, TrackError> {
        let values = self
            .counters
            .get(&0, 0)
            .map_err(unavailable("reading the counters"))?;
        Ok(values.iter().map(|cpu| cpu.0).collect())
    }

    /// Takes all bitmap words out of an epoch.
    pub fn drain_marks(&self, epoch: u64, each: impl FnMut(ChunkKey, u64)) -> Result<(), TrackError> {
        drain(&self.marks[(epoch & 1) as usize], each)
    }

    /// Takes all notes out of an epoch.
    pub fn drain_notes(&self, epoch: u64, each: impl FnMut(u32, Note)) -> Result<(), TrackError> {
        drain(&self.notes[(epoch & 1) as usize], each)
    }

    /// Events that the kernel did not pass on, because a program was interrupted by its own event.
    pub fn missed(&self) -> Result<u64, TrackError> {
        Ok(self.infos()?.iter().map(|(_, info)| info.recursion_misses).sum())
    }

    /// Nanoseconds and runs of each program; zero unless the kernel keeps such statistics.
    pub fn run_time(&self) -> Result<Vec<(String, u64, u64)>, TrackError> {
        let name = |(name, info): (&str, ProgramInfo)| (name.to_owned(), info.run_time_ns, info.run_cnt);
        Ok(self.infos()?.into_iter().map(name).collect())
    }

    fn infos(&self) -> Result<Vec<(&str, ProgramInfo)>, TrackError> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| Some((name, program.fd().ok()?)))
            .map(|(name, fd)| Ok((name, program_info(fd.as_fd().as_raw_fd())?)))
            .collect()
    }
}

fn missing(name: &str) -> TrackError {
    TrackError::Unavailable {
        what: format!("the embedded object has no `{name}`; build it again"),
        source: None,
    }
}

fn typed<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> Result<T, TrackError>
where
    T::Error: std::error::Error + Send + Sync + 'static,
{
    let map = ebpf.take_map(name).ok_or_else(|| missing(name))?;
    T::try_from(map).map_err(unavailable(name))
}

fn hash(ebpf: &mut Ebpf, name: &str) -> Result<MapData, TrackError> {
    match ebpf.take_map(name) {
        Some(Map::HashMap(data)) => Ok(data),
        _ => Err(missing(name)),
    }
}
