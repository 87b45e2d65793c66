//! Calls and reads that are measured in this process.

use std::fs::File;
use std::io::Read;
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
    let script = "
import mmap, sys, time
f = open(sys.argv[1], 'rb')
m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
def touch():
    began = time.perf_counter()
    m[::4096]
    return len(m) / 1e6 / (time.perf_counter() - began)
touch()
print(touch())";
    let mut command = std::process::Command::new("python3");
    let output = command.args(["-c", script]).arg(path).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}
