//! `IMAGE[:/path]`: where the name of the image ends and the path inside it begins.
//!
//! The path begins with the first `:/` that can be its beginning. A registry name has none (`host:5000/x`
//! has a digit behind its colon), so `host:5000/x:tag:/etc/passwd` is clear. The path of a layout or an
//! archive may have one; there, the first `:/` before which something exists on the disk counts.

use std::path::Path;

/// An image's name and a path inside the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePath {
    /// The name as typed.
    pub image: String,
    /// Bytes, with a leading slash; `None` when only the image was named.
    pub path: Option<Vec<u8>>,
}

/// Schemes of copies on this machine, which a path follows.
const LOCAL: [&[u8]; 3] = [b"oci:", b"oci-archive:", b"docker-archive:"];

impl ImagePath {
    /// Splits what was typed; `None` when the image's name is not UTF-8.
    pub fn parse(typed: &[u8]) -> Option<ImagePath> {
        Self::parse_with(typed, &|path| {
            std::str::from_utf8(path).is_ok_and(|path| Path::new(path).exists())
        })
    }

    fn parse_with(typed: &[u8], exists: &dyn Fn(&[u8]) -> bool) -> Option<ImagePath> {
        let local = LOCAL.iter().find(|scheme| typed.starts_with(scheme));
        let scheme = match local {
            Some(scheme) => scheme.len(),
            None if typed.starts_with(b"docker://") => b"docker://".len(),
            None => 0,
        };
        let rest = &typed[scheme..];
        let colons = rest.windows(2).enumerate();
        let mut colons = colons.filter(|(_, pair)| pair == b":/").map(|(at, _)| at);
        let at = match local {
            None => colons.next(),
            Some(_) => colons.find(|at| is_there(&rest[..*at], exists)),
        };
        let (image, path) = match at {
            Some(at) => (&typed[..scheme + at], Some(rest[at + 1..].to_vec())),
            None => (typed, None),
        };
        Some(ImagePath {
            image: String::from_utf8(image.to_vec()).ok()?,
            path,
        })
    }

    /// The path; the root when none was named.
    pub fn path(&self) -> &[u8] {
        self.path.as_deref().unwrap_or(b"/")
    }
}

/// Whether the file before the tag exists: `FILE`, or `FILE:TAG` with any colon in the tag.
fn is_there(name: &[u8], exists: &dyn Fn(&[u8]) -> bool) -> bool {
    let mut cut = name.len();
    loop {
        if exists(&name[..cut]) {
            return true;
        }
        match name[..cut].iter().rposition(|b| *b == b':') {
            Some(colon) => cut = colon,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_told_apart() {
        let there = |path: &[u8]| path == b"/d/a:/b" || path == b"/d/x.tar" || path == b"rel";
        for (typed, image, path) in [
            ("debian", "debian", None),
            ("debian:12", "debian:12", None),
            ("debian:/etc", "debian", Some("/etc")),
            ("debian:12:/etc/a:/b", "debian:12", Some("/etc/a:/b")),
            (
                "host:5000/x:tag:/etc/passwd",
                "host:5000/x:tag",
                Some("/etc/passwd"),
            ),
            ("host:5000/x", "host:5000/x", None),
            ("docker://host:5000/x:/", "docker://host:5000/x", Some("/")),
            ("[::1]:5000/x:1:/a", "[::1]:5000/x:1", Some("/a")),
            ("oci:/d/a:/b", "oci:/d/a:/b", None),
            ("oci:/d/a:/b:tag:/etc", "oci:/d/a:/b:tag", Some("/etc")),
            ("oci:rel:/etc", "oci:rel", Some("/etc")),
            (
                "docker-archive:/d/x.tar:debian:12:/etc",
                "docker-archive:/d/x.tar:debian:12",
                Some("/etc"),
            ),
            (
                "oci-archive:/d/x.tar:/etc",
                "oci-archive:/d/x.tar",
                Some("/etc"),
            ),
            ("oci:/missing:/etc", "oci:/missing:/etc", None),
        ] {
            let parsed = ImagePath::parse_with(typed.as_bytes(), &there).unwrap();
            assert_eq!(parsed.image, image, "{typed}");
            assert_eq!(parsed.path.as_deref(), path.map(str::as_bytes), "{typed}");
        }
        assert!(ImagePath::parse(b"\xff:/etc").is_none());
        let bytes = ImagePath::parse(b"a:/\xff").unwrap();
        assert_eq!(bytes.path(), b"/\xff");
    }
}
