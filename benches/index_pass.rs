//! The index pass of first contact: MB/s of gzip consumed with and without checkpoints, and how
//! long the index is (budget: 1.5 % of the compressed layer).
//!
//! `cargo bench --bench index_pass`. The layer is made of this machine's own programs and
//! libraries (`/usr/lib`, up to 256 MiB of tar), or is the gzip'ed layer that `RSMOUNT_BENCH_LAYER`
//! names.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where something is wrong"
)]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use divan::Bencher;
use divan::counter::BytesCount;
use rsmount::layer::{AddressSink, Geometry, Ingest, IngestOptions, LayerIndex, SpanStart, codec};
use rsmount::oci::Digest;

/// Enough to be like a large layer.
const TAR_BYTES_MAX: u64 = 256 << 20;

/// Size of a piece as it comes from the network.
const PIECE_BYTES: usize = 64 << 10;

static LAYER: LazyLock<Vec<u8>> = LazyLock::new(|| match std::env::var_os("RSMOUNT_BENCH_LAYER") {
    Some(path) => std::fs::read(path).unwrap(),
    None => gzip_of_this_machine(),
});

fn gzip_of_this_machine() -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut tar = tar::Builder::new(gzip);
    let (mut left, mut dirs) = (TAR_BYTES_MAX, vec![PathBuf::from("/usr/lib")]);
    while let Some(dir) = dirs.pop() {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        for path in paths {
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                dirs.push(path);
            } else if meta.is_file() && meta.len() <= left {
                left -= meta.len();
                let name = path.strip_prefix("/").unwrap();
                tar.append_path_with_name(&path, name).unwrap();
            }
        }
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// Stores nothing: the disk is not measured here.
struct Nowhere;

impl AddressSink for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        divan::black_box(bytes);
        Ok(())
    }
}

fn pass(blob: &[u8], digest: &Digest, geometry: Geometry) -> LayerIndex {
    let mut options = IngestOptions::new(digest.clone(), blob.len() as u64);
    options.geometry = geometry;
    let mut ingest = Ingest::with_geometry(options, Nowhere).unwrap();
    for piece in blob.chunks(PIECE_BYTES) {
        ingest.push(piece).unwrap();
    }
    ingest.finish().unwrap().0
}

/// Everything that a layer's first contact does but the network and the disk.
#[divan::bench(args = ["with checkpoints", "without checkpoints"], sample_count = 9, sample_size = 1)]
fn index_pass(bencher: Bencher<'_, '_>, how: &str) {
    let geometry = match how {
        "with checkpoints" => Geometry::default(),
        _ => Geometry::WHOLE,
    };
    let digest = Digest::of(&LAYER);
    bencher
        .counter(BytesCount::new(LAYER.len()))
        .bench_local(|| pass(&LAYER, &digest, geometry));
}

/// The floor: inflate alone, on one core.
#[divan::bench(sample_count = 9, sample_size = 1)]
fn inflate_only(bencher: Bencher<'_, '_>) {
    bencher
        .counter(BytesCount::new(LAYER.len()))
        .bench_local(|| {
            let mut gzip = flate2::read::MultiGzDecoder::new(&LAYER[..]);
            io::copy(&mut gzip, &mut io::sink()).unwrap()
        });
}

/// Prints how long the index of the layer is, and of what.
fn print_sizes() {
    let index = pass(&LAYER, &Digest::of(&LAYER), Geometry::default());
    let windows = index.spans.iter().filter_map(|span| match &span.start {
        SpanStart::Window { window, .. } => Some(window.len()),
        _ => None,
    });
    let windows: Vec<usize> = windows.collect();
    let (encoded, blob) = (codec::encode(&index).len(), LAYER.len());
    let layer = std::env::var_os("RSMOUNT_BENCH_LAYER");
    println!(
        "layer     {}",
        layer
            .as_deref()
            .map_or(Path::new("/usr/lib of this machine"), Path::new)
            .display()
    );
    println!(
        "          {blob} bytes of gzip, {} of tar",
        index.address_size
    );
    println!(
        "index     {encoded} bytes = {:.2} % of the gzip; {} entries, {} spans",
        100.0 * encoded as f64 / blob as f64,
        index.entries.len(),
        index.spans.len()
    );
    println!(
        "windows   {} with {} bytes together\n",
        windows.len(),
        windows.iter().sum::<usize>()
    );
    io::stdout().flush().unwrap();
}

fn main() {
    print_sizes();
    divan::main();
}
