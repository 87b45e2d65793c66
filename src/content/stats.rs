//! Counts of what fetching did.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::oci::Digest;

/// The numbers of an image's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentStats {
    /// Bytes that came from sources.
    pub fetched_bytes: u64,
    /// Streams that were opened.
    pub requests: u64,
    /// Fetches that a reader waited for.
    pub stalled_reads: u64,
    /// Milliseconds that they waited, together.
    pub stalled_total_ms: u64,
    /// Milliseconds that the longest waited.
    pub stalled_longest_ms: u64,
    /// Fetches that a reader waits for now.
    pub waiting_reads: u64,
    /// Milliseconds that the one that waits for the longest has.
    pub waiting_longest_ms: u64,
    /// Times that bytes did not have their digest.
    pub verify_failures: u64,
    /// Whether somebody waits for a source that cannot be reached.
    pub outage: bool,
    /// Base first.
    pub layers: Vec<LayerStats>,
}

/// The numbers of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStats {
    /// Blob digest.
    pub digest: Digest,
    /// Length of the blob.
    pub compressed_bytes: u64,
    /// Length of the uncompressed tar.
    pub address_bytes: u64,
    /// How much of that is present.
    pub present_bytes: u64,
    /// Whether all of it is, and was seen to be the layer.
    pub verified: bool,
    /// Whether what is known of it was made here.
    pub proof: Proof,
}

/// Who made the index of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// It was made here, from the layer itself.
    Own,
    /// It is a pack's, and was not compared yet.
    Missing,
    /// It is a pack's, and what was made here is the same.
    Given,
}

/// The counters behind [`ContentStats`].
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) fetched_bytes: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) verify_failures: AtomicU64,
    outages: Mutex<Outages>,
    stalled: AtomicU64,
    stalled_ms: AtomicU64,
    longest_ms: AtomicU64,
}

/// The runs that wait for a source that cannot be reached.
#[derive(Debug, Default)]
struct Outages {
    runs: u64,
    /// What was the matter when one last asked; theirs, so that it stays as long as one of them waits.
    trouble: Option<String>,
}

impl Tally {
    fn outages(&self) -> MutexGuard<'_, Outages> {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a reader has waited and was served.
    pub(super) fn has_stalled(&self) -> bool {
        self.stalled.load(Relaxed) > 0
    }

    /// A run waits because of `trouble`.
    pub(super) fn outage_begins(&self, trouble: String) {
        let mut outages = self.outages();
        outages.runs += 1;
        outages.trouble = Some(trouble);
    }

    /// It asks again. What was the matter is not forgotten before the source has answered.
    pub(super) fn outage_ends(&self) {
        self.outages().runs -= 1;
    }

    /// A run got what it asked for, or has given up.
    pub(super) fn asked(&self) {
        let mut outages = self.outages();
        if outages.runs == 0 {
            outages.trouble = None;
        }
    }

    /// What was the matter with the source when it was last asked.
    pub(super) fn trouble(&self) -> Option<String> {
        self.outages().trouble.clone()
    }

    pub(super) fn stalled(&self, waited: Duration) {
        let ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        self.stalled.fetch_add(1, Relaxed);
        self.stalled_ms.fetch_add(ms, Relaxed);
        self.longest_ms.fetch_max(ms, Relaxed);
    }

    pub(super) fn stats(
        &self,
        (waiting_reads, longest): (u64, Duration),
        layers: Vec<LayerStats>,
    ) -> ContentStats {
        ContentStats {
            fetched_bytes: self.fetched_bytes.load(Relaxed),
            requests: self.requests.load(Relaxed),
            stalled_reads: self.stalled.load(Relaxed),
            stalled_total_ms: self.stalled_ms.load(Relaxed),
            stalled_longest_ms: self.longest_ms.load(Relaxed),
            waiting_reads,
            waiting_longest_ms: u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
            verify_failures: self.verify_failures.load(Relaxed),
            outage: self.outages().runs > 0,
            layers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trouble_of_who_still_waits_is_not_forgotten() {
        let tally = Tally::default();
        let gone = || Some("gone".to_owned());
        tally.outage_begins("slow".to_owned());
        tally.outage_begins("gone".to_owned());
        assert_eq!(tally.trouble(), gone());
        // Another run is served meanwhile, and one of the two is.
        tally.asked();
        tally.outage_ends();
        tally.asked();
        assert_eq!(tally.trouble(), gone());
        // The other one asks again, and there is no answer yet.
        tally.outage_ends();
        assert_eq!(tally.trouble(), gone());
        tally.asked();
        assert_eq!(tally.trouble(), None);
    }
}
