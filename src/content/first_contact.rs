//! First contact: layers that nobody here has seen stream past once, all at the same time, small
//! ones first, and are kept with the index that was made on the way.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

use crate::blob::{Blob, ByteRange};
use crate::cache::{Begin, Cache, NewLayer, StoredLayer};
use crate::content::Gate;
use crate::content::error::Error;
use crate::content::witness::Witness;
use crate::layer::{AddressSink, Ingest, IngestOptions, LayerIndex, blocks, codec};
use crate::monitor::{Event, Monitor};
use crate::oci::{Descriptor, Digest};

/// Pieces of a layer that may wait for the indexing thread. The stream stops when they are there,
/// so memory is bounded and TCP slows the sender.
const PIECES_MAX: usize = 16;

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
    let digests: Vec<Digest> = layers.iter().map(|l| l.descriptor.digest.clone()).collect();
    let mut seen = HashSet::new();
    let mut distinct: Vec<Wanted> = layers
        .into_iter()
        .filter(|l| seen.insert(l.descriptor.digest.clone()))
        .collect();
    distinct.sort_by_key(|l| l.descriptor.size);
    let mut tasks = JoinSet::new();
    for wanted in distinct {
        tasks.spawn(one(cache.clone(), wanted, monitor.clone()));
    }
    let mut outcome = Ok(());
    while let Some(joined) = tasks.join_next().await {
        let done = joined
            .map_err(|_cancelled_or_panicked| Error::Abandoned)
            .flatten();
        if outcome.is_ok()
            && let Err(error) = done
        {
            outcome = Err(error);
            tasks.abort_all();
        }
    }
    outcome?;
    let stored = |digest: &Digest| -> Result<StoredLayer, Error> {
        cache.layer(digest)?.ok_or(Error::Abandoned)
    };
    digests.iter().map(stored).collect()
}

async fn one(cache: Cache, wanted: Wanted, monitor: Arc<dyn Monitor>) -> Result<(), Error> {
    let whole = ByteRange::new(0, wanted.blob.size());
    loop {
        let outcome = from_one_source(&cache, &wanted, &*monitor).await;
        let Err(error @ Error::Layer(_)) = outcome else {
            return outcome;
        };
        if !wanted.blob.distrust(whole) {
            return Err(error);
        }
        tracing::warn!(%error, "asking elsewhere");
    }
}

async fn from_one_source(
    cache: &Cache,
    wanted: &Wanted,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let new = match begin(cache, wanted).await? {
        Begin::Known(_) => return Ok(()),
        Begin::New(new) => new,
    };
    let digest = wanted.descriptor.digest.clone();
    let nobody = (Witness::default(), None);
    pass(cache, wanted, Some(new), nobody, monitor).await?;
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
/// `new`. Gives its index, and whether the witness agrees.
pub async fn pass(
    cache: &Cache,
    wanted: &Wanted,
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
    let streamed = stream(&wanted.blob, pieces, gate.as_ref(), monitor).await;
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

async fn stream(
    blob: &Arc<dyn Blob>,
    pieces: mpsc::Sender<Piece>,
    gate: Option<&Gate>,
    monitor: &dyn Monitor,
) -> Result<(), Error> {
    let digest = blob.digest();
    let mut stream = blob.open(ByteRange::new(0, blob.size())).await?;
    let (mut arrived, mut reported) = (0, 0);
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        if let Some(gate) = gate {
            gate().await;
        }
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
