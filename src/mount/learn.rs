//! What one start teaches the next: the profile of what its readers touched, kept when the start is
//! over or the mount ends, whichever comes first.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::cache::Cache;
use crate::content::{Content, Profile};
use crate::oci::{Digest, ImageManifest};

/// When the profile is kept although the mount goes on: nothing is recorded after the first minute.
const KEPT_AFTER: Duration = Duration::from_secs(65);

/// Keeps the profile of one mount.
#[derive(Debug)]
pub(crate) struct Learner {
    cache: Cache,
    key: Digest,
}

impl Learner {
    /// For the image of `manifest`. The key is the list of layers: another tag or configuration over
    /// the same layers shares it.
    pub(crate) fn new(cache: Cache, manifest: &ImageManifest) -> Learner {
        let layers = manifest.layers.iter().map(|l| l.digest.to_string());
        let key = Digest::of(layers.collect::<Vec<_>>().join("\n").as_bytes());
        Learner { cache, key }
    }

    /// Where it is kept.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What starts of the image have touched here, so far.
    pub(crate) fn earlier(&self) -> Profile {
        let stored = self.cache.profile(&self.key);
        let profile = stored.and_then(|bytes| Profile::decode(&bytes));
        profile.unwrap_or_default()
    }

    /// Waits until there is something to keep, or until `ended` hangs up, and keeps it.
    pub(crate) fn run(&self, content: &Content, ended: &Receiver<()>) {
        let waited = ended.recv_timeout(KEPT_AFTER);
        self.keep(content);
        if waited == Err(RecvTimeoutError::Timeout) {
            let _ended = ended.recv();
        }
    }

    fn keep(&self, content: &Content) {
        // Another mount of the image may have kept its own meanwhile.
        let profile = content.profile(&self.earlier());
        // A start that read nothing teaches nothing, and does not age what others taught.
        if profile.touches.iter().all(|touch| touch.starts > 0) {
            return;
        }
        if let Err(error) = self.cache.put_profile(&self.key, &profile.encode()) {
            tracing::debug!(%error, "the profile is not kept");
        }
    }
}
