//! What `stats` shows of a running mount.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::content::{LayerStats, Proof};
use crate::fs::ImageFs;
use crate::fs::counters::Requests;
use crate::mount::engine::Choice;
use crate::mount::record::{Record, State};
use crate::mount::revalidate::Newer;
use crate::mount::sandbox::Walls;
use crate::oci::Digest;
use crate::registry::HostUse;

/// The numbers of one mount, since it was mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// What was asked for.
    pub image: String,
    /// Digest of the image manifest.
    pub digest: String,
    /// Digest of the image that the tag stands for now, when it is known not to be this one.
    #[serde(default)]
    pub newer: Option<String>,
    /// Compressed bytes fetched from outside.
    pub fetched_bytes: u64,
    /// Requests to the outside.
    pub requests: u64,
    /// Bytes of the layers' content that are present locally.
    pub cache_bytes: u64,
    /// Base first.
    pub layers: Vec<Layer>,
    /// The hosts that stand for the registry, in the order in which they are asked, once one of them
    /// was.
    #[serde(default)]
    pub hosts: Vec<HostUse>,
    /// READ requests answered by the worker.
    pub reads: u64,
    /// Bytes handed to readers by the worker.
    pub read_bytes: u64,
    /// Bytes put into the kernel's page cache before anybody asked for them.
    #[serde(default)]
    pub pushed_bytes: u64,
    /// Microseconds from when the mount was usable until the first bytes of a file were handed to a
    /// reader by the worker; absent before that.
    #[serde(default)]
    pub first_byte_us: Option<u64>,
    /// Reads that waited for the network.
    pub stalled_reads: u64,
    /// Milliseconds that they waited, together.
    pub stalled_total_ms: u64,
    /// Milliseconds that the longest of them waited.
    pub stalled_longest_ms: u64,
    /// Reads that wait for the network now.
    #[serde(default)]
    pub waiting_reads: u64,
    /// Milliseconds that the one that waits for the longest has waited so far.
    #[serde(default)]
    pub waiting_longest_ms: u64,
    /// Times that bytes did not have the digest that they must have.
    pub verify_failures: u64,
    /// Which engine serves it, and why.
    #[serde(flatten)]
    pub engine: Option<Choice>,
    /// What of the sandbox is on.
    #[serde(default)]
    pub sandbox: Option<Walls>,
    /// The upper directory of a writable mount.
    pub upper: Option<PathBuf>,
    /// How much of what packs say has been compared with the layers: `none`, `partial`, `all`. Also
    /// `none` when no pack is used.
    pub pack_proven: String,
    /// How it is doing.
    pub state: State,
    /// Requests that the kernel sent, by kind.
    pub fuse: Requests,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Blob digest.
    pub digest: Digest,
    /// Compressed size in bytes.
    pub size: u64,
    /// Uncompressed size in bytes.
    pub address_bytes: u64,
    /// Uncompressed bytes present locally.
    pub present_bytes: u64,
    /// Whether all of them are, and were together seen to have the digest of the uncompressed tar.
    #[serde(default)]
    pub verified: bool,
    /// Where absent bytes come from.
    pub source: String,
}

impl Stats {
    /// The numbers of `fs` now.
    pub(crate) fn of(record: &Record, fs: &ImageFs, source: &str, newer: &Newer) -> Stats {
        let content = fs.content().stats();
        let requests = fs.counters().requests();
        let layer = |l: &LayerStats| Layer {
            digest: l.digest.clone(),
            size: l.compressed_bytes,
            address_bytes: l.address_bytes,
            present_bytes: l.present_bytes,
            verified: l.verified,
            source: source.to_owned(),
        };
        Stats {
            image: record.image.clone(),
            digest: record.digest.clone(),
            newer: newer.get().map(ToString::to_string),
            fetched_bytes: content.fetched_bytes,
            requests: content.requests,
            cache_bytes: content.layers.iter().map(|l| l.present_bytes).sum(),
            layers: content.layers.iter().map(layer).collect(),
            hosts: Vec::new(),
            reads: requests.read,
            read_bytes: fs.counters().read_bytes(),
            pushed_bytes: fs.counters().pushed_bytes(),
            first_byte_us: fs.counters().first_byte().map(|d| d.as_micros() as u64),
            stalled_reads: content.stalled_reads,
            stalled_total_ms: content.stalled_total_ms,
            stalled_longest_ms: content.stalled_longest_ms,
            waiting_reads: content.waiting_reads,
            waiting_longest_ms: content.waiting_longest_ms,
            verify_failures: content.verify_failures,
            engine: record.engine.clone(),
            sandbox: record.sandbox.clone(),
            upper: record.upper.clone(),
            pack_proven: proven(&content.layers).to_owned(),
            state: if content.outage {
                State::Stalled
            } else {
                State::Ready
            },
            fuse: requests,
        }
    }
}

fn proven(layers: &[LayerStats]) -> &'static str {
    let count = |proof| layers.iter().filter(|l| l.proof == proof).count();
    match (count(Proof::Given), count(Proof::Missing)) {
        (0, _) => "none",
        (_, 0) => "all",
        _ => "partial",
    }
}
