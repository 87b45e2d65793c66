//! How a layer changes what is below it.
//!
//! OCI image-spec, `layer.md`, "Applying Changesets" and "Whiteouts"; where it is silent, and in one
//! point against it, the behaviour of `umoci unpack --keep-dirlinks` 0.4.7:
//!
//! - First all whiteouts of the layer, on what lower layers have; then its entries in tar order.
//! - The parents of an entry, a whiteout or a hard link's target are reached through the symbolic
//!   links that are there, scoped to the root (`walk`); missing ones are made (0755, 0:0,
//!   time 0), and what is not a directory makes way for one.
//! - A directory on a directory changes its metadata and keeps its children. A directory on a
//!   symbolic link that leads to a directory keeps the link, and the *link* gets the owner, time and
//!   attributes of the entry (the directory behind it is not touched). Here the specification says
//!   that the directory replaces the link; kept, a layer that names `/lib` again as a directory does not
//!   take a merged `/usr` away. Everything else replaces.
//! - A hard link is another name for the inode that its target names at that moment.
//!
//! *Rejected:* whiteouts in their place among the entries. Two entries of the same layer could then
//! hide each other, and the result would depend on the order inside the tar.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::layer::{Entry, EntryKind, LayerIndex, LayerPath, Whiteout};
use crate::tree::Tree;
use crate::tree::draft::{Draft, DraftNode, Full, NodeId, Shape};
use crate::tree::error::{MergeError, WalkError};
use crate::tree::freeze;
use crate::tree::node::LayerId;
use crate::tree::walk::{self, Step};

impl Tree {
    /// Puts layers on top of each other, base first.
    pub fn merge(layers: &[Arc<LayerIndex>]) -> Result<Tree, MergeError> {
        let mut draft = Draft::new();
        for (number, layer) in (0..).zip(layers) {
            Apply {
                draft: &mut draft,
                layer: LayerId(number),
                waiting: Vec::new(),
            }
            .layer(layer)?;
        }
        freeze::freeze(draft)
    }
}

/// One layer on its way into the draft.
pub(super) struct Apply<'d, 'a> {
    pub(super) draft: &'d mut Draft<'a>,
    pub(super) layer: LayerId,
    /// Hard links of this layer whose targets were not there yet.
    pub(super) waiting: Vec<NodeId>,
}

impl<'a> Apply<'_, 'a> {
    pub(super) fn layer(mut self, index: &'a LayerIndex) -> Result<(), MergeError> {
        for whiteout in &index.whiteouts {
            self.hide(whiteout)?;
        }
        for entry in &index.entries {
            self.put(entry)?;
        }
        self.settle_links()
    }

    fn hide(&mut self, whiteout: &'a Whiteout) -> Result<(), MergeError> {
        let (Whiteout::Path(path) | Whiteout::Opaque(path)) = whiteout;
        let opaque = matches!(whiteout, Whiteout::Opaque(_));
        match walk::split_last(path).filter(|_| !opaque) {
            Some((parent, name)) => {
                let steps = self.walk(path, parent)?;
                if let Some(dir) = walk::end(&steps) {
                    self.draft.remove(dir, name);
                }
            }
            None => {
                let steps = self.walk(path, path.as_bytes())?;
                if let Some(dir) = walk::end(&steps) {
                    self.draft.clear(dir);
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, entry: &'a Entry) -> Result<(), MergeError> {
        let Some((parent, name)) = walk::split_last(&entry.path) else {
            if entry.kind != EntryKind::Directory {
                return Err(MergeError::Root { layer: self.layer });
            }
            self.draft.nodes[NodeId::ROOT.index()].metadata = Some(entry);
            return Ok(());
        };
        match &entry.kind {
            EntryKind::Directory => {
                let dir = self.parent(&entry.path, parent)?;
                self.put_directory(dir, name, entry)
            }
            EntryKind::HardLink { target } => self.put_link(entry, target),
            EntryKind::Regular { size, .. } if *size > i64::MAX as u64 => {
                let path = entry.path.clone();
                Err(MergeError::FileTooLong {
                    layer: self.layer,
                    path,
                    size: *size,
                })
            }
            _ => {
                let dir = self.parent(&entry.path, parent)?;
                self.add_named(dir, name, Shape::File(entry), Some(entry))
                    .map(drop)
            }
        }
    }

    fn put_directory(
        &mut self,
        dir: NodeId,
        name: &'a [u8],
        entry: &'a Entry,
    ) -> Result<(), MergeError> {
        if let Some(there) = self.draft.child(dir, name) {
            if self.draft.is_directory(there) || self.leads_to_directory(there, entry)? {
                self.draft.nodes[there.index()].metadata = Some(entry);
                return Ok(());
            }
        }
        self.add_named(dir, name, Shape::Directory(BTreeMap::new()), Some(entry))
            .map(drop)
    }

    /// Whether `link`, which stands at the entry's path, is a symbolic link to a directory. A link
    /// into a loop is not, and is replaced.
    fn leads_to_directory(&mut self, link: NodeId, entry: &'a Entry) -> Result<bool, MergeError> {
        let split =
            walk::split_last(&entry.path).filter(|_| self.draft.symlink_target(link).is_some());
        let Some((parent, name)) = split else {
            return Ok(false);
        };
        let steps = self.walk(&entry.path, parent)?;
        match self.draft.walk(steps, name) {
            Ok(steps) => Ok(walk::end(&steps).is_some_and(|id| self.draft.is_directory(id))),
            Err(WalkError::Loop) => Ok(false),
            Err(reason) => Err(self.path_error(&entry.path, reason)),
        }
    }

    /// The directory that `parent`, the directory part of `path`, leads to; made where it is missing.
    pub(super) fn parent(
        &mut self,
        path: &'a LayerPath,
        parent: &'a [u8],
    ) -> Result<NodeId, MergeError> {
        if let Some(dir) = self.draft.remembered(parent) {
            return Ok(dir);
        }
        let mut dir = NodeId::ROOT;
        for (name, found) in self.walk(path, parent)? {
            dir = match found {
                Some(id) if self.draft.is_directory(id) => id,
                _ if !walk::is_name(name) => return Err(self.path_error(path, WalkError::Name)),
                _ => self.add_named(dir, name, Shape::Directory(BTreeMap::new()), None)?,
            };
        }
        self.draft.remember(parent, dir);
        Ok(dir)
    }

    pub(super) fn add_named(
        &mut self,
        dir: NodeId,
        name: &'a [u8],
        shape: Shape<'a>,
        metadata: Option<&'a Entry>,
    ) -> Result<NodeId, MergeError> {
        let full = |_: Full| MergeError::TooManyNodes { layer: self.layer };
        let node = DraftNode {
            shape,
            metadata,
            layer: self.layer,
        };
        let id = self.draft.add(node).map_err(full)?;
        self.draft.name(dir, name, id).map_err(full)?;
        Ok(id)
    }

    fn walk(&mut self, path: &LayerPath, bytes: &'a [u8]) -> Result<Vec<Step<'a>>, MergeError> {
        let walked = self.draft.walk(Vec::new(), bytes);
        walked.map_err(|reason| self.path_error(path, reason))
    }

    pub(super) fn path_error(&self, path: &LayerPath, reason: WalkError) -> MergeError {
        MergeError::Path {
            layer: self.layer,
            path: path.clone(),
            reason,
        }
    }
}
