//! First contact: layers that nobody here has seen stream past once, all at the same time, small
//! ones first, and are kept with the index that was made on the way.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

use crate::blob::{self, Blob, ByteRange, ByteStream, ErrorKind};
use crate::cache::{Begin, Cache, NewLayer, StoredLayer};
use crate::content::Gate;
use crate::content::error::Error;
use crate::content::witness::Witness;
use crate::layer::limit::{ImageBudget, LimitError, Share};
use crate::layer::tar::TarError;
use crate::layer::{AddressSink, Ingest, IngestOptions, LayerErrorKind, LayerIndex, blocks, codec};
use crate::monitor::{Event, Monitor};
use crate::oci::{Descriptor, Digest};

/// Pieces of a layer that may wait for the indexing thread. The stream stops when they are there,
/// so memory is bounded and TCP slows the sender.
const PIECES_MAX: usize = 16;

/// Parts of a layer that are asked for at a time.
const PARTS: usize = 2;

/// Free bytes that the cache leaves on its file system.
const RESERVE_BYTES: u64 = 16 << 20;

/// Progress is reported each time this many bytes have come.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A layer that a mount needs.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What the manifest says of it.
    pub descriptor: Descriptor,
    /// What the image configuration says of it.
    pub diff_id: Digest,
    /// Where its bytes are.
    pub blob: Arc<dyn Blob>,
    /// Whether the cache will be the only one to have them.
    pub sole: bool,
}

/// Makes every layer known; gives them in the order asked for. The first error ends the others,
/// and nothing of an unfinished layer is left.
pub async fn ingest(
    cache: &Cache,
    layers: Vec<Wanted>,
    monitor: Arc<dyn Monitor>,
) -> Result<Vec<StoredLayer>, Error> {
    ingest_within(&ImageBudget::default(), cache, layers, monitor).await
}

async fn ingest_within(
    budget: &ImageBudget,
    cache: &Cache,
    layers: Vec<Wanted>,
    monitor: Arc<dyn Monitor>,
) -> Result<Vec<StoredLayer>, Error> {
    let digests: Vec<Digest> = layers.iter().map(|l| l.descriptor.digest.clone()).collect();
    let mut seen = HashSet::new();
    let mut distinct: Vec<Wanted> = layers
        .into_iter()
        .filter(|l| seen.insert(l.descriptor.digest.clone()))
        .collect();
    distinct.sort_by_key(|l| l.descriptor.size);
    let mut tasks = JoinSet::new();
    for wanted in distinct {
        let (budget, cache, monitor) = (budget.clone(), cache.clone(), monitor.clone());
        tasks.spawn(async move {
            let done = one(&budget, &cache, &wanted, &*monitor, Company::Others).await;
            (wanted, done)
        });
    }
    // Kept until all are there, so that no order in which they come lets more in.
    let mut shares = Vec::new();
    let mut crowded_out = Vec::new();
    let mut outcome = Ok(());
    while let Some(joined) = tasks.join_next().await {
        let failed = match joined {
            Ok((_, Ok(share))) => {
                shares.push(share);
                continue;
            }
            Ok((wanted, Err(error))) if is_crowded_out(&error) => {
                crowded_out.push(wanted);
                continue;
            }
            Ok((_, Err(error))) => error,
            Err(_cancelled_or_panicked) => Error::Abandoned,
        };
        if outcome.is_ok() {
            outcome = Err(failed);
            tasks.abort_all();
        }
    }
    outcome?;
    for wanted in crowded_out {
        shares.push(one(budget, cache, &wanted, &*monitor, Company::Nobody).await?);
    }
    let stored = |digest: &Digest| -> Result<StoredLayer, Error> {
        cache.layer(digest)?.ok_or(Error::Abandoned)
    };
    digests.iter().map(stored).collect()
}

/// Whether the other layers have taken what this one needs. They may have come from a source that
/// lies, and be smaller once they have come from another one.
fn is_crowded_out(error: &Error) -> bool {
    matches!(error, Error::Layer(error) if matches!(
        error.kind,
        LayerErrorKind::Tar(TarError::Limit(LimitError::Image))
    ))
}

/// Whether other layers are indexed at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Company {
    Others,
    Nobody,
}

/// Makes one known; gives what its index has taken. In company its source is not blamed for what
/// others have taken.
async fn one(
    budget: &ImageBudget,
    cache: &Cache,
    wanted: &Wanted,
    monitor: &dyn Monitor,
    company: Company,
) -> Result<Share, Error> {
    let whole = ByteRange::new(0, wanted.blob.size());
    loop {
        let share = budget.share();
        let outcome = from_one_source(cache, wanted, &share, monitor).await;
        let Err(error @ Error::Layer(_)) = outcome else {
            return outcome.map(|()| share);
        };
        // Nothing shows whether a layer that does not fit is the one that was meant.
        let is_left = match (is_crowded_out(&error), company) {
            (true, Company::Others) => false,
            (true, Company::Nobody) => wanted.blob.avoid(whole),
            (false, _) => wanted.blob.distrust(whole),
        };
        if !is_left {
            return Err(error);
        }
        tracing::warn!(%error, "asking elsewhere");
    }
}

async fn from_one_source(
    cache: &Cache,
    wanted: &Wanted,
    share: &Share,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let new = match begin(cache, wanted).await? {
        Begin::Known(_) => return Ok(()),
        Begin::New(new) => new,
    };
    let digest = wanted.descriptor.digest.clone();
    let nobody = (Witness::default(), None);
    pass(cache, (wanted, share), Some(new), nobody, monitor).await?;
    // What came in at once must not stay above the budget until more is stored.
    let cache = cache.clone();
    let evicted = spawn_blocking(move || cache.keep_within_budget()).await;
    evicted.map_err(|_panicked| Error::Abandoned)?;
    monitor.event(Event::LayerDone { layer: digest });
    Ok(())
}

/// Starts to store a layer, unless it is stored; waits while somebody else streams it.
pub async fn begin(cache: &Cache, wanted: &Wanted) -> Result<Begin, Error> {
    let (cache, of) = (cache.clone(), wanted.descriptor.clone());
    let begun = spawn_blocking(move || cache.begin(&of.digest, of.size)).await;
    Ok(begun.map_err(|_panicked| Error::Abandoned)??)
}

/// Has a whole layer stream past `witness`, as fast as the gate lets it, and into the cache if it is
/// `new`. Gives its index, which was taken from the share, and whether the witness agrees.
pub async fn pass(
    cache: &Cache,
    (wanted, share): (&Wanted, &Share),
    mut new: Option<NewLayer>,
    (witness, gate): (Witness, Option<Gate>),
    monitor: &dyn Monitor,
) -> Result<(LayerIndex, bool), Error> {
    let digest = wanted.descriptor.digest.clone();
    if let Some(new) = new.as_mut().filter(|_| wanted.sole) {
        new.set_sole();
    }
    let mut options = IngestOptions::new(digest.clone(), wanted.descriptor.size);
    options.diff_id = Some(wanted.diff_id.clone());
    options.share = share.clone();
    // Not less than the layer itself: a full disk is told from a bomb by the write that fails.
    options.address_max = options
        .address_max
        .min(cache.free_bytes()?.saturating_sub(RESERVE_BYTES));
    monitor.event(Event::LayerStarted {
        layer: digest.clone(),
        size: wanted.descriptor.size,
    });
    let (pieces, queue) = mpsc::channel(PIECES_MAX);
    let indexing = spawn_blocking(move || index(options, Sink { new, witness }, queue));
    let streamed = stream(&wanted.blob, pieces, gate, monitor).await;
    // The indexing thread knows best what was wrong with the bytes that came.
    let indexed = indexing.await.map_err(|_panicked| Error::Abandoned)?;
    streamed?;
    indexed
}

/// A piece of the blob, or the end that must be there for the layer to count.
enum Piece {
    Bytes(Bytes),
    End,
}

/// All of a blob, asked for in parts that the gate lets pass, the next one while one comes: what is under
/// way is the most that a reader shares the link with. To stop reading one long answer does not give a
/// reader the link, because so much of it is on its way and in buffers.
fn in_parts(blob: Arc<dyn Blob>, gate: Gate) -> ByteStream {
    let size = blob.size();
    let parts = stream::unfold((0, blob.clone()), move |(at, blob)| {
        let passes = (at < size).then(|| gate());
        async move {
            let bytes = passes?.await.max(1);
            let end = match blob.ignores_ranges() {
                true => size,
                false => size.min(at.saturating_add(bytes)),
            };
            Some((ByteRange::new(at, end), (end, blob)))
        }
    });
    let open = move |part| {
        let blob = blob.clone();
        // By a task, so that it goes on while the part before is read: it may hold what that one needs.
        let opening = tokio::spawn(async move { blob.open(part).await });
        async move {
            let ended = |_| blob::Error::new(ErrorKind::Transient, "fetching was stopped");
            opening.await.map_err(ended)?
        }
    };
    Box::pin(parts.map(open).buffered(PARTS).try_flatten())
}

async fn stream(
    blob: &Arc<dyn Blob>,
    pieces: mpsc::Sender<Piece>,
    gate: Option<Gate>,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let digest = blob.digest();
    let mut stream = match gate {
        None => blob.open(ByteRange::new(0, blob.size())).await?,
        Some(gate) => in_parts(blob.clone(), gate),
    };
    let (mut arrived, mut reported) = (0, 0);
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        arrived += piece.len() as u64;
        if pieces.send(Piece::Bytes(piece)).await.is_err() {
            return Ok(());
        }
        if arrived - reported >= PROGRESS_BYTES {
            reported = arrived;
            monitor.event(Event::LayerProgress {
                layer: digest.clone(),
                bytes: arrived,
            });
        }
    }
    let _indexing_has_failed = pieces.send(Piece::End).await;
    Ok(())
}

/// Writes the address space to the cache, and shows it to the witness.
struct Sink {
    new: Option<NewLayer>,
    witness: Witness,
}

impl AddressSink for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.witness.push(bytes);
        match &mut self.new {
            Some(new) => new.write(bytes).map_err(io::Error::other),
            None => Ok(()),
        }
    }
}

fn index(
    options: IngestOptions,
    sink: Sink,
    mut queue: mpsc::Receiver<Piece>,
) -> Result<(LayerIndex, bool), Error> {
    let mut ingest = Ingest::new(options, sink)?;
    loop {
        match queue.blocking_recv() {
            Some(Piece::Bytes(bytes)) => ingest.push(&bytes)?,
            Some(Piece::End) => break,
            None => return Err(Error::Abandoned),
        }
    }
    let (index, starts, Sink { new, witness }) = ingest.finish_with_places()?;
    if let Some(new) = new {
        if !starts.is_empty() {
            new.put_blocks(&blocks::encode(&starts))?;
        }
        new.commit(&codec::encode(&index))?;
    }
    Ok((index, witness.agrees()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;
    use crate::blob::BoxFuture;
    use crate::blob::testing::PlannedBlob;
    use crate::layer::Entry;
    use crate::monitor::Silent;

    /// Length of every name, in bytes.
    const NAME_BYTES: usize = 8;

    /// What the index of so many empty files takes.
    fn memory(files: usize) -> u64 {
        (files * (size_of::<Entry>() + NAME_BYTES)) as u64
    }

    /// A tar of so many empty files, and of a file of `data` bytes if there are any.
    fn tar(seed: char, files: usize, data: usize) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let names = (0..files).map(|n| (format!("{seed}{n:07}"), 0));
        for (name, len) in names.chain([("data-012".to_owned(), data)]) {
            if name.starts_with("data") && data == 0 {
                continue;
            }
            let mut header = tar::Header::new_ustar();
            header.set_size(len as u64);
            header.set_mode(0o644);
            let bytes = vec![b'd'; len];
            builder.append_data(&mut header, name, &*bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn wanted(tar: &[u8], blob: Arc<dyn Blob>) -> Wanted {
        Wanted {
            descriptor: Descriptor::new(
                "application/vnd.oci.image.layer.v1.tar",
                Digest::of(tar),
                tar.len() as u64,
            ),
            diff_id: Digest::of(tar),
            blob,
            sole: false,
        }
    }

    /// Far more than any of these takes; a layer that waits for what never comes fails then.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn ingest_into_new(
        budget: &ImageBudget,
        layers: Vec<Wanted>,
    ) -> Result<Vec<StoredLayer>, Error> {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path()).unwrap();
        let ingested = ingest_within(budget, &cache, layers, Arc::new(Silent));
        let in_time = tokio::time::timeout(PATIENCE, ingested).await;
        in_time.expect("the layers come to an end")
    }

    /// One whose source sends everything, whatever is asked for.
    #[derive(Debug)]
    struct Deaf(PlannedBlob);

    impl Blob for Deaf {
        fn digest(&self) -> &Digest {
            self.0.digest()
        }

        fn size(&self) -> u64 {
            self.0.size()
        }

        fn ignores_ranges(&self) -> bool {
            true
        }

        fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, blob::Error>> {
            self.0.open(range)
        }
    }

    async fn all_of(mut stream: ByteStream) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = stream.next().await {
            all.extend_from_slice(&bytes.unwrap());
        }
        all
    }

    #[tokio::test]
    async fn who_streams_for_nobody_asks_for_what_the_gate_lets_pass() {
        let text = b"the quick brown fox jumps over the lazy dog";
        let gate: Gate = Arc::new(|| Box::pin(async { 20 }));
        let blob = Arc::new(PlannedBlob::new(text, []));
        assert_eq!(all_of(in_parts(blob.clone(), gate.clone())).await, text);
        let asked = [(0, 20), (20, 40), (40, 43)].map(|(s, e)| ByteRange::new(s, e));
        assert_eq!(*blob.opened.lock().unwrap(), asked);

        let deaf = Arc::new(Deaf(PlannedBlob::new(text, [])));
        assert_eq!(all_of(in_parts(deaf.clone(), gate)).await, text);
        assert_eq!(*deaf.0.opened.lock().unwrap(), [ByteRange::new(0, 43)]);
    }

    #[tokio::test]
    async fn nothing_is_asked_for_while_the_gate_is_closed() {
        let opened = Arc::new(AtomicU32::new(0));
        let passes = opened.clone();
        // Lets three pass.
        let gate: Gate = Arc::new(move || {
            let may = passes.fetch_add(1, SeqCst) < 3;
            Box::pin(async move {
                match may {
                    true => 4,
                    false => std::future::pending().await,
                }
            })
        });
        let blob = Arc::new(PlannedBlob::new(b"the quick brown fox", []));
        let mut stream = in_parts(blob.clone(), gate);
        let mut came = Vec::new();
        while let Ok(next) = tokio::time::timeout(Duration::from_millis(100), stream.next()).await {
            came.extend_from_slice(&next.unwrap().unwrap());
        }
        assert_eq!(came, b"the quick br");
        assert_eq!(blob.opened.lock().unwrap().len(), 3);
        assert_eq!(opened.load(SeqCst), 4, "and goes on when it opens");
    }

    #[tokio::test]
    async fn layers_that_stream_together_take_no_more_than_an_image_may() {
        let layers = || {
            let tars = ['a', 'b'].map(|seed| tar(seed, 100, 0));
            let of = |tar: &Vec<u8>| wanted(tar, Arc::new(PlannedBlob::new(tar, [])));
            tars.iter().map(of).collect::<Vec<_>>()
        };
        // Each has its own limit, and is far below it.
        let less = ImageBudget::of(memory(200) - 1);
        let refused = ingest_into_new(&less, layers()).await.unwrap_err();
        let said = refused.to_string();
        assert!(said.contains("of all layers take more than"), "{said}");
        assert!(is_crowded_out(&refused));
        assert_eq!(less.left(), memory(200) - 1);
        for layer in layers() {
            ingest_into_new(&less, vec![layer]).await.unwrap();
        }

        let enough = ImageBudget::of(memory(200));
        ingest_into_new(&enough, layers()).await.unwrap();
        assert_eq!(enough.left(), memory(200));
    }

    /// What the two below have in common: all their bytes, in pieces of the size of a page.
    #[derive(Debug)]
    struct Truth(Digest, Vec<u8>);

    impl Truth {
        fn new(bytes: &[u8]) -> Truth {
            Truth(Digest::of(bytes), bytes.to_vec())
        }

        fn stream(&self) -> ByteStream {
            let pieces: Vec<_> = self.1.chunks(4096).map(Bytes::copy_from_slice).collect();
            Box::pin(stream::iter(pieces.into_iter().map(Ok)))
        }
    }

    /// Says when it is dropped.
    #[derive(Debug)]
    struct Dropped(Arc<Notify>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    /// Comes from somebody who lies until the layer beside it has failed, then from somebody else.
    #[derive(Debug)]
    struct Lying {
        truth: Truth,
        lie: Vec<u8>,
        until: Arc<Notify>,
        is_found_out: AtomicBool,
    }

    impl Blob for Lying {
        fn digest(&self) -> &Digest {
            &self.truth.0
        }

        fn size(&self) -> u64 {
            self.truth.1.len() as u64
        }

        fn open(&self, _all: ByteRange) -> BoxFuture<'_, Result<ByteStream, blob::Error>> {
            if self.is_found_out.load(SeqCst) {
                return Box::pin(async { Ok(self.truth.stream()) });
            }
            let (lie, until) = (self.lie.clone(), self.until.clone());
            let end = async move {
                until.notified().await;
                Ok(Bytes::from_static(b"nothing"))
            };
            let told = stream::iter([Ok(lie.into())]).chain(stream::once(end));
            Box::pin(async move { Ok(Box::pin(told) as ByteStream) })
        }

        fn distrust(&self, _range: ByteRange) -> bool {
            !self.is_found_out.swap(true, SeqCst)
        }

        fn avoid(&self, range: ByteRange) -> bool {
            self.distrust(range)
        }
    }

    /// Begins when no more is left than `until`, and tells when a stream of it was dropped.
    #[derive(Debug)]
    struct Beside {
        truth: Truth,
        budget: ImageBudget,
        until: u64,
        dropped: Arc<Notify>,
        attempts: Arc<AtomicU32>,
    }

    impl Blob for Beside {
        fn digest(&self) -> &Digest {
            &self.truth.0
        }

        fn size(&self) -> u64 {
            self.truth.1.len() as u64
        }

        fn distrust(&self, _: ByteRange) -> bool {
            panic!("what tells the truth was blamed")
        }

        fn avoid(&self, _: ByteRange) -> bool {
            panic!("what tells the truth was avoided")
        }

        fn open(&self, _all: ByteRange) -> BoxFuture<'_, Result<ByteStream, blob::Error>> {
            Box::pin(async move {
                let is_first = self.attempts.fetch_add(1, SeqCst) == 0;
                while is_first && self.budget.left() > self.until {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let dropped = Dropped(self.dropped.clone());
                let truth = self.truth.stream().map(move |piece| {
                    let _until_the_stream_is_dropped = &dropped;
                    piece
                });
                Ok(Box::pin(truth) as ByteStream)
            })
        }
    }

    #[tokio::test]
    async fn a_lie_about_one_layer_costs_no_other_its_memory() {
        let budget = ImageBudget::of(memory(1500));
        let (failed, attempts) = (Arc::new(Notify::new()), Arc::<AtomicU32>::default());
        // The tar is read in pieces of 512 KiB (1024 files), of which few wait: the other one's stream is not
        // over when its first piece has failed.
        let (one, other) = (tar('a', 20, 1 << 20), tar('b', 1100, 4 << 20));
        let lying = Lying {
            truth: Truth::new(&one),
            lie: tar('l', 1400, 0)[..1400 * 512].to_vec(),
            until: failed.clone(),
            is_found_out: AtomicBool::new(false),
        };
        let beside = Beside {
            truth: Truth::new(&other),
            budget: budget.clone(),
            until: memory(500),
            dropped: failed,
            attempts: Arc::clone(&attempts),
        };
        let layers = vec![
            wanted(&one, Arc::new(lying)),
            wanted(&other, Arc::new(beside)),
        ];
        ingest_into_new(&budget, layers).await.unwrap();
        assert_eq!(attempts.load(SeqCst), 2, "it was not crowded out");
        assert_eq!(budget.left(), memory(1500));
    }
}
