//! Manifests: asked for by tag or digest (OCI distribution-spec, "Pulling manifests").

use super::exchange::{Ask, Exchange};
use super::http::Method;
use super::{Fetched, status};
use crate::blob::{Error, ErrorKind};
use crate::oci::Digest;
use crate::oci::descriptor::MANIFEST_MEDIA_TYPES;
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::reference::is_tag;

pub(super) async fn fetch(at: &Exchange, tag_or_digest: &str) -> Result<Fetched, Error> {
    let asked: Option<Digest> = tag_or_digest.parse().ok();
    if asked.is_none() && !is_tag(tag_or_digest) {
        let what = format!(
            "`{}` is neither a tag nor a digest",
            tag_or_digest.escape_debug()
        );
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let separator = if asked.is_some() { '@' } else { ':' };
    let name = format!("{}{separator}{tag_or_digest}", at.repository());
    let accept = MANIFEST_MEDIA_TYPES.join(", ");
    let ask = Ask {
        accept: Some(&accept),
        ..Ask::default()
    };
    let found = at.get(&format!("manifests/{tag_or_digest}"), ask).await?;
    if found.answer.status() != 200 {
        return Err(status::error(found.answer, &name).await);
    }
    let media_type = found.answer.header("content-type").map(String::from);
    let what = format!("the manifest {name} from {}", at.host());
    let bytes = found.answer.read(MANIFEST_BYTES_MAX, &what).await?;
    let digest = match asked {
        Some(asked) => {
            asked.verify(&bytes).map_err(|mismatch| {
                Error::new(ErrorKind::Corrupt, format!("{what}: {mismatch}"))
            })?;
            asked
        }
        None => Digest::of(&bytes),
    };
    Ok(Fetched {
        bytes,
        media_type,
        digest,
    })
}

/// What the registry says that a tag stands for: the word of a header, to be compared, never to be
/// used. `None` when the header is missing or makes no sense (OCI distribution-spec, "Checking if
/// content exists in the registry").
pub(super) async fn peek(at: &Exchange, tag: &str) -> Result<Option<Digest>, Error> {
    let accept = MANIFEST_MEDIA_TYPES.join(", ");
    let ask = Ask {
        method: Method::Head,
        accept: Some(&accept),
        ..Ask::default()
    };
    let found = at.get(&format!("manifests/{tag}"), ask).await?;
    if found.answer.status() != 200 {
        let name = format!("{}:{tag}", at.repository());
        return Err(status::error(found.answer, &name).await);
    }
    let digest = found.answer.header("docker-content-digest");
    Ok(digest.and_then(|text| text.trim().parse().ok()))
}
