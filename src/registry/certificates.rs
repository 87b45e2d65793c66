//! Certificates and keys from PEM files.

use std::io::Read;
use std::path::Path;

use crate::blob::{Error, ErrorKind};

/// Longest file in bytes; the bundle of all public roots has 220 KB.
const PEM_BYTES_MAX: u64 = 16 << 20;

/// The authorities of a file.
pub(super) fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, Error> {
    let pem = read(path, "CA file")?;
    let found = reqwest::Certificate::from_pem_bundle(&pem)
        .map_err(|e| unusable(path, "CA file", "it is not PEM").with_source(e))?;
    if found.is_empty() {
        let why = "it holds no certificate";
        return Err(unusable(path, "CA file", why));
    }
    Ok(found)
}

/// What proves who we are: a certificate, and its key, which may be in the same file.
pub(super) fn identity(file: &Path, key: &Path) -> Result<reqwest::Identity, Error> {
    let what = "client certificate";
    let mut pem = read(file, what)?;
    if key != file {
        pem.push(b'\n');
        pem.extend(read(key, "client key")?);
    }
    reqwest::Identity::from_pem(&pem).map_err(|e| {
        let why = "it and its key are not a certificate and a PKCS#8, PKCS#1 or SEC1 key in PEM";
        unusable(file, what, why).with_source(e)
    })
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, Error> {
    let mut pem = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(PEM_BYTES_MAX).read_to_end(&mut pem))
        .map_err(|e| unusable(path, what, &e.to_string()).with_source(e))?;
    Ok(pem)
}

fn unusable(path: &Path, what: &str, why: &str) -> Error {
    let message = format!("cannot use the {what} {}: {why}", path.display());
    Error::new(ErrorKind::Unsupported, message)
}
