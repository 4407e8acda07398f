//! Kernel structures, read at offsets that the loader found in the running kernel's BTF.
//!
//! The offsets are constants to the verifier, so loads through the trusted pointers of a BTF tracepoint pass as they
//! are. Only the flexible array of cgroup ancestors needs a probe read.

use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel};

/// Offsets, named structure and field.
macro_rules! offsets {
    ($($name:ident)+) => {$(
        #[unsafe(no_mangle)]
        static $name: Global<u32> = Global::new(0);
    )+};
}

offsets! {
    TASK_PID TASK_TGID TASK_STATE TASK_EXIT_CODE TASK_CGROUPS
    CSS_SET_CGROUP CGROUP_LEVEL CGROUP_NODE CGROUP_ANCESTORS NODE_ID
    REQUEST_FLAGS REQUEST_START REQUEST_PART REQUEST_QUEUE PART_DEV QUEUE_DISK DISK_MAJOR DISK_MINOR
    FILE_INODE INODE_SUPER SUPER_DEV
    SOCK_NET NET_INUM
}

/// The cgroup2 directory that tasks must be in or below; 0 is every task.
#[unsafe(no_mangle)]
static SCOPE_CGROUP: Global<u64> = Global::new(0);
/// Depth of that cgroup below the root.
#[unsafe(no_mangle)]
static SCOPE_LEVEL: Global<u32> = Global::new(0);
/// The network namespace that sockets must be in; 0 is every one.
#[unsafe(no_mangle)]
static SCOPE_NETNS: Global<u32> = Global::new(0);
/// Devices as the kernel encodes them (major << 20 | minor); 0 ends the list. An empty list is every device.
#[unsafe(no_mangle)]
static SCOPE_DEVICE_0: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SCOPE_DEVICE_1: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SCOPE_DEVICE_2: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static SCOPE_DEVICE_3: Global<u32> = Global::new(0);

/// Reads the field at a looked-up offset.
macro_rules! field {
    ($base:expr, $offset:ident, $type:ty) => {{
        let base: *const u8 = $base;
        // SAFETY: a trusted or fault-handled pointer of the verifier, at an offset from the kernel's own BTF.
        unsafe { *base.add($offset.load() as usize).cast::<$type>() }
    }};
}

pub type Pointer = *const u8;

pub fn current() -> Pointer {
    // SAFETY: the helper takes nothing and never returns null.
    unsafe { bpf_get_current_task_btf() }.cast_const().cast()
}

#[inline(always)]
pub fn pid(task: Pointer) -> u32 {
    field!(task, TASK_PID, u32)
}

#[inline(always)]
pub fn tgid(task: Pointer) -> u32 {
    field!(task, TASK_TGID, u32)
}

#[inline(always)]
pub fn state(task: Pointer) -> u32 {
    field!(task, TASK_STATE, u32)
}

#[inline(always)]
pub fn exit_code(task: Pointer) -> u32 {
    field!(task, TASK_EXIT_CODE, u32)
}

/// The cgroup2 directory that the task is in.
#[inline(always)]
pub fn cgroup_id(task: Pointer) -> u64 {
    let cgroup = field!(field!(task, TASK_CGROUPS, Pointer), CSS_SET_CGROUP, Pointer);
    field!(field!(cgroup, CGROUP_NODE, Pointer), NODE_ID, u64)
}

/// Whether the task is in the scope's cgroup or in one below it.
#[inline(always)]
pub fn task_in_scope(task: Pointer) -> bool {
    let wanted = SCOPE_CGROUP.load();
    if wanted == 0 {
        return true;
    }
    let cgroup = field!(field!(task, TASK_CGROUPS, Pointer), CSS_SET_CGROUP, Pointer);
    let level = SCOPE_LEVEL.load();
    let own = field!(cgroup, CGROUP_LEVEL, u32);
    if own == level {
        return field!(field!(cgroup, CGROUP_NODE, Pointer), NODE_ID, u64) == wanted;
    }
    if own < level {
        return false;
    }
    ancestor_id(cgroup, level) == Some(wanted)
}

#[inline(always)]
fn ancestor_id(cgroup: Pointer, level: u32) -> Option<u64> {
    let slot = CGROUP_ANCESTORS.load() as usize + 8 * level as usize;
    // SAFETY: the helper handles faults; `ancestors` has an entry for every level up to the cgroup's own.
    unsafe {
        let ancestor: Pointer = bpf_probe_read_kernel(cgroup.wrapping_add(slot).cast()).ok()?;
        let node: Pointer =
            bpf_probe_read_kernel(ancestor.wrapping_add(CGROUP_NODE.load() as usize).cast()).ok()?;
        bpf_probe_read_kernel(node.wrapping_add(NODE_ID.load() as usize).cast()).ok()
    }
}

#[inline(always)]
fn device_in_scope(device: u32) -> bool {
    let first = SCOPE_DEVICE_0.load();
    first == 0
        || device == first
        || device == SCOPE_DEVICE_1.load()
        || device == SCOPE_DEVICE_2.load()
        || device == SCOPE_DEVICE_3.load()
}

/// Whether the request went to a device of the scope, or to a partition that is one.
#[inline(always)]
pub fn request_in_scope(request: Pointer) -> bool {
    if SCOPE_DEVICE_0.load() == 0 {
        return true;
    }
    let disk = field!(field!(request, REQUEST_QUEUE, Pointer), QUEUE_DISK, Pointer);
    let whole = field!(disk, DISK_MAJOR, u32) << 20 | field!(disk, DISK_MINOR, u32);
    device_in_scope(whole) || device_in_scope(field!(field!(request, REQUEST_PART, Pointer), PART_DEV, u32))
}

/// The operation in a request's flags: 0 read, 1 write, others are housekeeping.
#[inline(always)]
pub fn request_operation(request: Pointer) -> u32 {
    field!(request, REQUEST_FLAGS, u32) & 0xff
}

#[inline(always)]
pub fn request_start_ns(request: Pointer) -> u64 {
    field!(request, REQUEST_START, u64)
}

/// Whether the open file lies on a device of the scope.
#[inline(always)]
pub fn file_in_scope(file: Pointer) -> bool {
    let inode = field!(file, FILE_INODE, Pointer);
    let device = field!(field!(inode, INODE_SUPER, Pointer), SUPER_DEV, u32);
    device_in_scope(device)
}

/// Whether the socket is in the scope's network namespace.
#[inline(always)]
pub fn socket_in_scope(socket: Pointer) -> bool {
    let wanted = SCOPE_NETNS.load();
    wanted == 0 || field!(field!(socket, SOCK_NET, Pointer), NET_INUM, u32) == wanted
}
