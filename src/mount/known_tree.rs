//! The merged tree of an image: loaded from the cache, or made of the layers' indexes and kept there.
//!
//! A mount of an image whose tree is kept makes nothing: with the kernel engine it does not even load
//! it, and no index is decoded before a byte has to be fetched.

use std::sync::Arc;

use crate::cache::Cache;
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
    let mut bytes = Vec::new();
    cache.derived(key, KIND, &mut |piece| bytes.extend_from_slice(piece))?;
    Tree::restore(&bytes)
}

/// Makes the tree; kept when there is a `key`.
pub(super) fn make(
    cache: &Cache,
    key: Option<&Digest>,
    indexes: &[LateIndex],
) -> Result<Tree, MergeError> {
    let indexes: Vec<Arc<LayerIndex>> = indexes.iter().map(|i| i.get().clone()).collect();
    let tree = Tree::merge(&indexes)?;
    if key.is_some()
        && let Err(error) = cache.derive(key, KIND, &mut |out| tree.store(out))
    {
        tracing::warn!(%error, "the tree is made anew next time");
    }
    Ok(tree)
}
