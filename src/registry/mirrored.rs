//! A blob of a registry, from whichever of its hosts has it.
//!
//! A host that lacks the blob, or gave bytes that were not those of its digest, is not asked for it
//! again; a stream that breaks is taken up (by who retries) at the next host.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;

use super::blob::HostBlob;
use super::mirrors::Mirrors;
use super::mirrors::{Host, Need, later, order, verdict};
use crate::blob::{Blob, BoxFuture, ByteRange, ByteStream, Error, ErrorKind};
use crate::oci::{Descriptor, Digest};

/// Streams whose host is remembered, so that the right one is blamed for wrong bytes.
const REMEMBERED_MAX: usize = 64;

/// A blob in a registry.
#[derive(Debug)]
pub struct RegistryBlob {
    digest: Digest,
    size: u64,
    /// Why nobody may be asked, if nobody may.
    hosts: Result<Vec<Arc<Host>>, String>,
    blobs: Vec<HostBlob>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Who is not asked any more.
    out: Vec<bool>,
    /// Who gave what, the last one last.
    given: VecDeque<(ByteRange, usize)>,
}

impl RegistryBlob {
    pub(super) fn new(mirrors: &Mirrors, descriptor: &Descriptor) -> RegistryBlob {
        let hosts = mirrors.able(Need::Pull).map_err(|e| e.message);
        let all = hosts.iter().flatten();
        let blobs = all.map(|host| HostBlob::new(host.exchange.clone(), descriptor));
        let blobs: Vec<HostBlob> = blobs.collect();
        RegistryBlob {
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            state: Mutex::new(State {
                out: vec![false; blobs.len()],
                given: VecDeque::new(),
            }),
            hosts,
            blobs,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, range: ByteRange) -> Result<ByteStream, Error> {
        let hosts = match &self.hosts {
            Ok(hosts) => hosts,
            Err(why) => return Err(Error::new(ErrorKind::Denied, why.clone())),
        };
        let out = self.state().out.clone();
        let mut last = None;
        for at in order(hosts, |at| !out[at]) {
            let error = match self.blobs[at].read(range).await {
                Ok(stream) => {
                    hosts[at].has_answered();
                    self.remember(range, at);
                    return Ok(watched(hosts[at].clone(), stream));
                }
                Err(error) => error,
            };
            hosts[at].has_failed(&error);
            if hosts.len() > 1 {
                let host = hosts[at].exchange.host();
                tracing::info!(host, %error, "asking the next host for a blob");
                // The registry itself is always asked again: nobody else can say that it is gone.
                if !error.is_transient() && at + 1 < hosts.len() {
                    self.state().out[at] = true;
                }
            }
            last = later(last, (at, error));
        }
        Err(verdict(last))
    }

    fn remember(&self, range: ByteRange, at: usize) {
        let mut state = self.state();
        state.given.push_back((range, at));
        if state.given.len() > REMEMBERED_MAX {
            state.given.pop_front();
        }
    }

    /// Which host gave `range` last.
    fn gave(&self, range: ByteRange) -> Option<usize> {
        let state = self.state();
        let mut gave = state.given.iter().rev();
        let gave = gave.find(|(given, _)| given.intersect(range).is_some());
        gave.map(|(_, at)| *at)
    }

    /// Takes a host off the list; whether there is another one. When there is none, all are asked
    /// anew the next time.
    fn take_off(&self, at: usize) -> bool {
        let mut state = self.state();
        state.out[at] = true;
        let is_left = state.out.iter().any(|out| !out);
        if !is_left {
            state.out.fill(false);
        }
        is_left
    }

    fn blame(&self, at: usize) {
        if let Some(host) = self.hosts.iter().flatten().nth(at) {
            let what = format!("blob {}: wrong bytes", self.digest);
            host.has_failed(&Error::new(ErrorKind::Corrupt, what));
            let host = host.exchange.host();
            tracing::warn!(host, blob = %self.digest, "wrong bytes; this host is not asked for it again");
        }
    }
}

/// The stream, which tells its host's account how it went.
fn watched(host: Arc<Host>, stream: ByteStream) -> ByteStream {
    Box::pin(stream.inspect(move |item| match item {
        Ok(bytes) => {
            host.blob_bytes.fetch_add(bytes.len() as u64, Relaxed);
        }
        Err(error) => host.has_failed(error),
    }))
}

impl Blob for RegistryBlob {
    fn digest(&self) -> &Digest {
        &self.digest
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn ignores_ranges(&self) -> bool {
        self.blobs.iter().any(HostBlob::ignores_ranges)
    }

    fn distrust(&self, range: ByteRange) -> bool {
        self.gave(range).is_some_and(|at| {
            self.blame(at);
            self.take_off(at)
        })
    }

    fn avoid(&self, range: ByteRange) -> bool {
        self.gave(range).is_some_and(|at| self.take_off(at))
    }

    fn open(&self, range: ByteRange) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(self.read(range))
    }
}
