//! What one start teaches the next: the profile of what its readers touched, and indexes that are
//! narrow there. Kept when the start seems to be over, again when nothing is recorded any more, and
//! when the mount ends.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::cache::Cache;
use crate::content::{Content, Profile};
use crate::mount::narrow;
use crate::oci::{Digest, ImageManifest};

/// When a last look is taken although the mount goes on: nothing is recorded after the first minute.
const KEPT_AFTER: Duration = Duration::from_secs(65);

/// A start is taken to be over when nobody touched anything new for as long as this.
const QUIET: Duration = Duration::from_secs(5);

/// Keeps the profile of one mount.
#[derive(Debug)]
pub(crate) struct Learner {
    cache: Cache,
    manifest: ImageManifest,
    key: Digest,
}

impl Learner {
    /// For the image of `manifest`. The key is the list of layers: another tag or configuration over
    /// the same layers shares it.
    pub(crate) fn new(cache: Cache, manifest: &ImageManifest) -> Learner {
        let layers = manifest.layers.iter().map(|l| l.digest.to_string());
        let key = Digest::of(layers.collect::<Vec<_>>().join("\n").as_bytes());
        Learner {
            cache,
            manifest: manifest.clone(),
            key,
        }
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

    /// Keeps what there is to keep until `ended` hangs up; `started` is called once, when the start
    /// seems to be over.
    pub(crate) fn run(self, content: &Content, ended: &Receiver<()>, started: impl FnOnce()) {
        let began = Instant::now();
        let mut started = Some(started);
        // What this mount keeps does not age what it keeps later.
        let mut earlier = None;
        let mut touched = 0;
        while ended.recv_timeout(QUIET) == Err(RecvTimeoutError::Timeout) {
            let now = content.touched();
            let is_quiet = now > 0 && now == touched;
            touched = now;
            let is_over = began.elapsed() >= KEPT_AFTER;
            if (is_quiet || is_over)
                && let Some(started) = started.take()
            {
                started();
                self.keep(content, &mut earlier);
            }
            if is_over {
                self.keep(content, &mut earlier);
                let _ended = ended.recv();
                return;
            }
        }
        self.keep(content, &mut earlier);
    }

    fn keep(&self, content: &Content, earlier: &mut Option<Profile>) {
        // Another mount of the image may have kept its own since this one began.
        let earlier = earlier.get_or_insert_with(|| self.earlier());
        let profile = content.profile(earlier);
        // A start that read nothing teaches nothing, and does not age what others taught.
        if content.is_poisoned() || profile.touches.iter().all(|touch| touch.starts > 0) {
            return;
        }
        if let Err(error) = self.cache.put_profile(&self.key, &profile.encode()) {
            tracing::debug!(%error, "the profile is not kept");
        }
        narrow::narrow_all(&self.cache, &self.manifest, &profile);
    }
}
