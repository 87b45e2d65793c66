//! Credentials: from the environment, from Podman's and Docker's files, and from Docker's
//! credential helpers.
//!
//! The first source that knows the registry wins: `RSMOUNT_USERNAME` and `RSMOUNT_PASSWORD` (which
//! belong to one registry: `RSMOUNT_REGISTRY`, else the one that the command names), then the files
//! in the order of [`Source::from_environment`]. They are read anew whenever a registry
//! refuses what was sent, so that a login made later (or a short-lived token that a helper renews)
//! reaches a mount that already runs.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::secret::Secret;
use crate::oci::Reference;

mod file;
mod helper;
mod logins;
mod outside;

pub use logins::{Logins, Place};
pub use outside::{Ask, ask_outside, look_up, refused};

/// What proves who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user name and a password (or an access token in its place).
    Password {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token that buys access tokens from the token server.
    IdentityToken(Secret),
}

/// Where credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// There are none.
    Anonymous,
    /// These, whatever the registry.
    Fixed(Credentials),
    /// Files in the format of Docker's `config.json` or Podman's `auth.json`, first match wins.
    Files(Vec<PathBuf>),
    /// Those of one registry, as they came from the environment; files for all others.
    Own {
        /// Host, and port if it has one; nobody's when absent.
        registry: Option<String>,
        /// What only that registry gets.
        credentials: Credentials,
        /// As in [`Source::Files`].
        files: Vec<PathBuf>,
    },
}

/// Why credentials cannot be had. The registry may give the image to anybody, so this is told only
/// when it does not.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// A file is not what it should be.
    #[error("{0} is not a file of credentials: {1}")]
    Format(PathBuf, String),
    /// A file cannot be written.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, std::io::Error),
    /// Whoever looks for them instead of this process did not get them.
    #[error("credentials: {0}")]
    Outside(String),
    /// A helper does not work.
    #[error("credential helper docker-credential-{0}: {1}")]
    Helper(String, String),
}

impl Source {
    /// `RSMOUNT_USERNAME` and `RSMOUNT_PASSWORD` for the registry `RSMOUNT_REGISTRY`, or without that
    /// for `own`, the registry that the command names; else the files `REGISTRY_AUTH_FILE`,
    /// `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json`, and
    /// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
    pub fn from_environment(own: Option<&str>) -> Source {
        Source::from_variables(own, |name| {
            std::env::var(name).ok().filter(|v| !v.is_empty())
        })
    }

    fn from_variables(own: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Source {
        let files = Source::files(&variable);
        let user = (variable("RSMOUNT_USERNAME"), variable("RSMOUNT_PASSWORD"));
        let (Some(username), Some(password)) = user else {
            return Source::Files(files);
        };
        let password = Secret::new(password);
        let named = variable("RSMOUNT_REGISTRY").map(|name| bare_host(&name));
        Source::Own {
            registry: named.or_else(|| own.map(str::to_owned)),
            credentials: Credentials::Password { username, password },
            files,
        }
    }

    /// The files, first match first; Docker's is the last.
    fn files(variable: &impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
        let path = |name: &str| variable(name).map(PathBuf::from);
        let home = path("HOME");
        let below_home = |tail: &str| home.as_ref().map(|home| home.join(tail));
        let config = path("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
        let docker = path("DOCKER_CONFIG").or_else(|| below_home(".docker"));
        let files = [
            path("REGISTRY_AUTH_FILE"),
            path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
            config.map(|dir| dir.join("containers/auth.json")),
            docker.map(|dir| dir.join("config.json")),
        ];
        files.into_iter().flatten().collect()
    }

    /// The credentials for `reference`, if there are any.
    pub async fn find(
        &self,
        reference: &Reference,
    ) -> Result<Option<Credentials>, CredentialsError> {
        let files = match self {
            Source::Anonymous => return Ok(None),
            Source::Fixed(credentials) => return Ok(Some(credentials.clone())),
            Source::Own {
                registry: Some(registry),
                credentials,
                ..
            } if registry.eq_ignore_ascii_case(reference.registry()) => {
                return Ok(Some(credentials.clone()));
            }
            Source::Files(files) | Source::Own { files, .. } => files,
        };
        if let Some(found) = outside::found(reference).await {
            return found;
        }
        for path in files {
            let Some(document) = file::read(path)? else {
                continue;
            };
            match document.find(reference, path)? {
                file::Found::Nothing => {}
                file::Found::Credentials(credentials) => return Ok(Some(credentials)),
                file::Found::Helper(name) => {
                    if let Some(credentials) = helper::get(&name, server_name(reference)).await? {
                        return Ok(Some(credentials));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// The value of an `Authorization` header for a password; `None` for an identity token, and for a
/// user name that RFC 7617 (section 2) does not allow.
pub(super) fn basic(credentials: &Credentials) -> Option<Secret> {
    match credentials {
        Credentials::Password { username, password } if !username.contains(':') => {
            let joined = format!("{username}:{}", password.expose());
            Some(Secret::new(format!("Basic {}", STANDARD.encode(joined))))
        }
        _ => None,
    }
}

/// The registry in what people take for its name: a URL, one of Docker Hub's other names.
fn bare_host(name: &str) -> String {
    let bare = name.split_once("://").map_or(name, |(_, rest)| rest);
    match bare.split('/').next().unwrap_or(bare) {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

/// What credential helpers call the registry: Docker Hub has kept the name of its first API.
fn server_name(reference: &Reference) -> &str {
    match reference.registry() {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    }
}

#[cfg(test)]
mod tests;
