//! A bound on how many streams of one source are open at once.
//!
//! The permit lives as long as the stream: dropping the stream, finished or not, frees the place.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blob::{Blob, BoxFuture, ByteRange, ByteStream, Error, ErrorKind};
use crate::oci::Digest;

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

    fn distrust(&self, range: ByteRange) -> bool {
        self.blob.distrust(range)
    }

    fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(async move {
            let permit = self.places.clone().acquire_owned().await.map_err(|_| {
                Error::new(
                    ErrorKind::Unsupported,
                    "fetching was stopped: this mount is going away",
                )
            })?;
            let stream = self.blob.open(range).await?;
            Ok(Box::pin(Held {
                stream,
                permit: Some(permit),
            }) as ByteStream)
        })
    }
}

struct Held {
    stream: ByteStream,
    permit: Option<OwnedSemaphorePermit>,
}

impl Stream for Held {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.stream.as_mut().poll_next(cx);
        if matches!(next, Poll::Ready(None | Some(Err(_)))) {
            self.permit = None;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;
    use crate::blob::testing::{Plan, PlannedBlob};

    #[tokio::test]
    async fn a_place_is_held_until_the_stream_ends_or_is_dropped() {
        let places = Arc::new(Semaphore::new(1));
        let blob = PlannedBlob::new(b"abc", [Plan::Whole, Plan::Whole, Plan::Fails, Plan::Whole]);
        let blob = Limit::new(blob, places.clone());
        let all = ByteRange::new(0, 3);
        let mut first = blob.open(all).await.unwrap();
        assert_eq!(places.available_permits(), 0);
        while first.next().await.is_some() {}
        assert_eq!(places.available_permits(), 1);
        let second = blob.open(all).await.unwrap();
        drop(second);
        assert_eq!(places.available_permits(), 1);
        assert!(blob.open(all).await.is_err());
        assert_eq!(places.available_permits(), 1);
    }
}
