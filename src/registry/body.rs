//! Bodies: which part of one was asked for, and whether it is as long as it must be. No HTTP here.

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::blob::{ByteRange, ByteStream, Error, ErrorKind};

/// `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, section 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) range: ByteRange,
    /// `None` for `*`.
    pub(super) total: Option<u64>,
}

impl ContentRange {
    pub(super) fn parse(header: &str) -> Option<ContentRange> {
        let number = |s: &str| {
            s.bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| s.parse::<u64>().ok())
                .flatten()
        };
        let (unit, rest) = header.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let total = if total == "*" {
            None
        } else {
            Some(number(total)?)
        };
        let sane = unit.eq_ignore_ascii_case("bytes")
            && first <= last
            && total.is_none_or(|total| last < total);
        let range = ByteRange::new(first, last.checked_add(1)?);
        sane.then_some(ContentRange { range, total })
    }
}

/// The bytes `range` of a body that begins at `begins` and must end at `ends` (both counted in the
/// blob). What stands before is skipped as it arrives, what stands behind is never read. `from` is
/// for messages.
pub(super) fn part(body: ByteStream, begins: u64, ends: u64, want: Want) -> ByteStream {
    let state = Part {
        body,
        at: begins,
        ends,
        want,
    };
    Box::pin(stream::unfold(Some(state), |state| async {
        let mut state = state?;
        match state.next().await {
            Some(Ok(bytes)) => Some((Ok(bytes), Some(state))),
            Some(Err(error)) => Some((Err(error), None)),
            None => None,
        }
    }))
}

/// What to take from a body, and what it is for messages.
#[derive(Debug, Clone)]
pub(super) struct Want {
    pub(super) range: ByteRange,
    /// As in `blob sha256:… from host`.
    pub(super) what: String,
}

struct Part {
    body: ByteStream,
    at: u64,
    ends: u64,
    want: Want,
}

impl Part {
    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        let (range, what) = (self.want.range, &self.want.what);
        loop {
            // The end of the body is waited for only where it is near: that keeps the connection.
            if self.at >= range.end() && range.end() < self.ends {
                return None;
            }
            let bytes = match self.body.next().await {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => return Some(Err(error)),
                None if self.at >= self.ends && range.end() <= self.ends => return None,
                None => {
                    let missing = range.end().max(self.ends) - self.at;
                    let message = format!("{what}: the answer ended {missing} bytes early");
                    return Some(Err(Error::new(ErrorKind::Transient, message)));
                }
            };
            let here = ByteRange::at(self.at, bytes.len() as u64).filter(|r| r.end() <= self.ends);
            let Some(here) = here else {
                let message = format!("{what}: the answer is longer than it says");
                return Some(Err(Error::new(ErrorKind::Protocol, message)));
            };
            self.at = here.end();
            if let Some(wanted) = here.intersect(range) {
                let offset = |at: u64| (at - here.start()) as usize;
                return Some(Ok(bytes.slice(offset(wanted.start())..offset(wanted.end()))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        let range = |s, e, total| {
            Some(ContentRange {
                range: ByteRange::new(s, e),
                total,
            })
        };
        assert_eq!(ContentRange::parse("bytes 2-5/10"), range(2, 6, Some(10)));
        assert_eq!(ContentRange::parse("bytes 0-0/*"), range(0, 1, None));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 5-2/10",
            "bytes 2-10/10",
            "items 0-1/2",
            "bytes +1-2/5",
            "bytes 0-18446744073709551615/*",
            "bytes 1-/5",
            "bytes -1-2/5",
        ] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
    }

    async fn taken(
        body: &[&str],
        begins: u64,
        ends: u64,
        range: (u64, u64),
    ) -> Result<String, Error> {
        let items: Vec<_> = body
            .iter()
            .map(|s| Ok(Bytes::copy_from_slice(s.as_bytes())))
            .collect();
        let want = Want {
            range: ByteRange::new(range.0, range.1),
            what: "x".into(),
        };
        let mut stream = part(Box::pin(stream::iter(items)), begins, ends, want);
        let mut all = Vec::new();
        while let Some(bytes) = stream.next().await {
            all.extend_from_slice(&bytes?);
        }
        Ok(String::from_utf8(all).unwrap())
    }

    #[tokio::test]
    async fn parts_are_cut_out_and_counted() {
        assert_eq!(
            taken(&["012", "345", "678"], 0, 9, (2, 7)).await.unwrap(),
            "23456"
        );
        assert_eq!(taken(&["345"], 3, 6, (3, 6)).await.unwrap(), "345");
        let short = taken(&["34"], 3, 6, (3, 6)).await.unwrap_err();
        assert_eq!(short.kind, ErrorKind::Transient);
        let long = taken(&["3456"], 3, 6, (3, 6)).await.unwrap_err();
        assert_eq!(long.kind, ErrorKind::Protocol);
        let long = taken(&["345", "6"], 3, 6, (3, 6)).await.unwrap_err();
        assert_eq!(long.kind, ErrorKind::Protocol);
        // A 206 that stops before what was asked for: the rest is asked for again.
        let partial = taken(&["34"], 3, 5, (3, 6)).await.unwrap_err();
        assert_eq!(partial.kind, ErrorKind::Transient);
    }
}
