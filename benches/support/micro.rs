//! Calls and reads that are measured in this process.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// One call on a path.
pub(crate) type Call = fn(&Path);

/// Megabytes a second of something done with a file.
pub(crate) type Measure = fn(&Path) -> f64;

const PAGE: u64 = 4096;

/// Up to `count` regular files with content, the same of the same tree.
pub(crate) fn files(root: &Path, count: usize) -> Vec<PathBuf> {
    let (mut found, mut directories) = (Vec::new(), vec![root.join("usr")]);
    while let Some(directory) = directories.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap())
            .collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() && entry.metadata().unwrap().len() > 0 {
                found.push(entry.path());
            }
            if found.len() == count {
                return found;
            }
        }
    }
    found
}

/// Seconds of one call in the mean.
pub(crate) fn each(files: &[PathBuf], call: Call) -> f64 {
    let began = Instant::now();
    files.iter().for_each(|file| call(file));
    began.elapsed().as_secs_f64() / files.len() as f64
}

pub(crate) fn stat(path: &Path) {
    path.symlink_metadata().unwrap();
}

pub(crate) fn open_close(path: &Path) {
    drop(File::open(path).unwrap());
}

pub(crate) fn open_read_close(path: &Path) {
    let mut buffer = [0; 6 << 10];
    let _less_of_a_short_file = File::open(path).unwrap().read(&mut buffer).unwrap();
}

/// Bytes that do not compress.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

fn rate(bytes: u64, began: Instant) -> f64 {
    bytes as f64 / 1e6 / began.elapsed().as_secs_f64()
}

pub(crate) fn sequential(path: &Path) -> f64 {
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, began) = (0, Instant::now());
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return rate(bytes, began),
            n => bytes += n as u64,
        }
    }
}

pub(crate) fn random_1(path: &Path) -> f64 {
    random(path, 1)
}

pub(crate) fn random_4(path: &Path) -> f64 {
    random(path, 4)
}

fn random(path: &Path, threads: u64) -> f64 {
    const READS: u64 = 50_000;
    let file = File::open(path).unwrap();
    let pages = file.metadata().unwrap().len() / PAGE;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let file = &file;
            scope.spawn(move || {
                let mut state = thread + 1;
                let mut buffer = [0; PAGE as usize];
                for _ in 0..READS {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let page = (state >> 33) % pages;
                    file.read_exact_at(&mut buffer, page * PAGE).unwrap();
                }
            });
        }
    });
    rate(threads * READS * PAGE, began)
}

/// A mapping, each page of it touched twice; the rate of the second time.
pub(crate) fn touch(path: &Path) -> f64 {
    let [rate] = mapped(
        path,
        "
def touch():
    began = time.perf_counter()
    m[::4096]
    return len(m) / 1e6 / (time.perf_counter() - began)
touch()
print(touch())",
    );
    rate
}

/// How a file lies in the page cache, means in KiB: the length of its folios (pages by heads of compound
/// pages), and of the stretches that lie behind one another in memory (proc(5), pagemap;
/// admin-guide/mm/pagemap.rst of the kernel, kpageflags).
pub(crate) fn placed(path: &Path) -> [f64; 2] {
    mapped(
        path,
        "
TAIL = 1 << 16
m[::4096]
for line in open('/proc/self/maps'):
    if line.rstrip().endswith(sys.argv[1]):
        first = int(line.split('-')[0], 16) // 4096
pages, folios = len(m) // 4096, 0
entries = open('/proc/self/pagemap', 'rb', buffering=0)
flags = open('/proc/kpageflags', 'rb', buffering=0)
entries.seek(first * 8)
numbers = [e & (1 << 55) - 1 for e in struct.unpack(f'{pages}Q', entries.read(pages * 8))]
for number in numbers:
    flags.seek(number * 8)
    flag = struct.unpack('Q', flags.read(8))[0]
    folios += not flag & TAIL
stretches = 1 + sum(b != a + 1 for a, b in zip(numbers, numbers[1:]))
print(4 * pages / folios, 4 * pages / stretches)",
    )
}

/// Takes free memory that does not lie in blocks of 512 KiB at least, into a file of no name in memory, for as
/// long as that is open; what the file system in memory has no room for stays.
pub(crate) fn take_fragments() -> File {
    const PIECE: usize = 16 << 20;
    const LEFT: usize = 256 << 20;
    const MOST: usize = 12 << 30;
    let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
    let mut taken = 0;
    while fragments() > LEFT && taken < MOST {
        if file.write_all(&vec![1; PIECE]).is_err() {
            break;
        }
        taken += PIECE;
    }
    file
}

/// Bytes that are free in blocks of less than 128 pages (proc(5), buddyinfo: blocks of 1, 2, 4, … pages).
fn fragments() -> usize {
    let zones = std::fs::read_to_string("/proc/buddyinfo").unwrap();
    let of_zone = |zone: &str| -> usize {
        let blocks = zone.split_whitespace().skip(4).take(7).enumerate();
        blocks
            .map(|(order, n)| n.parse::<usize>().unwrap() << order)
            .sum()
    };
    zones.lines().map(of_zone).sum::<usize>() * PAGE as usize
}

/// The numbers that a script prints which has `path` mapped as `m`.
fn mapped<const N: usize>(path: &Path, script: &str) -> [f64; N] {
    let head = "
import mmap, struct, sys, time
f = open(sys.argv[1], 'rb')
m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)";
    let mut command = std::process::Command::new("python3");
    let output = command.arg("-c").arg(format!("{head}{script}"));
    let output = output.arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let numbers = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = numbers
        .split_whitespace()
        .map_while(|n| n.parse().ok())
        .collect();
    numbers.try_into().unwrap_or_else(|_| panic!("{said}"))
}
