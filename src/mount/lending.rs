//! Behind a mount of the kernel engine, the layers that are whole are checked page by page, so that
//! the next mount in this boot gives their files to the kernel itself. A mount that is there keeps the
//! devices that it began with: EROFS cannot exchange them.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::cache::{CacheError, StoredLayer};
use crate::mount::selftest;

/// How long a start is left alone before its layers are read.
const PATIENCE: Duration = Duration::from_secs(2);

/// Checks the layers now and whenever `changed` says that more has come. Nobody waits for its end: a
/// mark is written whole or not at all.
pub(super) fn run(layers: &[StoredLayer], changed: &Receiver<()>) {
    let Ok(boot) = selftest::boot() else { return };
    loop {
        match changed.recv_timeout(PATIENCE) {
            Ok(()) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        for layer in layers {
            match check(layer, &boot) {
                Ok(true) => tracing::debug!(layer = %layer.blob(), "may be lent to the kernel"),
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "a layer will not be lent"),
            }
        }
        if changed.recv().is_err() {
            return;
        }
    }
}

fn check(layer: &StoredLayer, boot: &str) -> Result<bool, CacheError> {
    if layer.lendable(boot).is_some() {
        return Ok(true);
    }
    layer.make_lendable(boot, &layer.pages()?)
}
