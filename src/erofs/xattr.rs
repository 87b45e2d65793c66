//! Extended attributes behind an inode: a header of 12 bytes, then entries, each padded to 4 bytes.

use crate::erofs::error::ErofsError;
use crate::layer::Xattr;
use crate::tree::{Ino, Tree};

/// `erofs_xattr_ibody_header`: a filter (0: says nothing) and no shared attributes.
const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 4;

/// Prefixes that are a number in the image (`EROFS_XATTR_INDEX_*`). What has none of them is not
/// shown by any mount: Linux has no other namespaces.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        // The lists are whole names, the others are not.
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*index, rest))
    })
}

fn shown(tree: &Tree, ino: Ino) -> impl Iterator<Item = (u8, &[u8], &Xattr)> {
    tree.visible_xattrs(ino).filter_map(|x| {
        let (index, rest) = split(&x.name)?;
        Some((index, rest, x))
    })
}

/// Bytes that the attributes of `ino` take behind it: 0 or a multiple of 4.
pub(super) fn bytes(tree: &Tree, ino: Ino) -> Result<usize, ErofsError> {
    let mut sum = 0;
    for (_, name, xattr) in shown(tree, ino) {
        if xattr.value.len() > usize::from(u16::MAX) {
            return Err(ErofsError::Xattrs(ino));
        }
        sum += (ENTRY_BYTES + name.len() + xattr.value.len()).next_multiple_of(4);
    }
    if sum == 0 {
        return Ok(0);
    }
    // `i_xattr_icount` is 16 bits of words.
    if sum / 4 >= usize::from(u16::MAX) {
        return Err(ErofsError::Xattrs(ino));
    }
    Ok(HEADER_BYTES + sum)
}

/// `i_xattr_icount` of attributes that take so many bytes.
pub(super) fn count(bytes: usize) -> u16 {
    match bytes {
        0 => 0,
        _ => ((bytes - HEADER_BYTES) / 4 + 1) as u16,
    }
}

/// Adds the attributes of `ino` to `out`.
pub(super) fn write(tree: &Tree, ino: Ino, out: &mut Vec<u8>) {
    let start = out.len();
    for (index, name, xattr) in shown(tree, ino) {
        if out.len() == start {
            out.extend_from_slice(&[0; HEADER_BYTES]);
        }
        let value_size = u16::try_from(xattr.value.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&[name.len() as u8, index]);
        out.extend_from_slice(&value_size.to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(&xattr.value);
        out.resize(start + (out.len() - start).next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_where_linux_knows_them() {
        assert_eq!(split(b"user.a.b"), Some((1, &b"a.b"[..])));
        assert_eq!(split(b"system.posix_acl_access"), Some((2, &b""[..])));
        assert_eq!(split(b"system.posix_acl_accessx"), None);
        assert_eq!(split(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(split(b"user."), None);
        assert_eq!(split(b"system.nfs4_acl"), None);
    }

    #[test]
    fn counts_are_words_with_the_header_as_the_first() {
        assert_eq!((count(0), count(16), count(20)), (0, 2, 3));
    }
}
