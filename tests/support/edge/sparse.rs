//! Files with holes, in the four ways that GNU tar has written them (GNU tar manual, "Storing Sparse
//! Files").

use super::entry::{dir, holey};
use super::{LAYERS, Layer};
use crate::support::model::{Entry, Kind};
use crate::support::raw_tar::{self, BLOCK};

/// Files that every way has to get right, in the directory `top`.
fn files(top: &str) -> Vec<Entry> {
    let byte = |n: u64| u8::try_from(n % 251).unwrap() + 1;
    let piece = |n: u64, len: usize| vec![byte(n); len];
    // More pieces than one header block and two blocks of the old format hold. All but the last are
    // whole blocks, as GNU tar writes them: it and Go do not agree where others begin.
    let mut many: Vec<_> = (0..60)
        .map(|n| {
            (
                n * 8192,
                piece(n, 512 * (1 + usize::try_from(n % 5).unwrap())),
            )
        })
        .collect();
    // A hole at the end is an empty piece there.
    many.push((60 * 8192, vec![]));
    let named = |name: &str, size, pieces: &[_]| {
        let entry = holey(&format!("{top}/{name}"), size, pieces);
        entry.own(7, 8).mode(0o640).at(1_600_000_000, 0)
    };
    vec![
        named("hole-first", 10_000, &[(8192, piece(1, 1808))]),
        named("hole-last", 10_000, &[(0, piece(2, 700)), (10_000, vec![])]),
        named(
            "hole-between",
            9000,
            &[(0, piece(3, 512)), (8192, piece(4, 808))],
        ),
        named("only-a-hole", 1 << 20, &[(1 << 20, vec![])]),
        named("many", 60 * 8192, &many),
        named("no-hole", 512, &[(0, piece(5, 512))]),
    ]
}

fn size(entry: &Entry) -> u64 {
    match entry.kind {
        Kind::File(size, _) => size,
        _ => unreachable!("only files have holes"),
    }
}

pub(super) fn old_gnu(layers: &mut [Layer; LAYERS]) {
    layers[0].add(dir("sparse-old"));
    for entry in files("sparse-old") {
        let (size, map, data) = (size(&entry), entry.map(), entry.data());
        let bytes = raw_tar::old_gnu_sparse(entry.head(), size, &map, &data);
        layers[0].odd(&[bytes], entry);
    }
}

/// Beyond 8 GiB the numbers are in base 256.
pub(super) fn old_gnu_long(layers: &mut [Layer; LAYERS]) {
    let pieces = [
        (1 << 20, b"begins\n\n".repeat(64)),
        ((9 << 30) - 3, b"end".to_vec()),
    ];
    let entry = holey("sparse-9g", 9 << 30, &pieces);
    let (map, data) = (entry.map(), entry.data());
    let bytes = raw_tar::old_gnu_sparse(entry.head(), 9 << 30, &map, &data);
    layers[0].odd(&[bytes], entry);
}

type Record = (&'static str, String);

fn pax(records: &[Record]) -> Vec<u8> {
    let bytes: Vec<_> = records
        .iter()
        .map(|(k, v)| (k.as_bytes(), v.as_bytes()))
        .collect();
    raw_tar::pax(b'x', &bytes)
}

fn text(path: &[u8]) -> String {
    String::from_utf8(path.to_vec()).unwrap()
}

/// Offset and length of each piece as records of their own.
pub(super) fn pax_0_0(layers: &mut [Layer; LAYERS]) {
    layers[1].add(dir("sparse-0.0"));
    for entry in files("sparse-0.0") {
        let map = entry.map();
        let mut records = vec![
            ("GNU.sparse.size", size(&entry).to_string()),
            ("GNU.sparse.numblocks", map.len().to_string()),
        ];
        for (offset, len) in map {
            records.push(("GNU.sparse.offset", offset.to_string()));
            records.push(("GNU.sparse.numbytes", len.to_string()));
        }
        layers[1].odd(&[pax(&records), entry.head().bytes()], entry);
    }
}

/// All pieces in one record. The header has a name for readers that know nothing of this.
pub(super) fn pax_0_1(layers: &mut [Layer; LAYERS]) {
    layers[1].add(dir("sparse-0.1"));
    for entry in files("sparse-0.1") {
        let map: Vec<_> = entry
            .map()
            .iter()
            .map(|(o, l)| format!("{o},{l}"))
            .collect();
        let records = [
            ("GNU.sparse.size", size(&entry).to_string()),
            ("GNU.sparse.numblocks", map.len().to_string()),
            ("GNU.sparse.name", text(&entry.path)),
            ("GNU.sparse.map", map.join(",")),
        ];
        let head = entry.head_named(b"sparse-0.1/GNUSparseFile.7/name");
        layers[1].odd(&[pax(&records), head.bytes()], entry);
    }
}

/// The pieces as lines before the data, padded to whole blocks.
pub(super) fn pax_1_0(layers: &mut [Layer; LAYERS]) {
    layers[1].add(dir("sparse-1.0"));
    for entry in files("sparse-1.0") {
        let map = entry.map();
        let mut data = format!("{}\n", map.len()).into_bytes();
        for (offset, len) in map {
            data.extend_from_slice(format!("{offset}\n{len}\n").as_bytes());
        }
        data.resize(data.len().next_multiple_of(BLOCK), 0);
        data.extend_from_slice(&entry.data());
        let records = [
            ("GNU.sparse.major", "1".to_owned()),
            ("GNU.sparse.minor", "0".to_owned()),
            ("GNU.sparse.name", text(&entry.path)),
            ("GNU.sparse.realsize", size(&entry).to_string()),
        ];
        let head = entry.head_named(b"sparse-1.0/GNUSparseFile.7/name");
        layers[1].odd(&[pax(&records), head.data(&data).bytes()], entry);
    }
}
