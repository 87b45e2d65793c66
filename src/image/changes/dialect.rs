//! How the three kinds of overlays mark what was deleted and replaced in an upper directory.
//!
//! Kernel: Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories",
//! "redirect_dir", "Metadata only copy up"; fuse-overlayfs 1.x: `main.c`, the constants `*_XATTR` and
//! `.wh.`.

use crate::mount::upper::Dialect;

/// Where the kernel's overlayfs keeps its marks as root.
const TRUSTED: &[u8] = b"trusted.overlay.";
/// Where it keeps them in a user namespace.
const USER: &[u8] = b"user.overlay.";
/// Where fuse-overlayfs keeps its own; it reads and writes the kernel's as well.
const FUSE: [&[u8]; 3] = [b"user.fuseoverlayfs.", TRUSTED, USER];
/// Further marks of fuse-overlayfs: owner and mode that it could not give to a file.
const FUSE_STAT: [&[u8]; 2] = [
    b"security.fuseoverlayfs.override_stat",
    b"user.containers.override_stat",
];
/// Labels of this machine, which no mount of ours shows either.
const OF_THE_HOST: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];

/// Beginning of a whiteout's name where no device can be made.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Names in a directory that say that it is opaque.
const OPAQUE_NAMES: [&[u8]; 2] = [b".wh..wh..opq", b".wh..opq"];

/// Extended attributes by name.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What the marks of one file say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// It stands for a deletion.
    pub(super) whiteout: bool,
    /// It hides what is below it.
    pub(super) opaque: bool,
    /// It means something only together with the image: the mark.
    pub(super) depends: Option<String>,
}

/// What the kernel can tell of a file besides its marks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// A character device 0/0.
    pub(super) is_zero_device: bool,
    /// A regular file without a byte.
    pub(super) is_empty_file: bool,
}

/// Reads the marks of a file and takes them off `xattrs`.
pub(super) fn read(dialect: Dialect, shape: Shape, xattrs: &mut Xattrs) -> Marks {
    let marks = match dialect {
        Dialect::Trusted => kernel(TRUSTED, shape, xattrs),
        Dialect::User => kernel(USER, shape, xattrs),
        Dialect::Fuse => fuse(shape, xattrs),
    };
    xattrs.retain(|(name, _)| !OF_THE_HOST.contains(&&name[..]));
    marks
}

fn kernel(prefix: &[u8], shape: Shape, xattrs: &mut Xattrs) -> Marks {
    let mut marks = Marks {
        whiteout: shape.is_zero_device,
        ..Marks::default()
    };
    for (name, value) in xattrs.iter() {
        match name.strip_prefix(prefix) {
            // `x` says that whiteouts in it may be files, each of which says so itself.
            Some(b"opaque") => marks.opaque = value == b"y",
            Some(b"whiteout") => marks.whiteout |= shape.is_empty_file,
            Some(b"redirect" | b"metacopy") => {
                marks.depends = Some(String::from_utf8_lossy(name).into_owned());
            }
            _ => {}
        }
    }
    xattrs.retain(|(name, _)| !name.starts_with(prefix));
    marks
}

fn fuse(shape: Shape, xattrs: &mut Xattrs) -> Marks {
    let mut marks = Marks {
        whiteout: shape.is_zero_device,
        ..Marks::default()
    };
    let mark = |name: &[u8]| {
        FUSE.iter()
            .find_map(|p| name.strip_prefix(*p).map(<[u8]>::to_vec))
    };
    for (name, value) in xattrs.iter() {
        match mark(name).as_deref() {
            Some(b"opaque") => marks.opaque = value == b"y",
            Some(b"redirect" | b"metacopy") => {
                marks.depends = Some(String::from_utf8_lossy(name).into_owned());
            }
            _ => {}
        }
    }
    xattrs.retain(|(name, _)| mark(name).is_none() && !FUSE_STAT.contains(&&name[..]));
    marks
}

/// What a name says in a directory of fuse-overlayfs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name<'a> {
    /// A file's own.
    Plain,
    /// The directory is opaque.
    Opaque,
    /// This name is deleted.
    Whiteout(&'a [u8]),
}

/// Reads a name. The kernel's overlayfs gives names no meaning: there a `.wh.` is a file's own.
pub(super) fn name(dialect: Dialect, name: &[u8]) -> Name<'_> {
    match name.strip_prefix(WHITEOUT_PREFIX) {
        Some(_) if dialect != Dialect::Fuse => Name::Plain,
        Some(_) if OPAQUE_NAMES.contains(&name) => Name::Opaque,
        Some(deleted) => Name::Whiteout(deleted),
        None => Name::Plain,
    }
}

/// Whether a file of this name would be a whiteout in a layer.
pub(super) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Shape = Shape {
        is_zero_device: false,
        is_empty_file: false,
    };

    fn xattrs(names: &[(&str, &str)]) -> Xattrs {
        let pair = |(n, v): &(&str, &str)| (n.as_bytes().to_vec(), v.as_bytes().to_vec());
        names.iter().map(pair).collect()
    }

    #[test]
    fn each_dialect_reads_its_own_marks_and_keeps_the_rest() {
        let all = [
            ("trusted.overlay.opaque", "y"),
            ("user.overlay.opaque", "y"),
            ("user.fuseoverlayfs.opaque", "y"),
            ("security.selinux", "label"),
            ("user.mine", "1"),
        ];
        for (dialect, left) in [
            (Dialect::Trusted, 3),
            (Dialect::User, 3),
            (Dialect::Fuse, 1),
        ] {
            let mut found = xattrs(&all);
            let marks = read(dialect, FILE, &mut found);
            assert!(marks.opaque && !marks.whiteout, "{dialect:?}");
            assert_eq!(found.len(), left, "{dialect:?}");
            assert!(found.contains(&(b"user.mine".to_vec(), b"1".to_vec())));
        }
        let mut origin = xattrs(&[
            ("trusted.overlay.origin", "x"),
            ("user.overlay.opaque", "y"),
        ]);
        let marks = read(Dialect::Trusted, FILE, &mut origin);
        assert_eq!((marks, origin.len()), (Marks::default(), 1));
    }

    #[test]
    fn what_needs_the_image_is_told() {
        for (dialect, name) in [
            (Dialect::Trusted, "trusted.overlay.redirect"),
            (Dialect::User, "user.overlay.metacopy"),
            (Dialect::Fuse, "user.fuseoverlayfs.redirect"),
        ] {
            let marks = read(dialect, FILE, &mut xattrs(&[(name, "")]));
            assert_eq!(marks.depends.as_deref(), Some(name));
        }
    }

    #[test]
    fn whiteouts_are_devices_files_and_names() {
        let device = Shape {
            is_zero_device: true,
            ..FILE
        };
        for dialect in [Dialect::Trusted, Dialect::User, Dialect::Fuse] {
            assert!(read(dialect, device, &mut Xattrs::new()).whiteout);
        }
        let empty = Shape {
            is_empty_file: true,
            ..FILE
        };
        let mark = || xattrs(&[("trusted.overlay.whiteout", "")]);
        assert!(read(Dialect::Trusted, empty, &mut mark()).whiteout);
        assert!(!read(Dialect::User, empty, &mut mark()).whiteout);
        assert_eq!(name(Dialect::Fuse, b".wh.a"), Name::Whiteout(b"a"));
        assert_eq!(name(Dialect::Fuse, b".wh..wh..opq"), Name::Opaque);
        assert_eq!(name(Dialect::Fuse, b".wh..opq"), Name::Opaque);
        assert_eq!(name(Dialect::Trusted, b".wh.a"), Name::Plain);
        assert!(is_reserved(b".wh.a") && !is_reserved(b"a.wh."));
    }
}
