//! One blob on its way to a registry: is it there, can it be taken over from a neighbour, else it is
//! uploaded piece by piece, going on where an earlier push was broken off.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use crate::blob::{self, Blob, ByteRange};
use crate::cache::Cache;
use crate::monitor::{Event, Monitor};
use crate::oci::Digest;
use crate::registry::{Mounted, Registry, Upload};

/// Length of a piece. What a broken connection costs is at most one.
const PIECE_BYTES: u64 = 8 << 20;
/// How often an upload goes on after a failure that may pass,
/// without that anything more has arrived.
const TRIES: u32 = 5;
/// The first pause before one; each further one is twice as long, up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(300);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The longest piece that is held in memory for a registry that asks for long ones.
const PIECE_BYTES_MAX: u64 = 128 << 20;

/// Where a blob goes.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) registry: Registry,
    /// `HOST/REPOSITORY`, for what is remembered.
    pub(super) name: String,
    /// Repositories of the same registry that may have the blobs.
    pub(super) neighbours: Vec<String>,
    pub(super) cache: Cache,
    pub(super) monitor: Arc<dyn Monitor>,
}

impl Target {
    /// Sees to it that the repository has `blob`.
    pub(super) async fn push(&self, blob: &dyn Blob) -> Result<(), blob::Error> {
        let digest = blob.digest();
        let pushed = |how: String| {
            self.monitor.event(Event::Pushed {
                blob: digest.clone(),
                how,
            });
        };
        if self.registry.has_blob(digest).await? {
            pushed("there already".to_owned());
            return Ok(());
        }
        let mut begun = None;
        for neighbour in &self.neighbours {
            match self.registry.begin_upload(digest, Some(neighbour)).await {
                Ok(Mounted::Done) => {
                    pushed(format!("mounted from {neighbour}"));
                    return Ok(());
                }
                Ok(Mounted::Upload(upload)) => begun = Some(upload),
                // It may be a repository that we may not read; and a registry that cannot take it over
                // may still take it.
                Err(error) => tracing::debug!(%error, neighbour, "no blob mount"),
            }
        }
        self.monitor.event(Event::PushStarted {
            blob: digest.clone(),
            size: blob.size(),
        });
        self.upload(blob, begun).await?;
        pushed("pushed".to_owned());
        Ok(())
    }

    async fn upload(&self, blob: &dyn Blob, begun: Option<Upload>) -> Result<(), blob::Error> {
        let key = format!("{}@{}", self.name, blob.digest());
        let mut upload = match self.resumed(&key).await? {
            Some(upload) => upload,
            None => match begun {
                Some(upload) => upload,
                None => self.begin(blob.digest()).await?,
            },
        };
        let (mut furthest, mut tries) = (upload.offset, 0);
        loop {
            let error = match self.send(blob, &key, &mut upload).await {
                Ok(()) => break,
                Err(error) => error,
            };
            if upload.offset > furthest {
                (furthest, tries) = (upload.offset, 0);
            }
            tries += 1;
            if !error.is_transient() || tries >= TRIES {
                return Err(error);
            }
            tracing::debug!(%error, tries, "an upload goes on");
            tokio::time::sleep(pause(tries, &error)).await;
            match self.again(blob, &upload).await {
                Ok(Some(next)) => upload = next,
                Ok(None) => break,
                // The next try says what is wrong.
                Err(e) if e.is_transient() => tracing::debug!(error = %e, "its state is not known"),
                Err(e) => return Err(e),
            }
            if upload.offset > furthest {
                (furthest, tries) = (upload.offset, 0);
            }
        }
        // It is there; that a place is remembered costs a question at most.
        let _forgotten = self.cache.forget_upload(&key);
        Ok(())
    }

    /// Where an upload goes on: where it broke off, else at the start; nowhere when the blob is there,
    /// which the answer to the end of an upload may only have failed to say.
    async fn again(&self, blob: &dyn Blob, upload: &Upload) -> Result<Option<Upload>, blob::Error> {
        if self.registry.has_blob(blob.digest()).await? {
            return Ok(None);
        }
        match self.registry.upload_state(&upload.place).await? {
            Some(state) if state.offset <= blob.size() => Ok(Some(state)),
            _ => self.begin(blob.digest()).await.map(Some),
        }
    }

    async fn resumed(&self, key: &str) -> Result<Option<Upload>, blob::Error> {
        match self.cache.upload(key) {
            Some(place) => self.registry.upload_state(&place).await,
            None => Ok(None),
        }
    }

    async fn begin(&self, digest: &Digest) -> Result<Upload, blob::Error> {
        match self.registry.begin_upload(digest, None).await? {
            Mounted::Upload(upload) => Ok(upload),
            Mounted::Done => Err(blob::Error::new(
                blob::ErrorKind::Protocol,
                format!("blob {digest}: the registry mounts what nobody asked to mount"),
            )),
        }
    }

    /// Sends everything from `upload.offset` on, and ends the upload.
    async fn send(
        &self,
        blob: &dyn Blob,
        key: &str,
        upload: &mut Upload,
    ) -> Result<(), blob::Error> {
        let size = blob.size();
        if upload.piece_bytes_min > PIECE_BYTES_MAX && size > PIECE_BYTES_MAX {
            let (wanted, most) = (upload.piece_bytes_min, PIECE_BYTES_MAX);
            let what = format!(
                "{}: the registry wants pieces of {wanted} bytes at least; {most} at most are sent \
                 here",
                self.name
            );
            return Err(blob::Error::new(blob::ErrorKind::Unsupported, what));
        }
        let piece_bytes = PIECE_BYTES.max(upload.piece_bytes_min.min(PIECE_BYTES_MAX)) as usize;
        if upload.offset < size {
            let mut stream = blob.open(ByteRange::new(upload.offset, size)).await?;
            let mut piece = BytesMut::new();
            while let Some(bytes) = stream.next().await {
                let mut bytes: Bytes = bytes?;
                while !bytes.is_empty() {
                    let room = piece_bytes - piece.len();
                    piece.extend_from_slice(&bytes.split_to(room.min(bytes.len())));
                    if piece.len() == piece_bytes {
                        self.piece(blob, key, upload, piece.split().freeze())
                            .await?;
                    }
                }
            }
            if !piece.is_empty() {
                self.piece(blob, key, upload, piece.freeze()).await?;
            }
        }
        self.registry.finish_upload(upload, blob.digest()).await
    }

    async fn piece(
        &self,
        blob: &dyn Blob,
        key: &str,
        upload: &mut Upload,
        bytes: Bytes,
    ) -> Result<(), blob::Error> {
        *upload = self.registry.upload_piece(upload, bytes).await?;
        self.monitor.event(Event::PushProgress {
            blob: blob.digest().clone(),
            bytes: upload.offset,
        });
        if let Err(error) = self.cache.remember_upload(key, &upload.place) {
            tracing::debug!(%error, "this upload could not go on after an interruption");
        }
        Ok(())
    }
}

/// How long to wait before try number `tries`: as the registry wishes, within bounds.
fn pause(tries: u32, error: &blob::Error) -> Duration {
    let doubled = PAUSE_FIRST.saturating_mul(1 << tries.min(8));
    error.retry_after.unwrap_or(doubled).min(PAUSE_MAX)
}
