//! The two `bpf` commands that aya does not have: batches out of hash maps, and a program's misses.
//!
//! Invariant: the structs here are prefixes of the kernel's, and every buffer is as long as it says.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::MapData;

use super::TrackError;

/// Entries that one system call takes out of a map.
const BATCH: usize = 4096;

/// `bpf_attr` of the batch commands.
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The start of the kernel's `bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ProgramInfo {
    unused: [u64; 24],
    pub run_time_ns: u64,
    pub run_cnt: u64,
    pub recursion_misses: u64,
}

const _: () = assert!(size_of::<ProgramInfo>() == 216);

/// # Safety
/// `attr` is what the command takes, and what it points at is as long as it says.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<()> {
    // SAFETY: the caller's.
    match unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The kernel's figures of one program.
pub fn program_info(fd: i32) -> Result<ProgramInfo, TrackError> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    let mut info = ProgramInfo {
        unused: [0; 24],
        run_time_ns: 0,
        run_cnt: 0,
        recursion_misses: 0,
    };
    let mut attr = InfoAttr {
        fd: fd as u32,
        len: size_of::<ProgramInfo>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: `info` is as long as `len` says, and zero, so that the kernel writes nowhere else.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map_err(|source| TrackError::Io {
        what: "reading a kernel program's figures",
        source,
    })?;
    Ok(info)
}

/// Looks up and deletes everything in a hash map. No program uses the map meanwhile.
pub fn drain<K: Copy, V: Copy>(map: &MapData, mut each: impl FnMut(K, V)) -> Result<(), TrackError> {
    const BPF_MAP_LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;
    let mut keys: Vec<MaybeUninit<K>> = vec![MaybeUninit::uninit(); BATCH];
    let mut values: Vec<MaybeUninit<V>> = vec![MaybeUninit::uninit(); BATCH];
    let mut place = [0u64; 2];
    let mut first = true;
    loop {
        let place_at = place.as_mut_ptr() as u64;
        let mut attr = BatchAttr {
            in_batch: if first { 0 } else { place_at },
            out_batch: place_at,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH as u32,
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the buffers hold `count` entries of the map's key and value types.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_BATCH, &mut attr) };
        let done = match result {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(source) => {
                return Err(TrackError::Io {
                    what: "reading the marks of a retired epoch",
                    source,
                });
            }
        };
        for at in 0..(attr.count as usize).min(BATCH) {
            // SAFETY: the kernel filled `count` entries, and any bytes are a valid record.
            unsafe { each(keys[at].assume_init(), values[at].assume_init()) };
        }
        if done {
            return Ok(());
        }
        first = false;
    }
}
