//! Whose packs a mount may use.
//!
//! What was typed decides: a tag is the registry's word, so a pack of the same repository is as
//! good; a digest promises exact bytes, which no unsigned pack can. A pack that a key of the
//! configuration has signed is good for both. One that claims such a signature and does not have it
//! is good for nothing: somebody has changed it.

use std::fmt;

use crate::mount::request::{MountRequest, TrustIndex};
use crate::oci::ImageName;
use crate::pack::{PackManifest, PublicKey, Signed};

/// The rule of one mount.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trust<'a> {
    pub(crate) rule: TrustIndex,
    pub(crate) keys: &'a [PublicKey],
    pub(crate) name: &'a ImageName,
}

/// Why a pack may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admitted {
    /// It is of the image's own repository.
    Repository,
    /// A trusted key has signed it.
    Key(PublicKey),
}

impl fmt::Display for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Admitted::Repository => f.write_str("it is of the same repository"),
            Admitted::Key(key) => write!(f, "the trusted key {} has signed it", key.fingerprint()),
        }
    }
}

impl<'a> Trust<'a> {
    /// The rule of `request` for the image of that name.
    pub(crate) fn of(request: &'a MountRequest, name: &'a ImageName) -> Trust<'a> {
        Trust {
            rule: request.trust_index,
            keys: &request.trusted_keys,
            name,
        }
    }

    /// Whether any pack may be used, so that it makes sense to look for one; the error says why not.
    pub(crate) fn admits_any(&self) -> Result<(), String> {
        let ImageName::Registry(_) = self.name else {
            return Err("an archive has no packs".to_owned());
        };
        match self.rule {
            TrustIndex::Local => Err("--trust-index local admits none".to_owned()),
            _ if !self.keys.is_empty() => Ok(()),
            _ => self.admits_unsigned(),
        }
    }

    /// Whether a pack without a signature may be used.
    pub(crate) fn admits_unsigned(&self) -> Result<(), String> {
        let ImageName::Registry(reference) = self.name else {
            return Err("an archive has no packs".to_owned());
        };
        match self.rule {
            TrustIndex::Registry => Ok(()),
            TrustIndex::Tag if reference.digest().is_none() => Ok(()),
            TrustIndex::Tag => Err(
                "the image was named by digest, which promises exact bytes; a signature by a \
                 trusted key admits a pack, and so does --trust-index registry"
                    .to_owned(),
            ),
            TrustIndex::Signed if self.keys.is_empty() => Err(
                "only signed packs are admitted, and no key is trusted (--trusted-key FILE, or \
                 trusted_keys in the configuration)"
                    .to_owned(),
            ),
            TrustIndex::Signed => Err("only signed packs are admitted".to_owned()),
            TrustIndex::Local => Err("--trust-index local admits none".to_owned()),
        }
    }

    /// Whether this pack may be used; the error says why not.
    pub(crate) fn admit(&self, pack: &PackManifest) -> Result<Admitted, String> {
        self.admits_any()?;
        match pack.signed(self.keys) {
            Signed::By(key) => Ok(Admitted::Key(key)),
            Signed::Wrong(key) => Err(format!(
                "its signature by the trusted key {} is not that key's: it was changed",
                key.fingerprint()
            )),
            Signed::No => self.admits_unsigned().map(|()| Admitted::Repository),
            Signed::ByOthers(keys) => match self.admits_unsigned() {
                Ok(()) => Ok(Admitted::Repository),
                Err(why) => Err(format!(
                    "{why}; it is signed by {}, not by a trusted key",
                    keys.join(", ")
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, Digest};
    use crate::pack::SecretKey;

    /// What becomes of an unsigned pack, one that a trusted key has signed, one that another key
    /// has, and one that was changed after it was signed: u(sed by the repository's word), k(ey), or
    /// `-`.
    fn outcomes(rule: TrustIndex, name: &str) -> String {
        let (trusted, _) = SecretKey::generate().unwrap();
        let (other, _) = SecretKey::generate().unwrap();
        let subject = Descriptor::new("m", Digest::of(b"image"), 5);
        let unsigned = PackManifest::new(subject, b"meta", b"hot", &[]);
        let signed_by = |key: &SecretKey| {
            let mut pack = unsigned.clone();
            pack.sign(key);
            pack
        };
        let mut changed = signed_by(&trusted);
        changed.hot.digest = Digest::of(b"other pages");
        let name: ImageName = name.parse().unwrap();
        let keys = [trusted.public()];
        let trust = Trust {
            rule,
            keys: &keys,
            name: &name,
        };
        let packs = [
            unsigned.clone(),
            signed_by(&trusted),
            signed_by(&other),
            changed,
        ];
        let letter = |pack: &PackManifest| match trust.admit(pack) {
            Ok(Admitted::Repository) => 'u',
            Ok(Admitted::Key(_)) => 'k',
            Err(_) => '-',
        };
        packs.iter().map(letter).collect()
    }

    #[test]
    fn the_rule_and_the_name_decide() {
        let digest = format!("host/name@{}", Digest::of(b"image"));
        for (rule, by_tag, by_digest) in [
            (TrustIndex::Tag, "uku-", "-k--"),
            (TrustIndex::Registry, "uku-", "uku-"),
            (TrustIndex::Signed, "-k--", "-k--"),
            (TrustIndex::Local, "----", "----"),
        ] {
            assert_eq!(outcomes(rule, "host/name:tag"), by_tag, "{rule:?} by tag");
            assert_eq!(outcomes(rule, &digest), by_digest, "{rule:?} by digest");
            assert_eq!(outcomes(rule, "oci:/dir"), "----", "{rule:?} archive");
        }
    }
}
