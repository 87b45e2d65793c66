//! The hosts of one registry: who is asked, in which order, and who is left alone for a while.
//!
//! Each may be asked what its capabilities say: what has a digest of any that may be pulled from,
//! since the bytes prove themselves; what a tag stands for and what refers to an image only of those
//! that may resolve. The next one is asked after any error, wrong bytes among them. What counts in
//! the end is what the last one says, which is the registry itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Settings;
use super::exchange::Exchange;
use super::hosts::{self, Capabilities};
use crate::blob::{Error, ErrorKind};
use crate::oci::Reference;

/// A host that was away is asked last for so long: waiting for it would cost each reader a time-out.
const REST: Duration = Duration::from_secs(30);

/// What a host is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Pull,
    Resolve,
    Push,
}

/// What a host has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostUse {
    /// `host` or `host:port`.
    pub host: String,
    /// What it may be asked: some of `pull`, `resolve` and `push`.
    pub capabilities: Vec<String>,
    /// What it answered so that the next one was not asked.
    pub answers: u64,
    /// Bytes of blobs that it sent.
    pub blob_bytes: u64,
    /// What it did not answer, or wrongly.
    pub failures: u64,
}

/// One of the hosts.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) exchange: Arc<Exchange>,
    may: Capabilities,
    rests_until: Mutex<Option<Instant>>,
    answers: AtomicU64,
    failures: AtomicU64,
    pub(super) blob_bytes: AtomicU64,
}

impl Host {
    fn is_able(&self, need: Need) -> bool {
        match need {
            Need::Pull => self.may.pull,
            Need::Resolve => self.may.resolve,
            Need::Push => self.may.push,
        }
    }

    fn rests(&self) -> bool {
        let until = self.rests_until.lock();
        let until = *until.unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn has_answered(&self) {
        self.answers.fetch_add(1, Relaxed);
        *self
            .rests_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// One that is away is left alone; one that lacks something is not.
    pub(super) fn has_failed(&self, error: &Error) {
        self.failures.fetch_add(1, Relaxed);
        if error.is_transient() {
            let until =
                Instant::now() + error.retry_after.unwrap_or_default().clamp(REST, 10 * REST);
            *self
                .rests_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(until);
        }
    }

    fn usage(&self) -> HostUse {
        let words = [
            (self.may.pull, "pull"),
            (self.may.resolve, "resolve"),
            (self.may.push, "push"),
        ];
        let words = words.iter().filter(|(may, _)| *may);
        HostUse {
            host: self.exchange.host(),
            capabilities: words.map(|(_, word)| (*word).to_owned()).collect(),
            answers: self.answers.load(Relaxed),
            blob_bytes: self.blob_bytes.load(Relaxed),
            failures: self.failures.load(Relaxed),
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Mirrors {
    hosts: Vec<Arc<Host>>,
    registry: String,
}

impl Mirrors {
    pub(super) fn new(reference: &Reference, settings: &Settings) -> Result<Mirrors, Error> {
        let mut hosts = Vec::new();
        for host in hosts::of(reference, &settings.hosts)? {
            hosts.push(Arc::new(Host {
                may: host.may,
                exchange: Arc::new(Exchange::new(reference, settings, &host)?),
                rests_until: Mutex::default(),
                answers: AtomicU64::new(0),
                failures: AtomicU64::new(0),
                blob_bytes: AtomicU64::new(0),
            }));
        }
        Ok(Mirrors {
            hosts,
            registry: reference.registry().to_owned(),
        })
    }

    pub(super) fn usage(&self) -> Vec<HostUse> {
        self.hosts.iter().map(|host| host.usage()).collect()
    }

    /// Those that may be asked, in their order.
    pub(super) fn able(&self, need: Need) -> Result<Vec<Arc<Host>>, Error> {
        let able = self.hosts.iter().filter(|host| host.is_able(need));
        let able: Vec<Arc<Host>> = able.cloned().collect();
        if able.is_empty() {
            let word = match need {
                Need::Pull => "pulled from",
                Need::Resolve => "asked for tags",
                Need::Push => "pushed to",
            };
            let what = format!(
                "no host of {} may be {word}: see `capabilities` in its hosts.toml",
                self.registry
            );
            return Err(Error::new(ErrorKind::Denied, what));
        }
        Ok(able)
    }

    /// The one that pushes go to: the first that may be pushed to.
    pub(super) fn target(&self) -> Result<Arc<Exchange>, Error> {
        Ok(self.able(Need::Push)?[0].exchange.clone())
    }

    /// The registry itself.
    pub(super) fn itself(&self) -> Arc<Exchange> {
        self.hosts[self.hosts.len() - 1].exchange.clone()
    }

    /// Asks one after the other until one has an answer.
    pub(super) async fn ask<T, F>(
        &self,
        need: Need,
        ask: impl Fn(Arc<Exchange>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let able = self.able(need)?;
        let mut last = None;
        for at in order(&able, |_| true) {
            let host = &able[at];
            match ask(host.exchange.clone()).await {
                Ok(answer) => {
                    host.has_answered();
                    return Ok(answer);
                }
                Err(error) => {
                    host.has_failed(&error);
                    if able.len() > 1 {
                        tracing::info!(host = host.exchange.host(), %error, "asking the next host");
                    }
                    last = later(last, (at, error));
                }
            }
        }
        Err(verdict(last))
    }
}

/// In which order hosts are asked: those that rest last, but they are asked.
pub(super) fn order(hosts: &[Arc<Host>], is_wanted: impl Fn(usize) -> bool) -> Vec<usize> {
    let all = (0..hosts.len()).filter(|at| is_wanted(*at));
    let (rest, ready): (Vec<usize>, Vec<usize>) = all.partition(|at| hosts[*at].rests());
    [ready, rest].concat()
}

/// The error of the host that stands last in the file: the registry knows best what it has.
pub(super) fn later(before: Option<(usize, Error)>, now: (usize, Error)) -> Option<(usize, Error)> {
    match before {
        Some(before) if before.0 > now.0 => Some(before),
        _ => Some(now),
    }
}

/// What to say when none had an answer.
pub(super) fn verdict(last: Option<(usize, Error)>) -> Error {
    let nobody = || Error::new(ErrorKind::NotFound, "no host has it");
    last.map_or_else(nobody, |(_, error)| error)
}
