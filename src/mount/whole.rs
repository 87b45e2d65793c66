//! Behind a mount, layers that have become whole are verified: all bytes of the cache, once, by the
//! digest of the uncompressed tar. For the kernel engine every page is checked once in each boot as
//! well, so that the next mount in this boot gives their files to the kernel itself. A mount that is
//! there keeps the devices that it began with: EROFS cannot exchange them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use crate::cache::{CacheError, StoredLayer, Whole};
use crate::fs::ImageFs;
use crate::mount::selftest;
use crate::oci::Digest;

/// How long nothing more must have become whole before layers are read: a start is left alone.
const PATIENCE: Duration = Duration::from_secs(2);

/// The layers of one mount, and who looks at them.
#[derive(Debug)]
pub(super) struct Wholes {
    /// Those whose index was made here, each with the digest of its uncompressed tar.
    layers: Vec<(StoredLayer, Digest)>,
    /// Whether they are made lendable.
    lends: bool,
    fs: Arc<ImageFs>,
    running: AtomicBool,
    again: AtomicBool,
}

impl Wholes {
    pub(super) fn new(
        layers: Vec<(StoredLayer, Digest)>,
        lends: bool,
        fs: &Arc<ImageFs>,
    ) -> Arc<Wholes> {
        Arc::new(Wholes {
            layers,
            lends,
            fs: fs.clone(),
            running: AtomicBool::new(false),
            again: AtomicBool::new(false),
        })
    }

    /// Looks at what may be whole since before this mount, if there is any.
    pub(super) fn begin(self: &Arc<Self>) {
        let is_new = |(layer, _): &(StoredLayer, Digest)| {
            let pages = layer.pages();
            pages.is_ok_and(|pages| pages.is_complete() && !pages.is_verified())
        };
        if self.lends || self.layers.iter().any(is_new) {
            self.look_soon();
        }
    }

    /// Looks at the layers on a thread of its own, which ends. Nobody waits for its end: a mark is
    /// written whole or not at all.
    pub(super) fn look_soon(self: &Arc<Self>) {
        self.again.store(true, SeqCst);
        if self.running.swap(true, SeqCst) {
            return;
        }
        let wholes = self.clone();
        let started = std::thread::Builder::new()
            .name("whole".into())
            .spawn(move || wholes.run());
        if let Err(error) = started {
            tracing::warn!(%error, "layers that are whole are not verified");
            self.running.store(false, SeqCst);
        }
    }

    fn run(&self) {
        loop {
            while self.again.swap(false, SeqCst) {
                std::thread::sleep(PATIENCE);
            }
            self.look();
            self.running.store(false, SeqCst);
            if !self.again.load(SeqCst) || self.running.swap(true, SeqCst) {
                return;
            }
        }
    }

    fn look(&self) {
        let boot = self.lends.then(selftest::boot).and_then(Result::ok);
        for (layer, diff_id) in &self.layers {
            match check(layer, diff_id, boot.as_deref()) {
                Ok(Whole::Verified) => tracing::debug!(layer = %layer.blob(), "is whole"),
                Ok(Whole::Incomplete) => {}
                Ok(Whole::Different) => self.distrust(layer),
                Err(error) => tracing::debug!(%error, "a layer was not looked at"),
            }
        }
    }

    /// Every span had its digest, so it is the index that is wrong.
    fn distrust(&self, layer: &StoredLayer) {
        tracing::error!(layer = %layer.blob(), "is not what its image says; the next mount fetches it anew");
        self.fs.content().count_failure();
        if let Err(error) = layer.forget() {
            tracing::error!(%error, "it cannot be forgotten");
        }
    }
}

fn check(layer: &StoredLayer, diff_id: &Digest, boot: Option<&str>) -> Result<Whole, CacheError> {
    if boot.is_some_and(|boot| layer.lendable(boot).is_some()) {
        return Ok(Whole::Verified);
    }
    let pages = layer.pages()?;
    if !pages.is_complete() {
        return Ok(Whole::Incomplete);
    }
    let lent = boot.map(|boot| layer.make_lendable(boot, &pages, diff_id));
    match lent.transpose()? {
        Some(lent @ (Whole::Verified | Whole::Different)) => Ok(lent),
        _ if pages.is_verified() => Ok(Whole::Verified),
        // What may not be lent is verified all the same.
        _ => pages.verify_whole(diff_id),
    }
}
