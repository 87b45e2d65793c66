//! What headers can say about one entry: names, numbers, times, and which header wins.

use super::entry::{dir, fifo, file, link, symlink};
use super::{LAYERS, Layer};
use crate::support::model::Entry;
use crate::support::raw_tar::{
    self, GID, GNU, LINK, MAGIC, MODE, MTIME, Member, NAME, PREFIX, SIZE, UID, gnu_long,
};

fn local(records: &[(&str, &str)]) -> Vec<u8> {
    pax_header(b'x', records)
}

fn global(records: &[(&str, &str)]) -> Vec<u8> {
    pax_header(b'g', records)
}

fn pax_header(kind: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let bytes: Vec<_> = records
        .iter()
        .map(|(k, v)| (k.as_bytes(), v.as_bytes()))
        .collect();
    raw_tar::pax(kind, &bytes)
}

pub(super) fn names(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("names"));
    let prefix = format!("names/{}", "p".repeat(149));
    let name = "n".repeat(100);
    tar.add(dir(&prefix));
    let entry = file(format!("{prefix}/{name}"), "prefix and name are full");
    let head = entry.head_named(name.as_bytes());
    tar.odd(&[head.text(PREFIX, prefix.as_bytes()).bytes()], entry);
    let entry = file(
        format!("names/{}", "h".repeat(94)),
        "no NUL behind the name",
    );
    tar.odd(&[entry.head().bytes()], entry);
    tar.add(dir("names/pax =\n"));
    tar.add(file(format!("names/pax =\n/{}", "=\n ".repeat(80)), "long"));
    tar.add(symlink("names/long-target", "t/".repeat(600)));
    tar.add(file("names/pax-target", "x"));
    for (spelling, path) in [
        ("./names/dot", "names/dot"),
        ("names//.//double", "names/double"),
        ("/names/absolute", "names/absolute"),
    ] {
        let entry = file(path, spelling);
        tar.odd(&[entry.head_named(spelling.as_bytes()).bytes()], entry);
    }
    for name in [
        &b"\xff\xfe"[..],
        b"\xe4 latin 1",
        b"new\nline",
        b"back\\slash",
        b" space ",
        b"\"quote",
        b".wh",
        b".whiteout",
        b"...",
        b"..dots",
        "\u{65e5}\u{672c}".as_bytes(),
    ] {
        tar.add(file([b"names/", name].concat(), name));
    }
    tar.add(symlink("names/to-bytes", b"\xff\n\xfe"));
    tar.add(link("names/link-to-bytes", b"names/\xff\xfe"));
}

pub(super) fn gnu_long_names(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("gnu"));
    let path = format!("gnu/{}", "l".repeat(255));
    let entry = file(&path, "long");
    let head = entry.head().text(MAGIC, GNU).bytes();
    tar.odd(&[gnu_long(b'L', path.as_bytes()), head], entry);
    let target = "../".repeat(100) + "target";
    let entry = symlink("gnu/long-link", &target);
    let head = entry.head().text(MAGIC, GNU).bytes();
    tar.odd(&[gnu_long(b'K', target.as_bytes()), head], entry);
    let other = format!("gnu/{}", "m".repeat(200));
    let entry = link(&other, &path);
    let both = [
        gnu_long(b'K', path.as_bytes()),
        gnu_long(b'L', other.as_bytes()),
    ];
    let head = entry.head().text(MAGIC, GNU).bytes();
    tar.odd(&[both.concat(), head], entry);
    let directory = format!("gnu/{}/", "d".repeat(150));
    let entry = dir(directory.trim_end_matches('/')).mode(0o711);
    let head = entry.head().text(MAGIC, GNU).bytes();
    tar.odd(&[gnu_long(b'L', directory.as_bytes()), head], entry);
    // Said once, it holds once.
    tar.add(file("gnu/after", "plain"));
    // GNU has times where ustar has the prefix.
    let entry = file("gnu/no-prefix", "x");
    let head = entry.head().text(MAGIC, GNU).text(PREFIX, b"14371573400");
    tar.odd(&[head.bytes()], entry);
}

pub(super) fn old_headers(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("old"));
    let v7 = |entry: &Entry| entry.head().text(MAGIC, b"").text(PREFIX, b"no prefix");
    let entry = file("old/v7", "seven");
    tar.odd(&[v7(&entry).kind(0).bytes()], entry);
    let entry = dir("old/dir").mode(0o700);
    tar.odd(&[v7(&entry).kind(0).bytes()], entry);
    let entry = link("old/link", "old/v7");
    tar.odd(&[v7(&entry).bytes()], entry);
    // star: a shorter prefix, then times, then its own mark.
    let entry = file("old/star/file", "star");
    let head = entry.head_named(b"file").text(PREFIX, b"old/star");
    let head = head
        .text(476..488, b"14371573400")
        .text(488..500, b"14371573400")
        .text(508..512, b"tar\0");
    tar.add(dir("old/star"));
    tar.odd(&[head.bytes()], entry);
    let entry = file(b"old/\xfc-signed", "signed");
    tar.odd(&[entry.head().signed_checksum().bytes()], entry);
    // A link has no data, whatever its length says.
    let entry = link("old/long-link", "old/v7");
    tar.odd(&[entry.head().octal(SIZE, 99).bytes()], entry);
}

/// Files that some systems keep in one piece.
pub(super) fn contiguous(layers: &mut [Layer; LAYERS]) {
    let entry = file("contiguous", "x");
    layers[0].odd(&[entry.head().kind(b'7').bytes()], entry);
}

/// Types beyond POSIX: one that is no file, one that is a directory, one that nobody knows.
pub(super) fn other_types(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("types"));
    tar.bytes(&Member::new(b'V', b"types/label").bytes());
    tar.bytes(&Member::new(b'M', b"types/more").data(b"skipped").bytes());
    let entry = dir("types/dumped").mode(0o750);
    let head = entry.head().kind(b'D').data(b"Yfile\0\0");
    tar.odd(&[head.bytes()], entry);
    let entry = file("types/unknown", "as a file");
    tar.odd(&[entry.head().kind(b'q').bytes()], entry);
    let entry = file("types/solaris", "x").own(9, 0);
    let header = pax_header(b'X', &[("uid", "9")]);
    tar.odd(&[header, entry.head().octal(UID, 1).bytes()], entry);
}

pub(super) fn numbers(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("numbers"));
    let entry = file("numbers/binary", "12345").own(3_000_000_000, 0o7_777_777);
    let head = entry.head().base256(UID, 3_000_000_000);
    let head = head.base256(SIZE, 5).base256(GID, 0o7_777_777);
    tar.odd(&[head.text(MAGIC, GNU).bytes()], entry);
    let entry = file("numbers/before-1970", "x").at(-86_400, 0);
    let head = entry.head().base256(MTIME, -86_400).text(MAGIC, GNU);
    tar.odd(&[head.bytes()], entry);
    let entry = file("numbers/full-field", "x").own(0o77_777_777, 5);
    let head = entry.head().text(UID, b"77777777").text(GID, b"     5 \0");
    tar.odd(&[head.bytes()], entry);
    let entry = file("numbers/type-in-mode", "x").mode(0o640);
    let head = entry.head().text(MODE, b"0100640\0");
    tar.odd(&[head.bytes()], entry);
    let entry = file("numbers/empty-fields", "").mode(0).at(0, 0);
    let head = [MODE, UID, GID, SIZE, MTIME]
        .into_iter()
        .fold(entry.head(), |head, field| head.text(field, b""));
    tar.odd(&[head.bytes()], entry);
    for (name, mode) in [
        ("suid", 0o4755),
        ("sgid", 0o2755),
        ("sticky", 0o1644),
        ("all", 0o7777),
    ] {
        tar.add(file(format!("numbers/{name}"), "x").mode(mode));
        tar.add(dir(format!("numbers/{name}-dir")).mode(mode));
    }
    tar.add(fifo("numbers/suid-fifo").mode(0o6666));
}

/// `nobody` was -2 on some systems.
pub(super) fn negative_owners(layers: &mut [Layer; LAYERS]) {
    let entry = file("owner-minus-2", "x").own(u32::MAX - 1, u32::MAX - 1);
    let head = entry.head().base256(UID, -2).base256(GID, -2);
    layers[0].odd(&[head.text(MAGIC, GNU).bytes()], entry);
    let entry = file("owner-minus-2-pax", "x").own(u32::MAX - 1, 3);
    let header = local(&[("uid", "-2"), ("gid", "3")]);
    layers[0].odd(&[header, entry.head().bytes()], entry);
}

pub(super) fn times(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("times").at(1_234_567_890, 123_456_789));
    for (name, spelling, (seconds, nanoseconds)) in [
        ("nanosecond", "1.000000001", (1, 1)),
        ("tenth", "1.1", (1, 100_000_000)),
        ("cut-off", "5.9999999999", (5, 999_999_999)),
        ("whole", "7", (7, 0)),
        ("no-digits", "8.", (8, 0)),
        ("before", "-1.25", (-2, 750_000_000)),
        ("just-before", "-0.000000001", (-1, 999_999_999)),
        ("long-before", "-2000000000", (-2_000_000_000, 0)),
    ] {
        for entry in [
            file(format!("times/{name}"), ""),
            symlink(format!("times/{name}-link"), "x"),
            dir(format!("times/{name}-dir")),
        ] {
            let entry = entry.at(seconds, nanoseconds);
            let header = local(&[("mtime", spelling), ("atime", "77.7"), ("ctime", "88.8")]);
            tar.odd(&[header, entry.head().octal(MTIME, 99).bytes()], entry);
        }
    }
}

/// Times that do not fit 64 bits of nanoseconds.
pub(super) fn far_times(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("far"));
    tar.add(file("far/future", "x").at(99_999_999_999, 500_000_000));
    tar.add(file("far/past", "x").at(-10_000_000_000, 0));
    let entry = file("far/binary", "x").at(1 << 36, 0);
    let head = entry.head().base256(MTIME, 1 << 36).text(MAGIC, GNU);
    tar.odd(&[head.bytes()], entry);
}

pub(super) fn pax(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("pax"));
    let entry = file("pax/path", "x").own(70_000, 80_000);
    let header = local(&[("path", "pax/path"), ("uid", "70000"), ("gid", "80000")]);
    let head = entry.head().text(NAME, b"pax/loses").octal(UID, 1);
    tar.odd(&[header, head.bytes()], entry);
    let entry = file("pax/size", "three");
    let head = entry.head().octal(SIZE, 0);
    tar.odd(&[local(&[("size", "5")]), head.bytes()], entry);
    let entry = symlink("pax/linkpath", "to/here");
    let head = entry.head().text(LINK, b"to/there");
    tar.odd(&[local(&[("linkpath", "to/here")]), head.bytes()], entry);
    let entry = link("pax/hard", "pax/path");
    let head = entry.head().text(LINK, b"pax/nothing");
    tar.odd(&[local(&[("linkpath", "./pax/path")]), head.bytes()], entry);
    let unknown = local(&[("comment", "x"), ("VENDOR.key", "1"), ("uname", "me")]);
    let entry = file("pax/unknown-keys", "x");
    tar.odd(&[unknown, entry.head().bytes()], entry);
    let entry = dir("pax/dir").mode(0o700).at(4, 5);
    let header = local(&[("path", "pax/dir/"), ("mtime", "4.000000005")]);
    tar.odd(&[header, entry.head_named(b"other/").bytes()], entry);
}

/// Several headers about one entry: readers do not agree, and this is what Go's does.
pub(super) fn conflicts(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[0];
    tar.add(dir("conflicts"));
    let entry = file("conflicts/gnu", "x").own(3, 0);
    let both = [
        gnu_long(b'L', b"conflicts/gnu"),
        local(&[("path", "conflicts/pax"), ("uid", "3")]),
    ];
    let head = entry.head().text(NAME, b"conflicts/header");
    tar.odd(&[both.concat(), head.bytes()], entry);
    let entry = file("conflicts/second", "x").own(0, 4);
    let both = [
        local(&[("path", "conflicts/first"), ("uid", "3")]),
        local(&[("gid", "4")]),
    ];
    tar.odd(&[both.concat(), entry.head().bytes()], entry);
    // Later records win, and an empty one takes back.
    let entry = file("conflicts/records", "x").own(2, 4);
    let header = local(&[("uid", "1"), ("uid", "2"), ("gid", "3"), ("gid", "")]);
    tar.odd(&[header, entry.head().bytes()], entry);
}

/// A global header holds to the end of the tar, and not in the next layer.
pub(super) fn global_pax(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[1];
    tar.add(dir("global"));
    tar.bytes(&global(&[
        ("uid", "11"),
        ("mtime", "1.5"),
        ("comment", "git has one of these"),
    ]));
    let spelled = |entry: &Entry| entry.head().octal(UID, 5).octal(MTIME, 6).bytes();
    let held = |entry: Entry| entry.own(11, 0).at(1, 500_000_000);
    for entry in [
        file("global/file", "x"),
        dir("global/dir"),
        symlink("global/link", "x"),
        fifo("global/fifo"),
    ] {
        let entry = held(entry);
        tar.odd(&[spelled(&entry)], entry);
    }
    let entry = held(file("global/local", "x")).own(12, 0);
    tar.odd(&[local(&[("uid", "12")]), spelled(&entry)], entry);
    let entry = held(file("global/again", "x"));
    tar.odd(&[spelled(&entry)], entry);
    let entry = file("global/next-layer", "x").own(5, 0).at(6, 0);
    layers[2].odd(&[spelled(&entry)], entry);
}

/// What is said once holds until it is said again or taken back, each key by itself (POSIX, `pax`,
/// "typeflag g"; GNU tar forgets all when a second one comes).
pub(super) fn global_pax_again(layers: &mut [Layer; LAYERS]) {
    let tar = &mut layers[2];
    tar.add(dir("globals"));
    tar.bytes(&global(&[
        ("uid", "11"),
        ("mtime", "1.5"),
        ("SCHILY.xattr.user.all", "1"),
    ]));
    let held = |name: &str| {
        let entry = file(format!("globals/{name}"), name).own(11, 0);
        entry.at(1, 500_000_000).xattr("user.all", b"1")
    };
    let spelled = |entry: &Entry| entry.head().octal(UID, 5).octal(MTIME, 6).bytes();
    let entry = held("taken-back-once").own(5, 0);
    tar.odd(&[local(&[("uid", "")]), spelled(&entry)], entry);
    let entry = held("one-more").xattr("user.one", b"2");
    let header = local(&[("SCHILY.xattr.user.one", "2")]);
    tar.odd(&[header, spelled(&entry)], entry);
    tar.bytes(&global(&[("uid", "13")]));
    let entry = held("second").own(13, 0);
    tar.odd(&[spelled(&entry)], entry);
    tar.bytes(&global(&[("mtime", "")]));
    let entry = held("taken-back").own(13, 0).at(6, 0);
    tar.odd(&[spelled(&entry)], entry);
}
