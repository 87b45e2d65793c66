//! The merged tree of an image: loaded from the cache, or made of the layers' indexes and kept there.
//!
//! A mount of an image whose tree is kept makes nothing: with the kernel engine it does not even look at
//! it, and no index is decoded before a byte has to be fetched. The file is used where it is, after it
//! was checked whole, so a further mount of an image has no tree of its own.
//!
//! Should the file be cut short or its disk fail while it is in use, the kernel kills the worker
//! (SIGBUS), before it has answered with what is not there. The keeper starts the next one, which
//! checks the file, and makes the tree anew; whoever asked waits. Rejected: to catch the signal and
//! read zeros instead, which takes a handler that every answer has to look at afterwards; and to read the
//! file piece by piece, sixteen calls for each name that is looked up.

use std::sync::Arc;

use crate::cache::{Cache, Derived};
use crate::content::LateIndex;
use crate::fs::LoadTree;
use crate::layer::LayerIndex;
use crate::oci::Digest;
use crate::tree::{MergeError, Tree};

/// What is stored: the format's version (see [`crate::tree::stored`]), and this program's.
const KIND: &str = concat!("tree-1-", env!("CARGO_PKG_VERSION"));

/// Whether the tree of the image `key` is kept here.
pub(super) fn is_known(cache: &Cache, key: &Digest) -> bool {
    cache.has_derived(key, KIND)
}

/// Gives the tree that is kept, later. When it turns out to be damaged it is made anew; when that is
/// not possible either, there are no names.
pub(super) fn late(cache: &Cache, key: &Digest, indexes: &[LateIndex]) -> LoadTree {
    let (cache, key, indexes) = (cache.clone(), key.clone(), indexes.to_vec());
    Box::new(move || {
        if let Some(tree) = load(&cache, &key) {
            return tree;
        }
        let made = make(&cache, Some(&key), &indexes);
        made.unwrap_or_else(|error| {
            tracing::error!(%error, "the tree that was known is lost");
            Tree::bare()
        })
    })
}

fn load(cache: &Cache, key: &Digest) -> Option<Tree> {
    mapped(&cache.derived(key, KIND, &mut |_| {})?)
}

fn mapped(derived: &Derived) -> Option<Tree> {
    let mapped = derived.map();
    let mapped = mapped.inspect_err(|error| tracing::warn!(%error, "a stored tree is not used"));
    Tree::restore(Box::new(mapped.ok()?))
}

/// Makes the tree; kept when there is a `key`.
pub(super) fn make(
    cache: &Cache,
    key: Option<&Digest>,
    indexes: &[LateIndex],
) -> Result<Tree, MergeError> {
    let indexes: Vec<Arc<LayerIndex>> = indexes.iter().map(|i| i.get().clone()).collect();
    let tree = Tree::merge(&indexes)?;
    if key.is_none() {
        return Ok(tree);
    }
    match cache.derive(key, KIND, &mut |out| tree.store(out)) {
        // What others share instead of what nobody else has.
        Ok(derived) => Ok(mapped(&derived).unwrap_or(tree)),
        Err(error) => {
            tracing::warn!(%error, "the tree is made anew next time");
            Ok(tree)
        }
    }
}
