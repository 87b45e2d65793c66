//! References: the names of images in registries, parsed and normalised as Docker does.
//!
//! Grammar: `reference.go` and `normalize.go` of the distribution project
//! (<https://github.com/distribution/reference>):
//!
//! ```text
//! reference := name [":" tag] ["@" digest]
//! name      := [domain "/"] component *("/" component)
//! domain    := host [":" digits]        host := dotted name | IPv4 | "[" IPv6 "]"
//! component := [a-z0-9]+ (("." | "_" | "__" | "-"+) [a-z0-9]+)*
//! tag       := [A-Za-z0-9_] [A-Za-z0-9_.-]{0,127}
//! ```
//!
//! The first component is a domain when it has a dot, a colon or an upper-case letter, or is
//! `localhost`; without one the name is Docker Hub's, where a single component means `library/…`.

use std::fmt;
use std::str::FromStr;

use crate::oci::digest::{Digest, DigestError};
use crate::oci::shown::shown;

pub mod name;

pub use name::ImageName;

/// Longest repository in bytes (`RepositoryNameTotalLengthMax` of the distribution project).
pub const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag in bytes, by the grammar.
pub const TAG_BYTES_MAX: usize = 128;
/// Longest domain in bytes: what DNS allows (RFC 1035, section 2.3.4), and a port.
pub const DOMAIN_BYTES_MAX: usize = 255 + 6;
/// The registry of names that do not say one.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of names that say neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

/// A name in a registry, with a tag, a digest or both. Valid and complete by construction; it
/// prints as `registry/repository[:tag][@digest]`, which parses to the same value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text does not name an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("the image name is empty")]
    Empty,
    /// A URL instead of a name.
    #[error("`{0}` is a URL, not an image name: leave out `{1}`")]
    Url(String, &'static str),
    /// Upper case in the repository.
    #[error("`{name}`: the repository must be lower case, did you mean `{hint}`?")]
    UpperCase {
        /// What was typed.
        name: String,
        /// The same in lower case.
        hint: String,
    },
    /// The domain does not follow the grammar.
    #[error("`{0}` is not a valid registry host (expected host, host:port or [ipv6]:port)")]
    Domain(String),
    /// The repository does not follow the grammar.
    #[error(
        "`{0}` is not a valid image name (letters a-z, digits, and single `.`, `_`, `__` or `-` \
         between them)"
    )]
    Repository(String),
    /// A bare image ID.
    #[error("`{0}` is an image ID, not a name: registries are asked by name")]
    ImageId(String),
    /// The repository is too long.
    #[error("`{0}…`: the name has {1} bytes ({REPOSITORY_BYTES_MAX} at most)")]
    TooLong(String, usize),
    /// The tag does not follow the grammar.
    #[error("`{0}` is not a valid tag (letters, digits, `_`, `.` and `-`, at most 128)")]
    Tag(String),
    /// What follows the `@` is no digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A local name without a path.
    #[error("`{0}` names no path (expected {1})")]
    NoPath(String, &'static str),
}

impl Reference {
    /// The registry as `host[:port]`; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository, as in `library/ubuntu`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` only when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that the manifest must have.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask the registry for: the digest if there is one, else the tag.
    pub fn tag_or_digest(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.into(),
        }
    }

    /// The same name, pinned to `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The name as people type it: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(rest) => match rest.strip_prefix("library/") {
                Some(single) if !single.contains('/') => single.into(),
                _ => rest.into(),
            },
            None => full,
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(s: &str) -> Result<Reference, ReferenceError> {
        refuse_what_is_no_name(s)?;
        let (named, digest) = match s.split_once('@') {
            Some((named, digest)) => (named, Some(digest.parse::<Digest>()?)),
            None => (s, None),
        };
        let (registry, rest) = split_domain(named);
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let registry = match registry {
            None | Some("index.docker.io") => DEFAULT_REGISTRY,
            Some(domain) if is_domain(domain) => domain,
            Some(domain) => return Err(ReferenceError::Domain(shown(domain))),
        };
        check_repository(path, s)?;
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(shown(tag)));
        }
        let library = registry == DEFAULT_REGISTRY && !path.contains('/');
        let repository = if library {
            format!("library/{path}")
        } else {
            path.into()
        };
        if repository.len() > REPOSITORY_BYTES_MAX {
            return Err(ReferenceError::TooLong(
                shown(&repository),
                repository.len(),
            ));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.into()),
            (tag, _) => tag.map(String::from),
        };
        Ok(Reference {
            registry: registry.into(),
            repository,
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn refuse_what_is_no_name(s: &str) -> Result<(), ReferenceError> {
    if s.is_empty() {
        return Err(ReferenceError::Empty);
    }
    for scheme in ["https://", "http://", "docker://"] {
        if s.starts_with(scheme) {
            return Err(ReferenceError::Url(shown(s), scheme));
        }
    }
    if s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(ReferenceError::ImageId(s.into()));
    }
    Ok(())
}

fn split_domain(named: &str) -> (Option<&str>, &str) {
    match named.split_once('/') {
        Some((first, rest)) if looks_like_domain(first) => (Some(first), rest),
        _ => (None, named),
    }
}

fn looks_like_domain(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, after)) => (address, after.strip_prefix(':').or(Some(""))),
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let host_is_good = if domain.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.split('.').all(is_domain_component)
    };
    let port_is_good =
        port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok());
    domain.len() <= DOMAIN_BYTES_MAX && host_is_good && port_is_good
}

fn is_domain_component(part: &str) -> bool {
    !part.is_empty()
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !part.starts_with('-')
        && !part.ends_with('-')
}

fn check_repository(path: &str, typed: &str) -> Result<(), ReferenceError> {
    if path.split('/').all(is_path_component) {
        return Ok(());
    }
    let lower = path.to_ascii_lowercase();
    if lower != path && lower.split('/').all(is_path_component) {
        let hint = typed.replacen(path, &lower, 1);
        return Err(ReferenceError::UpperCase {
            name: shown(typed),
            hint: shown(&hint),
        });
    }
    Err(ReferenceError::Repository(shown(typed)))
}

/// Runs of letters and digits, with one separator (`.`, `_`, `__`, or any number of `-`) between.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separators = part.split(|c: char| c.is_ascii() && alphanumeric(c as u8));
    let allowed = |s: &str| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    let ends_are_good = part.bytes().next().is_some_and(alphanumeric)
        && part.bytes().last().is_some_and(alphanumeric);
    ends_are_good && separators.filter(|s| !s.is_empty()).all(allowed)
}

/// Whether `tag` follows the grammar of tags.
pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests;
