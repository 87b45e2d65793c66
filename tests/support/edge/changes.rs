//! What layers do to each other: links, whiteouts, replacements, metadata.

use super::entry::{block_device, char_device, dir, fifo, file, link, symlink};
use super::{LAYERS, Layer};
use crate::support::raw_tar::Member;

/// The last word about the root is the topmost layer's.
pub(super) fn root(layers: &mut [Layer; LAYERS]) {
    let entry = dir("").mode(0o700).own(1, 1).at(1, 0);
    layers[0].odd(&[entry.head_named(b"./").bytes()], entry);
    let entry = dir("").mode(0o711).own(2, 3).at(1_600_000_000, 0);
    layers[2].odd(&[entry.head_named(b"/").bytes()], entry);
}

pub(super) fn links(layers: &mut [Layer; LAYERS]) {
    let [base, second, third, top] = layers;
    base.add(dir("links"))
        .add(dir("links/a"))
        .add(dir("links/b"));
    base.add(
        file("links/a/one", "one")
            .own(4, 5)
            .mode(0o640)
            .xattr("user.x", b"y"),
    );
    // A link's own header says nothing about the file.
    base.add(
        link("links/b/two", "links/a/one")
            .mode(0o777)
            .own(9, 9)
            .at(9, 0),
    );
    base.add(link("links/three", "./links/b/two"));
    base.add(link("links/four", "/links/three"));
    base.add(symlink("links/soft", "nowhere"));
    base.add(link("links/soft-too", "links/soft"));
    base.add(fifo("links/fifo"))
        .add(link("links/fifo-too", "links/fifo"));
    base.add(char_device("links/dev", 1, 3))
        .add(link("links/dev-too", "links/dev"));
    base.add(file("links/replaced", "old").own(1, 2));
    base.add(file("links/hidden", "kept by its other name"));
    base.add(file("links/unlinked", "x"))
        .add(link("links/unlinked-too", "links/unlinked"));
    // A link into a lower layer, and then the target changes.
    second.add(link("links/keeps-old", "links/replaced"));
    second.add(link("links/keeps-hidden", "links/hidden"));
    second.add(link("links/b/five", "links/four"));
    third.add(file("links/replaced", "new").own(3, 4));
    third
        .whiteout("links", "hidden")
        .whiteout("links", "unlinked-too");
    third.add(file("links/replaced-too", "replaced by a link"));
    top.add(link("links/replaced-too", "links/replaced"));
    // The group loses one name to another file.
    top.add(file("links/a/one", "not one any more"));
}

/// Go's readers refuse these.
pub(super) fn early_links(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[1];
    tar.add(dir("early"));
    tar.add(link("early/c", "early/b"))
        .add(link("early/b", "early/a"));
    tar.add(file("early/a", "at last").own(1, 2));
    tar.add(link("early/sub/d", "early/e"));
    tar.add(symlink("early/e", "x"));
}

pub(super) fn nodes(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("nodes"));
    tar.add(char_device("nodes/null", 1, 3).mode(0o666));
    tar.add(char_device("nodes/large", 4095, 1_048_575).own(1, 2));
    tar.add(char_device("nodes/minor", 5, 300));
    tar.add(block_device("nodes/disk", 8, 17));
    tar.add(fifo("nodes/fifo").at(5, 6));
    tar.add(symlink("nodes/absolute", "/nodes/fifo"));
    tar.add(symlink("nodes/relative", "../nodes/./fifo"));
    tar.add(symlink("nodes/loop", "loop"));
    tar.add(symlink("nodes/outside", "../../../../etc/passwd"));
    tar.add(symlink("nodes/owned", "x").own(6, 7).at(-5, 500_000_000));
    tar.add(file("nodes/empty", ""));
    tar.add(file("nodes/block", [7; 512]))
        .add(file("nodes/more", [8; 513]));
    tar.add(file("nodes/large-file", large()));
}

/// Longer than a request and than a span's pages, and no two blocks of it are alike.
fn large() -> Vec<u8> {
    (0..400_000u32)
        .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 8).to_le_bytes())
        .collect()
}

/// `cap_net_raw=ep` (linux/capability.h, revision 2).
pub(super) const CAP_NET_RAW: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// `user::rw-,user:65534:perm,group::r--,mask::rw-,other::other` (linux/posix_acl_xattr.h).
pub(super) fn acl(perm: u8, other: u8) -> Vec<u8> {
    let entry = |tag: u8, perm: u8, id: u32| [&[tag, 0, perm, 0], &id.to_le_bytes()[..]].concat();
    let entries = [
        entry(0x01, 6, u32::MAX),
        entry(0x02, perm, 65534),
        entry(0x04, 4, u32::MAX),
        entry(0x10, 6, u32::MAX),
        entry(0x20, other, u32::MAX),
    ];
    [&2u32.to_le_bytes()[..], &entries.concat()].concat()
}

const ACL: &str = "system.posix_acl_access";

pub(super) fn xattrs(layers: &mut [Layer; LAYERS]) {
    let [base, second, third, _] = layers;
    base.add(
        dir("xattrs")
            .xattr("user.dir", b"d")
            .xattr("trusted.t", b"root sees it"),
    );
    base.add(
        file("xattrs/user", "x")
            .xattr("user.a", b"1")
            .xattr("user.b", b"\0bytes\n=\xff"),
    );
    base.add(file("xattrs/long", "x").xattr("user.long", &[b'v'; 2000]));
    base.add(
        file("xattrs/capable", "x")
            .mode(0o755)
            .xattr("security.capability", CAP_NET_RAW),
    );
    base.add(symlink("xattrs/link", "x").xattr("trusted.l", b"links have these"));
    base.add(fifo("xattrs/fifo").xattr("trusted.f", b"and fifos"));
    base.add(
        file("xattrs/allowed", "x")
            .mode(0o660)
            .xattr(ACL, &acl(4, 0)),
    );
    base.add(
        file("xattrs/denied", "x")
            .mode(0o664)
            .xattr(ACL, &acl(0, 4)),
    );
    let default = acl(7, 0);
    base.add(dir("xattrs/default").xattr("system.posix_acl_default", &default));
    base.add(file("xattrs/replaced", "x").xattr("user.gone", b"1"));
    base.add(dir("xattrs/kept").xattr("user.gone", b"1"));
    base.add(file("xattrs/linked", "x").xattr("user.of-file", b"1"));
    second.add(file("xattrs/replaced", "x").xattr("user.new", b"2"));
    // Metadata is replaced as a whole.
    second.add(dir("xattrs/kept").xattr("user.new", b"2"));
    third.add(link("xattrs/hard", "xattrs/linked"));
}

/// Attributes that a mount hides.
pub(super) fn hidden_xattrs(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    let directory = dir("hidden").xattr("trusted.overlay.opaque", b"y");
    tar.add(directory.xattr("user.shown", b"1"));
    tar.add(file("hidden/selinux", "x").xattr("security.selinux", b"u:r:t:s0\0"));
    tar.add(file("hidden/overlay", "x").xattr("user.overlay.redirect", b"/etc"));
    tar.add(file("hidden/fuse", "x").xattr("user.fuseoverlayfs.opaque", b"y"));
}

/// Go's reader drops them.
pub(super) fn empty_xattrs(layers: &mut [Layer; LAYERS]) {
    let entry = file("empty-xattr", "x").xattr("user.empty", b"");
    layers[0].add(entry.xattr("user.other", b"1"));
}

/// Attributes that Linux does not let a node have.
pub(super) fn impossible_xattrs(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    let entry = symlink("impossible-link", "x").xattr("user.on-link", b"1");
    tar.add(entry.xattr("trusted.l", b"1").xattr(ACL, &acl(4, 0)));
    tar.add(fifo("impossible-fifo").xattr("user.on-fifo", b"1"));
    tar.add(char_device("impossible-device", 1, 5).xattr("user.on-device", b"1"));
}

pub(super) fn duplicates(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("twice").mode(0o700))
        .add(dir("twice").mode(0o755).own(1, 1));
    tar.add(file("twice/file", "first").own(1, 1));
    tar.add(link("twice/first", "twice/file"));
    tar.add(file("twice/file", "second, longer").own(2, 2));
    tar.add(link("twice/second", "twice/file"));
    tar.add(dir("twice/dir")).add(file("twice/dir/child", "x"));
    tar.add(dir("twice/dir").mode(0o711).at(5, 5));
    tar.add(dir("twice/to-file"))
        .add(file("twice/to-file/lost", "x"));
    tar.add(file("twice/to-file", "a file now"));
    tar.add(file("twice/to-dir", "x")).add(dir("twice/to-dir"));
    tar.add(file("twice/to-dir/child", "x"));
    tar.add(symlink("twice/to-plain", "file"))
        .add(file("twice/to-plain", "no link"));
}

/// Directories that no entry names are there nevertheless.
pub(super) fn parents(layers: &mut [Layer; LAYERS]) {
    let [base, second, third, _] = layers;
    base.add(file("implied/a/b/c/file", "deep"));
    base.add(file("implied/late/file", "x"))
        .add(dir("implied/late").mode(0o700).own(3, 3));
    // A child that changes does not change what is known of its parent.
    second.add(file("implied/late/second", "x"));
    second.add(dir("implied/a/b").mode(0o750).own(7, 7));
    third.add(dir("implied/late/sub"));
}

/// An entry whose parent is a file below.
pub(super) fn files_as_parents(layers: &mut [Layer; LAYERS]) {
    layers[0].add(file("was-file", "will be a directory"));
    layers[1].add(file("was-file/child", "x"));
}

/// Each kind of node gives way to each other, and the topmost layer has the last word.
pub(super) fn replaced(layers: &mut [Layer; LAYERS]) {
    let [base, second, third, top] = layers;
    base.add(dir("replaced").mode(0o700));
    second.add(dir("replaced").mode(0o755).own(8, 9).at(1_650_000_000, 0));
    base.add(dir("replaced/dir"))
        .add(file("replaced/dir/child", "x"));
    second.add(file("replaced/dir", "a file over a directory"));
    third.add(dir("replaced/dir").mode(0o711));
    top.add(file("replaced/dir/new", "the old child is gone"));
    base.add(file("replaced/file", "file"));
    second
        .add(dir("replaced/file"))
        .add(file("replaced/file/child", "x"));
    third.add(file("replaced/file", "and back"));
    base.add(symlink("replaced/link", "file"));
    second.add(file("replaced/link", "not behind the link"));
    base.add(dir("replaced/becomes-link"))
        .add(file("replaced/becomes-link/x", "x"));
    second.add(symlink("replaced/becomes-link", "dir"));
    base.add(fifo("replaced/fifo"));
    second.add(char_device("replaced/fifo", 1, 5));
    third.add(file("replaced/fifo", "x"));
    base.add(
        file("replaced/keeps-bits", "x")
            .mode(0o4755)
            .xattr("user.a", b"1"),
    );
    second.add(file("replaced/keeps-bits", "y"));
    // Only the metadata: the children stay.
    base.add(dir("replaced/meta").xattr("user.a", b"1"))
        .add(file("replaced/meta/child", "x"));
    third.add(dir("replaced/meta").mode(0o2750).own(5, 6).at(-3, 5));
}

pub(super) fn whiteouts(layers: &mut [Layer; LAYERS]) {
    let [base, second, third, top] = layers;
    base.add(dir("white"));
    for name in ["a", "b", "again", "h1", "kept", "linked"] {
        base.add(file(format!("white/{name}"), name));
    }
    base.add(link("white/h2", "white/h1"))
        .add(symlink("white/soft", "kept"));
    base.add(dir("white/dir"))
        .add(file("white/dir/x", "x"))
        .add(file("white/dir/y", "y"));
    base.add(dir("white/deep"))
        .add(file("white/deep/er/z", "z"));
    base.add(dir("white/emptied"))
        .add(file("white/emptied/only", "x"));
    // A whiteout is about lower layers, wherever it stands.
    second
        .add(file("white/again", "new").own(1, 1))
        .whiteout("white", "again");
    second
        .add(dir("white/deep").mode(0o700))
        .add(file("white/deep/new", "n"));
    second
        .whiteout("white", "deep")
        .add(file("white/deep/newer", "n"));
    second
        .whiteout("white", "a")
        .whiteout("white", "h1")
        .whiteout("white", "soft");
    second
        .whiteout("white", "nothing")
        .whiteout("white/nowhere", "nothing");
    second
        .whiteout("white/dir", "x")
        .whiteout("white/emptied", "only");
    second
        .add(file("white/short", "lived"))
        .add(file("white/b", "second b"));
    third.whiteout("white", "short").whiteout("white", "b");
    third.add(dir("white/a")).add(file("white/a/child", "x"));
    // Hidden, and back again from nothing.
    third.whiteout("white", "dir");
    top.add(file("white/dir/z", "z"));
    // The marker's own type and content do not matter.
    top.says.push(crate::support::model::Says::Whiteout(
        b"white/linked".to_vec(),
    ));
    top.bytes(
        &Member::new(b'0', b"white/.wh.linked")
            .data(b"content")
            .bytes(),
    );
}

pub(super) fn opaque(layers: &mut [Layer; LAYERS]) {
    let [base, second, third, top] = layers;
    base.add(dir("opaque"));
    for name in ["first", "last", "between", "nested", "unnamed", "twice"] {
        base.add(dir(format!("opaque/{name}")).mode(0o711));
        base.add(file(format!("opaque/{name}/old"), "old"));
        base.add(file(format!("opaque/{name}/sub/old"), "old"));
    }
    second
        .opaque("opaque/first")
        .add(file("opaque/first/new", "n"));
    second
        .add(file("opaque/last/new", "n"))
        .opaque("opaque/last");
    second.add(dir("opaque/between").mode(0o700));
    second
        .add(file("opaque/between/sub/new", "n"))
        .opaque("opaque/between");
    second.add(file("opaque/between/old", "replaced, not hidden"));
    second
        .opaque("opaque/nested/sub")
        .add(file("opaque/nested/sub/new", "n"));
    // No entry for the directory: it keeps what is known of it.
    second.opaque("opaque/unnamed").opaque("opaque/nothing");
    second
        .opaque("opaque/twice")
        .add(file("opaque/twice/second", "s"));
    third
        .add(file("opaque/twice/third", "t"))
        .opaque("opaque/twice");
    top.add(dir("opaque/twice/sub"));
}

/// Names that AUFS kept for itself are neither entries nor whiteouts.
pub(super) fn aufs(layers: &mut [Layer; LAYERS]) {
    let marker = |name: &str| Member::new(b'0', name.as_bytes()).bytes();
    layers[0].bytes(&Member::new(b'5', b".wh..wh.plnk/").bytes());
    layers[0]
        .bytes(&marker(".wh..wh.plnk/1.2"))
        .bytes(&marker(".wh..wh.aufs"));
    layers[0].bytes(&marker(".wh..wh.orph/.wh.x"));
    layers[0].add(file("beside-aufs", "x"));
}

/// Layers that were made where `lib` was a directory, on a base where it is a link.
pub(super) fn directory_links(layers: &mut [Layer; LAYERS]) {
    let [base, second, third, _] = layers;
    base.add(dir("usr"))
        .add(dir("usr/lib"))
        .add(file("usr/lib/old", "x"));
    base.add(file("usr/lib/stays", "x"))
        .add(symlink("lib", "usr/lib"));
    base.add(symlink("usr/absolute", "/usr/lib"))
        .add(symlink("usr/up", "../../../usr"));
    second
        .add(file("lib/new", "by the link"))
        .add(file("usr/absolute/two", "x"));
    second
        .add(file("usr/up/lib/three", "x"))
        .whiteout("lib", "old");
    second.add(link("lib/four", "lib/new"));
    third.add(dir("lib").mode(0o700).own(4, 4).at(7, 7));
    third.add(file("lib/five", "x"));
    base.add(symlink("dangling", "usr/missing"));
    second.add(file("dangling/file", "makes its target"));
}
