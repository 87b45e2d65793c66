//! A blob at one host, read by range (OCI distribution-spec, "Pulling blobs").
//!
//! Registries in the cloud answer with a redirect to signed URLs of their storage. The target is
//! remembered and asked directly until it expires or refuses, which saves a round trip a range; then
//! the registry is asked again. Storage that ignores `Range` sends everything: what stands before
//! the range is skipped as it arrives, what stands behind is left.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream;
use url::Url;

use super::body::{self, ContentRange, Want};
use super::exchange::{Ask, Exchange};
use super::http::Answer;
use super::redirect::Location;
use super::status;
use crate::blob::{ByteRange, ByteStream, Error, ErrorKind};
use crate::oci::{Descriptor, Digest};

/// Most other places of a foreign layer that are tried.
const URLS_MAX: usize = 4;

/// A blob at one host.
#[derive(Debug)]
pub(super) struct HostBlob {
    shared: Arc<Exchange>,
    digest: Digest,
    size: u64,
    urls: Vec<String>,
    location: Mutex<Option<Location>>,
    ignores_ranges: AtomicBool,
}

impl HostBlob {
    pub(super) fn new(shared: Arc<Exchange>, descriptor: &Descriptor) -> HostBlob {
        HostBlob {
            shared,
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            urls: descriptor.urls.iter().take(URLS_MAX).cloned().collect(),
            location: Mutex::new(None),
            ignores_ranges: AtomicBool::new(false),
        }
    }

    /// Whether the last range was answered with everything: then reading it all at once is cheaper
    /// than reading ranges.
    pub(super) fn ignores_ranges(&self) -> bool {
        self.ignores_ranges.load(Ordering::Relaxed)
    }

    /// What [`crate::blob::Blob::open`] promises, of this host.
    pub(super) async fn read(&self, range: ByteRange) -> Result<ByteStream, Error> {
        if !ByteRange::new(0, self.size).contains(range) {
            let what = format!(
                "blob {}: {range} lies outside its {} bytes",
                self.digest, self.size
            );
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        if range.is_empty() {
            return Ok(Box::pin(stream::empty()));
        }
        let whole = range.len() == self.size;
        let ask = Ask {
            range: (!whole).then_some(range),
            ..Ask::default()
        };
        if let Some(answer) = self.ask_location(ask).await? {
            return self.body(answer, range).await;
        }
        let answer = match self.ask_registry(ask).await {
            Ok(answer) => answer,
            Err(error) => return self.read_foreign(ask, range, error).await,
        };
        self.body(answer, range).await
    }

    /// Asks where the blob was last; `None` when the registry has to be asked.
    async fn ask_location(&self, ask: Ask<'_>) -> Result<Option<Answer>, Error> {
        let known = self.remembered().clone().filter(Location::is_fresh);
        let Some(known) = known else { return Ok(None) };
        let answer = match self.shared.get_elsewhere(&known.url, ask).await {
            Ok(answer) => answer,
            Err(error) => {
                self.forget(&known);
                return Err(error);
            }
        };
        match answer.status() {
            200 | 206 => Ok(Some(answer)),
            // Busy, not expired: asking the registry would add to the load.
            408 | 429 | 500.. => Err(status::error(answer, &self.name()).await),
            _ => {
                self.forget(&known);
                answer.drain().await;
                Ok(None)
            }
        }
    }

    async fn ask_registry(&self, ask: Ask<'_>) -> Result<Answer, Error> {
        let found = self
            .shared
            .get(&format!("blobs/{}", self.digest), ask)
            .await?;
        if !matches!(found.answer.status(), 200 | 206) {
            return Err(status::error(found.answer, &self.name()).await);
        }
        if let Some(url) = found.elsewhere {
            *self.remembered() = Some(Location::new(url));
        }
        Ok(found.answer)
    }

    /// Foreign layers (OCI image-spec, `descriptor.md`, `urls`) are where the descriptor says, and
    /// need not be in the registry at all. No credentials are sent there.
    async fn read_foreign(
        &self,
        ask: Ask<'_>,
        range: ByteRange,
        error: Error,
    ) -> Result<ByteStream, Error> {
        if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Denied) {
            return Err(error);
        }
        for url in self.urls.iter().filter_map(|url| Url::parse(url).ok()) {
            match self.shared.get_elsewhere(&url, ask).await {
                Ok(answer) if matches!(answer.status(), 200 | 206) => {
                    return self.body(answer, range).await;
                }
                Ok(answer) => tracing::debug!(status = answer.status(), "foreign layer not there"),
                Err(error) => tracing::debug!(%error, "foreign layer not there"),
            }
        }
        Err(error)
    }

    /// The stream of `range` out of an answer of 200 or 206.
    async fn body(&self, answer: Answer, range: ByteRange) -> Result<ByteStream, Error> {
        let what = format!("{} from {}", self.name(), answer.host());
        let error = |kind, why: String| Error::new(kind, format!("{what}: {why}"));
        let encoding = answer
            .header("content-encoding")
            .map(str::trim)
            .unwrap_or_default();
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
            let why = "the answer is compressed on its way, which was not asked for";
            return Err(error(ErrorKind::Protocol, why.into()));
        }
        let (total, sent) = if answer.status() == 206 {
            let header = answer.header("content-range").and_then(ContentRange::parse);
            let sent = header.filter(|sent| {
                sent.range.start() == range.start() && sent.range.end() <= range.end()
            });
            let why = || format!("bytes {range} were asked for, others are announced");
            let sent = sent.ok_or_else(|| error(ErrorKind::Protocol, why()))?;
            (sent.total, sent.range)
        } else {
            self.ignores_ranges
                .store(range.len() < self.size, Ordering::Relaxed);
            (answer.length(), ByteRange::new(0, self.size))
        };
        if let Some(total) = total.filter(|total| *total != self.size) {
            let why = format!("it has {total} bytes there, {} by its manifest", self.size);
            return Err(error(ErrorKind::Corrupt, why));
        }
        let want = Want { range, what };
        Ok(body::part(
            answer.into_stream(),
            sent.start(),
            sent.end(),
            want,
        ))
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Option<Location>> {
        self.location.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets `known`, unless another reader has found a newer place meanwhile.
    fn forget(&self, known: &Location) {
        let mut remembered = self.remembered();
        if remembered.as_ref().is_some_and(|now| now.url == known.url) {
            *remembered = None;
        }
    }

    fn name(&self) -> String {
        format!("blob {}", self.digest)
    }
}
