//! Registries: manifests and blobs over the OCI distribution protocol.
//!
//! A request goes this way, and each file knows one part of it:
//!
//! ```text
//! hosts (hosts.toml) -> mirrors, mirrored (who is asked, and who next)
//!                          |
//!        manifest, blob, push  ->  exchange (ticket, redirects, one renewal)  ->  http (the client)
//!                                     |            |
//!                                    auth       redirect       status: unhappy answers as errors
//!                                  /   |   \
//!                        challenge  token  credentials
//! ```
//!
//! The registry's word is never taken for bytes: manifests asked for by digest and small blobs are
//! verified here, streams of blobs by whoever reads them. Credentials go to the registry's own
//! origin and to the token server that it names, and to nobody else.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use url::Url;

use exchange::Exchange;
use mirrors::{Mirrors, Need};

use crate::blob::retry::Policy;
use crate::blob::{Error, ErrorKind};
use crate::oci::{Descriptor, Digest, Reference};

mod auth;
mod blob;
mod body;
mod certificates;
mod challenge;
pub mod credentials;
mod exchange;
pub mod hosts;
mod http;
mod login;
mod manifest;
mod mirrored;
mod mirrors;
mod push;
mod redirect;
mod secret;
mod status;
mod token;
mod upload;

pub use credentials::{Credentials, Source};
pub use hosts::HostsDirs;
pub use login::check_login;
pub use mirrored::RegistryBlob;
pub use mirrors::HostUse;
pub use push::Referrer;
pub use secret::Secret;
pub use upload::{Mounted, Upload};

/// How to talk to registries.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Hosts (`host` or `host:port`) that are spoken to in plain HTTP. Loopback always is.
    pub insecure_hosts: Vec<String>,
    /// PEM files with certificates to trust besides the system's (which `SSL_CERT_FILE` and
    /// `SSL_CERT_DIR` replace).
    pub ca_files: Vec<PathBuf>,
    /// Where mirrors are configured.
    pub hosts: HostsDirs,
    /// Where user names and passwords come from.
    pub credentials: Source,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// How often manifests and small blobs are tried; streams are wrapped by the caller.
    pub retry: Policy,
}

impl Default for Settings {
    fn default() -> Settings {
        let (wait_first, wait_max) = (Duration::from_millis(300), Duration::from_secs(10));
        Settings {
            insecure_hosts: Vec::new(),
            ca_files: Vec::new(),
            hosts: HostsDirs::default(),
            credentials: Source::from_environment(None),
            timeouts: Timeouts::default(),
            retry: Policy {
                attempts: 3,
                wait_first,
                wait_max,
            },
        }
    }
}

/// How long to wait for a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// From a request to the head of its answer.
    pub header: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
    /// Bytes a second of a body, over as much waiting as `idle`: less is as good as silence, and
    /// another connection is tried.
    pub slowest: u64,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        let seconds = Duration::from_secs;
        Timeouts {
            connect: seconds(10),
            header: seconds(30),
            idle: seconds(30),
            slowest: 1024,
        }
    }
}

/// A manifest as it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The exact bytes.
    pub bytes: Bytes,
    /// The Content-Type, a hint for [`crate::oci::Manifest::parse`].
    pub media_type: Option<String>,
    /// Computed from `bytes`; never what the registry says.
    pub digest: Digest,
}

/// One repository of one registry.
#[derive(Debug, Clone)]
pub struct Registry {
    mirrors: Arc<Mirrors>,
    retry: Policy,
}

impl Registry {
    /// A client for the repository of `reference`; its tag and digest are not looked at. Nothing is
    /// sent. Errors: a CA file or a `hosts.toml` that cannot be used.
    pub fn new(reference: &Reference, settings: Settings) -> Result<Registry, Error> {
        let retry = settings.retry;
        Ok(Registry {
            mirrors: Arc::new(Mirrors::new(reference, &settings)?),
            retry,
        })
    }

    /// The manifest that a tag or digest names. By digest, the bytes are verified.
    pub async fn resolve(&self, tag_or_digest: &str) -> Result<Fetched, Error> {
        let need = match tag_or_digest.parse::<Digest>() {
            Ok(_) => Need::Pull,
            Err(_) => Need::Resolve,
        };
        let fetch = |at: Arc<Exchange>| async move { manifest::fetch(&at, tag_or_digest).await };
        self.retry.run(|| self.mirrors.ask(need, fetch)).await
    }

    /// What the hosts have done that stand for the registry, in the order in which they are asked.
    pub fn hosts(&self) -> Vec<HostUse> {
        self.mirrors.usage()
    }

    /// What a tag stands for, as the registry says without sending it: good for a comparison, not
    /// verified. `None` when it does not say.
    pub async fn digest_of(&self, tag: &str) -> Result<Option<Digest>, Error> {
        let peek = |at: Arc<Exchange>| async move { manifest::peek(&at, tag).await };
        let ask = || self.mirrors.ask(Need::Resolve, peek);
        self.retry.run(ask).await
    }

    /// All bytes of a small blob of at most `max` bytes, verified.
    pub async fn blob_bytes(&self, descriptor: &Descriptor, max: u64) -> Result<Bytes, Error> {
        if descriptor.size > max {
            let (digest, size) = (&descriptor.digest, descriptor.size);
            let what = format!("blob {digest} has {size} bytes ({max} at most here)");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let blob = crate::blob::retry::Retry::new(self.blob(descriptor), self.retry);
        crate::blob::collect_verified(&blob).await
    }

    /// Whether the repository has a blob.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, Error> {
        let at = self.mirrors.target()?;
        self.retry.run(|| push::has_blob(&at, digest)).await
    }

    /// Uploads a blob, unless the repository has it. Errors: no right to push, or a registry that
    /// takes nothing.
    pub async fn push_blob(&self, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        if self.has_blob(digest).await? {
            return Ok(());
        }
        let at = self.mirrors.target()?;
        let upload = || push::blob(&at, digest, bytes.clone());
        self.retry.run(upload).await
    }

    /// Begins an upload, or takes the blob over from the repository `from` of the same registry.
    pub async fn begin_upload(
        &self,
        digest: &Digest,
        from: Option<&str>,
    ) -> Result<Mounted, Error> {
        let at = self.mirrors.target()?;
        self.retry.run(|| upload::begin(&at, digest, from)).await
    }

    /// What the registry has of an upload that was begun at `place`; `None` when it has none.
    pub async fn upload_state(&self, place: &str) -> Result<Option<Upload>, Error> {
        let at = self.mirrors.target()?;
        self.retry.run(|| upload::state(&at, place)).await
    }

    /// Sends the next piece of an upload. After an error that is transient, ask for its state.
    pub async fn upload_piece(&self, upload: &Upload, bytes: Bytes) -> Result<Upload, Error> {
        upload::piece(&*self.mirrors.target()?, upload, bytes).await
    }

    /// Ends an upload: the registry compares the digest.
    pub async fn finish_upload(&self, upload: &Upload, digest: &Digest) -> Result<(), Error> {
        upload::finish(&*self.mirrors.target()?, upload, digest).await
    }

    /// Stores a manifest under a tag or its digest. Its blobs must be there.
    pub async fn push_manifest(
        &self,
        tag_or_digest: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), Error> {
        let at = self.mirrors.target()?;
        let put = || push::manifest(&at, tag_or_digest, media_type, bytes.clone());
        self.retry.run(put).await
    }

    /// What refers to the manifest of `digest`; `None` when the registry does not keep such lists.
    pub async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<Referrer>>, Error> {
        let list = |at: Arc<Exchange>| async move { push::referrers(&at, digest).await };
        let ask = || self.mirrors.ask(Need::Resolve, list);
        self.retry.run(ask).await
    }

    /// A blob to be read by range; nothing is sent yet, nothing that it gives is verified.
    pub fn blob(&self, descriptor: &Descriptor) -> RegistryBlob {
        RegistryBlob::new(&self.mirrors, descriptor)
    }
}

/// `https://host/v2/REPOSITORY/` of the registry; Docker Hub's API lives at another name.
fn api_url(reference: &Reference, plain: bool) -> Result<Url, Error> {
    let host = match reference.registry() {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    let scheme = if plain { "http" } else { "https" };
    Url::parse(&format!("{scheme}://{host}/v2/{}/", reference.repository())).map_err(|e| {
        let what = format!("`{host}` is not a registry host that can be asked");
        Error::new(ErrorKind::Unsupported, what).with_source(e)
    })
}

#[cfg(test)]
mod tests;
