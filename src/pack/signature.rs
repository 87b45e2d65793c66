//! What a signature of a pack is made over, and what it is worth.
//!
//! The message is text: a first line that no other protocol has, the image manifest's digest, and
//! one line for each part with its kind, digest and size. So it is bound to the image and to every
//! byte of the pack, and to nothing that a registry may rewrite. A signature stands in the pack
//! manifest's annotations, under [`ANNOTATION`] and the fingerprint of its key; there may be several.

use std::collections::BTreeMap;

use crate::oci::{Descriptor, Digest};
use crate::pack::key::{PublicKey, SecretKey};

/// What the name of an annotation with a signature begins with.
pub const ANNOTATION: &str = "vnd.rsmount.signature.";

/// Most signatures that are looked at.
pub(super) const SIGNATURES_MAX: usize = 64;

/// Signatures by the fingerprints of their keys.
pub type Signatures = BTreeMap<String, Vec<u8>>;

/// What the signatures of a pack are worth to somebody who trusts some keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signed {
    /// It has none.
    No,
    /// None is by a key that is trusted; these are the fingerprints of those that are there.
    ByOthers(Vec<String>),
    /// A trusted key has signed it.
    By(PublicKey),
    /// It says that a trusted key has signed it, and that is not so.
    Wrong(PublicKey),
}

/// The message that is signed.
pub(super) fn message<'a>(image: &Digest, parts: impl Iterator<Item = &'a Descriptor>) -> Vec<u8> {
    let mut text = format!("rsmount pack signature v1\nimage {image}\n");
    for part in parts {
        let Descriptor {
            media_type,
            digest,
            size,
            ..
        } = part;
        text += &format!("part {media_type} {digest} {size}\n");
    }
    text.into_bytes()
}

/// Adds the signature of `key` over `message`.
pub(super) fn sign(signatures: &mut Signatures, key: &SecretKey, message: &[u8]) {
    signatures.insert(key.public().fingerprint(), key.sign(message));
}

/// What `signatures` over `message` are worth to who trusts `keys`.
pub(super) fn judge(signatures: &Signatures, keys: &[PublicKey], message: &[u8]) -> Signed {
    let mut wrong = None;
    for key in keys {
        match signatures.get(&key.fingerprint()) {
            Some(signature) if key.has_signed(message, signature) => {
                return Signed::By(key.clone());
            }
            Some(_) => wrong = Some(key.clone()),
            None => {}
        }
    }
    match (wrong, signatures.is_empty()) {
        (Some(key), _) => Signed::Wrong(key),
        (None, true) => Signed::No,
        (None, false) => Signed::ByOthers(signatures.keys().cloned().collect()),
    }
}
