//! Reading inodes. The offsets are the running kernel's; the verifier checks that they are fields.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_get_current_task;
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

/// Zero where the kernel's inode lock has no owner or faults cannot be seen.
#[unsafe(no_mangle)]
static INODE_LOCK_OWNER: Global<u32> = Global::new(0);

/// The agent sizes this map; the figure here is the default.
#[map]
static WATCHED: HashMap<WatchKey, Watch> = HashMap::with_max_entries(65_536, 0);

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
    /// Set by waiters; the lowest bit, which stays in, says that readers hold the lock.
    const NONSPINNABLE: u64 = 2;
    if INODE_LOCK_OWNER.load() == 0 {
        return Holder::Unknown;
    }
    let owner = unsafe { field::<u64>(inode, &INODE_LOCK_OWNER) } & !NONSPINNABLE;
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
        WatchKey {
            dev: field(sb, &SB_DEV),
            generation: field(inode, &INODE_GENERATION),
            ino: field(inode, &INODE_INO),
        }
    };
    WATCHED.get_ptr_mut(&key).map(|watch| unsafe { &mut *watch })
}
