//! The tree while layers are applied: mutable, made of references into the layers' entries.
//!
//! Nodes are never freed, only forgotten: a merge is short, and hard links keep what a name lost.

use std::collections::BTreeMap;

use crate::layer::{Entry, EntryKind};
use crate::tree::NODES_MAX;
use crate::tree::node::LayerId;

/// Position of a node in the draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(u32);

impl NodeId {
    pub(super) const ROOT: NodeId = NodeId(0);

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The limit of nodes and names is reached.
#[derive(Debug)]
pub(super) struct Full;

/// What a draft node is.
#[derive(Debug)]
pub(super) enum Shape<'a> {
    /// A directory and its names.
    Directory(BTreeMap<&'a [u8], NodeId>),
    /// Anything else that is made by this entry; the kind is the entry's.
    File(&'a Entry),
    /// A hard link of this entry whose target was not there yet; later what it turned out to be.
    Link(&'a Entry, Option<NodeId>),
}

/// A node of the draft.
#[derive(Debug)]
pub(super) struct DraftNode<'a> {
    pub(super) shape: Shape<'a>,
    /// Where mode, owner, times and attributes come from; `None` for an implied directory.
    pub(super) metadata: Option<&'a Entry>,
    /// The layer that made it.
    pub(super) layer: LayerId,
}

/// A tree that is being made.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    pub(super) nodes: Vec<DraftNode<'a>>,
    /// Names put so far: hard links make names without nodes.
    names: usize,
    limit: usize,
    /// Bytes of link targets walked so far.
    pub(super) expanded: u64,
    /// The parent that the last entry had, and the directory that it led to. Tars list a directory's
    /// files together, so this spares most walks. Forgotten when a directory or link loses its name.
    memo: Option<(&'a [u8], NodeId)>,
}

impl<'a> Draft<'a> {
    /// A draft with nothing but its root.
    pub(super) fn new() -> Draft<'a> {
        Draft::with_limit(NODES_MAX)
    }

    pub(super) fn with_limit(limit: usize) -> Draft<'a> {
        let root = DraftNode {
            shape: Shape::Directory(BTreeMap::new()),
            metadata: None,
            layer: LayerId(0),
        };
        Draft {
            nodes: vec![root],
            names: 0,
            limit,
            expanded: 0,
            memo: None,
        }
    }

    /// Adds a node that has no name yet.
    pub(super) fn add(&mut self, node: DraftNode<'a>) -> Result<NodeId, Full> {
        let id = u32::try_from(self.nodes.len()).map_err(|_| Full)?;
        if self.nodes.len() >= self.limit {
            return Err(Full);
        }
        self.nodes.push(node);
        Ok(NodeId(id))
    }

    /// Gives a node the name; whatever had it loses it. Nothing when `dir` is not a directory.
    pub(super) fn name(&mut self, dir: NodeId, name: &'a [u8], id: NodeId) -> Result<(), Full> {
        self.names += 1;
        if self.names > self.limit {
            return Err(Full);
        }
        let old = self
            .directory_mut(dir)
            .and_then(|names| names.insert(name, id));
        self.forget_memo(old);
        Ok(())
    }

    /// Takes the name away.
    pub(super) fn remove(&mut self, dir: NodeId, name: &[u8]) {
        let old = self.directory_mut(dir).and_then(|names| names.remove(name));
        self.forget_memo(old);
    }

    /// Takes all names of a directory away.
    pub(super) fn clear(&mut self, dir: NodeId) {
        self.memo = None;
        if let Some(names) = self.directory_mut(dir) {
            names.clear();
        }
    }

    /// What a name means in `dir`. Hard links that are settled lead to what they turned out to be.
    pub(super) fn child(&mut self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        let Shape::Directory(names) = &self.nodes[dir.index()].shape else {
            return None;
        };
        let id = *names.get(name)?;
        Some(self.settled(id))
    }

    /// What a node turned out to be: itself, unless it is a settled hard link. Shortens the way for
    /// the next who asks.
    pub(super) fn settled(&mut self, id: NodeId) -> NodeId {
        let mut end = id;
        while let Shape::Link(_, Some(next)) = self.nodes[end.index()].shape {
            end = next;
        }
        let mut at = id;
        while let Shape::Link(_, next @ Some(_)) = &mut self.nodes[at.index()].shape {
            at = next.replace(end).unwrap_or(end);
        }
        end
    }

    pub(super) fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.nodes[id.index()].shape, Shape::Directory(_))
    }

    pub(super) fn symlink_target(&self, id: NodeId) -> Option<&'a [u8]> {
        match self.nodes[id.index()].shape {
            Shape::File(Entry {
                kind: EntryKind::Symlink { target },
                ..
            }) => Some(target),
            _ => None,
        }
    }

    pub(super) fn remembered(&self, parent: &[u8]) -> Option<NodeId> {
        self.memo
            .filter(|(path, _)| *path == parent)
            .map(|(_, dir)| dir)
    }

    pub(super) fn remember(&mut self, parent: &'a [u8], dir: NodeId) {
        self.memo = Some((parent, dir));
    }

    fn directory_mut(&mut self, dir: NodeId) -> Option<&mut BTreeMap<&'a [u8], NodeId>> {
        match &mut self.nodes[dir.index()].shape {
            Shape::Directory(names) => Some(names),
            _ => None,
        }
    }

    fn forget_memo(&mut self, old: Option<NodeId>) {
        let plain = |id: NodeId| match self.nodes[id.index()].shape {
            Shape::File(entry) => !matches!(entry.kind, EntryKind::Symlink { .. }),
            _ => false,
        };
        if !old.is_none_or(plain) {
            self.memo = None;
        }
    }
}
