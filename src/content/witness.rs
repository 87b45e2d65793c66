//! Comparing what somebody says of a layer's bytes with the bytes, while they stream past: nothing of
//! them has to be kept for it.

use std::collections::VecDeque;

use sha2::{Digest as _, Sha256};

use crate::blob::ByteRange;

/// A range of the address space, and the digest that its bytes should have.
pub type Claim = (ByteRange, [u8; 32]);

/// Sees the address space of a layer go by, once, from its beginning.
#[derive(Debug, Default)]
pub struct Witness {
    /// What has not begun, by where it begins.
    waiting: VecDeque<Claim>,
    /// What has begun.
    open: Vec<(Claim, Sha256)>,
    at: u64,
    is_false: bool,
}

impl Witness {
    /// One of `claims`, which may overlap.
    pub fn new(claims: impl IntoIterator<Item = Claim>) -> Witness {
        let mut waiting: Vec<Claim> = claims.into_iter().collect();
        waiting.sort_unstable_by_key(|(range, sha256)| (range.start(), range.end(), *sha256));
        waiting.dedup();
        Witness {
            waiting: waiting.into(),
            ..Witness::default()
        }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let now = ByteRange::new(self.at, self.at + bytes.len() as u64);
        while let Some((range, _)) = self.waiting.front()
            && range.start() < now.end()
            && let Some(claim) = self.waiting.pop_front()
        {
            self.open.push((claim, Sha256::new()));
        }
        for ((range, _), hasher) in &mut self.open {
            let start = range.start().max(now.start()) - now.start();
            let end = range.end().min(now.end()) - now.start();
            hasher.update(&bytes[start as usize..end as usize]);
        }
        let ended = |((range, _), _): &mut (Claim, Sha256)| range.end() <= now.end();
        for ((_, sha256), hasher) in self.open.extract_if(.., ended) {
            self.is_false |= hasher.finalize()[..] != sha256;
        }
        self.at = now.end();
    }

    /// Whether every claim was true, now that all bytes have gone by.
    pub fn agrees(&self) -> bool {
        !self.is_false && self.waiting.is_empty() && self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_what_was_there_however_it_came() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
        let claim = |start: usize, end: usize| {
            let range = ByteRange::new(start as u64, end as u64);
            (range, Sha256::digest(&bytes[start..end]).into())
        };
        let claims = [
            claim(4096, 8192),
            claim(0, 10_000),
            claim(9000, 10_000),
            claim(0, 1),
            claim(4000, 9500),
        ];
        let seen = |claims: &[Claim], step: usize| {
            let mut witness = Witness::new(claims.iter().copied());
            bytes.chunks(step).for_each(|piece| witness.push(piece));
            witness.agrees()
        };
        for step in [1, 7, 4096, 10_000] {
            assert!(seen(&claims, step) && seen(&[], step));
            for at in 0..claims.len() {
                let mut lying = claims;
                lying[at].1[5] ^= 1;
                assert!(!seen(&lying, step), "{at}");
            }
            let beyond = (ByteRange::new(9999, 10_001), [0; 32]);
            assert!(!seen(&[beyond], step), "more than there is");
        }
    }
}
