//! From the draft to the tree: numbers what is left, depth-first in the order of the names, and
//! copies it into flat arrays.

use std::collections::{BTreeMap, btree_map};

use crate::layer::{Entry, EntryKind, Timestamp, Xattr};
use crate::tree::draft::{Draft, DraftNode, NodeId, Shape};
use crate::tree::error::MergeError;
use crate::tree::node::{Ino, LayerId, Node, NodeKind};
use crate::tree::stored::Arrays;
use crate::tree::xattr;
use crate::tree::{Dentry, Tree};

/// What Linux says a directory's size is on most file systems; also the unit of allocation.
const PAGE: u64 = 4096;
/// Of directories that no layer names.
const IMPLIED_MODE: u32 = 0o755;
/// Of symbolic links: Linux gives them all bits and offers no way to change that.
const SYMLINK_MODE: u32 = 0o777;

/// A set of attributes as a key.
type XattrKey<'a> = Vec<(&'a [u8], &'a [u8])>;

/// Makes the tree of what the draft's root reaches.
pub(super) fn freeze(mut draft: Draft<'_>) -> Result<Tree, MergeError> {
    for index in 0..draft.nodes.len() {
        if let Shape::Link(_, Some(id)) = draft.nodes[index].shape {
            draft.settled(id);
        }
    }
    let mut freezer = Freezer {
        inos: vec![None; draft.nodes.len()],
        draft: &draft,
        sets: BTreeMap::from([(Vec::new(), 0)]),
        tree: empty(),
    };
    freezer.run()?;
    Ok(freezer.tree.into_tree())
}

struct Freezer<'d, 'a> {
    draft: &'d Draft<'a>,
    /// Number of each draft node that has one already.
    inos: Vec<Option<Ino>>,
    sets: BTreeMap<XattrKey<'a>, u32>,
    tree: Arrays,
}

/// A directory that is being gone through.
struct Frame<'d, 'a> {
    ino: Ino,
    names: btree_map::Iter<'d, &'a [u8], NodeId>,
    /// Where the next child's dentry goes.
    dentry: usize,
}

impl<'d, 'a> Freezer<'d, 'a> {
    fn run(&mut self) -> Result<(), MergeError> {
        let mut frames = Vec::new();
        frames.extend(self.visit(NodeId::ROOT, Ino::ROOT)?.1);
        while let Some(frame) = frames.last_mut() {
            let Some((name, id)) = frame.names.next() else {
                frames.pop();
                continue;
            };
            let (parent, at) = (frame.ino, frame.dentry);
            frame.dentry += 1;
            let name_start = place(self.tree.names.len())?;
            self.tree.names.extend_from_slice(name);
            let (ino, opened) = self.visit(*id, parent)?;
            let name_len = place(name.len())?;
            self.tree.dentries[at] = Dentry {
                name_start,
                name_len,
                ino,
            };
            frames.extend(opened);
        }
        Ok(())
    }

    /// Numbers a node, or counts one more name of it.
    fn visit(
        &mut self,
        id: NodeId,
        parent: Ino,
    ) -> Result<(Ino, Option<Frame<'d, 'a>>), MergeError> {
        let draft: &'d Draft<'a> = self.draft;
        let mut node = &draft.nodes[id.index()];
        let mut id = id;
        while let Shape::Link(_, Some(next)) = node.shape {
            id = next;
            node = &draft.nodes[id.index()];
        }
        if let Some(ino) = self.inos[id.index()] {
            self.tree.nodes[ino.index()].nlink += 1;
            return Ok((ino, None));
        }
        let ino = Ino::at(self.tree.nodes.len()).ok_or(MergeError::TooMuchText)?;
        self.inos[id.index()] = Some(ino);
        let frozen = self.node(node, parent)?;
        self.tree.nodes.push(frozen);
        let Shape::Directory(names) = &node.shape else {
            return Ok((ino, None));
        };
        if ino != Ino::ROOT {
            self.tree.nodes[parent.index()].nlink += 1;
        }
        let dentry = self.tree.dentries.len();
        let empty = Dentry {
            name_start: 0,
            name_len: 0,
            ino,
        };
        self.tree.dentries.resize(dentry + names.len(), empty);
        self.tree.nodes[ino.index()].body_start = place(dentry)?;
        self.tree.nodes[ino.index()].body_len = place(names.len())?;
        Ok((
            ino,
            Some(Frame {
                ino,
                names: names.iter(),
                dentry,
            }),
        ))
    }

    fn node(&mut self, draft: &DraftNode<'a>, parent: Ino) -> Result<Node, MergeError> {
        let mut node = blank(parent, draft.layer);
        if let Some(entry) = draft.metadata {
            node.mode = entry.mode & 0o7777;
            (node.uid, node.gid, node.mtime) = (entry.uid, entry.gid, entry.mtime);
        }
        if let Shape::File(entry) = draft.shape {
            self.contents(&mut node, entry)?;
        }
        if let Some(entry) = draft.metadata {
            node.xattrs = self.xattr_set(entry, node.kind)?;
        }
        Ok(node)
    }

    fn contents(&mut self, node: &mut Node, entry: &'a Entry) -> Result<(), MergeError> {
        (node.size, node.allocated, node.nlink) = (0, 0, 1);
        match &entry.kind {
            EntryKind::Regular { size, extents } => {
                node.kind = NodeKind::Regular;
                node.size = *size;
                let data = extents
                    .iter()
                    .fold(0u64, |sum, e| sum.saturating_add(e.len));
                node.allocated = data.checked_next_multiple_of(PAGE).unwrap_or(data);
                node.body_start = place(self.tree.extents.len())?;
                node.body_len = place(extents.len())?;
                self.tree.extents.extend_from_slice(extents);
                self.tree.total_bytes = self.tree.total_bytes.saturating_add(*size);
            }
            EntryKind::Symlink { target } => {
                node.kind = NodeKind::Symlink;
                node.mode = SYMLINK_MODE;
                node.size = target.len() as u64;
                node.body_start = place(self.tree.names.len())?;
                node.body_len = place(target.len())?;
                self.tree.names.extend_from_slice(target);
            }
            EntryKind::CharDevice { major, minor } => {
                (node.kind, node.rdev) = (NodeKind::CharDevice, (*major, *minor));
            }
            EntryKind::BlockDevice { major, minor } => {
                (node.kind, node.rdev) = (NodeKind::BlockDevice, (*major, *minor));
            }
            EntryKind::Fifo => node.kind = NodeKind::Fifo,
            // `merge` makes files of nothing else.
            EntryKind::Directory | EntryKind::HardLink { .. } => {}
        }
        Ok(())
    }

    fn xattr_set(&mut self, entry: &'a Entry, kind: NodeKind) -> Result<u32, MergeError> {
        // A directory entry on a link gives the link attributes that Linux would refuse.
        let lent = kind == NodeKind::Symlink && entry.kind == EntryKind::Directory;
        let fits = |x: &&Xattr| !lent || xattr::fits(&x.name, kind);
        let kept = || entry.xattrs.iter().filter(fits);
        let key: XattrKey<'a> = kept().map(|x| (&*x.name, &*x.value)).collect();
        if let Some(set) = self.sets.get(&key) {
            return Ok(*set);
        }
        let set = place(self.tree.xattrs.len())?;
        self.tree.has_xattrs |= kept().any(|x| xattr::shown(&x.name));
        self.tree.has_acls |= kept().any(|x| xattr::is_acl(&x.name));
        self.tree.xattrs.push(kept().cloned().collect());
        self.sets.insert(key, set);
        Ok(set)
    }
}

/// A tree of nothing but a root that nobody named.
pub(super) fn bare() -> Tree {
    let mut tree = empty();
    tree.nodes.push(blank(Ino::ROOT, LayerId(0)));
    tree.into_tree()
}

fn empty() -> Arrays {
    Arrays {
        xattrs: vec![Box::new([])],
        ..Arrays::default()
    }
}

/// An implied directory.
pub(super) fn blank(parent: Ino, layer: LayerId) -> Node {
    Node {
        kind: NodeKind::Directory,
        mode: IMPLIED_MODE,
        uid: 0,
        gid: 0,
        mtime: Timestamp::default(),
        size: PAGE,
        allocated: PAGE,
        nlink: 2,
        rdev: (0, 0),
        parent,
        layer,
        xattrs: 0,
        body_start: 0,
        body_len: 0,
    }
}

/// A position or count in 32 bits.
fn place(n: usize) -> Result<u32, MergeError> {
    u32::try_from(n).map_err(|_| MergeError::TooMuchText)
}
