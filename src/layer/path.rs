//! Paths inside a layer: bytes, relative to the root, valid by construction.

use std::fmt;

/// Longest name of one component in bytes, as in `statfs.f_namelen` of every Linux file system.
pub const NAME_BYTES_MAX: usize = 255;
/// Deepest path: the kernel's PATH_MAX (4096) holds at most this many one-letter components, so
/// nothing deeper could ever have been created by a path, nor be reached by one.
pub const PATH_DEPTH_MAX: usize = 2048;

/// A path below the root of an image: components joined by `/`, none of them empty, `.`, `..`,
/// longer than [`NAME_BYTES_MAX`] or holding NUL. The empty path is the root. Not necessarily UTF-8.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LayerPath(Box<[u8]>);

/// Why a name in a tar is not a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A component is `..`.
    #[error("`{0}` leaves the image (a component is `..`)")]
    Parent(String),
    /// A NUL byte.
    #[error("`{0}` holds a NUL byte")]
    Nul(String),
    /// A component is too long.
    #[error("`{0}…` has a component of {1} bytes ({NAME_BYTES_MAX} at most)")]
    NameTooLong(String, usize),
    /// Too many components.
    #[error("`{0}…` is {1} directories deep ({PATH_DEPTH_MAX} at most)")]
    TooDeep(String, usize),
}

impl LayerPath {
    /// The root itself.
    pub fn root() -> LayerPath {
        LayerPath::default()
    }

    /// Reads a name as tars have it: leading `/` and `./`, doubled and trailing slashes are dropped.
    pub fn parse(raw: &[u8]) -> Result<LayerPath, PathError> {
        let shown = || String::from_utf8_lossy(&raw[..raw.len().min(80)]).into_owned();
        if raw.contains(&0) {
            return Err(PathError::Nul(shown()));
        }
        let mut path = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for name in raw
            .split(|b| *b == b'/')
            .filter(|n| !n.is_empty() && *n != b".")
        {
            if name == b".." {
                return Err(PathError::Parent(shown()));
            }
            if name.len() > NAME_BYTES_MAX {
                return Err(PathError::NameTooLong(shown(), name.len()));
            }
            depth += 1;
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        if depth > PATH_DEPTH_MAX {
            return Err(PathError::TooDeep(shown(), depth));
        }
        Ok(LayerPath(path.into()))
    }

    /// The bytes, without a leading slash; empty for the root.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The names on the way down, top-most first.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|n| !n.is_empty())
    }

    /// The last name; `None` for the root.
    pub fn file_name(&self) -> Option<&[u8]> {
        self.0
            .rsplit(|b| *b == b'/')
            .next()
            .filter(|n| !n.is_empty())
    }

    /// The directory that holds it; `None` for the root.
    pub fn parent(&self) -> Option<LayerPath> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(LayerPath(self.0[..cut].into()))
    }

    /// The path of `name` in this directory. `name` must be one valid component.
    pub fn join(&self, name: &[u8]) -> Result<LayerPath, PathError> {
        let mut raw = self.0.to_vec();
        raw.push(b'/');
        raw.extend_from_slice(name);
        LayerPath::parse(&raw)
    }
}

impl fmt::Display for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tars_become_paths() {
        for (raw, path) in [
            ("./a//b/", "/a/b"),
            ("/a/./b", "/a/b"),
            ("./", "/"),
            ("", "/"),
        ] {
            assert_eq!(LayerPath::parse(raw.as_bytes()).unwrap().to_string(), path);
        }
        let p = LayerPath::parse(b"a/b").unwrap();
        assert_eq!(p.parent(), Some(LayerPath::parse(b"a").unwrap()));
        assert_eq!(p.parent().unwrap().parent(), Some(LayerPath::root()));
        assert_eq!(p.file_name(), Some(&b"b"[..]));
        assert_eq!(LayerPath::root().join(b"x").unwrap().as_bytes(), b"x");
    }

    #[test]
    fn what_cannot_be_a_path_is_refused() {
        assert!(matches!(
            LayerPath::parse(b"a/../b"),
            Err(PathError::Parent(_))
        ));
        assert!(matches!(LayerPath::parse(b"a\0b"), Err(PathError::Nul(_))));
        assert!(matches!(
            LayerPath::parse(&[b'x'; 256]),
            Err(PathError::NameTooLong(_, 256))
        ));
        assert!(LayerPath::parse(&[b'x'; 255]).is_ok());
        let deep = b"a/".repeat(PATH_DEPTH_MAX + 1);
        assert!(matches!(
            LayerPath::parse(&deep),
            Err(PathError::TooDeep(..))
        ));
    }
}
