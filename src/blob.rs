//! Blobs: immutable bytes with a digest, somewhere else, read by range.
//!
//! [`Blob`] is the only face that content has towards the outside: registries, layouts and archives
//! implement it, wrappers of one job each ([`retry::Retry`], [`limit::Limit`]) are stacked on it.
//! Nothing that comes out of here is verified; callers hash before they believe.

pub mod busy;
pub mod error;
pub mod limit;
pub mod range;
pub mod retry;
#[cfg(test)]
pub(crate) mod testing;

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

pub use busy::Busy;
pub use error::{Error, ErrorKind};
pub use range::ByteRange;

use crate::oci::Digest;

/// A future that can be sent between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Bytes as they arrive, in pieces of any size.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// Immutable bytes that can be read by range.
pub trait Blob: Send + Sync + fmt::Debug {
    /// The digest that all bytes together must have.
    fn digest(&self) -> &Digest;

    /// Length in bytes, as announced by the manifest.
    fn size(&self) -> u64;

    /// Starts to read `range`, which lies within `0..size()`. The stream gives exactly that many
    /// bytes and ends, or gives an error as its last item. The bytes are not verified.
    fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, Error>>;

    /// Whether the last part that was asked for came with all the rest: then it is cheaper to read on
    /// than to ask for the next part.
    fn ignores_ranges(&self) -> bool {
        false
    }

    /// How long its source still wants to be left alone by who can wait.
    fn busy(&self) -> Option<Duration> {
        None
    }

    /// What was read last of `range` is not what it must be: whoever gave it is not asked again.
    /// Whether somebody else is left who can be asked.
    fn distrust(&self, _range: ByteRange) -> bool {
        false
    }

    /// The same where nothing shows what it must be: it was of no use, and somebody else may give what
    /// is. Nobody is blamed.
    fn avoid(&self, _range: ByteRange) -> bool {
        false
    }
}

/// The same, verified; wrong bytes are asked for elsewhere as long as there is somebody else.
pub async fn collect_verified(blob: &(impl Blob + ?Sized)) -> Result<Bytes, Error> {
    loop {
        let bytes = collect(blob).await?;
        let Err(mismatch) = blob.digest().verify(&bytes) else {
            return Ok(bytes);
        };
        if !blob.distrust(ByteRange::new(0, blob.size())) {
            let what = format!("a blob is not what was asked for: {mismatch}");
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
    }
}

/// All bytes of a blob whose size the caller has found small enough.
pub async fn collect(blob: &(impl Blob + ?Sized)) -> Result<Bytes, Error> {
    collect_range(blob, ByteRange::new(0, blob.size())).await
}

/// All bytes of a part of a blob that the caller has found small enough.
pub async fn collect_range(blob: &(impl Blob + ?Sized), range: ByteRange) -> Result<Bytes, Error> {
    let size = range.len();
    let mut stream = blob.open(range).await?;
    let mut all = BytesMut::new();
    while let Some(bytes) = stream.next().await {
        all.extend_from_slice(&bytes?);
    }
    if all.len() as u64 != size {
        let what = format!(
            "blob {}: {} bytes came, not {size}",
            blob.digest(),
            all.len()
        );
        return Err(Error::new(ErrorKind::Transient, what));
    }
    Ok(all.freeze())
}
