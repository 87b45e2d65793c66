//! A blob for tests whose answers are planned.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;

use crate::blob::{Blob, BoxFuture, ByteRange, ByteStream, Error, ErrorKind};
use crate::oci::Digest;

/// What one call of `open` gives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plan {
    /// All that was asked for, a byte at a time.
    Whole,
    /// So many bytes, then a transient error.
    BreaksAfter(usize),
    /// So many bytes, then the end, as if that were all.
    EndsAfter(usize),
    /// A transient error instead of a stream.
    Fails,
    /// A transient error that asks to wait.
    FailsFor(Duration),
    /// An error that will not pass.
    Denied,
}

#[derive(Debug)]
pub(crate) struct PlannedBlob {
    data: Vec<u8>,
    digest: Digest,
    plan: Mutex<VecDeque<Plan>>,
    pub(crate) opened: Mutex<Vec<ByteRange>>,
}

impl PlannedBlob {
    pub(crate) fn new(data: &[u8], plan: impl IntoIterator<Item = Plan>) -> PlannedBlob {
        PlannedBlob {
            data: data.into(),
            digest: Digest::of(data),
            plan: Mutex::new(plan.into_iter().collect()),
            opened: Mutex::default(),
        }
    }
}

impl Blob for PlannedBlob {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, Error>> {
        let transient = || Error::new(ErrorKind::Transient, "broken");
        self.opened.lock().unwrap().push(range);
        let plan = self.plan.lock().unwrap().pop_front().unwrap_or(Plan::Whole);
        let asked = &self.data[range.start() as usize..range.end() as usize];
        let (count, end) = match plan {
            Plan::Whole => (asked.len(), None),
            Plan::EndsAfter(count) => (count, None),
            Plan::BreaksAfter(count) => (count, Some(transient())),
            Plan::Fails => return Box::pin(async move { Err(transient()) }),
            Plan::FailsFor(wait) => {
                return Box::pin(async move { Err(transient().with_retry_after(Some(wait))) });
            }
            Plan::Denied => {
                return Box::pin(async { Err(Error::new(ErrorKind::Denied, "denied")) });
            }
        };
        let bytes = asked[..count]
            .iter()
            .map(|b| Ok(Bytes::copy_from_slice(&[*b])));
        let items: Vec<_> = bytes.chain(end.map(Err)).collect();
        Box::pin(async move { Ok(Box::pin(stream::iter(items)) as ByteStream) })
    }
}
