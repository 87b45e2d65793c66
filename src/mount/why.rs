//! Why readers of a mount waited: which file, which span of which layer, what it cost, and whether a
//! pack would have avoided it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::blob::ByteRange;
use crate::cache::PAGE_BYTES;
use crate::content::{Cause, Profile, RECORDED, Stall};
use crate::fs::{FilePart, ImageFs};
use crate::oci::Digest;
use crate::pack::HotRange;

/// What a mount knew of its readers before they came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Foreknown {
    /// What earlier starts on this machine touched.
    pub(crate) profile: Profile,
    /// The pack that it uses.
    pub(crate) pack: Option<(Digest, Vec<HotRange>)>,
}

impl Foreknown {
    /// `fs`, told what readers will probably want. What is pushed counts as touched, so the first start
    /// of a command on this machine is not told what other commands read: its profile would be theirs.
    pub(crate) fn told(&self, fs: ImageFs) -> Arc<ImageFs> {
        if self.pack.is_some() || !fs.content().is_learning() {
            fs.foresee(self.addresses(&fs));
        }
        Arc::new(fs)
    }

    /// Layers and addresses that readers will probably want, in order of first use.
    fn addresses(&self, fs: &ImageFs) -> Vec<(u32, ByteRange)> {
        let sizes: Vec<u64> = fs.content().address_sizes().collect();
        let size = |layer: u32| sizes.get(layer as usize).copied().unwrap_or(0);
        let profile = self.profile.touches.iter();
        let profile = profile.map(|t| (t.layer, t.range(size(t.layer))));
        let hot = self.pack.iter().flat_map(|(_, hot)| hot);
        let hot = hot.map(|h| (h.layer, h.range(size(h.layer))));
        match self.profile.touches.is_empty() {
            true => hot.collect(),
            false => profile.collect(),
        }
    }
}

/// The waits of one mount, since it was mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// What was asked for.
    pub image: String,
    /// Digest of the image manifest.
    pub digest: String,
    /// Reads that waited for the network.
    pub stalled_reads: u64,
    /// Milliseconds that they waited, together.
    pub stalled_total_ms: u64,
    /// Digest of the pack that this mount uses.
    pub pack: Option<String>,
    /// The longest waits that are over, in the order in which they began.
    pub stalls: Vec<Wait>,
    /// The waits that go on, those that began first; what they took is what they have taken so far.
    #[serde(default)]
    pub waiting: Vec<Wait>,
    /// Why they go on for so long, when something is the matter with the source.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// One wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// Microseconds from the mount to its beginning.
    pub at_us: u64,
    /// How many microseconds it took.
    pub waited_us: u64,
    /// The file; absent when no file of the merged tree has the bytes. What is not UTF-8 is replaced.
    pub path: Option<String>,
    /// First byte of the file that was waited for.
    pub offset: u64,
    /// How many bytes were waited for.
    pub len: u64,
    /// Blob digest of the layer.
    pub layer: String,
    /// The first span that holds them, as position in the layer's index.
    pub span_first: u64,
    /// How many spans hold them.
    pub spans: u64,
    /// What was waited for.
    pub cause: String,
    /// Streams that were opened because of it.
    pub requests: u64,
    /// Compressed bytes that were asked for because of it.
    pub bytes: u64,
    /// Whether the reader got an error.
    pub failed: bool,
    /// Whether a published pack would have avoided it.
    pub avoidable: Avoidable,
}

/// Whether a pack that is published now, or was, avoids a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Avoidable {
    /// A pack that is published from this start has the pages.
    Publish,
    /// The pack that is used has them; the reader came before they had.
    PackOnItsWay,
    /// Earlier starts here touched them, so they were being prefetched; a pack brings them sooner.
    ProfileOnItsWay,
    /// They were read after the first minute, which no profile covers.
    TooLate,
}

impl Why {
    /// The waits of `fs` so far.
    pub(crate) fn of(image: &str, digest: &str, fs: &ImageFs, known: &Foreknown) -> Why {
        let content = fs.content();
        let stats = content.stats();
        let layer = |n: u32| {
            let layer = stats.layers.get(n as usize);
            layer.map_or_else(String::new, |l| l.digest.to_string())
        };
        let waits = |stalls: &[Stall]| -> Vec<Wait> {
            let wanted: Vec<_> = stalls.iter().map(|s| (s.layer, s.range)).collect();
            let found = stalls.iter().zip(fs.files_at(&wanted));
            found
                .map(|(stall, file)| wait(stall, file, layer(stall.layer), known))
                .collect()
        };
        Why {
            image: image.to_owned(),
            digest: digest.to_owned(),
            stalled_reads: stats.stalled_reads,
            stalled_total_ms: stats.stalled_total_ms,
            pack: known.pack.as_ref().map(|(digest, _)| digest.to_string()),
            stalls: waits(&content.stalls()),
            waiting: waits(&content.waiting()),
            trouble: content.trouble(),
        }
    }
}

fn wait(stall: &Stall, file: Option<FilePart>, layer: String, known: &Foreknown) -> Wait {
    let us = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let cause = match stall.cause {
        Cause::Asked => "asked",
        Cause::Joined => "joined",
        Cause::Pack => "pack",
    };
    Wait {
        at_us: us(stall.at),
        waited_us: us(stall.waited),
        offset: file.as_ref().map_or(0, |f| f.range.start()),
        len: stall.range.len(),
        path: file.map(|f| String::from_utf8_lossy(&f.path).into_owned()),
        layer,
        span_first: stall.spans.start as u64,
        spans: stall.spans.len() as u64,
        cause: cause.to_owned(),
        requests: stall.requests,
        bytes: stall.bytes,
        failed: stall.failed,
        avoidable: avoidable(stall, known),
    }
}

fn avoidable(stall: &Stall, known: &Foreknown) -> Avoidable {
    let pages = stall.range.start() / PAGE_BYTES..stall.range.end().div_ceil(PAGE_BYTES);
    let has = |layer: u32, page: u64, count: u64| {
        layer == stall.layer && page < pages.end && pages.start < page.saturating_add(count)
    };
    let hot = known.pack.as_ref().map_or(&[][..], |(_, hot)| hot);
    if hot.iter().any(|h| has(h.layer, h.page, h.pages)) {
        return Avoidable::PackOnItsWay;
    }
    let mut touches = known.profile.touches.iter();
    // A mount by a pack prefetches nothing else.
    if known.pack.is_none() && touches.any(|t| has(t.layer, t.page, t.pages)) {
        return Avoidable::ProfileOnItsWay;
    }
    match stall.at < RECORDED {
        true => Avoidable::Publish,
        false => Avoidable::TooLate,
    }
}
