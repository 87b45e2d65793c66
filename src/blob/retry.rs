//! Trying again: opens anew after a transient error, and takes a broken stream up where it stopped.
//!
//! Waits grow by doubling, with jitter so that many readers do not come back together; the server's
//! own wish (Retry-After) is honoured up to [`Policy::wait_max`]. Attempts are counted from the last
//! byte that arrived: a long transfer over a bad link may break more often than a dead one.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::blob::{Blob, BoxFuture, Busy, ByteRange, ByteStream, Error, ErrorKind};
use crate::oci::Digest;

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Tries without any progress before the error is handed on, the first one included.
    pub attempts: u32,
    /// The wait before the second try, doubled for each further one.
    pub wait_first: Duration,
    /// No wait is longer. A server that asks for more gets its error handed on at once, so that a
    /// reader hears of it instead of hanging.
    pub wait_max: Duration,
}

impl Default for Policy {
    /// Six tries over about ten seconds: a registry behind a restarting proxy comes back in that
    /// time.
    fn default() -> Policy {
        Policy {
            attempts: 6,
            wait_first: Duration::from_millis(250),
            wait_max: Duration::from_secs(30),
        }
    }
}

impl Policy {
    /// How long to wait after failure number `failures` (from 1); `None` when enough was tried.
    pub fn wait(&self, failures: u32, error: &Error) -> Option<Duration> {
        if !error.is_transient() || failures >= self.attempts {
            return None;
        }
        if let Some(asked) = error.retry_after {
            return (asked <= self.wait_max).then_some(asked);
        }
        let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
        let longest = self.wait_first.saturating_mul(doubled).min(self.wait_max);
        Some(longest.mul_f64(0.5 + fastrand::f64() / 2.0))
    }

    /// Runs `work` until it succeeds, fails for good, or was tried often enough.
    pub async fn run<T, F>(&self, work: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut failures = 0;
        loop {
            let error = match work().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            failures += 1;
            let Some(wait) = self.wait(failures, &error) else {
                return Err(error);
            };
            tracing::debug!(?wait, %error, "trying again");
            tokio::time::sleep(wait).await;
        }
    }
}

/// A blob whose transient errors are hidden by trying again.
#[derive(Debug)]
pub struct Retry<B> {
    blob: std::sync::Arc<B>,
    policy: Policy,
    busy: Busy,
}

impl<B> Retry<B> {
    /// `blob`, tried again by `policy`.
    pub fn new(blob: B, policy: Policy) -> Retry<B> {
        Retry {
            blob: std::sync::Arc::new(blob),
            policy,
            busy: Busy::default(),
        }
    }

    /// The same, which tells `busy` what its source asks for; share it between the blobs of a source.
    pub fn telling(mut self, busy: Busy) -> Retry<B> {
        self.busy = busy;
        self
    }
}

impl<B: Blob + 'static> Blob for Retry<B> {
    fn digest(&self) -> &Digest {
        self.blob.digest()
    }

    fn size(&self) -> u64 {
        self.blob.size()
    }

    fn busy(&self) -> Option<Duration> {
        self.busy.left()
    }

    fn ignores_ranges(&self) -> bool {
        self.blob.ignores_ranges()
    }

    fn distrust(&self, range: ByteRange) -> bool {
        self.blob.distrust(range)
    }

    fn avoid(&self, range: ByteRange) -> bool {
        self.blob.avoid(range)
    }

    fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, Error>> {
        let (blob, policy) = (self.blob.clone(), self.policy);
        let mut transfer = Transfer {
            blob,
            policy,
            busy: self.busy.clone(),
            left: range,
            stream: None,
            failures: 0,
            slow: 0,
        };
        Box::pin(async move {
            // The first stream is opened here, so that a permanent error is known at once.
            transfer.reopen().await?;
            let items = stream::unfold(Some(transfer), |transfer| async {
                let mut transfer = transfer?;
                match transfer.next().await {
                    Some(Ok(bytes)) => Some((Ok(bytes), Some(transfer))),
                    Some(Err(error)) => Some((Err(error), None)),
                    None => None,
                }
            });
            Ok(Box::pin(items) as ByteStream)
        })
    }
}

struct Transfer<B> {
    blob: std::sync::Arc<B>,
    policy: Policy,
    busy: Busy,
    /// What has not arrived yet.
    left: ByteRange,
    stream: Option<ByteStream>,
    /// Failures since the last byte.
    failures: u32,
    /// Connections that were given up because they were too slow: their few bytes are no progress.
    slow: u32,
}

impl<B: Blob> Transfer<B> {
    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            let Some(stream) = &mut self.stream else {
                if let Err(error) = self.reopen().await {
                    return Some(Err(error));
                }
                continue;
            };
            let error = match stream.next().await {
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) => return Some(self.arrived(bytes)),
                None if self.left.is_empty() => return None,
                None => Error::new(ErrorKind::Transient, self.broken()),
                // Everything is here: how the connection ends does not matter any more.
                Some(Err(error)) if self.left.is_empty() && error.is_transient() => return None,
                Some(Err(error)) => error,
            };
            self.stream = None;
            if let Err(error) = self.pause(error).await {
                return Some(Err(error));
            }
        }
    }

    fn arrived(&mut self, bytes: Bytes) -> Result<Bytes, Error> {
        self.failures = 0;
        let len = bytes.len() as u64;
        if len > self.left.len() {
            let what = format!("{}: more bytes than were asked for", self.blob.digest());
            return Err(Error::new(ErrorKind::Protocol, what));
        }
        self.left = ByteRange::new(self.left.start() + len, self.left.end());
        Ok(bytes)
    }

    async fn reopen(&mut self) -> Result<(), Error> {
        loop {
            match self.blob.open(self.left).await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    return Ok(());
                }
                Err(error) => self.pause(error).await?,
            }
        }
    }

    /// Waits, or gives the error back when trying again is not due.
    async fn pause(&mut self, error: Error) -> Result<(), Error> {
        self.failures += 1;
        if let Some(asked) = error.retry_after {
            self.busy.asked(asked);
        }
        self.slow += u32::from(error.kind == ErrorKind::Slow);
        let failures = self.failures.max(self.slow);
        let Some(wait) = self.policy.wait(failures, &error) else {
            return Err(error);
        };
        tracing::debug!(blob = %self.blob.digest(), left = %self.left, ?wait, %error, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    fn broken(&self) -> String {
        format!(
            "{}: the transfer ended {} bytes early",
            self.blob.digest(),
            self.left.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::testing::{Plan, PlannedBlob};

    const QUICK: Policy = Policy {
        attempts: 3,
        wait_first: Duration::from_millis(1),
        wait_max: Duration::from_millis(50),
    };

    async fn read(blob: &impl Blob, range: ByteRange) -> Result<Vec<u8>, Error> {
        let mut stream = blob.open(range).await?;
        let mut all = Vec::new();
        while let Some(bytes) = stream.next().await {
            all.extend_from_slice(&bytes?);
        }
        Ok(all)
    }

    fn planned(plan: impl IntoIterator<Item = Plan>) -> Retry<PlannedBlob> {
        Retry::new(PlannedBlob::new(b"0123456789", plan), QUICK)
    }

    #[tokio::test]
    async fn a_broken_stream_goes_on_where_it_stopped() {
        let blob = planned([
            Plan::Fails,
            Plan::BreaksAfter(3),
            Plan::EndsAfter(2),
            Plan::Whole,
        ]);
        assert_eq!(
            read(&blob, ByteRange::new(1, 9)).await.unwrap(),
            b"12345678"
        );
        let starts: Vec<u64> = blob
            .blob
            .opened
            .lock()
            .unwrap()
            .iter()
            .map(|r| r.start())
            .collect();
        assert_eq!(starts, [1, 1, 4, 6]);
    }

    #[tokio::test]
    async fn progress_earns_new_tries_and_silence_does_not() {
        let blob = planned([Plan::BreaksAfter(1); 9]);
        assert_eq!(
            read(&blob, ByteRange::new(0, 10)).await.unwrap(),
            b"0123456789"
        );
        let blob = planned([Plan::BreaksAfter(0); 9]);
        assert!(
            read(&blob, ByteRange::new(0, 10))
                .await
                .unwrap_err()
                .is_transient()
        );
        assert_eq!(blob.blob.opened.lock().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn permanent_errors_are_not_tried_again() {
        let blob = planned([Plan::Denied]);
        let error = read(&blob, ByteRange::new(0, 10)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied);
        assert_eq!(blob.blob.opened.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn the_servers_wish_is_honoured_up_to_a_limit() {
        let started = std::time::Instant::now();
        let blob = planned([Plan::FailsFor(Duration::from_millis(40))]);
        read(&blob, ByteRange::new(0, 10)).await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(40));
        let blob = planned([Plan::FailsFor(Duration::from_secs(3600))]);
        assert!(read(&blob, ByteRange::new(0, 10)).await.is_err());
        assert_eq!(blob.blob.opened.lock().unwrap().len(), 1);
    }
}
