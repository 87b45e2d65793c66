//! The scanner against headers made by hand, for what no tool writes; `peers` has what tools write.

mod peers;

use super::*;
use crate::layer::entry::{EntryKind, Timestamp};
use crate::layer::limit::ENTRIES_MAX;

type Scanned = Result<(Vec<Entry>, Vec<Whiteout>), TarError>;

fn scan_by(tar: &[u8], step: usize) -> Scanned {
    let mut scanner = Scanner::default();
    for chunk in tar.chunks(step) {
        scanner.push(chunk)?;
    }
    scanner.finish()
}

/// Scans whole, and in small pieces, which must give the same.
fn scan(tar: &[u8]) -> Scanned {
    let whole = scan_by(tar, usize::MAX);
    assert_eq!(scan_by(tar, 1), whole);
    assert_eq!(scan_by(tar, 509), whole);
    whole
}

fn entries(tar: &[u8]) -> Vec<Entry> {
    scan(tar).unwrap().0
}

/// A header block, with its checksum made after `change`.
fn header(name: &[u8], typeflag: u8, size: u64, change: impl FnOnce(&mut Block)) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0001750\0");
    block[116..124].copy_from_slice(b"0001751\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000144\0");
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut block);
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

/// Header and padded data.
fn member(name: &[u8], typeflag: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, typeflag, data.len() as u64, |_| {});
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn pax(typeflag: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let mut body = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let mut len = rest.len() + 1;
        while len != rest.len() + len.to_string().len() {
            len = rest.len() + len.to_string().len();
        }
        body += &format!("{len}{rest}");
    }
    member(b"pax", typeflag, body.as_bytes())
}

fn gnu(block: &mut Block) {
    block[257..265].copy_from_slice(b"ustar  \0");
}

fn shown(entry: &Entry) -> String {
    entry.path.to_string()
}

/// What a regular file holds, read through its extents.
fn content(tar: &[u8], entry: &Entry) -> Vec<u8> {
    let EntryKind::Regular { size, extents } = &entry.kind else {
        panic!("{entry:?}")
    };
    let mut bytes = vec![0; *size as usize];
    for e in extents {
        let data = &tar[e.address as usize..(e.address + e.len) as usize];
        bytes[e.file_offset as usize..][..data.len()].copy_from_slice(data);
    }
    bytes
}

#[test]
fn types_become_kinds() {
    let device = |block: &mut Block| {
        block[329..337].copy_from_slice(b"0000010\0");
        block[337..345].copy_from_slice(b"0000003\0");
    };
    let link = |block: &mut Block| block[157..160].copy_from_slice(b"./f");
    let tar = [
        member(b"./", b'5', b""),
        member(b"f", b'0', b"data"),
        member(b"contiguous", b'7', b"x"),
        member(b"old", b'\0', b"y"),
        member(b"olddir/", b'\0', b""),
        header(b"hard", b'1', 99, link),
        header(b"soft", b'2', 0, link),
        header(b"char", b'3', 0, device),
        header(b"block", b'4', 0, device),
        member(b"fifo", b'6', b""),
        member(b"unknown", b'q', b"zz"),
        member(b"label", b'V', b"ignored"),
        member(b"/abs//dir/", b'5', b""),
    ]
    .concat();
    let found = entries(&tar);
    let names: Vec<_> = found.iter().map(shown).collect();
    assert_eq!(
        names,
        [
            "/",
            "/f",
            "/contiguous",
            "/old",
            "/olddir",
            "/hard",
            "/soft",
            "/char",
            "/block",
            "/fifo",
            "/unknown",
            "/abs/dir"
        ]
    );
    let target = LayerPath::parse(b"f").unwrap();
    assert_eq!(found[1].mode, 0o644);
    assert_eq!((found[1].uid, found[1].gid), (1000, 1001));
    assert_eq!(
        found[1].mtime,
        Timestamp {
            seconds: 100,
            nanoseconds: 0
        }
    );
    assert_eq!(content(&tar, &found[1]), b"data");
    assert_eq!(content(&tar, &found[2]), b"x");
    assert_eq!(found[4].kind, EntryKind::Directory);
    assert_eq!(found[5].kind, EntryKind::HardLink { target });
    assert_eq!(
        found[6].kind,
        EntryKind::Symlink {
            target: b"./f"[..].into()
        }
    );
    assert_eq!(found[7].kind, EntryKind::CharDevice { major: 8, minor: 3 });
    assert_eq!(found[8].kind, EntryKind::BlockDevice { major: 8, minor: 3 });
    assert_eq!(found[9].kind, EntryKind::Fifo);
    assert_eq!(content(&tar, &found[10]), b"zz");
}

#[test]
fn whiteouts_are_sorted_out() {
    let names = [
        ".wh.a",
        "d/.wh.b",
        "d/.wh..wh..opq",
        ".wh..wh..opq",
        "d/.wh..wh..opqX",
        ".wh..wh.plnk/1",
        "d/.wh..wh.aufs",
        "keep",
        ".whiteout",
    ];
    let tar: Vec<u8> = names
        .iter()
        .flat_map(|n| member(n.as_bytes(), b'0', b""))
        .collect();
    let (entries, whiteouts) = scan(&tar).unwrap();
    let path = |text: &str| LayerPath::parse(text.as_bytes()).unwrap();
    assert_eq!(
        whiteouts,
        [
            Whiteout::Path(path("a")),
            Whiteout::Path(path("d/b")),
            Whiteout::Opaque(path("d")),
            Whiteout::Opaque(path("")),
        ]
    );
    assert_eq!(
        entries.iter().map(shown).collect::<Vec<_>>(),
        ["/keep", "/.whiteout"]
    );
    // A whiteout is one by its name, even as a hard link.
    let link = header(b".wh.z", b'1', 0, |block| block[157] = b'x');
    assert_eq!(scan(&link).unwrap().1, [Whiteout::Path(path("z"))]);
    for bad in [".wh.", "d/.wh..", "d/.wh..."] {
        let error = scan(&member(bad.as_bytes(), b'0', b"")).unwrap_err();
        assert!(matches!(error, TarError::Whiteout(_)), "{bad}: {error}");
    }
}

#[test]
fn long_names_and_pax_win_over_the_header() {
    let long = "n/".repeat(150) + "x";
    let tar = [
        member(b"././@LongLink", b'L', format!("{long}\0").as_bytes()),
        member(b"././@LongLink", b'K', b"to\0"),
        member(b"short", b'2', b""),
        pax(
            b'x',
            &[
                ("path", "pax"),
                ("mtime", "-5.25"),
                ("uid", "70000"),
                ("size", "3"),
            ],
        ),
        header(b"header", b'0', 99, |_| {}),
        [&b"abc"[..], &[0; 509]].concat(),
        member(b"plain", b'0', b""),
        header(b"name", b'0', 0, |block| {
            block[345..351].copy_from_slice(b"prefix")
        }),
        header(b"name", b'0', 0, |block| {
            gnu(block);
            block[345..351].copy_from_slice(b"prefix");
        }),
    ]
    .concat();
    let found = entries(&tar);
    assert_eq!(shown(&found[0]), format!("/{long}"));
    assert_eq!(
        found[0].kind,
        EntryKind::Symlink {
            target: b"to"[..].into()
        }
    );
    assert_eq!(shown(&found[1]), "/pax");
    assert_eq!(
        found[1].mtime,
        Timestamp {
            seconds: -6,
            nanoseconds: 750_000_000
        }
    );
    assert_eq!(found[1].uid, 70000);
    assert_eq!(content(&tar, &found[1]), b"abc");
    assert_eq!((shown(&found[2]), found[2].uid), ("/plain".into(), 1000));
    assert_eq!(shown(&found[3]), "/prefix/name");
    assert_eq!(shown(&found[4]), "/name");
}

/// As umoci 0.4.7 (Go's `archive/tar`) was seen to unpack these.
#[test]
fn of_several_headers_about_one_entry_the_last_counts_and_gnu_names_most() {
    let gnu_long = |kind, text: &[u8]| member(b"././@LongLink", kind, text);
    let sparse = [
        ("GNU.sparse.size", "1"),
        ("GNU.sparse.name", "sparse"),
        ("GNU.sparse.map", "0,1"),
    ];
    let tar = [
        gnu_long(b'L', b"gnu\0"),
        pax(b'x', &[("path", "pax"), ("uid", "7")]),
        member(b"head", b'0', b""),
        pax(b'x', &[("linkpath", "pax")]),
        gnu_long(b'K', b"gnu\0"),
        member(b"link", b'2', b""),
        pax(b'x', &[("path", "lost"), ("uid", "7")]),
        pax(b'x', &[("gid", "8")]),
        member(b"second", b'0', b""),
        pax(b'x', &[("path", "lost"), ("uid", "7")]),
        pax(b'x', &[]),
        member(b"empty", b'0', b""),
        gnu_long(b'L', b"\0"),
        member(b"no-name", b'0', b""),
        gnu_long(b'L', b"gnu\0"),
        pax(b'x', &sparse),
        member(b"head", b'0', b"x"),
    ]
    .concat();
    let found = entries(&tar);
    let names: Vec<_> = found.iter().map(shown).collect();
    let expected = ["/gnu", "/link", "/second", "/empty", "/no-name", "/sparse"];
    assert_eq!(names, expected);
    let owners: Vec<_> = found.iter().map(|e| (e.uid, e.gid)).collect();
    assert_eq!(owners[0], (7, 1001));
    assert_eq!(owners[2..4], [(1000, 8), (1000, 1001)]);
    let target = b"gnu"[..].into();
    assert_eq!(found[1].kind, EntryKind::Symlink { target });
}

#[test]
fn global_headers_hold_until_taken_back() {
    let tar = [
        pax(
            b'g',
            &[
                ("uid", "5"),
                ("SCHILY.xattr.user.g", "1"),
                ("comment", "git"),
            ],
        ),
        member(b"a", b'0', b""),
        pax(b'x', &[("uid", "6"), ("SCHILY.xattr.user.a", "2")]),
        member(b"b", b'0', b""),
        member(b"c", b'0', b""),
        pax(b'g', &[("uid", "")]),
        member(b"d", b'0', b""),
    ]
    .concat();
    let found = entries(&tar);
    assert_eq!(
        found.iter().map(|e| e.uid).collect::<Vec<_>>(),
        [5, 6, 5, 1000]
    );
    assert_eq!(
        found.iter().map(|e| e.xattrs.len()).collect::<Vec<_>>(),
        [1, 2, 1, 1]
    );
    assert_eq!(&*found[1].xattrs[0].name, b"user.a");
}

#[test]
fn numbers_may_be_binary_and_negative() {
    let tar = header(b"a\xff", b'0', 0, |block| {
        block[108] = 0x80;
        block[109..116].copy_from_slice(&1_000_000_u64.to_be_bytes()[1..]);
        block[116..124].copy_from_slice(&(-2_i64).to_be_bytes());
        block[136..148].fill(0xff);
    });
    let found = entries(&tar);
    assert_eq!(found[0].path.as_bytes(), b"a\xff");
    assert_eq!((found[0].uid, found[0].gid), (1_000_000, u32::MAX - 1));
    assert_eq!(found[0].mtime.seconds, -1);
    let big = pax(b'x', &[("uid", "4294967296")]);
    assert!(scan(&[big, member(b"a", b'0', b"")].concat()).is_err());
}

#[test]
fn the_end_is_two_zero_blocks_or_none() {
    let file = member(b"a", b'0', b"x");
    let zeros = |blocks: usize| vec![0; blocks * BLOCK];
    for end in [
        zeros(0),
        zeros(1),
        zeros(2),
        zeros(20),
        [zeros(2), b"garbage".to_vec()].concat(),
    ] {
        assert_eq!(entries(&[&file[..], &end].concat()).len(), 1);
    }
    let lone = [&file[..], &zeros(1), &file].concat();
    assert_eq!(scan(&lone), Err(TarError::LoneZeroBlock));
    // The last file's padding may be missing, its data and headers may not.
    assert_eq!(entries(&file[..BLOCK + 1]).len(), 1);
    for end in [1, BLOCK - 1, BLOCK] {
        assert_eq!(scan(&file[..end]), Err(TarError::Truncated));
    }
    let long = member(b"x", b'L', b"name");
    assert_eq!(scan(&long[..BLOCK + 2]), Err(TarError::Truncated));
    assert_eq!(scan(b""), Ok((vec![], vec![])));
}

#[test]
fn what_cannot_be_is_refused() {
    let link = |target: &[u8]| {
        let target = target.to_vec();
        header(b"l", b'2', 0, move |block| {
            block[157..157 + target.len()].copy_from_slice(&target)
        })
    };
    assert!(matches!(
        scan(&member(b"a/../b", b'0', b"")),
        Err(TarError::Path(_))
    ));
    let hard = header(b"h", b'1', 0, |block| {
        block[157..161].copy_from_slice(b"../x")
    });
    assert!(matches!(scan(&hard), Err(TarError::Path(_))));
    assert!(matches!(scan(&link(b"")), Err(TarError::SymlinkTarget(_))));
    assert_eq!(scan(&member(b"./", b'6', b"")), Err(TarError::Root));
    assert_eq!(
        scan(&member(&[b'n'; 100], b'5', b"")).map(|f| f.0.len()),
        Ok(1)
    );
    assert!(matches!(
        scan(&pax(b'x', &[("path", "")])[..BLOCK]),
        Err(TarError::Truncated)
    ));

    let named = |len: usize| [member(b"", b'K', &vec![b'n'; len]), link(b"x")].concat();
    assert!(scan(&named(SYMLINK_BYTES_MAX)).is_ok());
    assert!(matches!(
        scan(&named(SYMLINK_BYTES_MAX + 1)),
        Err(TarError::SymlinkTarget(_))
    ));
    let over = LONG_NAME_BYTES_MAX + 1;
    assert_eq!(
        scan(&header(b"", b'L', over, |_| {})),
        Err(TarError::NameTooLong(over))
    );
    let over = PAX_BYTES_MAX + 1;
    assert_eq!(
        scan(&header(b"", b'x', over, |_| {})),
        Err(TarError::PaxTooLong(over))
    );
    assert_eq!(
        scan(&header(b"", b'g', over, |_| {})),
        Err(TarError::PaxTooLong(over))
    );
    let huge = pax(b'x', &[("size", "18446744073709551615")]);
    let error = scan(&[huge, member(b"a", b'0', b"")].concat()).unwrap_err();
    assert!(matches!(error, TarError::FileTooLong(_)));
}

#[test]
fn entries_have_a_limit() {
    let label = member(b"x", b'V', b"");
    let many = label.repeat(1 << 12);
    let mut scanner = Scanner::default();
    for _ in 0..ENTRIES_MAX >> 12 {
        scanner.push(&many).unwrap();
    }
    assert_eq!(
        scanner.push(&label),
        Err(TarError::Limit(LimitError::Entries))
    );
}

#[test]
fn an_endless_sparse_map_is_refused() {
    let mut first = header(b"s", b'S', 0, |block| {
        gnu(block);
        block[482] = 1;
        block[483..495].copy_from_slice(b"00000000000\0");
    });
    let mut extension = [0; BLOCK];
    for piece in extension[..504].chunks_exact_mut(12) {
        piece.copy_from_slice(b"00000000000\0");
    }
    extension[504] = 1;
    first.extend(extension.repeat(SPARSE_EXTENTS_MAX / 21 + 1));
    assert_eq!(scan_by(&first, 1 << 20), Err(TarError::SparseExtents));
    let not_gnu = header(b"s", b'S', 0, |_| {});
    assert_eq!(scan(&not_gnu), Err(TarError::SparseMap));
    let no_size = [
        pax(b'x', &[("GNU.sparse.map", "0,1")]),
        member(b"s", b'0', b"x"),
    ]
    .concat();
    assert_eq!(scan(&no_size), Err(TarError::SparseMap));
}
