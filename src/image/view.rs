//! An image that is looked at without mounting it: its tree, and the bytes of its files.
//!
//! Where an index of every layer is known (kept from an earlier time, or from a pack), nothing but
//! what is read is fetched; else the layers stream once, as for a mount.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use tokio::sync::Notify;

use crate::blob::ByteRange;
use crate::blob::range::coalesce;
use crate::content::{self, Content};
use crate::fs::{ImageFs, Outcome, ReadBuffer};
use crate::image::error::Error;
use crate::monitor::{Event, Monitor};
use crate::mount::{MountRequest, assemble};
use crate::oci::Digest;
use crate::tree::{Ino, Node, NodeKind, Tree};

/// Bytes that are read at once.
const PIECE_BYTES: u32 = 1 << 20;
/// Longest range that is asked for at once, in bytes of address space.
const FETCH_BYTES: u64 = 32 << 20;
/// Ranges that may be on their way at the same time.
const FETCHES: usize = 4;
/// Absent ranges nearer than this are fetched as one: asking again costs more.
const GAP_BYTES: u64 = 64 << 10;
/// How often bytes are fetched that are gone again when they are read (a full disk).
const TRIES: usize = 4;

/// An image to look at.
#[derive(Debug)]
pub struct View {
    fs: Arc<ImageFs>,
    image: String,
    layers: Vec<Digest>,
}

/// One name below a directory, in the order of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The path from where the walk began, without a leading slash; empty for the beginning.
    pub path: Vec<u8>,
    /// What is there.
    pub ino: Ino,
}

impl View {
    /// The image of `request`.
    pub fn open(request: &MountRequest, monitor: Arc<dyn Monitor>) -> Result<View, Error> {
        let assembled = assemble::assemble(request, monitor, &Notify::new())?;
        Ok(View {
            layers: assembled.indexes.iter().map(|i| i.blob.clone()).collect(),
            fs: assembled.fs,
            image: request.image.clone(),
        })
    }

    /// The merged tree.
    pub fn tree(&self) -> &Tree {
        self.fs.tree()
    }

    /// Digest of the layer with this number.
    pub(super) fn layer(&self, number: u32) -> Option<&Digest> {
        self.layers.get(number as usize)
    }

    /// What is at `path`, as in a chroot. A symbolic link at the end is followed if `follow`, or if
    /// the path says so (`link/`, `link/.`).
    pub fn find(&self, path: &[u8], follow: bool) -> Result<Ino, Error> {
        let tree = self.tree();
        let cut = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let (directory, name) = path.split_at(cut);
        let found = match name {
            b"" | b"." | b".." => tree.follow(Ino::ROOT, path),
            _ if follow => tree.follow(Ino::ROOT, path),
            _ => tree
                .follow(Ino::ROOT, directory)
                .and_then(|directory| tree.lookup(directory, name)),
        };
        let ino = found.ok_or_else(|| self.error(path, "no such file or directory"))?;
        if name.is_empty() && self.node(ino)?.kind != NodeKind::Directory {
            return Err(self.error(path, "not a directory"));
        }
        Ok(ino)
    }

    /// The regular file at `path`.
    pub fn find_file(&self, path: &[u8]) -> Result<Ino, Error> {
        let ino = self.find(path, true)?;
        match self.node(ino)?.kind {
            NodeKind::Regular => Ok(ino),
            NodeKind::Directory => Err(self.error(path, "is a directory")),
            _ => Err(self.error(path, "not a regular file")),
        }
    }

    /// The node of `ino`.
    pub fn node(&self, ino: Ino) -> Result<Node, Error> {
        let path = || self.tree().path(ino).unwrap_or_default();
        let node = self.tree().node(ino);
        node.ok_or_else(|| self.error(&path(), "no such file or directory"))
    }

    /// An error about `path`.
    pub(super) fn error(&self, path: &[u8], what: &'static str) -> Error {
        Error::Path {
            image: self.image.clone(),
            path: shown(path),
            what,
        }
    }

    /// Everything at and below `ino`: directories before what is in them, names in the order of their
    /// bytes.
    pub fn walk(&self, ino: Ino) -> Vec<Step> {
        let tree = self.tree();
        let mut steps = vec![Step {
            path: Vec::new(),
            ino,
        }];
        let mut open = vec![(ino, 0, Vec::new())];
        while let Some((directory, next, path)) = open.last_mut() {
            let Some((name, child)) = tree.children_from(*directory, *next).next() else {
                open.pop();
                continue;
            };
            *next += 1;
            let mut below = path.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name);
            steps.push(Step {
                path: below.clone(),
                ino: child,
            });
            if tree
                .node(child)
                .is_some_and(|n| n.kind == NodeKind::Directory)
            {
                open.push((child, 0, below));
            }
        }
        steps
    }

    /// Has the bytes of all regular files among `inos` brought here, in the order of the layers, few
    /// requests for many files. The cache may be too full to keep them, so that they are fetched
    /// again when they are read.
    pub fn bring(&self, inos: impl IntoIterator<Item = Ino>) -> Result<(), Error> {
        let mut absent: HashMap<u32, Vec<ByteRange>> = HashMap::new();
        for ino in inos {
            let (layer, extents) = self.tree().extents(ino);
            let ranges = extents
                .iter()
                .filter_map(|e| ByteRange::at(e.address, e.len));
            let missing = ranges.filter(|r| !self.fs.content().is_present(layer.0, *r));
            absent.entry(layer.0).or_default().extend(missing);
        }
        let mut layers: Vec<_> = absent.into_iter().collect();
        layers.sort_unstable_by_key(|(layer, _)| *layer);
        let mut wanted = Vec::new();
        for (layer, ranges) in layers {
            wanted.extend(joined(ranges).into_iter().map(|range| (layer, range)));
        }
        self.fetch_all(&wanted)
    }

    /// Uncompressed bytes of the layers that are here.
    pub fn present_bytes(&self) -> u64 {
        let layers = self.fs.content().stats().layers;
        layers.iter().map(|layer| layer.present_bytes).sum()
    }

    /// Has everything that is absent brought here; gives the compressed bytes that this took.
    pub fn bring_all(&self, monitor: &dyn Monitor) -> Result<u64, Error> {
        let content = self.fs.content();
        for (number, layer) in (0..).zip(content.stats().layers) {
            let whole = joined(vec![ByteRange::new(0, layer.address_bytes)]);
            let absent = whole
                .into_iter()
                .filter(|r| !content.is_present(number, *r));
            let absent: Vec<(u32, ByteRange)> = absent.map(|range| (number, range)).collect();
            if absent.is_empty() {
                continue;
            }
            let (digest, size) = (layer.digest.clone(), layer.address_bytes);
            monitor.event(Event::LayerStarted {
                layer: digest.clone(),
                size: size - layer.present_bytes.min(size),
            });
            for some in absent.chunks(FETCHES) {
                self.fetch_all(some)?;
                let now = content.stats().layers;
                let now = now.get(number as usize).map_or(0, |l| l.present_bytes);
                monitor.event(Event::LayerProgress {
                    layer: digest.clone(),
                    bytes: now.saturating_sub(layer.present_bytes),
                });
            }
            monitor.event(Event::LayerDone { layer: digest });
        }
        let still = |(n, l): (u32, &crate::content::LayerStats)| {
            !content.is_present(n, ByteRange::new(0, l.address_bytes))
        };
        if (0..).zip(&content.stats().layers).any(still) {
            return Err(self.error(b"/", "the cache does not keep all of it (is it full?)"));
        }
        Ok(content.stats().fetched_bytes)
    }

    /// Fetches a few ranges at a time; the first error ends it.
    fn fetch_all(&self, wanted: &[(u32, ByteRange)]) -> Result<(), Error> {
        let (sender, done) = mpsc::channel();
        let mut running = 0;
        let mut outcome = Ok(());
        for (layer, range) in wanted {
            if running == FETCHES {
                outcome = wait(&done);
                running -= 1;
            }
            if outcome.is_err() {
                break;
            }
            start(self.fs.content(), *layer, *range, &sender);
            running += 1;
        }
        for _ in 0..running {
            outcome = outcome.and(wait(&done));
        }
        outcome
    }

    /// Writes the bytes of a regular file; `skip` is called instead for a run of zeros that no layer
    /// has bytes for, at least a page long.
    pub fn read(&self, ino: Ino, out: &mut dyn FileSink) -> Result<(), Error> {
        let node = self.node(ino)?;
        let (_, extents) = self.tree().extents(ino);
        let mut at = 0;
        for extent in extents.iter() {
            if extent.file_offset > at {
                out.skip(extent.file_offset - at).map_err(Error::Output)?;
                at = extent.file_offset;
            }
            let end = extent.file_offset + extent.len;
            self.copy(ino, at..end, out)?;
            at = end;
        }
        if node.size > at {
            out.skip(node.size - at).map_err(Error::Output)?;
        }
        Ok(())
    }

    fn copy(
        &self,
        ino: Ino,
        range: std::ops::Range<u64>,
        out: &mut dyn FileSink,
    ) -> Result<(), Error> {
        let mut buffer = ReadBuffer::default();
        let (mut at, mut tries) = (range.start, 0);
        while at < range.end {
            let size = (range.end - at).min(u64::from(PIECE_BYTES)) as u32;
            let read = self.fs.read(ino.get(), at, size, &mut buffer);
            let path = || self.tree().path(ino).unwrap_or_default();
            match read.map_err(|_| self.error(&path(), "its bytes in the cache cannot be read"))? {
                Outcome::Read => {
                    out.write(buffer.bytes()).map_err(Error::Output)?;
                    at += u64::from(size);
                    tries = 0;
                }
                Outcome::Absent(absent) if tries < TRIES => {
                    tries += 1;
                    self.fetch_all(&[(absent.layer, absent.range)])?;
                }
                Outcome::Absent(_) => {
                    return Err(
                        self.error(&path(), "the cache does not keep its bytes (is it full?)")
                    );
                }
            }
        }
        Ok(())
    }
}

/// Where the bytes of a file go.
pub trait FileSink {
    /// The next bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// So many zeros, which need not be written where there is another way.
    fn skip(&mut self, zeros: u64) -> io::Result<()>;
}

/// A stream, where zeros are written like all else.
#[derive(Debug)]
pub struct Stream<W>(pub W);

impl<W: Write> FileSink for Stream<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn skip(&mut self, zeros: u64) -> io::Result<()> {
        io::copy(&mut io::Read::take(io::repeat(0), zeros), &mut self.0).map(drop)
    }
}

type Done = Result<(), Arc<content::Error>>;

fn start(content: &Arc<Content>, layer: u32, range: ByteRange, sender: &mpsc::Sender<Done>) {
    let sender = sender.clone();
    // Who asked may have gone with an error.
    content.fetch(layer, range, Box::new(move |done| drop(sender.send(done))));
}

fn wait(done: &mpsc::Receiver<Done>) -> Result<(), Error> {
    match done.recv() {
        Ok(fetched) => fetched.map_err(Error::Fetch),
        Err(_) => Err(Error::Fetch(Arc::new(content::Error::Abandoned))),
    }
}

/// Ranges in order, neighbours as one, long ones in pieces.
fn joined(mut ranges: Vec<ByteRange>) -> Vec<ByteRange> {
    ranges.sort_unstable_by_key(|range| range.start());
    let pieces = |range: ByteRange| {
        let starts = (range.start()..range.end()).step_by(FETCH_BYTES as usize);
        starts.map(move |at| ByteRange::new(at, range.end().min(at + FETCH_BYTES)))
    };
    let whole = coalesce(ranges, GAP_BYTES);
    whole.into_iter().flat_map(pieces).collect()
}

/// A path for people.
pub(super) fn shown(path: &[u8]) -> String {
    PathBuf::from(OsStr::from_bytes(path)).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_and_cut() {
        let range = ByteRange::new;
        let far = 10 * GAP_BYTES;
        let given = vec![
            range(far, far + 9),
            range(0, 4096),
            range(5000, 6000),
            range(100, 200),
        ];
        assert_eq!(joined(given), [range(0, 6000), range(far, far + 9)]);
        let long = joined(vec![range(7, 7 + 2 * FETCH_BYTES + 1)]);
        assert_eq!(long.len(), 3);
        assert_eq!(long[2].len(), 1);
        assert!(joined(Vec::new()).is_empty());
    }
}
