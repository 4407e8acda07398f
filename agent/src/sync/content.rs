//! From changes to operations: putting the bytes in.

use std::ops::Range;

use understudy_common::delta::{BLOCK, Body, Change, Manifest, Op};

/// Collects operations into batches of bounded size.
#[derive(Debug)]
pub struct Batches {
    target: usize,
    size: usize,
    open: Vec<Op>,
    full: Vec<Vec<Op>>,
}

impl Batches {
    pub fn new(target: usize) -> Self {
        Self {
            target,
            size: 0,
            open: Vec::new(),
            full: Vec::new(),
        }
    }

    pub fn push(&mut self, op: Op) {
        self.size += match &op {
            Op::Write { bytes, .. } => bytes.len() + 64,
            Op::Create { meta, .. } | Op::Meta { meta, .. } => meta.xattrs_bytes() + 512,
            _ => 512,
        };
        self.open.push(op);
        if self.size >= self.target {
            self.size = 0;
            self.full.push(std::mem::take(&mut self.open));
        }
    }

    /// Batches that are full.
    pub fn full(&mut self) -> Vec<Vec<Op>> {
        std::mem::take(&mut self.full)
    }

    /// All that is left, the last one perhaps small.
    pub fn rest(&mut self) -> Vec<Vec<Op>> {
        if !self.open.is_empty() {
            self.full.push(std::mem::take(&mut self.open));
        }
        self.size = 0;
        self.full()
    }
}

/// Bytes that a change of blocks covers in the file of `manifest`; empty for other changes.
pub fn byte_range(manifest: &Manifest, change: &Change) -> Range<u64> {
    let Change::Blocks { path, first, count } = change else {
        return 0..0;
    };
    let len = match manifest.get(path).map(|entry| &entry.body) {
        Some(Body::File { len, .. }) => *len,
        _ => 0,
    };
    first * BLOCK..((first + count) * BLOCK).min(len)
}

/// The operation of a change that carries no content; none for blocks.
pub fn without_content(change: Change) -> Option<Op> {
    Some(match change {
        Change::Create { path, meta, body } => Op::Create { path, meta, body },
        Change::Truncate { path, len } => Op::Truncate { path, len },
        Change::Meta { path, meta } => Op::Meta { path, meta },
        Change::Rename { from, to } => Op::Rename { from, to },
        Change::Unlink { path } => Op::Unlink { path },
        Change::Blocks { .. } => return None,
    })
}
