//! Records of the dirty tracker's maps (DESIGN §4).

/// Pages that one word of a bitmap stands for.
pub const CHUNK_PAGES: u64 = 64;

/// An inode as the kernel knows it. The generation keeps a new file that got the number of a
/// removed one from being taken for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchKey {
    /// `super_block.s_dev`: major << 20 | minor, not stat's encoding.
    pub dev: u32,
    pub generation: u32,
    pub ino: u64,
}

const _: () = assert!(core::mem::size_of::<WatchKey>() == 16);

/// A watched inode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    pub slot: u32,
    /// Not zero once a page was faulted in while a shared writable mapping existed.
    pub mapped: u8,
    /// Not zero once a dirtied folio counted for less than the whole of it.
    pub exact: u8,
    /// Not zero while an operation may be at work that changes `shape_start..+shape_len` without writing.
    pub shaping: u8,
    pub pad: u8,
    /// Size that the last mark knew of; a different one makes the file `NOTE_TOUCHED`.
    pub size: u64,
    pub shape_start: u64,
    /// `u64::MAX` for everything behind.
    pub shape_len: u64,
}

const _: () = assert!(core::mem::size_of::<Watch>() == 32);

/// `CHUNK_PAGES` pages of one file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkKey {
    pub slot: u32,
    pub chunk: u32,
}

const _: () = assert!(core::mem::size_of::<ChunkKey>() == 8);

/// What an epoch knows of one file besides its pages, keyed by slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    pub flags: u64,
    /// Every byte from here to before `high` may have changed: the hull of what was too wide for bitmaps
    /// or has no end. `u64::MAX` when there is no such place.
    pub low: u64,
    /// `u64::MAX` for the file's end, wherever that is; 0 when there is no such place.
    pub high: u64,
}

const _: () = assert!(core::mem::size_of::<Note>() == 24);

/// The size may have changed.
pub const NOTE_TOUCHED: u64 = 1;
/// A mark did not fit: the file is unknown.
pub const NOTE_LOST: u64 = 2;
/// A mark came before the change that it announces: it counts for the next epoch too.
pub const NOTE_EARLY: u64 = 4;
/// Attributes may have changed, and will have by the next epoch.
pub const NOTE_TIMES: u64 = 8;

/// One per CPU. `entered` and `left` differ while a program may still mark in an epoch that it read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyCounters {
    pub entered: u64,
    pub left: u64,
    /// Marks per epoch.
    pub marked: [u64; 2],
    /// Marks that did not fit.
    pub lost: u64,
    /// Marks whose loss could not even be noted: everything is unknown.
    pub lost_all: u64,
    /// Means nothing; the programs exchange it for its effect on memory order.
    pub barrier: u64,
}

const _: () = assert!(core::mem::size_of::<DirtyCounters>() == 56);
