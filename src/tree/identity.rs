//! What whoever has used a tree may remember of it, as one digest: two processes that serve one mount,
//! one after the other, must have the same.

use crate::oci::Digest;
use crate::oci::digest::{Algorithm, Hasher};
use crate::tree::Tree;
use crate::tree::node::{Ino, NodeKind};

impl Tree {
    /// Digest of which number means what: metadata, names, link targets, attributes, and where the
    /// bytes of files are.
    pub fn identity(&self) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut line = Vec::new();
        for ino in (0..self.len()).filter_map(Ino::at) {
            line.clear();
            self.describe(ino, &mut line);
            hasher.update(&(line.len() as u64).to_le_bytes());
            hasher.update(&line);
        }
        hasher.finish()
    }

    fn describe(&self, ino: Ino, out: &mut Vec<u8>) {
        let Some(node) = self.node(ino) else { return };
        let number = |out: &mut Vec<u8>, n: u64| out.extend_from_slice(&n.to_le_bytes());
        let bytes = |out: &mut Vec<u8>, bytes: &[u8]| {
            number(out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        };
        out.push(match node.kind {
            NodeKind::Directory => 0,
            NodeKind::Regular => 1,
            NodeKind::Symlink => 2,
            NodeKind::CharDevice => 3,
            NodeKind::BlockDevice => 4,
            NodeKind::Fifo => 5,
        });
        for n in [node.mode, node.uid, node.gid, node.nlink] {
            number(out, n.into());
        }
        number(out, node.rdev.0.into());
        number(out, node.rdev.1.into());
        number(out, node.mtime.seconds.cast_unsigned());
        number(out, node.mtime.nanoseconds.into());
        number(out, node.size);
        number(out, self.parent(ino).get());
        for (name, child) in self.children(ino) {
            bytes(out, name);
            number(out, child.get());
        }
        bytes(out, self.symlink_target(ino).unwrap_or_default());
        let (layer, extents) = self.extents(ino);
        number(out, layer.0.into());
        for extent in extents.iter() {
            number(out, extent.file_offset);
            number(out, extent.address);
            number(out, extent.len);
        }
        for xattr in self.xattrs(ino) {
            bytes(out, &xattr.name);
            bytes(out, &xattr.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::tree::tests::{adds, dir, file, merged};

    #[test]
    fn what_is_the_same_has_the_same_and_what_differs_has_not() {
        let of = |names: [&str; 3]| {
            let entries = vec![dir(names[0], 1), file(names[1], 2), file(names[2], 3)];
            merged(&[adds(entries)]).identity()
        };
        let one = of(["d", "d/a", "d/b"]);
        assert_eq!(one, of(["d", "d/a", "d/b"]));
        assert_ne!(one, of(["d", "d/a", "d/c"]));
        assert_ne!(one, of(["d", "d/a", "b"]));
    }
}
