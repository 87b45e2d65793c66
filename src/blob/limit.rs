//! A bound on how many streams of one source are open at once.
//!
//! The permit lives as long as the stream, finished or dropped, and a moment longer. A client has the
//! connection of a stream back only after whoever read it has seen the end; a stream that began in
//! between would find no connection free, and open one more than there are places.
//!
//! That moment is a time, not an event, so a process that is kept from running for all of it may still
//! open one more. Measured with a thousand readers of one mount on two busy cores, where a host may see
//! eight connections: without it a ninth came in 3 runs of 6, with 50 µs, 200 µs or 1 ms in none of 6 each.
//! Rejected: a permit that lives in the connection. The client (reqwest 0.13) lets layers be put around
//! what connects, but the connection itself is a sealed type that nothing can be put into, or around;
//! its pool says to nobody when a connection is back or closed; and without reqwest its proxies,
//! certificates and errors would have to be written here.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blob::{Blob, BoxFuture, ByteRange, ByteStream, Error, ErrorKind};
use crate::oci::Digest;

/// How long a place stays taken after its stream: what it takes a client to have a connection back is
/// some microseconds, on a busy machine a hundred. Longer would cost streams: seven that are 50 ms long
/// lose 2 % of their time to this.
const SETTLE: Duration = Duration::from_millis(1);

/// A blob whose streams share a number of places with other blobs.
#[derive(Debug)]
pub struct Limit<B> {
    blob: B,
    places: Arc<Semaphore>,
}

impl<B> Limit<B> {
    /// `blob` with at most as many streams as `places` has permits; share `places` between the
    /// blobs of one host.
    pub fn new(blob: B, places: Arc<Semaphore>) -> Limit<B> {
        Limit { blob, places }
    }
}

impl<B: Blob> Blob for Limit<B> {
    fn digest(&self) -> &Digest {
        self.blob.digest()
    }

    fn size(&self) -> u64 {
        self.blob.size()
    }

    fn ignores_ranges(&self) -> bool {
        self.blob.ignores_ranges()
    }

    fn distrust(&self, range: ByteRange) -> bool {
        self.blob.distrust(range)
    }

    fn avoid(&self, range: ByteRange) -> bool {
        self.blob.avoid(range)
    }

    fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(async move {
            let permit = self.places.clone().acquire_owned().await.map_err(|_| {
                Error::new(
                    ErrorKind::Unsupported,
                    "fetching was stopped: this mount is going away",
                )
            })?;
            let place = Place(Some(permit));
            let stream = self.blob.open(range).await?;
            Ok(Box::pin(Held {
                stream,
                place: Some(place),
            }) as ByteStream)
        })
    }
}

struct Held {
    stream: ByteStream,
    place: Option<Place>,
}

/// A permit that is given back [`SETTLE`] after it is dropped.
struct Place(Option<OwnedSemaphorePermit>);

impl Drop for Place {
    fn drop(&mut self) {
        let permit = self.0.take();
        // Where there is no runtime, nobody opens streams any more.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(SETTLE).await;
                drop(permit);
            });
        }
    }
}

impl Stream for Held {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.stream.as_mut().poll_next(cx);
        if matches!(next, Poll::Ready(None | Some(Err(_)))) {
            self.place = None;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;
    use crate::blob::testing::{Plan, PlannedBlob};

    /// Not at once, and not never.
    async fn assert_given_back(places: &Semaphore) {
        assert_eq!(places.available_permits(), 0);
        let permit = tokio::time::timeout(Duration::from_secs(10), places.acquire()).await;
        drop(permit.unwrap().unwrap());
    }

    #[tokio::test]
    async fn a_place_is_held_until_a_moment_after_the_stream_has_ended_or_was_dropped() {
        let places = Arc::new(Semaphore::new(1));
        let blob = PlannedBlob::new(b"abc", [Plan::Whole, Plan::Whole, Plan::Fails, Plan::Whole]);
        let blob = Limit::new(blob, places.clone());
        let all = ByteRange::new(0, 3);
        let mut first = blob.open(all).await.unwrap();
        assert_eq!(places.available_permits(), 0);
        while first.next().await.is_some() {}
        assert_given_back(&places).await;
        let second = blob.open(all).await.unwrap();
        drop(second);
        assert_given_back(&places).await;
        assert!(blob.open(all).await.is_err());
        assert_given_back(&places).await;
    }
}
