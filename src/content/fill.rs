//! Background fill: what is absent is fetched while nobody waits, until the image is whole.
//!
//! It asks for little at a time (what comes in 50 ms), twice at once so that the link is never
//! idle, and asks for nothing while a reader waits or a profile is being fetched: what is under way
//! then is the most that a reader shares the link with.
//!
//! A start about which nothing is known will wait for one span after the other. Where all that is
//! missing comes sooner than so many round trips take, it is not asked for piece by piece: the fill
//! begins with the first wait, and does not stop for others ([`Hurry::Rushed`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::content::demand::GLANCE;
use crate::content::prefetch::Job;
use crate::content::{Content, Error, Fill, Gate, Layer, Notice};
use crate::layer::SpanStart;

/// Requests at a time: one comes while the other is asked for.
pub(super) const REQUESTS: usize = 2;

/// Most requests at a time of a fill that nobody has to be considered for: half of what one source
/// may have.
const RUSHED_REQUESTS_MAX: usize = 4;

/// How often a start waits, one time after the other, about which nothing is known. Measured with
/// spans of this size: a program that imports three modules of python waits 77 times, a smaller one
/// less often.
const LIKELY_WAITS: u32 = 40;

/// What one request may ask for is what comes in this time.
pub(super) const REQUEST_TIME: Duration = Duration::from_millis(50);

/// Bounds of a request: below, asking costs more than it brings; above, a wrong measurement would
/// keep a reader waiting.
const REQUEST_BYTES: std::ops::RangeInclusive<u64> = (128 << 10)..=(8 << 20);

/// How long no reader must have waited before a fill that was not asked for begins. Long enough
/// that a program that was started and has ended does not cost the whole image.
const QUIET_BEFORE: Duration = Duration::from_secs(10);

/// How long no reader must have waited before a fill that has begun asks again.
const QUIET_BETWEEN: Duration = Duration::from_millis(100);

/// How long a layer that is proven waits for readers before it goes on for the time of a request.
const GATE_MAX: Duration = Duration::from_millis(500);

/// The wait before a layer that could not be proven is streamed again grows from the one to the other.
const PROVE_AGAIN: Duration = Duration::from_secs(5);
const PROVE_AGAIN_MAX: Duration = Duration::from_secs(600);

/// Whether what failed so may succeed later.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::Blob(e) => e.is_transient(),
        Error::Cache(e) => e.is_full(),
        Error::Abandoned => true,
        _ => false,
    }
}

/// Whether a fill gives way to readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hurry {
    /// It asks for nothing while one waits.
    Considerate,
    /// It is what they wait for.
    Rushed,
}

impl Content {
    /// Starts the fill on `runtime`.
    pub(super) fn fill(self: &Arc<Self>, runtime: &Runtime) {
        let content = self.clone();
        let begin = match self.options.fill {
            Fill::Never => return,
            Fill::Auto => QUIET_BEFORE,
            Fill::Now => Duration::ZERO,
        };
        runtime.spawn(async move {
            let hurry = content.until_due(begin).await;
            tracing::debug!(?hurry, "filling");
            match content.prove_all().await {
                Ok(()) => content.fill_all(hurry).await,
                Err(error) => {
                    tracing::error!(%error, "nothing more is given out");
                    return content.poison();
                }
            }
            if content.is_complete() {
                tracing::info!("the image is whole");
                content.notify(Notice::Complete);
            }
        });
    }

    /// Streams the layers that are known by a pack only. The error is a lie. A layer that cannot be had is
    /// asked for again, as long as another answer is likely; else it stays unproven.
    async fn prove_all(self: &Arc<Self>) -> Result<(), Error> {
        let gate = self.gate();
        for layer in &self.layers {
            let Some(prove) = &layer.source.prove else {
                continue;
            };
            let mut wait = PROVE_AGAIN;
            loop {
                match prove(gate.clone()).await {
                    Ok(pages) => break drop(layer.proven.set(pages)),
                    Err(error @ Error::Lie(_)) => return Err(error),
                    Err(error) if may_pass(&error) => {
                        tracing::warn!(%error, "a layer is not proven yet");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(PROVE_AGAIN_MAX);
                    }
                    Err(error) => break tracing::warn!(%error, "a layer stays unproven"),
                }
            }
        }
        Ok(())
    }

    /// Lets readers go first, and never waits for long: others may wait for what streams here, and get
    /// a tenth of the link while readers never rest.
    fn gate(self: &Arc<Self>) -> Gate {
        let content = Arc::downgrade(self);
        Arc::new(move || {
            let content = content.clone();
            Box::pin(async move {
                let until = Instant::now() + GATE_MAX;
                loop {
                    // Whoever streams for a mount that is gone ends in its own time.
                    let Some(content) = content.upgrade() else {
                        return *REQUEST_BYTES.end();
                    };
                    if content.is_idle(Duration::ZERO) || Instant::now() >= until {
                        return content.request_bytes();
                    }
                    drop(content);
                    tokio::time::sleep(GLANCE).await;
                }
            })
        })
    }

    /// Waits until readers have been quiet for as long as `quiet`, or until it is cheaper to fetch
    /// everything than to go on waiting for pieces.
    async fn until_due(&self, quiet: Duration) -> Hurry {
        while !self.demand.is_quiet(quiet) {
            if self.is_cheaper_whole() {
                return Hurry::Rushed;
            }
            tokio::time::sleep(GLANCE).await;
        }
        Hurry::Considerate
    }

    /// Whether all that is missing comes sooner than a start of which nothing is known has waited for
    /// its pieces. Not before a first answer: only then is known what a round trip takes.
    fn is_cheaper_whole(&self) -> bool {
        let known = !self.is_learning() || self.layers.iter().any(|l| l.source.prove.is_some());
        if known || !self.tally.has_stalled() {
            return false;
        }
        let missing = |l: &Layer| {
            let (index, pages) = (&l.source.index, &l.source.pages);
            let share = l.absent_bytes() as f64 / pages.size().max(1) as f64;
            (index.compressed_size as f64 * share) as u64
        };
        let missing = self.layers.iter().map(missing).sum();
        self.pace.time_of(missing) <= self.pace.round_trip() * LIKELY_WAITS
    }

    /// How many requests are under way at a time.
    fn requests(&self, hurry: Hurry) -> usize {
        match hurry {
            Hurry::Considerate => REQUESTS,
            Hurry::Rushed => {
                let trips = self.pace.round_trip().as_millis() / REQUEST_TIME.as_millis();
                (REQUESTS + trips as usize).min(RUSHED_REQUESTS_MAX)
            }
        }
    }

    /// Passes over all layers as long as that helps. What has come may be absent again: the edge of a span
    /// waits in memory for the job that comes next, and gives way when readers fetch much before it.
    async fn fill_all(self: &Arc<Self>, mut hurry: Hurry) {
        let absent = || self.to_fill().map(Layer::absent_bytes).sum::<u64>();
        let mut before = absent();
        loop {
            if !self.pass(hurry).await {
                return tracing::info!("the fill ends here: the cache is as full as it may be");
            }
            let left = absent();
            // Another pass must end as well: one that stored nothing would fetch the same for ever, and
            // what a full disk did not take would come for nothing.
            let is_full = || self.layers.iter().any(|l| l.fringe.has_overflowed());
            if left == 0 || left >= before || is_full() {
                return;
            }
            tracing::debug!(left, "filling what is absent again");
            // The start that was in a hurry is over.
            (before, hurry) = (left, Hurry::Considerate);
        }
    }

    /// Asks once for all that is absent; false when the cache has no room for it.
    async fn pass(self: &Arc<Self>, hurry: Hurry) -> bool {
        let mut under_way = JoinSet::new();
        let mut quiet = Duration::ZERO;
        // The smallest remainder first: a layer that is whole is worth more than two halves.
        for layer in self.by_remainder() {
            let mut at = 0;
            while let Some(job) = self.next_job(layer, at) {
                // What is under way takes its place only when it comes.
                while !self.has_room(&job, under_way.len()) {
                    if under_way.join_next().await.is_none() {
                        return false;
                    }
                }
                at = job.spans.end;
                if under_way.len() >= self.requests(hurry) {
                    under_way.join_next().await;
                }
                // Last, so that nobody can have come since.
                if hurry == Hurry::Considerate && !self.is_idle(quiet) {
                    quiet = QUIET_BETWEEN;
                    while !self.is_idle(quiet) {
                        tokio::time::sleep(GLANCE).await;
                    }
                }
                let content = self.clone();
                under_way.spawn(async move { content.bring_absent(&job).await });
            }
        }
        under_way.join_all().await;
        true
    }

    /// Whether nothing is wanted more than the fill: neither by readers, nor by the profile.
    fn is_idle(&self, quiet: Duration) -> bool {
        self.demand.is_quiet(quiet) && !self.is_prefetching()
    }

    /// Whether the cache takes a job more, and the `others` that have begun and are about as large.
    fn has_room(&self, job: &Job, others: usize) -> bool {
        let Some(layer) = self.layers.get(job.layer as usize) else {
            return false;
        };
        let spans = layer.source.index.spans.get(job.spans.clone());
        let bytes: u64 = spans
            .iter()
            .copied()
            .flatten()
            .map(|s| s.address.len())
            .sum();
        layer.source.pages.room() >= bytes.saturating_mul(1 + others as u64)
    }

    /// The layers that are not proven: one that is has come whole.
    fn to_fill(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|l| l.proven.get().is_none())
    }

    fn by_remainder(&self) -> Vec<u32> {
        let mut layers: Vec<&Layer> = self.to_fill().collect();
        // Cached, because each look at a remainder reads the bitmap's file.
        layers.sort_by_cached_key(|layer| layer.absent_bytes());
        layers.iter().map(|layer| layer.number).collect()
    }

    /// What one request may ask for.
    fn request_bytes(&self) -> u64 {
        let bytes = self.pace.bytes_in(REQUEST_TIME);
        bytes.clamp(*REQUEST_BYTES.start(), *REQUEST_BYTES.end())
    }

    /// The next absent spans of a layer, from `at` on: no more than comes in the time of a request.
    fn next_job(&self, layer: u32, at: usize) -> Option<Job> {
        let of = self.layers.get(layer as usize)?;
        let spans = &of.source.index.spans;
        let first = (at..spans.len()).find(|&span| !of.has_span(span))?;
        // So that the last ones fit below the budget as well.
        let bytes = self
            .request_bytes()
            .min(of.source.pages.room() / (2 * REQUESTS as u64));
        let far = spans[first].compressed.start() + bytes;
        let mut entry = None;
        let end = (first + 1..spans.len()).find(|&span| {
            let is_far = spans[span].compressed.end() > far;
            if !is_far && spans[span].start != SpanStart::Continue {
                entry = Some(span);
            }
            is_far || of.has_span(span)
        });
        // What follows a place to begin can be asked for at the same time; elsewhere it goes on with
        // the decoder of this one, after it.
        let end = match end {
            Some(end) if !of.has_span(end) => Some(entry.unwrap_or(end)),
            end => end,
        };
        Some(Job {
            layer,
            spans: first..end.unwrap_or(spans.len()),
        })
    }
}

impl Layer {
    fn absent_bytes(&self) -> u64 {
        let pages = &self.source.pages;
        pages.size().saturating_sub(pages.present_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::{OnceLock, Weak};

    use super::*;
    use crate::blob::{self, Blob, BoxFuture, ByteRange, ByteStream, ErrorKind};
    use crate::cache::{Begin, Cache};
    use crate::content::first_contact::{self, Wanted};
    use crate::content::{LateIndex, LayerSource, Options, Profile};
    use crate::layer::codec;
    use crate::monitor::Silent;
    use crate::oci::{Descriptor, Digest};

    /// Far more than a fill of this takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// What happens when a range of the blob is asked for.
    #[derive(Debug, Clone, Copy)]
    enum Mishap {
        None,
        /// Before the second answer, what the first has left in the fringe gives way.
        Evicted,
        /// Nobody gives what lies in the middle.
        Denied,
    }

    #[derive(Debug)]
    struct Clumsy {
        digest: Digest,
        bytes: Vec<u8>,
        mishap: Mishap,
        asked: AtomicUsize,
        content: OnceLock<Weak<Content>>,
    }

    impl Clumsy {
        /// Waits until there is something that can give way.
        async fn evict(&self) {
            let content = self.content.get().and_then(Weak::upgrade).unwrap();
            while content.layers[0].fringe.forget_edges() == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    impl Blob for Clumsy {
        fn digest(&self) -> &Digest {
            &self.digest
        }

        fn size(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, blob::Error>> {
            Box::pin(async move {
                let asked = self.asked.fetch_add(1, SeqCst);
                let middle = self.size() / 2;
                match self.mishap {
                    Mishap::Evicted if asked == 1 => self.evict().await,
                    Mishap::Denied if (range.start()..range.end()).contains(&middle) => {
                        return Err(blob::Error::new(ErrorKind::Denied, "denied"));
                    }
                    _ => {}
                }
                let bytes = self.bytes[range.start() as usize..range.end() as usize].to_vec();
                let pieces = futures_util::stream::iter([Ok(bytes.into())]);
                Ok(Box::pin(pieces) as ByteStream)
            })
        }
    }

    /// A tar of a file of noise, as members of gzip that end in the middle of pages.
    fn tar() -> (Vec<u8>, Vec<u8>) {
        let mut noise = vec![0; 3 << 20];
        fastrand::Rng::with_seed(1).fill(&mut noise);
        let mut header = tar::Header::new_ustar();
        header.set_size(noise.len() as u64);
        header.set_mode(0o644);
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_data(&mut header, "noise", &*noise).unwrap();
        let tar = builder.into_inner().unwrap();
        let mut blob = Vec::new();
        for part in tar.chunks(300_000) {
            let mut gzip = flate2::write::GzEncoder::new(blob, flate2::Compression::fast());
            gzip.write_all(part).unwrap();
            blob = gzip.finish().unwrap();
        }
        (tar, blob)
    }

    fn clumsy(bytes: &[u8], mishap: Mishap) -> Arc<Clumsy> {
        Arc::new(Clumsy {
            digest: Digest::of(bytes),
            bytes: bytes.to_vec(),
            mishap,
            asked: AtomicUsize::new(0),
            content: OnceLock::new(),
        })
    }

    /// A layer of which nothing was present, after a fill.
    fn filled(mishap: Mishap) -> Arc<Content> {
        let (tar, gzip) = tar();
        let runtime = Content::new_runtime().unwrap();
        let temp = tempfile::tempdir().unwrap();
        let cache = |name: &str| Cache::open(&temp.path().join(name)).unwrap();
        let blob = clumsy(&gzip, Mishap::None);
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let wanted = Wanted {
            descriptor: Descriptor::new(media_type, blob.digest.clone(), blob.size()),
            diff_id: Digest::of(&tar),
            blob,
            sole: false,
        };
        let elsewhere = cache("elsewhere");
        let known = first_contact::ingest(&elsewhere, vec![wanted], Arc::new(Silent));
        let known = runtime.block_on(known).unwrap().remove(0);
        let index = codec::decode(&known.index().unwrap()).unwrap();
        let Begin::New(mut new) = cache("here").begin(&index.blob, 4).unwrap() else {
            panic!("nobody has it");
        };
        new.keep_index_only();
        new.write(&tar[..index.address_size as usize]).unwrap();
        let pages = new.commit(b"index").unwrap().pages().unwrap();
        assert_eq!(pages.present_bytes(), 0);
        let blob = clumsy(&gzip, mishap);
        let source = LayerSource {
            index: LateIndex::from(Arc::new(index)),
            pages: Arc::new(pages),
            blob: blob.clone(),
            windows: None,
            prove: None,
        };
        let options = Options::default();
        let content = Content::new(vec![source], options, Profile::default(), None);
        blob.content.set(Arc::downgrade(&content)).unwrap();
        let in_time = runtime.block_on(async {
            let fill = content.fill_all(Hurry::Considerate);
            tokio::time::timeout(PATIENCE, fill).await.is_ok()
        });
        assert!(in_time, "a fill with {mishap:?} comes to an end");
        assert!(blob.asked.load(SeqCst) > 1, "it has a second request");
        content
    }

    #[test]
    fn what_gave_way_before_its_neighbour_came_is_fetched_once_more() {
        assert!(filled(Mishap::None).is_complete());
        assert!(filled(Mishap::Evicted).is_complete());
    }

    #[test]
    fn a_fill_ends_that_can_bring_nothing_more() {
        let content = filled(Mishap::Denied);
        let left: u64 = content.to_fill().map(Layer::absent_bytes).sum();
        assert!(left > 0 && left < 3 << 20, "{left}");
    }
}
