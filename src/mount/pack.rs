//! Mounting by a pack. What comes from it is kept apart ([`Cache::pack_pages`]) and proven behind the
//! mount, by streaming the layers.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::blob::{self, Blob, ByteRange};
use crate::cache::{Begin, Cache, Pages, Presence, StoredLayer};
use crate::content::first_contact::{self, Wanted};
use crate::content::witness::{Claim, Witness};
use crate::content::{self, Brought, LayerSource};
use crate::layer::limit::Share;
use crate::layer::{LayerIndex, SpanStart, codec};
use crate::monitor::{Event, Monitor};
use crate::mount::discover::Pack;
use crate::mount::source::LateSource;
use crate::oci::{Digest, ImageManifest};
use crate::pack::meta::without_windows;
use crate::pack::windows::Places;
use crate::pack::{HotRange, PackError, windows};

/// One layer as the pack has it.
pub(crate) fn layer(
    pack: &Pack,
    at: usize,
    cache: &Cache,
    late: &Arc<LateSource>,
    manifest: &ImageManifest,
) -> Result<LayerSource, crate::cache::CacheError> {
    let index = Arc::new(pack.meta.layers[at].clone());
    let number = u32::try_from(at).unwrap_or(u32::MAX);
    let pages = Arc::new(cache.pack_pages(&pack.digest, number, index.address_size)?);
    let blob = late.blob(manifest.layers[at].clone());
    let part = late.blob(pack.manifest.windows[at].clone());
    let part = WindowPart {
        places: pack
            .meta
            .windows
            .get(at)
            .and_then(|lengths| Places::new(&index, lengths, part.size())),
        blob: part,
        index: index.clone(),
        whole: OnceCell::new(),
    };
    let part = Arc::new(part);
    let proof = Proof {
        cache: cache.clone(),
        pack: pack.digest.clone(),
        index: index.clone(),
        hot: of_layer(&pack.meta.hot, number),
        wanted: Wanted {
            descriptor: manifest.layers[at].clone(),
            diff_id: index.diff_id.clone(),
            blob: blob.clone(),
            sole: false,
        },
        pages: pages.clone(),
    };
    Ok(LayerSource {
        index: index.into(),
        pages,
        blob,
        windows: Some(Arc::new(move |spans| {
            let part = part.clone();
            Box::pin(async move { part.bring(spans).await })
        })),
        prove: Some(Arc::new(move |gate| {
            let proof = proof.clone();
            Box::pin(proof.run(gate))
        })),
    })
}

fn of_all(blob: &dyn Blob) -> ByteRange {
    ByteRange::new(0, blob.size())
}

fn of_layer(hot: &[HotRange], number: u32) -> Vec<HotRange> {
    hot.iter().filter(|h| h.layer == number).copied().collect()
}

pub(crate) fn refused(error: PackError) -> content::Error {
    content::Error::Pack(error.to_string())
}

/// The windows of one layer.
struct WindowPart {
    blob: Arc<dyn Blob>,
    index: Arc<LayerIndex>,
    /// Absent in packs of earlier versions.
    places: Option<Places>,
    /// All of them, where their places are not known.
    whole: OnceCell<Arc<LayerIndex>>,
}

impl WindowPart {
    async fn bring(&self, spans: Range<usize>) -> Result<Brought, content::Error> {
        match &self.places {
            Some(places) => self.by_range(places, &spans).await,
            None => self.of_whole(spans).await,
        }
    }

    async fn by_range(
        &self,
        places: &Places,
        spans: &Range<usize>,
    ) -> Result<Brought, content::Error> {
        let wanted: Vec<(usize, ByteRange)> = places.of(spans).collect();
        let (Some((_, first)), Some((_, last))) = (wanted.first(), wanted.last()) else {
            return Ok(Brought::default());
        };
        // Nothing refers to a window that is empty: there is nothing to fetch.
        let range = ByteRange::new(first.start(), last.end());
        let bytes = match range.is_empty() {
            true => Bytes::new(),
            false => blob::collect_range(&*self.blob, range).await?,
        };
        let window = |(span, place): (usize, ByteRange)| {
            let from = (place.start() - range.start()) as usize;
            (span, bytes.slice(from..from + place.len() as usize))
        };
        Ok(Brought {
            windows: wanted.into_iter().map(window).collect(),
            bytes: range.len(),
            requests: u64::from(!range.is_empty()),
        })
    }

    async fn of_whole(&self, spans: Range<usize>) -> Result<Brought, content::Error> {
        let is_new = !self.whole.initialized();
        let fetch = async || {
            let bytes = whole(&*self.blob).await?;
            let restored = windows::restore(&self.index, &bytes).map_err(refused)?;
            Ok::<_, content::Error>(Arc::new(restored))
        };
        let index = self.whole.get_or_try_init(fetch).await?;
        let window = |n: usize| match &index.spans[n].start {
            SpanStart::Window { window, .. } => Some((n, Bytes::copy_from_slice(window))),
            SpanStart::Origin | SpanStart::Continue => None,
        };
        Ok(Brought {
            windows: spans.filter_map(window).collect(),
            bytes: if is_new { self.blob.size() } else { 0 },
            requests: u64::from(is_new),
        })
    }
}

/// All bytes of a small blob, verified.
async fn whole(blob: &dyn Blob) -> Result<Bytes, content::Error> {
    match blob::collect_verified(blob).await {
        Err(e) if e.kind == blob::ErrorKind::Corrupt => {
            Err(content::Error::Pack(format!("the pack's windows: {e}")))
        }
        collected => Ok(collected?),
    }
}

/// What compares a pack with a layer.
#[derive(Clone)]
struct Proof {
    cache: Cache,
    pack: Digest,
    index: Arc<LayerIndex>,
    hot: Vec<HotRange>,
    wanted: Wanted,
    /// The pack's own.
    pages: Arc<Pages>,
}

/// What came of comparing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    True,
    /// Bytes of the layer were read, and are others.
    Lie,
    /// Some of them are not here (any more).
    Unproven,
}

/// A proof is not progress that anybody looks at.
#[derive(Debug)]
struct Unheard;

impl Monitor for Unheard {
    fn event(&self, _event: Event) {}
}

impl Proof {
    async fn run(self, gate: content::Gate) -> Result<Pages, content::Error> {
        let new = match first_contact::begin(&self.cache, &self.wanted).await? {
            Begin::Known(stored) => match self.clone().compare(stored.clone()).await? {
                Verdict::True => return Ok(stored.pages()?),
                Verdict::Lie => return Err(self.is_lie()),
                Verdict::Unproven => None,
            },
            Begin::New(mut new) => {
                // Nobody has asked for these bytes.
                if self.pages.room() < self.index.address_size {
                    new.keep_index_only();
                }
                Some(new)
            }
        };
        let (cache, wanted) = (&self.cache, &self.wanted);
        let seen = (Witness::new(self.claims()), Some(gate));
        // One layer is proven at a time.
        let share = Share::default();
        let passed = first_contact::pass(cache, (wanted, &share), new, seen, &Unheard).await;
        // Whatever came of it may be evicted from now on.
        cache.trim();
        let (own, agrees) = match passed {
            // Wrong bytes, and somebody else is left who can be asked.
            Err(content::Error::Layer(_)) if wanted.blob.distrust(of_all(&*wanted.blob)) => {
                return Err(content::Error::Abandoned);
            }
            passed => passed?,
        };
        if !agrees || !self.is_of(&own) {
            return Err(self.is_lie());
        }
        let stored = cache.layer(&self.wanted.descriptor.digest)?;
        Ok(stored.ok_or(content::Error::Abandoned)?.pages()?)
    }

    fn is_lie(&self) -> content::Error {
        if let Err(error) = self.cache.deny_pack(&self.pack) {
            tracing::error!(%error, "a lying pack is not remembered");
        }
        content::Error::Lie(self.index.blob.clone())
    }

    /// What the pack says of bytes. How a layer is cut into spans is the publisher's choice; what
    /// they hold is not.
    fn claims(&self) -> impl Iterator<Item = Claim> {
        let size = self.index.address_size;
        let spans = self.index.spans.iter().map(|s| (s.address, s.sha256));
        let hot = self.hot.iter().map(move |h| (h.range(size), h.sha256));
        hot.chain(spans)
    }

    /// Whether all else that the pack says is what the layer has.
    fn is_of(&self, own: &LayerIndex) -> bool {
        let theirs = &*self.index;
        own.entries == theirs.entries
            && own.whiteouts == theirs.whiteouts
            && own.address_size == theirs.address_size
    }

    /// Compares with what is here of the layer.
    async fn compare(self, stored: StoredLayer) -> Result<Verdict, content::Error> {
        let compare = move || {
            let own = codec::decode(&stored.index()?);
            let own = own.map_err(|_| content::Error::Abandoned)?;
            Ok(self.verdict(&own, &stored.pages()?))
        };
        tokio::task::spawn_blocking(compare)
            .await
            .map_err(|_panicked| content::Error::Abandoned)?
    }

    fn verdict(&self, own: &LayerIndex, pages: &Pages) -> Verdict {
        if !self.is_of(own) {
            return Verdict::Lie;
        }
        let same_spans = without_windows(own).spans == self.index.spans;
        let claims = self.claims();
        let claims = claims.take(if same_spans {
            self.hot.len()
        } else {
            usize::MAX
        });
        let mut scratch = Vec::new();
        for (range, sha256) in claims {
            let mut bytes = vec![0; range.len() as usize];
            match pages.read(range, &mut bytes, &mut scratch) {
                Ok(Presence::Read) if Sha256::digest(&bytes)[..] == sha256 => {}
                Ok(Presence::Read) => return Verdict::Lie,
                Ok(Presence::Absent) | Err(_) => return Verdict::Unproven,
            }
        }
        Verdict::True
    }
}
