//! Which extended attributes a mount shows.

use crate::tree::node::NodeKind;

/// Prefixes of attributes that steer what is stacked above the mount: shown there, an image could
/// turn its own files into overlayfs whiteouts and redirects.
const STEERING: [&[u8]; 3] = [
    b"trusted.overlay.",
    b"user.overlay.",
    b"user.fuseoverlayfs.",
];
/// Attributes that belong to the security modules of the machine that made the image, not to ours.
const FOREIGN: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];

/// Whether a mount shows the attribute `name` of a node of this kind. What Linux would not let the
/// node have is not shown either: the kernel refuses to read it, and who copies a tree stumbles over
/// attributes that are listed and cannot be read.
pub fn visible(name: &[u8], kind: NodeKind) -> bool {
    shown(name) && fits(name, kind)
}

/// Whether a mount shows the attribute `name` of some nodes.
pub(super) fn shown(name: &[u8]) -> bool {
    !STEERING.iter().any(|prefix| name.starts_with(prefix)) && !FOREIGN.contains(&name)
}

/// Whether `name` is a POSIX ACL.
pub(super) fn is_acl(name: &[u8]) -> bool {
    name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
}

/// Whether Linux lets a node have the attribute (xattr(7): `user.` is for regular files and
/// directories; a link has no ACL because it has no mode).
pub(super) fn fits(name: &[u8], kind: NodeKind) -> bool {
    match kind {
        NodeKind::Directory | NodeKind::Regular => true,
        NodeKind::Symlink => !name.starts_with(b"user.") && !is_acl(name),
        NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo => {
            !name.starts_with(b"user.")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_others_is_hidden() {
        let hidden: [&[u8]; 6] = [
            b"trusted.overlay.opaque",
            b"user.overlay.whiteout",
            b"user.fuseoverlayfs.opaque",
            b"security.selinux",
            b"security.ima",
            b"security.evm",
        ];
        for name in hidden {
            let hidden = !visible(name, NodeKind::Regular);
            assert!(hidden, "{}", String::from_utf8_lossy(name));
        }
        let shown: [&[u8]; 6] = [
            b"security.capability",
            b"user.overlay",
            b"trusted.overlayx",
            b"security.selinux2",
            b"system.posix_acl_access",
            b"user.x",
        ];
        for name in shown {
            let shown = visible(name, NodeKind::Regular);
            assert!(shown, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn what_a_node_cannot_have_is_hidden() {
        for kind in [NodeKind::Symlink, NodeKind::Fifo, NodeKind::CharDevice] {
            assert!(!visible(b"user.x", kind), "{kind:?}");
            assert!(visible(b"trusted.x", kind), "{kind:?}");
            let acl = visible(b"system.posix_acl_access", kind);
            assert_eq!(acl, kind != NodeKind::Symlink, "{kind:?}");
        }
        assert!(visible(b"user.x", NodeKind::Directory));
    }
}
