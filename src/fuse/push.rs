//! Puts what will probably be read into the kernel's page cache before anybody asks
//! (`FUSE_NOTIFY_STORE`): a request costs a round trip, and a start sends hundreds of them.
//!
//! A thread of its own does it, never one that answers: the kernel holds a page of a READ locked
//! until that is answered, and a store waits for the lock, whatever signal comes. So nothing is pushed
//! of a file while a READ of it waits for the network: this thread would wait with it, and a worker
//! that is killed then would not be gone before the bytes have come.
//!
//! The kernel takes pages of inodes only that it knows. So it is the LOOKUP of a file that starts its
//! push, and a READ that goes on with it; with the kernel engine, whose files are layers, that is when
//! EROFS is mounted.
//!
//! Measured with everything local and a fresh mount: of python's three imports 235 READs of 14.1 MB
//! become 107 of 2.3 MB, of a compile by g++ 752 of 37 MB become 417 of 12 MB; with the kernel engine 200
//! and 600 become none. Of a packed start, whose read-ahead is small, python sends 228 instead of 722 and
//! g++ 517 instead of 2050, with no byte more on the link (what came and is pushed is not asked for by
//! a guess of the kernel), and of g++'s 24 READs that waited for the network one does. What is left are the first READs of small files, which come before their
//! push does, and LOOKUPs. Rejected: to let the thread that has answered a LOOKUP push, which saves a
//! wake-up and, where the other thread waits for nothing but a page of the pushed file, stops both;
//! and to walk the mount ahead of the reader, so that its LOOKUPs are answered before they are sent:
//! a process that is killed while it waits for its own file system cannot end.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use crate::blob::ByteRange;
use crate::cache::Presence;
use crate::fs::{Error, ImageFs, LayerFiles, ReadBuffer};
use crate::fuse::layers::FIRST;

/// Most bytes of one store: a reader of its pages waits for no more than this being copied.
const STORE_BYTES: u64 = 128 << 10;

/// Most bytes that are pushed in all: a bound on what a profile of another program costs.
const PUSHED_BYTES_MAX: u64 = 128 << 20;

/// How often a file is tried of which nothing can be pushed.
const TRIES: u32 = 16;

/// The kernel knows an inode only when whoever looked it up has run: so often that is waited for, at
/// first so long, then twice as long each time (80 ms in all).
const UNKNOWN_TRIES: u32 = 12;
const UNKNOWN_WAIT: Duration = Duration::from_micros(20);

/// What knows of the future.
pub(super) trait Foresight: Send + Sync + 'static {
    /// Whether anything of inode `ino` will probably be read.
    fn is_foreseen(&self, ino: u64) -> bool;

    /// The pages of inode `ino` that will probably be read.
    fn foreseen(&self, ino: u64) -> Vec<ByteRange>;

    /// Reads them, if they are here.
    fn read(&self, ino: u64, range: ByteRange, buffer: &mut ReadBuffer) -> Result<Presence, Error>;

    /// So many bytes were pushed.
    fn pushed(&self, bytes: u64);

    /// Inodes have the numbers below this.
    fn inodes(&self) -> u64;
}

impl Foresight for ImageFs {
    fn is_foreseen(&self, ino: u64) -> bool {
        ImageFs::is_foreseen(self, ino)
    }

    fn foreseen(&self, ino: u64) -> Vec<ByteRange> {
        ImageFs::foreseen(self, ino)
    }

    fn read(&self, ino: u64, range: ByteRange, buffer: &mut ReadBuffer) -> Result<Presence, Error> {
        self.read_foreseen(ino, range, buffer)
    }

    fn pushed(&self, bytes: u64) {
        self.counters().count_pushed_bytes(bytes);
    }

    fn inodes(&self) -> u64 {
        self.totals().files + 1
    }
}

impl Foresight for LayerFiles {
    fn is_foreseen(&self, ino: u64) -> bool {
        ino >= FIRST
    }

    fn foreseen(&self, ino: u64) -> Vec<ByteRange> {
        layer(ino).map_or_else(Vec::new, |n| LayerFiles::foreseen(self, n))
    }

    fn read(&self, ino: u64, range: ByteRange, buffer: &mut ReadBuffer) -> Result<Presence, Error> {
        let n = layer(ino).ok_or(Error::StaleInode(ino))?;
        self.read_foreseen(n, range, buffer)
    }

    fn pushed(&self, bytes: u64) {
        self.image().counters().count_pushed_bytes(bytes);
    }

    fn inodes(&self) -> u64 {
        self.count() as u64 + FIRST
    }
}

fn layer(ino: u64) -> Option<u32> {
    u32::try_from(ino.checked_sub(FIRST)?).ok()
}

/// A file to be pushed, and what of it was read just now.
struct Wanted {
    ino: u64,
    read: ByteRange,
}

/// Whether pages may still be pushed; held while one is.
pub(super) type Open = Arc<Mutex<bool>>;

/// Says what is to be pushed. Its end ends the thread.
#[derive(Debug, Default)]
pub(crate) struct Pusher {
    wanted: OnceLock<mpsc::Sender<Wanted>>,
    /// A bit for each inode that need not be wanted (again).
    settled: Arc<OnceLock<Box<[AtomicU64]>>>,
    waits: Arc<Waits>,
    open: Open,
}

/// How many READs of an inode wait for the network.
#[derive(Debug, Default)]
struct Waits(Mutex<HashMap<u64, u32>>);

impl Waits {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as it lives, a READ of an inode waits for the network.
#[derive(Debug)]
pub(super) struct Waiting {
    waits: Arc<Waits>,
    ino: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waits = self.waits.lock();
        if let Some(count) = waits.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                waits.remove(&self.ino);
            }
        }
    }
}

impl Pusher {
    /// Starts to push what `source` foresees to the kernel behind `device`.
    pub(super) fn start<F: Foresight>(&self, source: Arc<F>, device: OwnedFd) -> io::Result<()> {
        let words = (0..source.inodes().div_ceil(64)).map(|_| AtomicU64::new(0));
        let _once = self.settled.set(words.collect());
        let (wanted, waiting) = mpsc::channel();
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let pushing = Pushing {
            source,
            device: device.into(),
            open: self.open.clone(),
            settled: self.settled.clone(),
            waits: self.waits.clone(),
            left: PUSHED_BYTES_MAX,
            buffer: ReadBuffer::default(),
            files: HashMap::new(),
        };
        std::thread::Builder::new()
            .name("push".into())
            .spawn(move || pushing.run(&waiting))?;
        let _once = self.wanted.set(wanted);
        Ok(())
    }

    /// What has to be shut before pages are taken back from the kernel.
    pub(super) fn open(&self) -> Open {
        self.open.clone()
    }

    /// A READ of `ino` begins to wait for the network.
    pub(super) fn waiting(&self, ino: u64) -> Waiting {
        *self.waits.lock().entry(ino).or_default() += 1;
        Waiting {
            waits: self.waits.clone(),
            ino,
        }
    }

    /// Somebody has looked `ino` up, or has read `read` of it.
    pub(super) fn used<F: Foresight>(&self, source: &F, ino: u64, read: ByteRange) {
        let Some(settled) = self.settled.get() else {
            return;
        };
        let Some(word) = settled.get((ino / 64) as usize) else {
            return;
        };
        let bit = 1 << (ino % 64);
        if word.load(Relaxed) & bit != 0 || word.fetch_or(bit, Relaxed) & bit != 0 {
            return;
        }
        if source.is_foreseen(ino)
            && let Some(wanted) = self.wanted.get()
        {
            let _ended = wanted.send(Wanted { ino, read });
        }
    }
}

/// What there is to do for one file.
#[derive(Default)]
struct Rest {
    ranges: Vec<ByteRange>,
    tries: u32,
}

struct Pushing<F> {
    source: Arc<F>,
    device: File,
    open: Open,
    settled: Arc<OnceLock<Box<[AtomicU64]>>>,
    waits: Arc<Waits>,
    left: u64,
    buffer: ReadBuffer,
    /// Files that could not be pushed whole so far.
    files: HashMap<u64, Rest>,
}

/// How a push ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pushed {
    Stored,
    /// It is not here, or the kernel does not know the inode.
    NotYet,
    /// Nothing more can be pushed.
    Shut,
}

impl<F: Foresight> Pushing<F> {
    fn run(mut self, waiting: &mpsc::Receiver<Wanted>) {
        while let Ok(Wanted { ino, read }) = waiting.recv() {
            if self.left == 0 || !self.push_file(ino, read) {
                return;
            }
        }
    }

    /// False when nothing more can be pushed.
    fn push_file(&mut self, ino: u64, read: ByteRange) -> bool {
        let mut rest = self.files.remove(&ino).unwrap_or_else(|| Rest {
            ranges: self.source.foreseen(ino),
            tries: 0,
        });
        let mut left = Vec::new();
        let pushed_before = self.left;
        for range in std::mem::take(&mut rest.ranges) {
            if read.contains(range) {
                continue;
            }
            match self.push(ino, range) {
                Pushed::Stored => {}
                Pushed::NotYet => left.push(range),
                Pushed::Shut => return false,
            }
        }
        rest.tries += u32::from(self.left == pushed_before);
        if !left.is_empty() && rest.tries < TRIES {
            rest.ranges = left;
            self.files.insert(ino, rest);
            if let Some(word) = self.settled.get().and_then(|s| s.get((ino / 64) as usize)) {
                word.fetch_and(!(1 << (ino % 64)), Relaxed);
            }
        }
        true
    }

    fn push(&mut self, ino: u64, range: ByteRange) -> Pushed {
        let mut at = range.start();
        while at < range.end() {
            let piece = ByteRange::new(at, range.end().min(at + STORE_BYTES));
            match self.push_piece(ino, piece) {
                Pushed::Stored => {}
                other => return other,
            }
            at = piece.end();
        }
        Pushed::Stored
    }

    fn push_piece(&mut self, ino: u64, piece: ByteRange) -> Pushed {
        // Held until the pages are where an eraser finds them.
        let open = self.open.clone();
        let open = open.lock().unwrap_or_else(PoisonError::into_inner);
        if !*open || self.left == 0 {
            return Pushed::Shut;
        }
        if self.waits.lock().contains_key(&ino) {
            return Pushed::NotYet;
        }
        match self.source.read(ino, piece, &mut self.buffer) {
            Ok(Presence::Read) => {}
            Ok(Presence::Absent) => return Pushed::NotYet,
            Err(_) => return Pushed::Shut,
        }
        let mut tries = 0;
        loop {
            match store(&self.device, ino, piece.start(), self.buffer.bytes()) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries < UNKNOWN_TRIES => {
                    std::thread::sleep(UNKNOWN_WAIT * (1 << tries));
                    tries += 1;
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Pushed::NotYet,
                Err(error) => {
                    tracing::debug!(%error, "nothing more is pushed");
                    return Pushed::Shut;
                }
            }
        }
        self.left = self.left.saturating_sub(piece.len());
        self.source.pushed(piece.len());
        Pushed::Stored
    }
}

/// `FUSE_NOTIFY_STORE` (include/uapi/linux/fuse.h: `fuse_out_header`, `fuse_notify_store_out`). By
/// hand because the library's does not say when the kernel does not know the inode.
fn store(mut device: &File, ino: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
    const FUSE_NOTIFY_STORE: u32 = 4;
    const HEAD_BYTES: usize = 40;
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let len = u32::try_from(bytes.len()).map_err(too_long)?;
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&(len + HEAD_BYTES as u32).to_ne_bytes());
    head[4..8].copy_from_slice(&FUSE_NOTIFY_STORE.to_ne_bytes());
    head[16..24].copy_from_slice(&ino.to_ne_bytes());
    head[24..32].copy_from_slice(&offset.to_ne_bytes());
    head[32..36].copy_from_slice(&len.to_ne_bytes());
    let slices = [IoSlice::new(&head), IoSlice::new(bytes)];
    device.write_vectored(&slices).map(drop)
}
