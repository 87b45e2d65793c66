//! The tar scanner: no panic, and the same answer however the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsmount::layer::tar::Scanner;
use rsmount::layer::{Entry, Whiteout};

fn scan(bytes: &[u8], piece: usize) -> Option<(Vec<Entry>, Vec<Whiteout>)> {
    let mut scanner = Scanner::default();
    for piece in bytes.chunks(piece) {
        scanner.push(piece).ok()?;
    }
    scanner.finish().ok()
}

/// The first byte says how the rest is cut.
fuzz_target!(|bytes: &[u8]| {
    let Some((cut, tar)) = bytes.split_first() else {
        return;
    };
    assert_eq!(scan(tar, usize::from(*cut) + 1), scan(tar, usize::MAX));
});
