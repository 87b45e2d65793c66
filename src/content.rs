//! The bytes of an image's layers: read what is present, fetch what is not.
//!
//! A read is answered from the page store of its layer, whose sums are checked. What is absent is
//! fetched by span: the compressed range goes through the layer's decoder, each span's SHA-256 is
//! checked, its pages are stored, and whoever waits for it is told. One fetch serves all readers
//! of a span, and what came along with a span is kept.
//!
//! Nobody who reads ever waits here: [`Content::fetch`] returns at once and calls back from a
//! thread of the network runtime, which starts with the first absent byte.

mod deadline;
mod demand;
mod error;
mod fetch;
mod fill;
pub mod first_contact;
mod flights;
mod fringe;
mod hot;
mod late;
mod pace;
mod prefetch;
pub mod profile;
mod recorder;
mod run;
mod stalls;
mod stats;
mod windows;
pub mod witness;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

pub use error::Error;
pub use late::LateIndex;
pub use profile::Profile;
pub use recorder::RECORDED;
pub use stalls::{Cause, Stall};
pub use stats::{ContentStats, LayerStats, Proof};
pub use windows::{BringWindows, Brought};

use crate::blob::{Blob, BoxFuture, ByteRange};
use crate::cache::{Pages, Presence};
use crate::content::demand::Demand;
use crate::content::flights::Flights;
use crate::content::fringe::Fringe;
use crate::content::hot::Hot;
use crate::content::pace::Pace;
use crate::content::prefetch::Foreseen;
use crate::content::recorder::Recorder;
use crate::content::run::Runs;
use crate::content::stalls::Stalls;
use crate::content::stats::Tally;
use crate::content::windows::Windows;

/// What a reader of absent bytes gets while the source cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outage {
    /// It waits until the source is back.
    #[default]
    Wait,
    /// An error, once the blob's own retries have failed.
    Eio,
    /// An error after this many seconds.
    Seconds(u64),
}

/// When what nobody asked for is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// When readers have been quiet for a while, after one had to wait at all. Where a pack has yet to
    /// be compared with its layers, or what earlier starts touched is absent, none has to.
    #[default]
    Auto,
    /// Never; packs then stay unproven.
    Never,
    /// At once.
    Now,
}

/// How fetching behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// What readers get while the source is away.
    pub outage: Outage,
    /// When the rest is fetched.
    pub fill: Fill,
    /// Whether what earlier starts touched is fetched before anybody asks.
    pub prefetch: bool,
    /// Whether an earlier start like this one was recorded.
    pub is_known: bool,
}

/// Waits until readers want nothing, or for a moment, and gives how many bytes may be asked for then:
/// whoever streams for nobody in particular asks it before each part.
pub type Gate = Arc<dyn Fn() -> BoxFuture<'static, u64> + Send + Sync>;

/// Streams a layer whose index somebody else made, compares, and gives the layer's own pages;
/// [`Error::Lie`] when the index is not that of the layer.
pub type Prove = Arc<dyn Fn(Gate) -> BoxFuture<'static, Result<Pages, Error>> + Send + Sync>;

/// One layer: what is known of it, what is present of it, and where the rest is.
#[derive(Clone)]
pub struct LayerSource {
    /// Its index.
    pub index: LateIndex,
    /// Its pages.
    pub pages: Arc<Pages>,
    /// Its blob.
    pub blob: Arc<dyn Blob>,
    /// Present when `index` has no windows.
    pub windows: Option<BringWindows>,
    /// Present when `index` and `pages` are a pack's, which nobody has compared with the layer.
    pub prove: Option<Prove>,
}

impl std::fmt::Debug for LayerSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerSource")
            .field("blob", self.blob.digest())
            .finish_non_exhaustive()
    }
}

/// One layer with what is in memory of it.
#[derive(Debug)]
struct Layer {
    number: u32,
    source: LayerSource,
    fringe: Fringe,
    runs: Runs,
    /// Windows that the index lacks, as they come.
    windows: Windows,
    /// The layer's own pages, once a pack has been proven by streaming it.
    proven: OnceLock<Pages>,
}

impl Layer {
    /// Its own pages, whose bytes were verified against the image; nothing as long as there are only
    /// those of a pack.
    fn own(&self) -> Option<&Pages> {
        match self.source.prove {
            None => Some(&self.source.pages),
            Some(_) => self.proven.get(),
        }
    }

    /// Whether all of it can be read from here. One that was proven without room for it is read from
    /// the pack's pages.
    fn is_complete(&self) -> bool {
        self.source.pages.is_complete() || self.proven.get().is_some_and(Pages::is_complete)
    }
}

/// What whoever serves the content hears of it, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The image has become whole.
    Complete,
    /// All pages of one of its layers have come, and nobody has seen yet that they are the layer.
    Layer,
    /// A pack was found to lie: nothing is given out any more.
    Poisoned,
}

/// Hears notices.
pub type OnNotice = Box<dyn Fn(Notice) + Send + Sync>;

/// Who hears notices, and those that came before there was anybody.
#[derive(Default)]
struct Notices {
    hears: Option<Arc<OnNotice>>,
    early: Vec<Notice>,
}

/// The bytes of the layers of one image.
pub struct Content {
    layers: Vec<Layer>,
    options: Options,
    flights: Flights,
    tally: Tally,
    stalls: Stalls,
    pace: Pace,
    hot: Hot,
    /// Set for ever when a pack was found to lie.
    poisoned: AtomicBool,
    demand: Demand,
    /// What earlier starts touched, until it is prefetched.
    profile: Mutex<Option<Profile>>,
    /// What the profile still has to bring.
    foreseen: Foreseen,
    recorder: Recorder,
    /// Whether no start like this one was recorded, and this one goes on.
    learning: AtomicBool,
    notices: Mutex<Notices>,
    runtime: OnceLock<Result<Runtime, String>>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Content")
            .field("layers", &self.layers)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        // The last one to hold it may be one of its own threads, which cannot wait for themselves.
        if let Some(Ok(runtime)) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Content {
    /// The content of `layers`, base first; `profile` is what earlier starts touched.
    /// `runtime` is one that runs already, if any.
    pub fn new(
        layers: Vec<LayerSource>,
        options: Options,
        profile: Profile,
        runtime: Option<Runtime>,
    ) -> Arc<Content> {
        let recorder = Recorder::new(layers.iter().map(|l| l.pages.size()));
        let total = layers.iter().map(|l| l.pages.size()).sum();
        let layer = |(number, source): (u32, LayerSource)| Layer {
            number,
            fringe: Fringe::new(source.pages.size(), total),
            runs: Runs::default(),
            windows: Windows::default(),
            proven: OnceLock::new(),
            source,
        };
        Arc::new(Content {
            layers: (0..).zip(layers).map(layer).collect(),
            options,
            flights: Flights::default(),
            tally: Tally::default(),
            stalls: Stalls::default(),
            pace: Pace::default(),
            hot: Hot::default(),
            poisoned: AtomicBool::new(false),
            demand: Demand::default(),
            learning: AtomicBool::new(!options.is_known),
            profile: Mutex::new(Some(if options.prefetch {
                profile
            } else {
                Profile::default()
            })),
            foreseen: Foreseen::default(),
            recorder,
            notices: Mutex::default(),
            runtime: runtime.map_or_else(OnceLock::new, |r| OnceLock::from(Ok(r))),
        })
    }

    /// Starts what does not wait for a reader: [`Fill::Now`], the proof of packs, and the prefetch of
    /// what earlier starts touched.
    pub fn start(self: &Arc<Self>, on_notice: OnNotice) {
        let (on_notice, early) = {
            let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
            let on_notice: Arc<OnNotice> = Arc::new(on_notice);
            notices.hears = Some(on_notice.clone());
            (on_notice, std::mem::take(&mut notices.early))
        };
        early.into_iter().for_each(|notice| on_notice(notice));
        let unproven = self.layers.iter().any(|l| l.source.prove.is_some());
        if (self.options.fill == Fill::Now && !self.is_complete() || unproven || self.is_expected())
            && let Err(error) = self.begin()
        {
            tracing::warn!(%error, "not filling");
        }
    }

    /// Whether this is the first start of its kind here, which goes on: what it touches is worth more
    /// than that it touches it fast.
    pub fn is_learning(&self) -> bool {
        self.learning.load(Ordering::Relaxed)
    }

    /// Whether reading ahead costs nothing and blurs nothing.
    pub fn allows_read_ahead(&self) -> bool {
        self.is_complete() && !self.is_learning()
    }

    /// The first start is over.
    pub fn learned(&self) {
        self.learning.store(false, Ordering::Relaxed);
    }

    /// How many ranges this mount's readers have touched so far.
    pub fn touched(&self) -> usize {
        self.recorder.len()
    }

    /// What this mount's readers touched so far, with what earlier starts did.
    pub fn profile(&self, earlier: &Profile) -> Profile {
        self.recorder.profile().merged(earlier)
    }

    /// Whether something that earlier starts touched is absent.
    fn is_expected(&self) -> bool {
        let profile = self.profile.lock().unwrap_or_else(PoisonError::into_inner);
        let absent = |touch: &profile::Touch| {
            let of = self.layer(touch.layer);
            of.is_ok_and(|l| {
                let range = touch.range(l.source.pages.size());
                !l.source.pages.is_present(range)
            })
        };
        profile
            .as_ref()
            .is_some_and(|p| p.touches.iter().any(absent))
    }

    fn notify(&self, notice: Notice) {
        let hears = {
            let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
            if notices.hears.is_none() {
                notices.early.push(notice);
            }
            notices.hears.clone()
        };
        if let Some(on_notice) = hears {
            on_notice(notice);
        }
    }

    /// Whether a pack was found to lie.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::SeqCst)
    }

    /// Somebody else has found out that the pack lies, which this content may have given out.
    pub fn is_found_out(&self) {
        let unproven = |l: &Layer| l.source.prove.is_some() && l.proven.get().is_none();
        if !self.is_poisoned() && self.layers.iter().any(unproven) {
            tracing::error!("another mount has found the pack to lie: nothing more is given out");
            self.poison();
        }
    }

    /// Nothing is given out from now on.
    fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
        self.notify(Notice::Poisoned);
    }

    /// Copies `range` of layer `layer` to `out`, which has its length, if it is present; never
    /// waits. `scratch` is kept by the caller so that no read allocates.
    pub fn read(
        &self,
        layer: u32,
        range: ByteRange,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<Presence, Error> {
        if self.poisoned.load(Ordering::Relaxed) {
            return Err(Error::Poisoned);
        }
        self.recorder.touch(layer, range);
        let layer = self.layer(layer)?;
        if let Some(proven) = layer.proven.get()
            && proven.read(range, out, scratch)? == Presence::Read
        {
            return Ok(Presence::Read);
        }
        match layer.source.pages.read(range, out, scratch)? {
            Presence::Read => Ok(Presence::Read),
            Presence::Absent => layer.fringe.read(&layer.source.pages, range, out, scratch),
        }
    }

    /// The same in place: where in `buffer` the bytes are, which holds whole pages of one store then.
    /// `None` also for bytes that [`Content::read`] finds in several places.
    pub fn read_in(
        &self,
        layer: u32,
        range: ByteRange,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Range<usize>>, Error> {
        if self.poisoned.load(Ordering::Relaxed) {
            return Err(Error::Poisoned);
        }
        self.recorder.touch(layer, range);
        let layer = self.layer(layer)?;
        if let Some(proven) = layer.proven.get()
            && let Some(found) = proven.read_in(range, buffer)?
        {
            return Ok(Some(found));
        }
        Ok(layer.source.pages.read_in(range, buffer)?)
    }

    /// The same for what nobody has asked for yet: it counts as touched only when it is here.
    pub fn read_foreseen(
        &self,
        layer: u32,
        range: ByteRange,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Range<usize>>, Error> {
        match self.is_present(layer, range) {
            true => self.read_in(layer, range, buffer),
            false => Ok(None),
        }
    }

    /// Lengths of the layers' address spaces, base first.
    pub fn address_sizes(&self) -> impl Iterator<Item = u64> {
        self.layers.iter().map(|l| l.source.pages.size())
    }

    /// Whether `range` of layer `layer` is present, as far as the bits say.
    pub fn is_present(&self, layer: u32, range: ByteRange) -> bool {
        let of = self.layer(layer);
        of.is_ok_and(|l| {
            let proven = l.proven.get().is_some_and(|pages| pages.is_present(range));
            proven || l.source.pages.is_present(range)
        })
    }

    /// Counts a request that was made for this content from outside.
    pub fn count_request(&self) {
        self.tally.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes that were fetched for this content from outside.
    pub fn count_fetched(&self, bytes: u64) {
        self.tally.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether everything is present, as far as the bits say.
    pub fn is_complete(&self) -> bool {
        self.layers.iter().all(Layer::is_complete)
    }

    /// Counts bytes that were found not to have the digest that they must have.
    pub fn count_failure(&self) {
        self.tally.verify_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells when what came has made a layer whole.
    fn look_whole(&self, layer: u32) {
        let own = self.layer(layer).ok().and_then(|l| l.own());
        if own.is_some_and(|pages| pages.is_complete() && !pages.is_verified()) {
            self.notify(Notice::Layer);
        }
    }

    /// The numbers so far.
    pub fn stats(&self) -> ContentStats {
        let layer = |l: &Layer| LayerStats {
            digest: l.source.blob.digest().clone(),
            compressed_bytes: l.source.blob.size(),
            address_bytes: l.source.pages.size(),
            // A layer that was proven without room for it is read from the pack's pages.
            present_bytes: (l.proven.get().map_or(0, Pages::present_bytes))
                .max(l.source.pages.present_bytes()),
            verified: l.own().is_some_and(Pages::is_verified),
            proof: match (&l.source.prove, l.proven.get()) {
                (None, _) => Proof::Own,
                (Some(_), None) => Proof::Missing,
                (Some(_), Some(_)) => Proof::Given,
            },
        };
        let layers = self.layers.iter().map(layer).collect();
        let mut stats = self.tally.stats(self.stalls.waiting(), layers);
        stats.outage |= self.demand.is_stalled();
        stats
    }

    /// Why readers wait for longer than a fetch takes, when they do.
    pub fn trouble(&self) -> Option<String> {
        let nothing = || "the source gives nothing".to_owned();
        let trouble = || self.tally.trouble().unwrap_or_else(nothing);
        self.stats().outage.then(trouble)
    }

    fn layer(&self, layer: u32) -> Result<&Layer, Error> {
        self.layers
            .get(layer as usize)
            .ok_or(Error::NoSuchLayer(layer))
    }
}
