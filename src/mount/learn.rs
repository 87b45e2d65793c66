//! What one start teaches the next: the profile of what its readers touched, and indexes that are
//! narrow there. Kept when the start seems to be over, again when nothing is recorded any more, and
//! when the mount ends.
//!
//! A mount that is made for one command learns for the image and for that command: what the next start
//! of the same command reads is known better by its own profile than by that of everything that was
//! ever run in the image.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::cache::Cache;
use crate::content::{Content, Profile};
use crate::mount::narrow;
use crate::oci::command::Given;
use crate::oci::{Digest, ImageConfig, ImageManifest};

/// When a last look is taken although the mount goes on: nothing is recorded after the first minute.
const KEPT_AFTER: Duration = Duration::from_secs(65);

/// A start is taken to be over when nobody touched anything new for as long as this.
const QUIET: Duration = Duration::from_secs(5);

/// What is kept of a command besides what it touched, in bytes of its words.
const SHOWN_BYTES_MAX: usize = 4 << 10;

/// Keeps the profile of one mount.
#[derive(Debug)]
pub(crate) struct Learner {
    cache: Cache,
    manifest: ImageManifest,
    key: Digest,
    /// What it is mounted for; empty when anything may be read.
    command: Vec<String>,
}

/// The profiles of earlier starts.
#[derive(Debug)]
struct Earlier {
    all: Profile,
    of_command: Profile,
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
            command: Vec::new(),
        }
    }

    /// The same for starts of one command: the user's, or what the image says.
    pub(crate) fn of_command(mut self, given: Option<&Given>, config: &ImageConfig) -> Learner {
        let words = given.map(|given| given.words(&config.entrypoint, &config.command));
        self.command = words.unwrap_or_default();
        self
    }

    /// Where it is kept.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// What starts of the image have touched here, so far.
    pub(crate) fn earlier(&self) -> Profile {
        self.stored(None).unwrap_or_default()
    }

    /// What is to be expected of this start, and whether a start like it was recorded: what the
    /// command has touched, else what any has.
    pub(crate) fn expected(&self) -> (Profile, bool) {
        match self.command_key() {
            None => {
                let all = self.earlier();
                let is_known = !all.touches.is_empty();
                (all, is_known)
            }
            Some(key) => match self.stored(Some(&key)) {
                Some(profile) => (profile, true),
                None => (self.earlier(), false),
            },
        }
    }

    /// The commands that were run, each with what it has touched.
    pub(crate) fn commands(&self) -> Vec<Profile> {
        let stored = self.cache.command_profiles(&self.key);
        let profiles = stored.iter().filter_map(|bytes| Profile::decode(bytes));
        profiles.collect()
    }

    /// Stands for the command that it is mounted for.
    fn command_key(&self) -> Option<Digest> {
        let words = &self.command;
        // No word has a NUL in it, so that no two lists are the same.
        (!words.is_empty()).then(|| Digest::of(words.join("\0").as_bytes()))
    }

    fn stored(&self, command: Option<&Digest>) -> Option<Profile> {
        Profile::decode(&self.cache.profile(&self.key, command)?)
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

    fn keep(&self, content: &Content, earlier: &mut Option<Earlier>) {
        // Another mount of the image may have kept its own since this one began.
        let key = self.command_key();
        let earlier = earlier.get_or_insert_with(|| Earlier {
            all: self.earlier(),
            of_command: key
                .as_ref()
                .and_then(|key| self.stored(Some(key)))
                .unwrap_or_default(),
        });
        let profile = content.profile(&earlier.all);
        // A start that read nothing teaches nothing, and does not age what others taught.
        if content.is_poisoned() || profile.touches.iter().all(|touch| touch.starts > 0) {
            return;
        }
        self.put(None, &profile);
        if let Some(key) = &key {
            let mut own = content.profile(&earlier.of_command);
            own.command = shown(&self.command);
            self.put(Some(key), &own);
        }
        narrow::narrow_all(&self.cache, &self.manifest, &profile);
    }

    fn put(&self, command: Option<&Digest>, profile: &Profile) {
        let put = self
            .cache
            .put_profile(&self.key, command, &profile.encode());
        if let Err(error) = put {
            tracing::debug!(%error, "the profile is not kept");
        }
    }
}

/// As much of a command as is kept to be shown.
fn shown(words: &[String]) -> Vec<String> {
    let mut left = SHOWN_BYTES_MAX;
    let fits = |word: &&String| {
        let fits = word.len() < left;
        left = left.saturating_sub(word.len() + 1);
        fits
    };
    words.iter().take_while(fits).cloned().collect()
}
