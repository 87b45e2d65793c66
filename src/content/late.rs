//! The index of a layer, decoded when it is first needed: a mount of an image whose tree is known and
//! whose bytes are here needs none.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use crate::layer::LayerIndex;

/// An index that is there, or that is loaded by the first who looks into it. Clones share it.
#[derive(Clone)]
pub struct LateIndex(Arc<Late>);

struct Late {
    index: OnceLock<Arc<LayerIndex>>,
    load: Box<dyn Fn() -> Arc<LayerIndex> + Send + Sync>,
}

impl LateIndex {
    /// One that `load` gives. It may take some milliseconds. When the index cannot be had any more
    /// it gives one without spans, by which nothing can be fetched.
    pub fn new(load: impl Fn() -> Arc<LayerIndex> + Send + Sync + 'static) -> LateIndex {
        LateIndex(Arc::new(Late {
            index: OnceLock::new(),
            load: Box::new(load),
        }))
    }

    /// The index.
    pub fn get(&self) -> &Arc<LayerIndex> {
        self.0.index.get_or_init(|| (self.0.load)())
    }
}

impl From<Arc<LayerIndex>> for LateIndex {
    fn from(index: Arc<LayerIndex>) -> LateIndex {
        LateIndex::new(move || index.clone())
    }
}

impl Deref for LateIndex {
    type Target = LayerIndex;

    fn deref(&self) -> &LayerIndex {
        self.get()
    }
}

impl fmt::Debug for LateIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LateIndex")
            .field(&self.0.index.get().is_some())
            .finish()
    }
}
