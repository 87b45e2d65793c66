//! Trees: what is stored is what comes back, and bytes that are not what was stored lead nowhere
//! outside, whoever walks them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsmount::layer::{AddressSink, Geometry, Ingest, IngestOptions, LayerIndex};
use rsmount::oci::Digest;
use rsmount::tree::dump::dump_string;
use rsmount::tree::{Ino, Tree};
use std::io;
use std::sync::Arc;

struct Nowhere;

impl AddressSink for Nowhere {
    fn write(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

fn ingest(blob: &[u8]) -> Option<Arc<LayerIndex>> {
    let mut options = IngestOptions::new(Digest::of(blob), blob.len() as u64);
    options.address_max = 4 << 20;
    options.geometry = Geometry {
        entry_bytes: 64 << 10,
        span_bytes: 16 << 10,
    };
    let mut pass = Ingest::new(options, Nowhere).ok()?;
    pass.push(blob).ok()?;
    pass.finish().ok().map(|(index, _)| Arc::new(index))
}

/// Asks everything that a file system asks, of every inode.
fn walk(tree: &Tree) {
    for ino in (0..=tree.len() as u64 + 1).filter_map(Ino::from_raw) {
        let Some(node) = tree.node(ino) else { continue };
        for (name, child) in tree.children(ino).take(1000) {
            let _ = (tree.lookup(ino, name), tree.node(child));
        }
        let _ = (tree.path(ino), tree.parent(ino), tree.child_count(ino));
        let _ = (tree.symlink_target(ino), tree.visible_xattrs(ino).count());
        let _ = tree.extents_of(&node).iter().take(1000).count();
        let _ = tree.follow(ino, b"a/../b/./symlink");
    }
}

/// The first byte says where the second layer begins; the next two damage what is stored.
fuzz_target!(|bytes: &[u8]| {
    if let Some(tree) = Tree::restore(Box::new(bytes.to_vec())) {
        walk(&tree);
    }
    let [cut, at, mask, blobs @ ..] = bytes else {
        return;
    };
    let (lower, upper) = blobs.split_at((usize::from(*cut) * 512).min(blobs.len()));
    let layers: Vec<_> = [lower, upper].into_iter().filter_map(ingest).collect();
    let Ok(tree) = Tree::merge(&layers) else {
        return;
    };
    let mut stored = Vec::new();
    tree.store(&mut stored).expect("memory");
    let again = Tree::restore(Box::new(stored.clone())).expect("a tree");
    assert_eq!(dump_string(&again), dump_string(&tree));
    let at = usize::from(*at) * stored.len() / 256;
    stored[at] ^= mask;
    if let Some(damaged) = Tree::restore(Box::new(stored)) {
        walk(&damaged);
    }
});
