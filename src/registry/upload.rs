//! Uploads in pieces, which can go on where they were broken off, and blobs that the registry takes
//! over from another repository (OCI distribution-spec, "Pushing a blob in chunks", "Mounting a blob
//! from another repository").

use bytes::Bytes;

use super::exchange::{Ask, Exchange, Found};
use super::http::{Answer, Method, Payload};
use super::status;
use crate::blob::{ByteRange, Error, ErrorKind};
use crate::oci::Digest;

/// Media type of a piece.
const OCTETS: &str = "application/octet-stream";

/// An upload that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Where the next piece goes: a URL that changes with each piece.
    pub place: String,
    /// Bytes that the registry has.
    pub offset: u64,
    /// Shortest piece that it takes, but for the last one.
    pub piece_bytes_min: u64,
}

/// What came of asking for a blob of another repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mounted {
    /// The registry has it now.
    Done,
    /// It would rather have it uploaded.
    Upload(Upload),
}

fn nothing() -> Payload {
    Payload {
        media_type: OCTETS.to_owned(),
        bytes: Bytes::new(),
    }
}

/// Begins an upload; `from` is a repository of the same registry that has the blob.
pub(super) async fn begin(
    at: &Exchange,
    digest: &Digest,
    from: Option<&str>,
) -> Result<Mounted, Error> {
    let ask = Ask {
        method: Method::Post,
        payload: Some(&nothing()),
        push: true,
        other_repository: from,
        ..Ask::default()
    };
    let path = match from {
        Some(from) => format!("blobs/uploads/?mount={digest}&from={from}"),
        None => "blobs/uploads/".to_owned(),
    };
    let found = at.get(&path, ask).await?;
    match found.answer.status() {
        201 if from.is_some() => {
            found.answer.drain().await;
            Ok(Mounted::Done)
        }
        202 => Ok(Mounted::Upload(go_on(at, found, 0).await?)),
        _ => Err(refused(at, found.answer).await),
    }
}

/// What the registry has of an upload; `None` when it knows of none there.
pub(super) async fn state(at: &Exchange, place: &str) -> Result<Option<Upload>, Error> {
    let ask = Ask {
        push: true,
        ..Ask::default()
    };
    let found = at.get(place, ask).await?;
    match found.answer.status() {
        202 | 204 => {
            let offset = received(&found.answer);
            Ok(Some(go_on(at, found, offset).await?))
        }
        // It says nothing of the upload.
        408 | 425 | 429 => Err(status::error(found.answer, "the state of an upload").await),
        400..=499 => {
            found.answer.drain().await;
            Ok(None)
        }
        _ => Err(refused(at, found.answer).await),
    }
}

/// Sends the next piece.
pub(super) async fn piece(at: &Exchange, upload: &Upload, bytes: Bytes) -> Result<Upload, Error> {
    let end = upload.offset + bytes.len() as u64;
    let payload = Payload { bytes, ..nothing() };
    let ask = Ask {
        method: Method::Patch,
        payload: Some(&payload),
        range: Some(ByteRange::new(upload.offset, end)),
        push: true,
        ..Ask::default()
    };
    let found = at.get(&upload.place, ask).await?;
    match found.answer.status() {
        202 | 204 => {
            let before = upload.piece_bytes_min;
            let mut next = go_on(at, found, end).await?;
            next.piece_bytes_min = next.piece_bytes_min.max(before);
            Ok(next)
        }
        // It has more or less than we think: whoever asks again gets to know.
        416 => {
            let what = format!("{} lost its place in an upload", at.host());
            found.answer.drain().await;
            Err(Error::new(ErrorKind::Transient, what))
        }
        _ => Err(refused(at, found.answer).await),
    }
}

/// Ends an upload whose bytes are all there. Many registries go through all of them before they
/// answer, and are given the time for it.
pub(super) async fn finish(at: &Exchange, upload: &Upload, digest: &Digest) -> Result<(), Error> {
    let ask = Ask {
        method: Method::Put,
        payload: Some(&nothing()),
        push: true,
        work: upload.offset,
        ..Ask::default()
    };
    let separator = if upload.place.contains('?') { '&' } else { '?' };
    let url = format!("{}{separator}digest={digest}", upload.place);
    let found = at.get(&url, ask).await?;
    match found.answer.status() {
        201 | 202 | 204 => {
            found.answer.drain().await;
            Ok(())
        }
        _ => Err(refused(at, found.answer).await),
    }
}

async fn go_on(at: &Exchange, found: Found, offset: u64) -> Result<Upload, Error> {
    let Some(place) = found.answer.header("location").map(String::from) else {
        let what = format!("{} does not say where to upload to", at.host());
        return Err(Error::new(ErrorKind::Protocol, what));
    };
    let min = found.answer.header("oci-chunk-min-length");
    let piece_bytes_min = min.and_then(|m| m.trim().parse().ok()).unwrap_or(0);
    found.answer.drain().await;
    Ok(Upload {
        place,
        offset,
        piece_bytes_min,
    })
}

/// `Range: 0-N` of an upload counts to its last byte; `0-0` is what some say of none. A piece is never
/// one byte long.
fn received(answer: &Answer) -> u64 {
    let range = answer.header("range").unwrap_or_default();
    let last = range.trim_start_matches("bytes=").split('-').nth(1);
    match last.and_then(|n| n.trim().parse::<u64>().ok()) {
        None | Some(0) => 0,
        Some(last) => last + 1,
    }
}

/// Why a registry takes nothing.
pub(super) async fn refused(at: &Exchange, answer: Answer) -> Error {
    let (status, host) = (answer.status(), at.host());
    let repository = at.repository().to_owned();
    if status == 405 {
        answer.drain().await;
        let what = format!("{host} takes no uploads: it is read-only");
        return Error::new(ErrorKind::Denied, what);
    }
    let mut error = status::error(answer, &repository).await;
    if matches!(status, 401 | 403) {
        error.message = format!("no right to push to {repository}: {}", error.message);
    }
    error
}
