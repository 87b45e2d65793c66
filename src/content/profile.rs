//! The profile of an image: which pages its readers touched first, in order of first use.
//!
//! A profile belongs to a list of layers, not to a tag: it survives a retag. Stored as JSON,
//! `{"version":1,"touches":[[layer, first page, pages, milliseconds, starts], …]}`: `layer` counts
//! from the base, a page has 4096 bytes of the layer's address space, the time is since the mount,
//! and `starts` is how many starts ago the pages were last touched. That of one command has its words
//! as well, as `command`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::blob::ByteRange;
use crate::cache::PAGE_BYTES;

const VERSION: u32 = 1;

/// Starts after which pages that nobody touched any more are forgotten.
const STARTS_MAX: u32 = 3;

/// Longest profile. A start touches a few thousand ranges; this is a bound on damage.
pub const TOUCHES_MAX: usize = 1 << 17;

/// Longest profile in bytes, as it is stored: room for [`TOUCHES_MAX`] touches of 64 characters. What
/// is read of it takes up to eight times as much memory.
pub const PROFILE_BYTES_MAX: usize = TOUCHES_MAX * 64;

/// The pages that hold any byte of `range`.
pub(super) fn pages_of(range: ByteRange) -> Range<u64> {
    range.start() / PAGE_BYTES..range.end().div_ceil(PAGE_BYTES)
}

/// The addresses of `pages` pages from `page` on, in a layer of `size` bytes: its last page may be
/// shorter, and what lies behind it has none.
pub fn addresses_of(page: u64, pages: u64, size: u64) -> ByteRange {
    let start = page.saturating_mul(PAGE_BYTES).min(size);
    let len = pages.saturating_mul(PAGE_BYTES);
    ByteRange::new(start, start.saturating_add(len).min(size))
}

/// Pages that were touched one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "(u32, u64, u64, u32, u32)", from = "(u32, u64, u64, u32, u32)")]
pub struct Touch {
    /// Which layer, base first.
    pub layer: u32,
    /// First page.
    pub page: u64,
    /// Number of pages.
    pub pages: u64,
    /// Milliseconds since the mount.
    pub at_ms: u32,
    /// How many starts ago.
    pub starts: u32,
}

impl From<Touch> for (u32, u64, u64, u32, u32) {
    fn from(t: Touch) -> Self {
        (t.layer, t.page, t.pages, t.at_ms, t.starts)
    }
}

impl From<(u32, u64, u64, u32, u32)> for Touch {
    fn from((layer, page, pages, at_ms, starts): (u32, u64, u64, u32, u32)) -> Touch {
        Touch {
            layer,
            page,
            pages,
            at_ms,
            starts,
        }
    }
}

impl Touch {
    /// The addresses of its pages in a layer of `size` bytes.
    pub fn range(&self, size: u64) -> ByteRange {
        addresses_of(self.page, self.pages, size)
    }

    fn end(&self) -> u64 {
        self.page.saturating_add(self.pages)
    }
}

/// What readers touched, first use first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// In order of first use; no page is named twice.
    pub touches: Vec<Touch>,
    /// The command whose starts these were, as far as it is kept; empty when it is that of all.
    pub command: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    touches: Vec<Touch>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
}

impl Profile {
    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        let stored = Stored {
            version: VERSION,
            touches: self.touches.clone(),
            command: self.command.clone(),
        };
        // Numbers in a list cannot fail to be JSON.
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    /// From what was stored; `None` when it is damaged or of another version, which costs nothing
    /// but speed.
    pub fn decode(bytes: &[u8]) -> Option<Profile> {
        if bytes.len() > PROFILE_BYTES_MAX {
            return None;
        }
        let stored: Stored = serde_json::from_slice(bytes).ok()?;
        let Stored {
            version,
            touches,
            command,
        } = stored;
        let sound = version == VERSION && touches.len() <= TOUCHES_MAX;
        sound.then_some(Profile { touches, command })
    }

    /// This start's profile with what earlier starts touched besides, which comes after it and is
    /// forgotten after some starts.
    pub fn merged(mut self, earlier: &Profile) -> Profile {
        let mut known = Pages::default();
        for touch in &self.touches {
            known.insert(touch);
        }
        let older = earlier.touches.iter().filter(|t| t.starts < STARTS_MAX);
        for touch in older {
            for (page, pages) in known.missing(touch) {
                let starts = touch.starts + 1;
                self.touches.push(Touch {
                    page,
                    pages,
                    starts,
                    ..*touch
                });
            }
        }
        self.touches.truncate(TOUCHES_MAX);
        self
    }
}

/// A set of pages of several layers.
#[derive(Debug, Default)]
struct Pages(std::collections::BTreeMap<(u32, u64), u64>);

impl Pages {
    fn insert(&mut self, touch: &Touch) {
        let end = self.0.entry((touch.layer, touch.page)).or_default();
        *end = (*end).max(touch.end());
    }

    /// The parts of `touch` that are not in the set, as first page and count.
    fn missing(&self, touch: &Touch) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut at = touch.page;
        let before = self.0.range((touch.layer, 0)..=(touch.layer, at));
        at = before.map(|(_, end)| *end).fold(at, u64::max);
        for (&(_, page), &end) in self
            .0
            .range((touch.layer, at)..(touch.layer, touch.end().max(at)))
        {
            if page > at {
                missing.push((at, page - at));
            }
            at = at.max(end);
        }
        if at < touch.end() {
            missing.push((at, touch.end() - at));
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(layer: u32, page: u64, pages: u64) -> Touch {
        Touch {
            layer,
            page,
            pages,
            at_ms: 5,
            starts: 0,
        }
    }

    fn profile(touches: &[Touch]) -> Profile {
        Profile {
            touches: touches.to_vec(),
            command: Vec::new(),
        }
    }

    #[test]
    fn what_is_stored_is_read() {
        let p = profile(&[touch(0, 3, 2), touch(4, 0, 1)]);
        assert_eq!(Profile::decode(&p.encode()), Some(p.clone()));
        let command = vec!["a".to_owned(), "b c".to_owned()];
        let p = Profile { command, ..p };
        assert_eq!(Profile::decode(&p.encode()), Some(p));
        assert_eq!(Profile::decode(br#"{"version":2,"touches":[]}"#), None);
        assert_eq!(Profile::decode(b"x"), None);
    }

    #[test]
    fn earlier_starts_add_what_this_one_did_not_touch() {
        let now = profile(&[touch(0, 10, 5), touch(1, 0, 1)]);
        let before = profile(&[touch(0, 8, 10), touch(1, 0, 1), touch(2, 7, 1)]);
        let old = |t: Touch| Touch { starts: 1, ..t };
        let merged = now.clone().merged(&before);
        assert_eq!(
            merged.touches,
            [
                touch(0, 10, 5),
                touch(1, 0, 1),
                old(touch(0, 8, 2)),
                old(touch(0, 15, 3)),
                old(touch(2, 7, 1)),
            ]
        );
        let mut merged = merged;
        for _ in 0..STARTS_MAX {
            merged = now.clone().merged(&merged);
        }
        assert_eq!(merged, now, "forgotten in the end");
    }

    #[test]
    fn pages_end_with_the_layer() {
        let range = touch(0, 1, 5).range(10_000);
        assert_eq!((range.start(), range.end()), (4096, 10_000));
        assert!(touch(0, 9, 1).range(10_000).is_empty());
    }
}
