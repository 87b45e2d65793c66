//! Pushing: blobs in one piece, manifests, and the question what refers to one (OCI
//! distribution-spec, "Pushing blobs", "Pushing Manifests", "Listing Referrers").

use bytes::Bytes;
use serde::Deserialize;

use super::exchange::{Ask, Exchange};
use super::http::{Method, Payload};
use super::status;
use crate::blob::{Error, ErrorKind};
use crate::oci::Digest;
use crate::oci::manifest::MANIFEST_BYTES_MAX;

/// Media type of a list of referrers.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What refers to a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Referrer {
    /// Digest of the manifest that refers.
    pub digest: Digest,
    /// What it is.
    #[serde(rename = "artifactType", default)]
    pub artifact_type: Option<String>,
}

#[derive(Deserialize)]
struct Referrers {
    manifests: Vec<Referrer>,
}

/// Whether the repository has a blob.
pub(super) async fn has_blob(at: &Exchange, digest: &Digest) -> Result<bool, Error> {
    let ask = Ask {
        method: Method::Head,
        push: true,
        ..Ask::default()
    };
    let found = at.get(&format!("blobs/{digest}"), ask).await?;
    match found.answer.status() {
        200 => Ok(true),
        404 => Ok(false),
        _ => Err(status::error(found.answer, &digest.to_string()).await),
    }
}

/// Uploads a blob: one POST that gives the place, one PUT with everything.
pub(super) async fn blob(at: &Exchange, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
    let nothing = Payload {
        media_type: "application/octet-stream".to_owned(),
        bytes: Bytes::new(),
    };
    let begin = Ask {
        method: Method::Post,
        payload: Some(&nothing),
        push: true,
        ..Ask::default()
    };
    let found = at.get("blobs/uploads/", begin).await?;
    if found.answer.status() != 202 {
        return Err(status::error(found.answer, at.repository()).await);
    }
    let Some(place) = found.answer.header("location").map(String::from) else {
        let what = format!("{} does not say where to upload to", at.host());
        return Err(Error::new(ErrorKind::Protocol, what));
    };
    found.answer.drain().await;
    let separator = if place.contains('?') { '&' } else { '?' };
    let payload = Payload { bytes, ..nothing };
    let put = Ask {
        method: Method::Put,
        payload: Some(&payload),
        push: true,
        ..Ask::default()
    };
    let found = at
        .get(&format!("{place}{separator}digest={digest}"), put)
        .await?;
    done(at, found.answer, &format!("blob {digest}")).await
}

/// Stores a manifest under a tag or its digest.
pub(super) async fn manifest(
    at: &Exchange,
    tag_or_digest: &str,
    media_type: &str,
    bytes: Bytes,
) -> Result<(), Error> {
    let payload = Payload {
        media_type: media_type.to_owned(),
        bytes,
    };
    let put = Ask {
        method: Method::Put,
        payload: Some(&payload),
        push: true,
        ..Ask::default()
    };
    let found = at.get(&format!("manifests/{tag_or_digest}"), put).await?;
    done(at, found.answer, &format!("the manifest {tag_or_digest}")).await
}

async fn done(at: &Exchange, answer: super::http::Answer, what: &str) -> Result<(), Error> {
    match answer.status() {
        201 | 202 | 204 => {
            answer.drain().await;
            Ok(())
        }
        _ => {
            let mut error = super::upload::refused(at, answer).await;
            error.message = format!("{what}: {}", error.message);
            Err(error)
        }
    }
}

/// What refers to the manifest of `digest`; `None` when the registry does not keep such lists.
pub(super) async fn referrers(
    at: &Exchange,
    digest: &Digest,
) -> Result<Option<Vec<Referrer>>, Error> {
    let ask = Ask {
        accept: Some(INDEX),
        ..Ask::default()
    };
    let found = at.get(&format!("referrers/{digest}"), ask).await?;
    if found.answer.status() != 200 {
        found.answer.drain().await;
        return Ok(None);
    }
    let what = format!("the referrers of {digest} from {}", at.host());
    let bytes = found.answer.read(MANIFEST_BYTES_MAX, &what).await?;
    let list: Option<Referrers> = serde_json::from_slice(&bytes).ok();
    Ok(list.map(|list| list.manifests))
}
