//! Docker's `config.json` and Podman's `auth.json`: one format, two habits of naming registries.
//!
//! Docker's keys are hosts or URLs (`https://index.docker.io/v1/`); Podman's may go on with the
//! beginning of a repository (containers-auth.json(5)), and the longest match wins.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{Credentials, CredentialsError};
use crate::oci::Reference;
use crate::registry::secret::Secret;

/// Longest file in bytes; a login has about a hundred, with a token in it some thousand.
pub(super) const FILE_BYTES_MAX: u64 = 4 << 20;

/// One file.
#[derive(Default, Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    auths: HashMap<String, Login>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Login {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a file says about a registry.
pub(super) enum Found {
    Nothing,
    Credentials(Credentials),
    /// Ask the helper of this name.
    Helper(String),
}

/// Reads a file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<Document>, CredentialsError> {
    let error = |e| CredentialsError::Read(path.into(), e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(e) => return Err(error(e)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(error)?;
    let format = |why: String| CredentialsError::Format(path.into(), why);
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format(format!("more than {FILE_BYTES_MAX} bytes")));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    // The place only: serde's message could show a piece of a secret.
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| format(format!("line {}, column {}", e.line(), e.column())))
}

impl Document {
    pub(super) fn find(
        &self,
        reference: &Reference,
        path: &Path,
    ) -> Result<Found, CredentialsError> {
        let names = names(reference);
        for name in &names {
            if let Some(helper) = lookup(&self.helpers, name) {
                return Ok(Found::Helper(helper.clone()));
            }
            if let Some(login) = lookup(&self.auths, name)
                && let Some(credentials) = login.credentials().map_err(|why| {
                    CredentialsError::Format(path.into(), format!("the login of {name}: {why}"))
                })?
            {
                return Ok(Found::Credentials(credentials));
            }
        }
        let store = self.store.as_ref().filter(|store| !store.is_empty());
        Ok(store.map_or(Found::Nothing, |store| Found::Helper(store.clone())))
    }
}

impl Login {
    /// `None` for the empty logins that Docker leaves behind when a helper keeps the secret.
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        let filled = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        if let Some(token) = filled(&self.identitytoken) {
            return Ok(Some(Credentials::IdentityToken(Secret::new(token))));
        }
        if let (Some(username), Some(password)) = (filled(&self.username), filled(&self.password)) {
            let password = Secret::new(password);
            return Ok(Some(Credentials::Password { username, password }));
        }
        let Some(auth) = filled(&self.auth) else {
            return Ok(None);
        };
        let decoded = STANDARD
            .decode(auth.trim())
            .map_err(|_| "`auth` is not base64")?;
        let text = String::from_utf8(decoded).map_err(|_| "`auth` is not text")?;
        let (username, password) = text.split_once(':').ok_or("`auth` is not user:password")?;
        // Some versions of Docker padded with NULs.
        let password = Secret::new(password.trim_end_matches('\0'));
        Ok(Some(Credentials::Password {
            username: username.into(),
            password,
        }))
    }
}

/// The keys under which a registry may be filed, best first.
pub(super) fn names(reference: &Reference) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = format!("{}/{}", reference.registry(), reference.repository());
    while let Some(cut) = name.rfind('/') {
        names.push(name.clone());
        name.truncate(cut);
    }
    names.push(name);
    if reference.registry() == "docker.io" {
        names.extend(["index.docker.io", "registry-1.docker.io"].map(String::from));
    }
    names
}

/// An exact key, else a URL of the same host.
fn lookup<'a, T>(map: &'a HashMap<String, T>, name: &str) -> Option<&'a T> {
    map.get(name).or_else(|| {
        let mut of_host = map.iter().filter(|(key, _)| host_of_url(key) == Some(name));
        of_host.next().map(|(_, value)| value)
    })
}

pub(super) fn host_of_url(key: &str) -> Option<&str> {
    let rest = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))?;
    rest.split('/').next()
}
