//! Which of the kernel's events show the writes of each file system.
//!
//! Invariant: a file system is here only if every kind of write to its files is seen by one of its
//! hooks. Where the kernel lacks one of them (too old, or the file system is a module: its events are
//! not in the kernel's own BTF) it is not tracked; the others still are.

use std::fmt;

use crate::btf::{Btf, BtfError};

/// Program → tracepoint.
pub type Hook = (&'static str, &'static str);

/// A file system that can be tracked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
}

impl FileSystem {
    pub const ALL: [FileSystem; 3] = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];

    /// Of `statfs`' type.
    pub fn of_magic(magic: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.magic() == magic)
    }

    const fn magic(self) -> i64 {
        match self {
            FileSystem::Ext4 => libc::EXT4_SUPER_MAGIC,
            FileSystem::Xfs => libc::XFS_SUPER_MAGIC,
            FileSystem::Btrfs => libc::BTRFS_SUPER_MAGIC,
        }
    }

    /// The hooks that it cannot be tracked without.
    pub const fn hooks(self) -> &'static [Hook] {
        match self {
            FileSystem::Ext4 => &EXT4,
            FileSystem::Xfs => &XFS,
            FileSystem::Btrfs => &BTRFS,
        }
    }

    /// The hooks of operations that came with the tracepoint or went with it.
    pub const fn optional_hooks(self) -> &'static [Hook] {
        match self {
            FileSystem::Ext4 => &[],
            FileSystem::Xfs => &XFS_EXCHANGES,
            FileSystem::Btrfs => &BTRFS_SIZE,
        }
    }

    /// What its programs need to know of the kernel's layout.
    pub fn offsets(self, btf: &Btf) -> Result<Vec<(&'static str, u32)>, BtfError> {
        match self {
            FileSystem::Ext4 => Ok(Vec::new()),
            FileSystem::Xfs => xfs(btf),
            FileSystem::Btrfs => btrfs(btf),
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
            FileSystem::Btrfs => "btrfs",
        })
    }
}

/// Without the direct ones a direct write would go unseen, so a kernel older than 6.7 scans.
pub const COMMON: [Hook; 3] = [
    ("dirty_folio", "writeback_dirty_folio"),
    ("direct_begin", "iomap_dio_rw_begin"),
    ("direct_complete", "iomap_dio_complete"),
];

/// Where one of these is missing, a write counts for the whole folio that it dirties.
pub const FAULTS: [Hook; 2] = [
    ("fault", "mm_filemap_fault"),
    ("map_pages", "mm_filemap_map_pages"),
];

/// 6.13; before, a modification time that is set alone is found by the scrub.
pub const TIMES: [Hook; 2] = [
    ("time_set", "inode_set_ctime_to_ts"),
    ("time_exchanged", "ctime_ns_xchg"),
];

const EXT4: [Hook; 9] = [
    ("da_write_end", "ext4_da_write_end"),
    ("write_end", "ext4_write_end"),
    ("journalled_write_end", "ext4_journalled_write_end"),
    ("mark_inode_dirty", "ext4_mark_inode_dirty"),
    ("truncate_enter", "ext4_truncate_enter"),
    ("punch_hole", "ext4_punch_hole"),
    ("zero_range", "ext4_zero_range"),
    ("collapse_range", "ext4_collapse_range"),
    ("insert_range", "ext4_insert_range"),
];

/// Punching and zeroing end in a zeroing by iomap of the whole range.
const XFS: [Hook; 6] = [
    ("iomap_iter", "iomap_iter"),
    ("xfs_unlock", "xfs_iunlock"),
    ("xfs_truncate", "xfs_itruncate_extents_start"),
    ("xfs_collapse", "xfs_collapse_file_space"),
    ("xfs_insert", "xfs_insert_file_space"),
    ("xfs_remap", "xfs_reflink_remap_range"),
];

/// `XFS_IOC_SWAPEXT` (defragmentation) and `XFS_IOC_EXCHANGE_RANGE` (6.10).
const XFS_EXCHANGES: [Hook; 2] = [
    ("xfs_swapped", "xfs_swap_extent_after"),
    ("xfs_exchanged", "xfs_exchrange_after"),
];

const BTRFS: [Hook; 2] = [
    ("btrfs_set_bits", "btrfs_set_extent_bit"),
    ("btrfs_clear_bits", "btrfs_clear_extent_bit"),
];

/// 6.13; before, a new size is told just before it is one, and again in the next epoch.
const BTRFS_SIZE: [Hook; 1] = [("changed", "inode_set_ctime_to_ts")];

fn btrfs(btf: &Btf) -> Result<Vec<(&'static str, u32)>, BtfError> {
    // What holds the inode's lock cannot be told from what only reads where the lock has no owner.
    btf.offset("inode", "i_rwsem.owner")?;
    Ok(vec![
        ("SB_MAGIC", btf.offset("super_block", "s_magic")?),
        ("TREE_INODE", btf.offset("extent_io_tree", "inode")?),
        ("TREE_OWNER", btf.offset("extent_io_tree", "owner")?),
        ("TREE_OF_INODE", btf.constant("IO_TREE_INODE_IO")?),
        ("EXTENT_DELALLOC", btf.constant("EXTENT_DELALLOC")?),
        ("EXTENT_LOCKED", btf.constant("EXTENT_LOCKED")?),
        ("BTRFS_INODE", btf.offset("btrfs_inode", "vfs_inode")?),
        ("BTRFS_INODE_ROOT", btf.offset("btrfs_inode", "root")?),
        ("BTRFS_ROOT_DEV", btf.offset("btrfs_root", "anon_dev")?),
    ])
}

fn xfs(btf: &Btf) -> Result<Vec<(&'static str, u32)>, BtfError> {
    let worked = match btf.offset("iomap_iter", "iter_start_pos") {
        Ok(offset) => ("ITER_START", offset),
        Err(_) => ("ITER_PROCESSED", btf.offset("iomap_iter", "processed")?),
    };
    Ok(vec![
        worked,
        ("ITER_INODE", btf.offset("iomap_iter", "inode")?),
        ("ITER_POS", btf.offset("iomap_iter", "pos")?),
        ("ITER_FLAGS", btf.offset("iomap_iter", "flags")?),
        ("ITER_MAPPED", btf.offset("iomap_iter", "iomap.length")?),
        ("XFS_INODE", btf.offset("xfs_inode", "i_vnode")?),
    ])
}
