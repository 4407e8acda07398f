//! Reading inodes. The offsets are the running kernel's; the verifier checks that they are fields.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use understudy_common::abi::dirty::{Watch, WatchKey};

#[unsafe(no_mangle)]
static INODE_SB: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INODE_INO: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INODE_GENERATION: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INODE_SIZE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SB_DEV: Global<u32> = Global::new(0);

#[unsafe(no_mangle)]
static SB_MAGIC: Global<u32> = Global::new(0);
/// Where the inode lies in btrfs's own; zero where no root is on btrfs.
#[unsafe(no_mangle)]
static BTRFS_INODE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static BTRFS_INODE_ROOT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static BTRFS_ROOT_DEV: Global<u32> = Global::new(0);

const BTRFS_SUPER_MAGIC: u64 = 0x9123_683e;

/// Zero where the kernel's inode lock has no owner (PREEMPT_RT).
#[unsafe(no_mangle)]
static INODE_LOCK_OWNER: Global<u32> = Global::new(0);

/// The agent sizes this map and alone adds to it, so that an entry's memory is taken when there is one.
#[map]
static WATCHED: HashMap<WatchKey, Watch> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// Pointer to a kernel object that the verifier trusts.
pub type Object = *const c_void;

/// # Safety
/// `object` is a pointer that the verifier trusts, and a `T` lies at `offset`.
#[inline(always)]
pub unsafe fn field<T: Copy>(object: Object, offset: &Global<u32>) -> T {
    unsafe { *object.byte_add(offset.load() as usize).cast::<T>() }
}

/// The file's size now.
#[inline(always)]
pub fn size(inode: Object) -> u64 {
    unsafe { field(inode, &INODE_SIZE) }
}

/// Who holds an inode's lock for writing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    Current,
    Other,
    Nobody,
    /// This kernel does not say.
    Unknown,
}

/// Of `inode.i_rwsem`, by the owner that the kernel notes in it.
#[inline(always)]
pub fn lock_holder(inode: Object) -> Holder {
    if INODE_LOCK_OWNER.load() == 0 {
        return Holder::Unknown;
    }
    holder(unsafe { field::<u64>(inode, &INODE_LOCK_OWNER) })
}

#[inline(always)]
fn holder(owner: u64) -> Holder {
    /// Set by waiters; the lowest bit, which stays in, says that readers hold the lock.
    const NONSPINNABLE: u64 = 2;
    let owner = owner & !NONSPINNABLE;
    if owner == unsafe { bpf_get_current_task() } {
        Holder::Current
    } else if owner == 0 {
        Holder::Nobody
    } else {
        Holder::Other
    }
}

/// The watch of an inode, if it has one.
#[inline(always)]
pub fn watch(inode: Object) -> Option<&'static mut Watch> {
    let key = unsafe {
        let sb: Object = field(inode, &INODE_SB);
        let mut dev: u32 = field(sb, &SB_DEV);
        if BTRFS_INODE.load() != 0 && field::<u64>(sb, &SB_MAGIC) == BTRFS_SUPER_MAGIC {
            dev = subvolume(inode.byte_sub(BTRFS_INODE.load() as usize)).ok()?;
        }
        WatchKey {
            dev,
            generation: field(inode, &INODE_GENERATION),
            ino: field(inode, &INODE_INO),
        }
    };
    find(&key)
}

#[inline(always)]
fn find(key: &WatchKey) -> Option<&'static mut Watch> {
    WATCHED.get_ptr_mut(key).map(|watch| unsafe { &mut *watch })
}

/// The device that stat gives for files of a subvolume: numbers of inodes repeat in each.
#[inline(always)]
unsafe fn subvolume(btrfs_inode: Object) -> Result<u32, i32> {
    unsafe {
        let root: Object = probe(btrfs_inode, &BTRFS_INODE_ROOT)?;
        probe(root, &BTRFS_ROOT_DEV)
    }
}

/// # Safety
/// `object` is a kernel object with a `T` at `offset`; the kernel checks the memory, not the type.
#[inline(always)]
unsafe fn probe<T>(object: Object, offset: &Global<u32>) -> Result<T, i32> {
    unsafe { bpf_probe_read_kernel(object.byte_add(offset.load() as usize).cast()) }
}

/// The inode in one of btrfs's own.
#[inline(always)]
pub fn of_btrfs(btrfs_inode: Object) -> Object {
    btrfs_inode.wrapping_byte_add(BTRFS_INODE.load() as usize)
}

/// The watch of an inode of btrfs that the verifier does not trust.
#[inline(always)]
pub fn watch_of_btrfs(inode: Object) -> Option<&'static mut Watch> {
    let key = unsafe {
        WatchKey {
            dev: subvolume(inode.wrapping_byte_sub(BTRFS_INODE.load() as usize)).ok()?,
            generation: probe(inode, &INODE_GENERATION).ok()?,
            ino: probe(inode, &INODE_INO).ok()?,
        }
    };
    find(&key)
}

/// Of an inode that the verifier does not trust.
#[inline(always)]
pub fn probed_size(inode: Object) -> Result<u64, i32> {
    unsafe { probe(inode, &INODE_SIZE) }
}

/// Of an inode that the verifier does not trust.
#[inline(always)]
pub fn probed_lock_holder(inode: Object) -> Holder {
    unsafe { probe(inode, &INODE_LOCK_OWNER) }.map_or(Holder::Unknown, holder)
}
