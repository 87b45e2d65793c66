#![allow(
    clippy::too_many_lines,
    clippy::type_complexity,
    reason = "tables of cases"
)]
use std::path::Path;
use std::thread;

use super::*;

const SIZE: u64 = 10 * PAGE_BYTES + 100;

fn open(path: &Path) -> Pages {
    let directory = Directory::open_root(path).unwrap();
    let trio = match Trio::open(&directory).unwrap() {
        Some(trio) => trio,
        None => {
            let trio = Trio::create(&directory).unwrap();
            trio.set_size(&directory, SIZE).unwrap();
            trio
        }
    };
    Pages::new(&directory, trio, SIZE)
}

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i * 7 % 251) as u8).collect()
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end)
}

fn read(pages: &Pages, start: u64, end: u64) -> Option<Vec<u8>> {
    let mut out = vec![0; (end - start) as usize];
    match pages
        .read(range(start, end), &mut out, &mut vec![1; 7])
        .unwrap()
    {
        Presence::Read => Some(out),
        Presence::Absent => None,
    }
}

#[test]
fn pages_are_absent_until_they_are_written() {
    let temp = tempfile::tempdir().unwrap();
    let (pages, content) = (open(temp.path()), content());
    assert_eq!(pages.absent(range(1, SIZE)), [range(0, SIZE)]);
    assert!(read(&pages, 0, 1).is_none());
    pages.write(4096, &content[4096..3 * 4096]).unwrap();
    pages.write(10 * 4096, &content[10 * 4096..]).unwrap();
    assert_eq!(
        pages.absent(range(0, SIZE)),
        [range(0, 4096), range(3 * 4096, 10 * 4096)]
    );
    assert!(pages.absent(range(5000, 5001)).is_empty() && pages.is_present(range(5000, 5001)));
    assert!(!pages.is_present(range(4095, 4097)) && pages.is_present(range(3, 3)));
    for (start, end) in [
        (4096, 12288),
        (5000, 9000),
        (8191, 8193),
        (SIZE - 1, SIZE),
        (SIZE, SIZE),
    ] {
        assert_eq!(
            read(&pages, start, end).unwrap(),
            content[start as usize..end as usize]
        );
    }
    assert!(read(&pages, 4095, 4097).is_none());
    assert_eq!(pages.present_bytes(), 3 * 4096);
}

#[test]
fn what_does_not_fit_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let pages = open(temp.path());
    for (address, len) in [
        (1, 4096),
        (0, 100),
        (10 * 4096, 101),
        (0, SIZE as usize + 1),
    ] {
        let refused = pages.write(address, &vec![0; len]);
        assert!(
            matches!(refused, Err(CacheError::Range { .. })),
            "{address} {len}"
        );
    }
    let refused = pages.write(u64::MAX - 4095, &[0; 4096]);
    assert!(matches!(refused, Err(CacheError::Range { .. })));
    let refused = pages.read(range(SIZE, SIZE + 1), &mut [0], &mut Vec::new());
    assert!(matches!(refused, Err(CacheError::Range { .. })));
    let refused = pages.read(range(0, 2), &mut [0], &mut Vec::new());
    assert!(matches!(refused, Err(CacheError::Range { .. })));
    assert!(!pages.is_present(range(0, SIZE + 1)));
}

#[test]
fn damage_reads_as_absent_and_heals() {
    let damages: [(&str, &dyn Fn(&Path)); 7] = [
        ("a flipped bit in data", &|path| {
            flip(&path.join("data"), 2 * 4096 + 5)
        }),
        ("a flipped bit in sums", &|path| {
            flip(&path.join("sums"), 2 * 4 + 1)
        }),
        ("truncated data", &|path| {
            truncate(&path.join("data"), 2 * 4096 + 5)
        }),
        ("truncated sums", &|path| {
            truncate(&path.join("sums"), 2 * 4 + 3)
        }),
        ("no data", &|path| truncate(&path.join("data"), 0)),
        ("holes in data and sums", &|path| {
            for name in ["data", "sums"] {
                let len = std::fs::metadata(path.join(name)).unwrap().len();
                truncate(&path.join(name), 0);
                truncate(&path.join(name), len);
            }
        }),
        ("bits that were never set", &|path| {
            std::fs::write(path.join("data"), vec![0; 11 * 4096]).unwrap();
            std::fs::write(path.join("present"), [0xff; 8]).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let temp = tempfile::tempdir().unwrap();
        let (pages, content) = (open(temp.path()), content());
        pages.write(0, &content).unwrap();
        damage(temp.path());
        for pages in [&pages, &open(temp.path())] {
            assert!(read(pages, 2 * 4096, 3 * 4096).is_none(), "{what}");
            assert!(!pages.is_present(range(2 * 4096, 2 * 4096 + 1)), "{what}");
        }
        pages.write(0, &content).unwrap();
        assert_eq!(read(&pages, 0, SIZE).unwrap(), content, "{what}");
        assert_eq!(
            read(&open(temp.path()), 0, SIZE).unwrap(),
            content,
            "{what}"
        );
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path, len: u64) {
    std::fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

#[test]
fn bits_that_another_process_has_set_are_found() {
    let temp = tempfile::tempdir().unwrap();
    let (one, two, content) = (open(temp.path()), open(temp.path()), content());
    assert!(read(&two, 0, 4096).is_none());
    one.write(0, &content[..8192]).unwrap();
    assert!(two.is_present(range(0, 8192)));
    assert_eq!(read(&two, 0, 8192).unwrap(), content[..8192]);
    two.write(8192, &content[8192..]).unwrap();
    assert_eq!(one.absent(range(0, SIZE)), []);
    assert_eq!(read(&one, 0, SIZE).unwrap(), content);
}

#[test]
fn writers_with_their_own_handles_lose_no_bits() {
    let temp = tempfile::tempdir().unwrap();
    let content = content();
    let stores = [open(temp.path()), open(temp.path())];
    thread::scope(|scope| {
        for writer in 0..4 {
            let (store, content) = (&stores[writer % 2], &content);
            scope.spawn(move || {
                for page in (writer as u64..11).step_by(4) {
                    let end = ((page + 1) * 4096).min(SIZE);
                    let bytes = &content[(page * 4096) as usize..end as usize];
                    store.write(page * 4096, bytes).unwrap();
                    assert_eq!(read(store, page * 4096, end).unwrap(), bytes);
                }
            });
        }
    });
    let fresh = open(temp.path());
    assert_eq!(fresh.present_bytes(), SIZE);
    assert_eq!(read(&fresh, 0, SIZE).unwrap(), content);
}

#[test]
fn an_error_of_a_full_disk_can_be_told() {
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    assert!(CacheError::io("write", Path::new("data"), full).is_full());
}
