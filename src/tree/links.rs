//! Hard links: another name for what the target names when the entry is read.
//!
//! A target that does not exist yet gets a placeholder, which later entries of the layer may replace
//! or link to like any other node. After the last entry the placeholders are settled: tars with
//! links before their targets, and chains of them, exist.

use crate::layer::{Entry, EntryKind, LayerPath};
use crate::tree::draft::{NodeId, Shape};
use crate::tree::error::{MergeError, WalkError};
use crate::tree::merge::Apply;
use crate::tree::walk;

/// How often the placeholders are gone through. A second time is needed only when a link's target
/// is reached through a symbolic link that is itself one of the links.
pub(super) const ROUNDS_MAX: usize = 255;

impl<'a> Apply<'_, 'a> {
    pub(super) fn put_link(
        &mut self,
        entry: &'a Entry,
        target: &'a LayerPath,
    ) -> Result<(), MergeError> {
        let found = self
            .draft
            .find(target)
            .map_err(|reason| self.path_error(target, reason))?;
        if found.is_some_and(|id| self.draft.is_directory(id)) {
            return Err(self.link_error(entry, target, Trouble::Directory));
        }
        let Some((parent, name)) = walk::split_last(&entry.path) else {
            return Err(MergeError::Root { layer: self.layer });
        };
        let dir = self.parent(&entry.path, parent)?;
        if let Some(id) = found {
            let named = self.draft.name(dir, name, id);
            return named.map_err(|_| MergeError::TooManyNodes { layer: self.layer });
        }
        let id = self.add_named(dir, name, Shape::Link(entry, None), None)?;
        self.waiting.push(id);
        Ok(())
    }

    /// Finds out what the layer's placeholders are. One that still has a name must be something.
    pub(super) fn settle_links(&mut self) -> Result<(), MergeError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        for _ in 0..ROUNDS_MAX {
            let before = waiting.len();
            waiting.retain(|id| self.settle(*id).is_some());
            if waiting.is_empty() {
                return Ok(());
            }
            if waiting.len() == before {
                break;
            }
        }
        match self.visible_link() {
            Some(id) => self.refuse(id),
            None => Ok(()),
        }
    }

    /// Tries to settle one placeholder; says what is in the way.
    fn settle(&mut self, id: NodeId) -> Option<Trouble> {
        let (_, target) = self.link(id)?;
        match self.draft.find(target) {
            Err(reason) => Some(Trouble::Path(reason)),
            Ok(None) => Some(Trouble::Missing),
            Ok(Some(end)) if end == id => Some(Trouble::Loop),
            Ok(Some(end)) if self.draft.is_directory(end) => Some(Trouble::Directory),
            Ok(Some(end)) => {
                if let Shape::Link(_, settled) = &mut self.draft.nodes[id.index()].shape {
                    *settled = Some(end);
                }
                None
            }
        }
    }

    fn refuse(&mut self, id: NodeId) -> Result<(), MergeError> {
        let Some((entry, target)) = self.link(id) else {
            return Ok(());
        };
        // Nothing is in its way any more when the rounds ran out just before it was settled.
        let trouble = self.settle(id).unwrap_or(Trouble::Missing);
        Err(self.link_error(entry, target, trouble))
    }

    fn link(&self, id: NodeId) -> Option<(&'a Entry, &'a LayerPath)> {
        match self.draft.nodes[id.index()].shape {
            Shape::Link(
                entry @ Entry {
                    kind: EntryKind::HardLink { target },
                    ..
                },
                _,
            ) => Some((entry, target)),
            _ => None,
        }
    }

    /// A placeholder that is not settled and can be seen: others were replaced by later entries.
    fn visible_link(&mut self) -> Option<NodeId> {
        let mut directories = vec![NodeId::ROOT];
        while let Some(dir) = directories.pop() {
            let Shape::Directory(names) = &self.draft.nodes[dir.index()].shape else {
                continue;
            };
            let children: Vec<NodeId> = names.values().copied().collect();
            for id in children {
                let id = self.draft.settled(id);
                match self.draft.nodes[id.index()].shape {
                    Shape::Directory(_) => directories.push(id),
                    Shape::Link(..) => return Some(id),
                    Shape::File(_) => {}
                }
            }
        }
        None
    }

    fn link_error(&self, entry: &Entry, target: &LayerPath, trouble: Trouble) -> MergeError {
        let (layer, path, target) = (self.layer, entry.path.clone(), target.clone());
        match trouble {
            Trouble::Path(reason) => self.path_error(&target, reason),
            Trouble::Missing => MergeError::LinkMissing {
                layer,
                path,
                target,
            },
            Trouble::Loop => MergeError::LinkLoop {
                layer,
                path,
                target,
            },
            Trouble::Directory => MergeError::LinkDirectory {
                layer,
                path,
                target,
            },
        }
    }
}

/// Why a link cannot be made.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Path(WalkError),
    Missing,
    Loop,
    Directory,
}
