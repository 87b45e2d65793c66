//! The images that are known here: listed, named again, removed.
//!
//! An image is known by a name that the cache remembers. Removing the last name of an image removes
//! its documents and the layers that no other image and no running mount needs.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::cache::{Cache, RememberedTag};
use crate::image::error::Error;
use crate::image::reach::{self, Dropped, Reach, Stored};
use crate::oci::{Digest, ImageName, Reference};

/// An image ID or digest that was typed has at least this many digits.
const ID_DIGITS_MIN: usize = 6;

/// An image under one name, for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KnownImage {
    /// The name as people type it.
    pub name: String,
    /// The same without tag and digest.
    pub repository: String,
    /// The tag; absent when the image was named by digest.
    pub tag: Option<String>,
    /// Digest of what the name stands for: an index, or the image manifest.
    pub digest: Digest,
    /// Digest of the image manifest.
    pub manifest: Digest,
    /// Digest of the configuration: docker's image ID.
    pub id: Digest,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// When it was made, RFC 3339.
    pub created: Option<String>,
    /// Compressed bytes of all layers.
    pub size: u64,
    /// Uncompressed bytes of all layers; absent as long as a layer is not known here.
    pub unpacked_bytes: Option<u64>,
    /// Uncompressed bytes of them that are here.
    pub local_bytes: u64,
    /// Where its bytes come from, when that is not where the name points to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// Where it is mounted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounted: Vec<String>,
}

/// Which images are wanted; all fields have to fit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// A name without or with a tag; `*` and `?` as in a shell.
    pub reference: Option<String>,
    /// `os/arch`.
    pub platform: Option<String>,
    /// Only what is mounted (or is not).
    pub mounted: Option<bool>,
    /// Only what is here whole (or is not).
    pub complete: Option<bool>,
}

/// All images that are known here, by name.
pub fn images(cache: &Cache, filter: &Filter) -> Result<Vec<KnownImage>, Error> {
    let mounted = reach::mounted()?;
    let mut layers = HashMap::new();
    let mut images = Vec::new();
    for (key, tag) in reach::names(cache)? {
        let Ok(ImageName::Registry(name)) = key.parse() else {
            continue;
        };
        for stored in reach::stored(cache, &tag) {
            let at = mounted
                .iter()
                .filter(|(digest, _)| *digest == stored.digest);
            let at = at.map(|(_, at)| at.clone()).collect();
            let image = describe(cache, (&name, &tag), stored, &mut layers)?;
            images.push(KnownImage {
                mounted: at,
                ..image
            });
        }
    }
    images.retain(|image| filter.fits(image));
    images.sort_by(|a, b| (&a.name, &a.platform).cmp(&(&b.name, &b.platform)));
    Ok(images)
}

/// Present and whole bytes of layers that were looked at already.
type Layers = HashMap<Digest, Option<(u64, u64)>>;

fn describe(
    cache: &Cache,
    (name, tag): (&Reference, &RememberedTag),
    stored: Stored,
    layers: &mut Layers,
) -> Result<KnownImage, Error> {
    let (mut unpacked_bytes, mut local_bytes) = (Some(0), 0);
    for layer in &stored.manifest.layers {
        let known = match layers.get(&layer.digest) {
            Some(known) => *known,
            None => {
                let known = match cache.layer(&layer.digest)? {
                    Some(layer) => Some((layer.pages()?.present_bytes(), layer.address_size())),
                    None => None,
                };
                layers.insert(layer.digest.clone(), known);
                known
            }
        };
        local_bytes += known.map_or(0, |(present, _)| present);
        unpacked_bytes = unpacked_bytes.zip(known).map(|(sum, (_, all))| sum + all);
    }
    let (repository, full_tag) = split(name);
    Ok(KnownImage {
        name: name.familiar(),
        repository,
        tag: full_tag,
        digest: tag.digest.clone(),
        manifest: stored.digest,
        id: stored.manifest.config.digest.clone(),
        platform: stored.config.platform.to_string(),
        created: stored.about.created,
        size: stored.manifest.layers_size(),
        unpacked_bytes,
        local_bytes,
        sources: tag.sources.clone(),
        mounted: Vec::new(),
    })
}

/// The familiar repository, and the tag.
fn split(name: &Reference) -> (String, Option<String>) {
    let familiar = name.familiar();
    let named = familiar
        .split_once('@')
        .map_or(&*familiar, |(named, _)| named);
    let tag = name.tag().map(String::from);
    let repository = match &tag {
        Some(tag) => named.strip_suffix(&format!(":{tag}")).unwrap_or(named),
        None => named,
    };
    (repository.to_owned(), tag)
}

impl Filter {
    fn fits(&self, image: &KnownImage) -> bool {
        let whole = image
            .unpacked_bytes
            .is_some_and(|all| image.local_bytes >= all);
        let named = |pattern: &String| {
            let pattern = pattern.as_bytes();
            matches(pattern, image.repository.as_bytes()) || matches(pattern, image.name.as_bytes())
        };
        self.reference.as_ref().is_none_or(named)
            && self
                .platform
                .as_ref()
                .is_none_or(|p| image.platform.starts_with(p.as_str()))
            && self
                .mounted
                .is_none_or(|wanted| wanted != image.mounted.is_empty())
            && self.complete.is_none_or(|wanted| wanted == whole)
    }
}

/// Whether `text` is what `pattern` says: `*` is anything, `?` any one byte.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Positions to go back to: behind the last star, and what it has to swallow next.
    let (mut p, mut t, mut again) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                again = Some((p + 1, t + 1));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(byte) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match again {
                Some((behind, next)) => {
                    (p, t) = (behind, next);
                    again = Some((behind, next + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Gives the image `from` the name `to` as well; a name that was given before moves, and what it
/// stood for goes if nothing else needs it.
pub fn tag(cache: &Cache, from: &str, to: &str) -> Result<(), Error> {
    let source = match by_id(cache, from)? {
        Some(found) => name(&found.name)?,
        None => name(from)?,
    };
    let target = name(to)?;
    if target.digest().is_some() {
        return Err(Error::Name(format!(
            "`{to}` has a digest, which is no name to give"
        )));
    }
    let key = ImageName::Registry(source).to_string();
    let known = cache
        .tag(&key)
        .filter(|tag| !reach::stored(cache, tag).is_empty());
    let known = known.ok_or_else(|| Error::Unknown(from.to_owned()))?;
    let to = ImageName::Registry(target).to_string();
    if to == key {
        return Ok(());
    }
    let sources = match known.sources.is_empty() {
        true => vec![key],
        false => known.sources.clone(),
    };
    rename(cache, &to, RememberedTag { sources, ..known })
}

/// Gives a name; what it stood for before, and nothing else needs, is removed.
pub(super) fn rename(cache: &Cache, key: &str, to: RememberedTag) -> Result<(), Error> {
    let mut before = Reach::default();
    if let Some(tag) = cache.tag(key) {
        before.add(cache, &tag);
    }
    cache.remember(key, to)?;
    reach::drop_unreachable(cache, &before)?;
    Ok(())
}

pub(super) fn name(typed: &str) -> Result<Reference, Error> {
    match typed.parse() {
        Ok(ImageName::Registry(reference)) => Ok(reference),
        Ok(_) => Err(Error::Name(format!(
            "`{typed}` names files, not an image in the store"
        ))),
        Err(error) => Err(Error::Name(error.to_string())),
    }
}

/// An image that was named by the beginning of its ID or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// A name of it, as people type it.
    pub name: String,
    /// Digest of the image manifest.
    pub manifest: Digest,
}

/// The image that `typed` means, if that is the beginning of the ID (digest of the configuration) or
/// of the digest of an image known here, and no name of one.
pub fn by_id(cache: &Cache, typed: &str) -> Result<Option<Identified>, Error> {
    let Some(hex) = id_digits(typed) else {
        return Ok(None);
    };
    let known = reach::names(cache)?;
    if is_name(&known, typed).is_some() {
        return Ok(None);
    }
    let mut found: Option<Identified> = None;
    for (key, tag) in &known {
        for image in reach::stored(cache, tag) {
            let ids = [&tag.digest, &image.digest, &image.manifest.config.digest];
            if !ids.iter().any(|id| id.hex().starts_with(hex)) {
                continue;
            }
            match &found {
                Some(other) if other.manifest != image.digest => {
                    return Err(Error::ManyImages(typed.to_owned()));
                }
                Some(_) => {}
                None => {
                    found = Some(Identified {
                        name: familiar(key),
                        manifest: image.digest,
                    });
                }
            }
        }
    }
    Ok(found)
}

/// Whether `typed` could be the beginning of an ID, before anything is looked up.
pub fn may_be_id(typed: &str) -> bool {
    id_digits(typed).is_some()
}

/// The digits of what may be the beginning of an ID or digest.
fn id_digits(typed: &str) -> Option<&str> {
    let hex = typed.strip_prefix("sha256:").unwrap_or(typed);
    let is_id = hex.len() >= ID_DIGITS_MIN && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then_some(hex)
}

fn is_name<'k>(
    known: &'k [(String, RememberedTag)],
    typed: &str,
) -> Option<&'k (String, RememberedTag)> {
    let Ok(ImageName::Registry(name)) = typed.parse() else {
        return None;
    };
    let key = ImageName::Registry(name).to_string();
    known.iter().find(|(k, _)| *k == key)
}

/// What `rmi` did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Names that were forgotten.
    pub names: Vec<String>,
    /// What went with them.
    pub dropped: Dropped,
}

/// Forgets the images `typed` (names, or beginnings of IDs and digests), and removes what only they
/// needed. With `force` also names of what is mounted or was changed, which keeps its data as long, and
/// all names of an ID. Nothing is removed when one of `typed` cannot be.
pub fn remove(cache: &Cache, typed: &[String], force: bool) -> Result<Removed, Error> {
    let known = reach::names(cache)?;
    let mut doomed: Vec<&(String, RememberedTag)> = Vec::new();
    for one in typed {
        doomed.extend(find(cache, &known, one, force)?);
    }
    let keys: HashSet<&str> = doomed.iter().map(|(key, _)| key.as_str()).collect();
    if !force {
        check_unused(cache, &known, &keys)?;
    }
    let mut candidates = Reach::default();
    let mut removed = Removed::default();
    for (key, tag) in &doomed {
        candidates.add(cache, tag);
        if cache.forget_tag(key)? {
            removed.names.push(familiar(key));
        }
    }
    removed.dropped = reach::drop_unreachable(cache, &candidates)?;
    Ok(removed)
}

fn find<'k>(
    cache: &Cache,
    known: &'k [(String, RememberedTag)],
    typed: &str,
    force: bool,
) -> Result<Vec<&'k (String, RememberedTag)>, Error> {
    if let Some(found) = is_name(known, typed) {
        return Ok(vec![found]);
    }
    let hex = id_digits(typed);
    let is_id = hex.is_some();
    let begins = |digest: &Digest| hex.is_some_and(|hex| digest.hex().starts_with(hex));
    let has = |tag: &RememberedTag| {
        begins(&tag.digest)
            || reach::stored(cache, tag)
                .iter()
                .any(|s| begins(&s.digest) || begins(&s.manifest.config.digest))
    };
    let found: Vec<_> = match is_id {
        true => known.iter().filter(|(_, tag)| has(tag)).collect(),
        false => Vec::new(),
    };
    match found.len() {
        0 => {
            name(typed).or_else(|error| if is_id { name("unknown") } else { Err(error) })?;
            Err(Error::Unknown(typed.to_owned()))
        }
        1 => Ok(found),
        _ if force => Ok(found),
        n => Err(Error::ManyNames(typed.to_owned(), n)),
    }
}

/// Fails when a running mount, changes or a pin would be left without a name.
fn check_unused(
    cache: &Cache,
    known: &[(String, RememberedTag)],
    doomed: &HashSet<&str>,
) -> Result<(), Error> {
    let mut staying = Reach::default();
    for (_, tag) in known
        .iter()
        .filter(|(key, _)| !doomed.contains(key.as_str()))
    {
        staying.add(cache, tag);
    }
    let mounted = reach::mounted()?;
    let changed = reach::changed(cache)?;
    let pins = cache.pins()?;
    for (key, tag) in known
        .iter()
        .filter(|(key, _)| doomed.contains(key.as_str()))
    {
        for image in reach::stored(cache, tag) {
            let is_kept = staying.documents.contains(&image.digest);
            if !is_kept && pins.iter().any(|pin| pin.digest == image.digest) {
                return Err(Error::Pinned(familiar(key)));
            }
            let at = mounted.iter().find(|(digest, _)| *digest == image.digest);
            if let Some((_, at)) = at
                && !is_kept
            {
                let image = familiar(key);
                let at = at.clone();
                return Err(Error::InUse { image, at });
            }
            let by = changed.iter().find(|(digest, _)| *digest == image.digest);
            if let Some((_, dir)) = by
                && !is_kept
            {
                let (image, dir) = (familiar(key), dir.clone());
                return Err(Error::Changed { image, dir });
            }
        }
    }
    Ok(())
}

fn familiar(key: &str) -> String {
    name(key).map_or_else(|_| key.to_owned(), |name| name.familiar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, text, fits) in [
            ("debian", "debian", true),
            ("debian", "debian2", false),
            ("deb*", "debian", true),
            ("*", "", true),
            ("*an", "debian", true),
            ("*:1?", "debian:12", true),
            ("a*b*c", "aXbXbXc", true),
            ("a*b*c", "aXbXbX", false),
            ("", "a", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                fits,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn repository_and_tag_are_told_apart() {
        let parts = |name: &str| split(&name.parse().unwrap());
        assert_eq!(parts("debian"), ("debian".into(), Some("latest".into())));
        assert_eq!(
            parts("h.io:5/a/b:1"),
            ("h.io:5/a/b".into(), Some("1".into()))
        );
        let digest = Digest::of(b"x");
        assert_eq!(parts(&format!("a/b@{digest}")), ("a/b".into(), None));
    }
}
