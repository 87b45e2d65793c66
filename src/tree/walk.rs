//! Where a path of a layer leads in the draft: through the symbolic links that are there, never out
//! of the root.
//!
//! The rules are those of a scoped join (SecureJoin, which the unpackers use): `..` stops at the
//! root, an absolute target starts there again, and what does not exist is taken as it is spelled.

use crate::layer::LayerPath;
use crate::layer::path::{NAME_BYTES_MAX, PATH_DEPTH_MAX};
use crate::tree::draft::{Draft, NodeId};
use crate::tree::error::WalkError;

/// Symbolic links followed for one path of a layer: as many as SecureJoin follows.
pub(super) const LINKS_MAX: usize = 255;
/// Bytes of link targets that one merge walks. Every path may cost 255 targets of 4 KiB, so a small
/// layer could keep a merge busy for hours; a large distribution image needs about 1 MiB.
pub(super) const EXPANDED_BYTES_MAX: u64 = 256 << 20;

/// One name on the way, and what it means; `None` when there is nothing.
pub(super) type Step<'a> = (&'a [u8], Option<NodeId>);

/// The first component and what follows its slash.
pub(super) fn split_first(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().position(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (path, &[]),
    }
}

/// The directory part and the last name; `None` for the root.
pub(super) fn split_last(path: &LayerPath) -> Option<(&[u8], &[u8])> {
    let bytes = path.as_bytes();
    match bytes.iter().rposition(|b| *b == b'/') {
        Some(at) => Some((&bytes[..at], &bytes[at + 1..])),
        None if bytes.is_empty() => None,
        None => Some((&[], bytes)),
    }
}

/// What a walk came to: its last step, or the root.
pub(super) fn end(steps: &[Step<'_>]) -> Option<NodeId> {
    steps.last().map_or(Some(NodeId::ROOT), |(_, id)| *id)
}

impl<'a> Draft<'a> {
    /// Follows `path` from where `steps` (real names, root first) have come to. The result names
    /// no symbolic link.
    pub(super) fn walk(
        &mut self,
        mut steps: Vec<Step<'a>>,
        path: &'a [u8],
    ) -> Result<Vec<Step<'a>>, WalkError> {
        let mut rest = vec![path];
        let mut followed = 0;
        while let Some(text) = rest.pop() {
            let (name, tail) = split_first(text);
            if !tail.is_empty() {
                rest.push(tail);
            }
            match name {
                b"" | b"." => continue,
                b".." => {
                    steps.pop();
                    continue;
                }
                _ => {}
            }
            let child = end(&steps).and_then(|dir| self.child(dir, name));
            let Some(target) = child.and_then(|id| self.symlink_target(id)) else {
                steps.push((name, child));
                if steps.len() > PATH_DEPTH_MAX {
                    return Err(WalkError::TooDeep);
                }
                continue;
            };
            followed += 1;
            if followed > LINKS_MAX {
                return Err(WalkError::Loop);
            }
            self.expanded += target.len() as u64;
            if self.expanded > EXPANDED_BYTES_MAX {
                return Err(WalkError::TooMuchWork);
            }
            if target.starts_with(b"/") {
                steps.clear();
            }
            rest.push(target);
        }
        Ok(steps)
    }

    /// What is at `path`, the last name not followed; `None` when there is nothing.
    pub(super) fn find(&mut self, path: &'a LayerPath) -> Result<Option<NodeId>, WalkError> {
        let Some((parent, name)) = split_last(path) else {
            return Ok(Some(NodeId::ROOT));
        };
        let steps = self.walk(Vec::new(), parent)?;
        Ok(end(&steps).and_then(|dir| self.child(dir, name)))
    }
}

/// Whether a directory may hold the name. Layer paths are checked already, link targets are not.
pub(super) fn is_name(name: &[u8]) -> bool {
    name.len() <= NAME_BYTES_MAX && !name.contains(&0)
}
