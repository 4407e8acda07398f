//! Where a generation's operations leave every file: the part of a checkpoint that needs no disk.
//!
//! Invariant: the result depends on the operations alone, so that a replay after a crash decides the same.

use std::collections::{BTreeMap, BTreeSet};

use understudy_common::delta::{Body, Op, RelPath};

#[derive(Clone, Debug)]
pub struct Node {
    /// Its path before the generation; none when the generation makes it.
    pub was: Option<RelPath>,
    /// What it was made as.
    pub made: Option<Body>,
    /// Its path after the generation; none when it is removed.
    pub is: Option<RelPath>,
}

impl Node {
    /// Its path before, if that is no longer its own.
    pub fn leaves(&self) -> Option<&RelPath> {
        self.was.as_ref().filter(|was| self.is.as_ref() != Some(was))
    }
}

/// Follows operations in order.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    nodes: Vec<Node>,
    at: BTreeMap<RelPath, Option<usize>>,
    touched: BTreeSet<RelPath>,
    /// Paths before the generation of files whose content changes or goes away.
    overwritten: BTreeSet<RelPath>,
}

impl Placement {
    /// Takes one operation and returns the number of the node that it is about.
    pub fn follow(&mut self, op: &Op) -> usize {
        match op {
            Op::Create { path, body, .. } => {
                self.nodes.push(Node {
                    was: None,
                    made: Some(body.clone()),
                    is: Some(path.clone()),
                });
                let node = self.nodes.len() - 1;
                self.at.insert(path.clone(), Some(node));
                self.touched.insert(path.clone());
                node
            }
            Op::Write { path, .. } | Op::Truncate { path, .. } => {
                let node = self.node(path);
                self.overwritten.extend(self.nodes[node].was.clone());
                node
            }
            Op::Meta { path, .. } => self.node(path),
            Op::Rename { from, to } => {
                let node = self.node(from);
                self.at.insert(from.clone(), None);
                self.at.insert(to.clone(), Some(node));
                self.touched.insert(to.clone());
                self.nodes[node].is = Some(to.clone());
                node
            }
            Op::Unlink { path } => {
                let node = self.node(path);
                self.at.insert(path.clone(), None);
                self.nodes[node].is = None;
                self.overwritten.extend(self.nodes[node].was.clone());
                node
            }
        }
    }

    fn node(&mut self, path: &RelPath) -> usize {
        self.touched.insert(path.clone());
        if let Some(Some(node)) = self.at.get(path) {
            return *node;
        }
        self.nodes.push(Node {
            was: Some(path.clone()),
            made: None,
            is: Some(path.clone()),
        });
        self.at.insert(path.clone(), Some(self.nodes.len() - 1));
        self.nodes.len() - 1
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Whether a name that was there before is gone, or is another file's.
    pub fn leaves(&self) -> bool {
        self.nodes.iter().any(|node| node.leaves().is_some())
    }

    /// Every path that an operation names.
    pub fn touched(&self) -> &BTreeSet<RelPath> {
        &self.touched
    }

    pub fn overwritten(&self) -> &BTreeSet<RelPath> {
        &self.overwritten
    }

    /// Old path → new path of what moved, as the way back needs it.
    pub fn origins_back(&self) -> BTreeMap<RelPath, RelPath> {
        self.nodes
            .iter()
            .filter_map(|node| Some((node.was.clone()?, node.is.clone()?)))
            .filter(|(was, is)| was != is)
            .collect()
    }
}
