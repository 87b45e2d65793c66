//! The room against registries in this process: each test writes down how its server answers and
//! what it must have been asked.

mod auth;
mod blobs;
mod errors;
mod mirrors;
mod server;

use futures_util::StreamExt;

use super::*;
use crate::blob::Blob;
use crate::blob::ByteRange;
use server::{Reply, Server};

const TEXT: &[u8] = b"The quick brown fox jumps over the lazy dog";

fn settings() -> Settings {
    let wait = Duration::from_millis(5);
    Settings {
        insecure_hosts: Vec::new(),
        ca_files: Vec::new(),
        hosts: HostsDirs::default(),
        credentials: Source::Anonymous,
        timeouts: Timeouts {
            connect: Duration::from_secs(2),
            header: Duration::from_millis(500),
            idle: Duration::from_millis(500),
            slowest: 1024,
        },
        retry: Policy {
            attempts: 3,
            wait_first: wait,
            wait_max: Duration::from_secs(2),
        },
    }
}

fn registry_with(server: &Server, settings: Settings) -> Registry {
    let reference = format!("{}/library/x:1", server.host).parse().unwrap();
    Registry::new(&reference, settings).unwrap()
}

fn registry(server: &Server) -> Registry {
    registry_with(server, settings())
}

fn text() -> Descriptor {
    Descriptor::new(
        "application/octet-stream",
        Digest::of(TEXT),
        TEXT.len() as u64,
    )
}

async fn read(blob: &impl Blob, start: u64, end: u64) -> Result<Vec<u8>, Error> {
    let mut stream = blob.open(ByteRange::new(start, end)).await?;
    let mut all = Vec::new();
    while let Some(bytes) = stream.next().await {
        all.extend_from_slice(&bytes?);
    }
    Ok(all)
}

fn password(username: &str, password: &str) -> Source {
    let (username, password) = (username.into(), Secret::new(password));
    Source::Fixed(Credentials::Password { username, password })
}
