//! First contact: one pass over a whole blob that verifies it, hands its uncompressed bytes to
//! whoever stores them, and makes its index.
//!
//! Two threads share the work when the blob is large enough: the caller's hashes the blob and
//! decompresses, the other one hashes the uncompressed bytes twice (diffID, spans), reads the tar
//! and writes to the sink. Each half takes about as long as the other.

use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use crate::layer::blocks::Place;
use crate::layer::entry::{Entry, Whiteout};
use crate::layer::error::{LayerError, LayerErrorKind};
use crate::layer::index::{Geometry, LayerIndex};
use crate::layer::limit::{ADDRESS_BYTES_MAX, SPAN_BYTES_MAX, Share};
use crate::layer::outlet::{Downstream, Outlet, Piece, spans};
use crate::layer::tar::Scanner;
use crate::layer::unpack::{Unpacker, sniff};
use crate::oci::digest::{Algorithm, DigestMismatch, Hasher, Verifier};
use crate::oci::{Compression, Digest};

/// Blobs below this size, in bytes, are done in one thread: starting another takes longer.
const THREAD_BYTES_MIN: u64 = 256 << 10;
/// Pieces that may wait between the threads.
const PIECES_WAITING: usize = 2;
/// How much input is hashed and then decompressed at a time: it stays in the cache in between.
const INPUT_BYTES: usize = 128 << 10;
/// Shortest target of a span: below this the index would outgrow the layer.
const SPAN_BYTES_MIN: u64 = 16 << 10;

/// Takes the address space, in order, as it is decompressed. Nothing of it is verified before
/// [`Ingest::finish`] has returned the index.
pub trait AddressSink: Send {
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// What is known of a layer before its first byte.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// Digest that the blob must have.
    pub blob: Digest,
    /// Length that the blob must have, in bytes.
    pub size: u64,
    /// Digest that the uncompressed tar must have, when the image configuration is at hand.
    pub diff_id: Option<Digest>,
    /// Most bytes of address space that are accepted.
    pub address_max: u64,
    /// How finely it is cut.
    pub geometry: Geometry,
    /// What its entries take their memory from.
    pub share: Share,
}

impl IngestOptions {
    /// Options for a blob of which only the descriptor is known.
    pub fn new(blob: Digest, size: u64) -> IngestOptions {
        IngestOptions {
            blob,
            size,
            diff_id: None,
            address_max: ADDRESS_BYTES_MAX,
            geometry: Geometry::default(),
            share: Share::default(),
        }
    }
}

/// One pass over a blob. Push all of its bytes in order, then [`Ingest::finish`]. Dropping it
/// unfinished ends its thread and drops the sink.
pub struct Ingest<S: AddressSink + 'static> {
    options: IngestOptions,
    verifier: Verifier,
    received: u64,
    /// The first bytes, until they say how the blob is compressed.
    first: Vec<u8>,
    unpacker: Option<(Compression, Unpacker)>,
    outlet: Outlet<Lane<S>>,
    failed: bool,
}

impl<S: AddressSink> fmt::Debug for Ingest<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingest")
            .field("options", &self.options)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl<S: AddressSink + 'static> Ingest<S> {
    /// A pass that has seen nothing.
    pub fn new(mut options: IngestOptions, sink: S) -> Result<Ingest<S>, LayerError> {
        let Geometry {
            entry_bytes,
            span_bytes,
        } = &mut options.geometry;
        *span_bytes = (*span_bytes).clamp(SPAN_BYTES_MIN, SPAN_BYTES_MAX);
        *entry_bytes = (*entry_bytes).max(*span_bytes);
        Ingest::with_geometry(options, sink)
    }

    /// As [`Ingest::new`], cut in any way. With [`Geometry::WHOLE`] the index can list, but not
    /// decode.
    pub fn with_geometry(options: IngestOptions, sink: S) -> Result<Ingest<S>, LayerError> {
        let algorithm = options
            .diff_id
            .as_ref()
            .map_or(Algorithm::Sha256, Digest::algorithm);
        let reader = Reader::new(algorithm, options.share.clone(), sink);
        let lane = if options.size >= THREAD_BYTES_MIN {
            Lane::spawn(reader).map_err(|e| LayerErrorKind::Thread(e).of(&options.blob))?
        } else {
            Lane::Here(Box::new(reader))
        };
        Ok(Ingest {
            verifier: Verifier::new(options.blob.clone()),
            received: 0,
            first: Vec::new(),
            unpacker: None,
            outlet: Outlet::new(options.address_max, lane),
            failed: false,
            options,
        })
    }

    /// Takes the next bytes of the blob. After an error nothing more is taken.
    pub fn push(&mut self, compressed: &[u8]) -> Result<(), LayerError> {
        let done = if self.failed {
            Err(LayerErrorKind::Ended)
        } else {
            self.take(compressed)
        };
        self.failed |= done.is_err();
        done.map_err(|kind| kind.of(&self.options.blob))
    }

    /// Says that there is no more: checks length and digests and gives the index.
    pub fn finish(self) -> Result<(LayerIndex, S), LayerError> {
        self.finish_with_places()
            .map(|(index, _, sink)| (index, sink))
    }

    /// As [`Ingest::finish`], with places in a deflate stream.
    pub fn finish_with_places(self) -> Result<(LayerIndex, Vec<Place>, S), LayerError> {
        let blob = self.options.blob.clone();
        if self.failed {
            return Err(LayerErrorKind::Ended.of(&blob));
        }
        self.complete().map_err(|kind| kind.of(&blob))
    }

    fn take(&mut self, compressed: &[u8]) -> Result<(), LayerErrorKind> {
        for chunk in compressed.chunks(INPUT_BYTES) {
            self.received += chunk.len() as u64;
            if self.received > self.options.size {
                let (expected, actual) = (self.options.size, self.received);
                return Err(LayerErrorKind::Size { expected, actual });
            }
            self.verifier.update(chunk);
            match &mut self.unpacker {
                Some((_, unpacker)) => unpacker.push(chunk, &mut self.outlet)?,
                None => {
                    self.first.extend_from_slice(chunk);
                    if self.first.len() >= 4 {
                        self.begin()?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Decides how the blob is compressed.
    fn begin(&mut self) -> Result<(), LayerErrorKind> {
        let first = std::mem::take(&mut self.first);
        let compression = sniff(&first);
        let mut unpacker = Unpacker::new(compression, self.options.geometry)?;
        unpacker.push(&first, &mut self.outlet)?;
        self.unpacker = Some((compression, unpacker));
        Ok(())
    }

    fn complete(mut self) -> Result<(LayerIndex, Vec<Place>, S), LayerErrorKind> {
        let options = &self.options;
        if self.received != options.size {
            let (expected, actual) = (options.size, self.received);
            return Err(LayerErrorKind::Size { expected, actual });
        }
        self.verifier.finish().map_err(LayerErrorKind::Blob)?;
        self.verifier = Verifier::new(options.blob.clone());
        if self.unpacker.is_none() {
            self.begin()?;
        }
        let (compression, unpacker) = self.unpacker.take().ok_or(LayerErrorKind::Ended)?;
        unpacker.finish(&mut self.outlet)?;
        self.outlet.flush()?;
        let Outlet {
            address,
            heads,
            places,
            down,
            ..
        } = self.outlet;
        let read = down.finish()?;
        if let Some(expected) = self
            .options
            .diff_id
            .filter(|expected| *expected != read.diff_id)
        {
            let actual = read.diff_id;
            return Err(LayerErrorKind::DiffId(DigestMismatch { expected, actual }));
        }
        let index = LayerIndex {
            blob: self.options.blob,
            diff_id: read.diff_id,
            compressed_size: self.received,
            address_size: address,
            compression,
            whiteouts: read.whiteouts,
            entries: read.entries,
            spans: spans(heads, read.sums, self.received, address),
        };
        Ok((index, places, read.sink))
    }
}

/// Where the uncompressed bytes are worked on.
enum Lane<S> {
    Here(Box<Reader<S>>),
    Thread(Worker<S>),
}

/// The other thread.
struct Worker<S> {
    /// Absent once the thread was told to end.
    full: Option<SyncSender<Piece>>,
    empty: Receiver<Piece>,
    thread: Option<JoinHandle<Result<Reader<S>, LayerErrorKind>>>,
}

impl<S: AddressSink + 'static> Lane<S> {
    fn spawn(mut reader: Reader<S>) -> io::Result<Lane<S>> {
        let (full, incoming) = sync_channel::<Piece>(PIECES_WAITING);
        let (outgoing, empty) = sync_channel(PIECES_WAITING + 2);
        for _ in 0..=PIECES_WAITING {
            // There is room for all of them.
            let _ = outgoing.try_send(Piece::new());
        }
        let thread = std::thread::Builder::new()
            .name("layer-index".into())
            .spawn(move || {
                for mut piece in incoming {
                    reader.read(&piece)?;
                    piece.clear();
                    // Nobody takes it when the pass is over.
                    let _ = outgoing.send(piece);
                }
                Ok(reader)
            })?;
        Ok(Lane::Thread(Worker {
            full: Some(full),
            empty,
            thread: Some(thread),
        }))
    }

    fn finish(self) -> Result<Read<S>, LayerErrorKind> {
        match self {
            Lane::Here(reader) => reader.finish(),
            Lane::Thread(mut worker) => worker.join()?.finish(),
        }
    }
}

impl<S: AddressSink> Downstream for Lane<S> {
    fn pass(&mut self, mut piece: Piece) -> Result<Piece, LayerErrorKind> {
        match self {
            Lane::Here(reader) => {
                reader.read(&piece)?;
                piece.clear();
                Ok(piece)
            }
            Lane::Thread(worker) => {
                let sent = worker
                    .full
                    .as_ref()
                    .is_some_and(|full| full.send(piece).is_ok());
                match worker.empty.recv() {
                    Ok(piece) if sent => Ok(piece),
                    // The thread has ended, so it has an error to tell.
                    _ => Err(worker.join().err().unwrap_or(LayerErrorKind::Ended)),
                }
            }
        }
    }
}

impl<S> Worker<S> {
    /// Lets the thread finish what waits, and ends it.
    fn join(&mut self) -> Result<Reader<S>, LayerErrorKind> {
        self.full = None;
        let thread = self.thread.take().ok_or(LayerErrorKind::Ended)?;
        let died = |_| LayerErrorKind::Thread(io::Error::other("it panicked"));
        thread.join().map_err(died)?
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        // So that the sink is gone when the pass is.
        let _ = self.join();
    }
}

/// Works on the uncompressed bytes.
struct Reader<S> {
    diff_id: Hasher,
    span: Sha256,
    span_len: u64,
    sums: Vec<[u8; 32]>,
    scanner: Scanner,
    sink: S,
}

/// What came of it.
struct Read<S> {
    diff_id: Digest,
    sums: Vec<[u8; 32]>,
    entries: Vec<Entry>,
    whiteouts: Vec<Whiteout>,
    sink: S,
}

impl<S: AddressSink> Reader<S> {
    fn new(algorithm: Algorithm, share: Share, sink: S) -> Reader<S> {
        Reader {
            diff_id: Hasher::new(algorithm),
            span: Sha256::new(),
            span_len: 0,
            sums: Vec::new(),
            scanner: Scanner::new(share),
            sink,
        }
    }

    fn read(&mut self, piece: &Piece) -> Result<(), LayerErrorKind> {
        let bytes = piece.bytes();
        self.scanner.push(bytes)?;
        self.sink.write(bytes).map_err(LayerErrorKind::Sink)?;
        self.diff_id.update(bytes);
        let mut from = 0;
        for &cut in &piece.cuts {
            self.add(&bytes[from..cut]);
            self.end_span();
            from = cut;
        }
        self.add(&bytes[from..]);
        Ok(())
    }

    fn add(&mut self, bytes: &[u8]) {
        self.span.update(bytes);
        self.span_len += bytes.len() as u64;
    }

    /// A span of no length (where the address space ends at a cut) is none.
    fn end_span(&mut self) {
        if self.span_len > 0 {
            self.sums.push(self.span.finalize_reset().into());
            self.span_len = 0;
        }
    }
}

impl<S> Reader<S> {
    fn finish(mut self) -> Result<Read<S>, LayerErrorKind>
    where
        S: AddressSink,
    {
        self.end_span();
        let (entries, whiteouts) = self.scanner.finish()?;
        let (diff_id, sums, sink) = (self.diff_id.finish(), self.sums, self.sink);
        Ok(Read {
            diff_id,
            sums,
            entries,
            whiteouts,
            sink,
        })
    }
}
