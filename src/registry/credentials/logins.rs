//! Keeping and forgetting logins, in Docker's `config.json` and Podman's `auth.json`, or with the
//! credential helper that such a file names.
//!
//! A login goes where one of the same registry is already, since that is found first; else into
//! `REGISTRY_AUTH_FILE` if it is set, else into Docker's file. What is not understood in a file is
//! kept. A file is replaced as a whole, with mode 0600.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::file::{FILE_BYTES_MAX, host_of_url, names};
use super::{CredentialsError, Source, helper, server_name};
use crate::oci::Reference;

/// Where logins are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logins {
    /// Files that are looked at, first match first.
    files: Vec<PathBuf>,
    /// Where a login of a new registry goes.
    fresh: PathBuf,
}

/// Where one login is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In the file itself.
    File(PathBuf),
    /// With the helper of this name, as the file says.
    Helper(String, PathBuf),
}

impl Logins {
    /// The files that [`Source::from_environment`] reads; `None` without a home.
    pub fn from_environment() -> Option<Logins> {
        Logins::from_variables(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    }

    pub(super) fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Option<Logins> {
        let files = Source::files(&variable);
        let fresh = variable("REGISTRY_AUTH_FILE").map(PathBuf::from);
        let fresh = fresh.or_else(|| files.last().cloned())?;
        Some(Logins { files, fresh })
    }

    /// Keeps the login for the registry of `reference`.
    pub async fn keep(
        &self,
        reference: &Reference,
        username: &str,
        password: &str,
    ) -> Result<Place, CredentialsError> {
        let mut target = (self.fresh.clone(), read(&self.fresh)?.unwrap_or_default());
        for path in &self.files {
            if let Some(document) = read(path)?.filter(|d| knows(d, reference)) {
                target = (path.clone(), document);
                break;
            }
        }
        let (path, mut document) = target;
        let helper = helper_of(&document, reference);
        if let Some(name) = &helper {
            helper::store(name, server_name(reference), username, password).await?;
        }
        let login = match &helper {
            // What Docker leaves to say that there is one.
            Some(_) => json!({}),
            None => json!({ "auth": STANDARD.encode(format!("{username}:{password}")) }),
        };
        drop_entries(&mut document, reference);
        let auths = document.entry("auths").or_insert_with(|| json!({}));
        let Some(auths) = auths.as_object_mut() else {
            let what = "`auths` is no object".to_owned();
            return Err(CredentialsError::Format(path, what));
        };
        auths.insert(key(&path, reference), login);
        write(&path, &document)?;
        Ok(match helper {
            Some(name) => Place::Helper(name, path),
            None => Place::File(path),
        })
    }

    /// Forgets every login for the registry of `reference`; says where there was one.
    pub async fn forget(&self, reference: &Reference) -> Result<Vec<Place>, CredentialsError> {
        let mut places = Vec::new();
        for path in &self.files {
            let Some(mut document) = read(path)? else {
                continue;
            };
            let helper = helper_of(&document, reference);
            let dropped = drop_entries(&mut document, reference);
            if dropped {
                write(path, &document)?;
            }
            match helper {
                Some(name) => {
                    let erased = helper::erase(&name, server_name(reference)).await?;
                    if erased || dropped {
                        places.push(Place::Helper(name, path.clone()));
                    }
                }
                None if dropped => places.push(Place::File(path.clone())),
                None => {}
            }
        }
        Ok(places)
    }
}

/// A file as JSON; `None` when there is none, or an empty one.
fn read(path: &Path) -> Result<Option<Map<String, Value>>, CredentialsError> {
    let format = |why: String| CredentialsError::Format(path.into(), why);
    let bytes = match std::fs::metadata(path).and_then(|m| Ok((m.len(), std::fs::read(path)?))) {
        Ok((len, _)) if len > FILE_BYTES_MAX => {
            return Err(format(format!("more than {FILE_BYTES_MAX} bytes")));
        }
        Ok((_, bytes)) => bytes,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(CredentialsError::Read(path.into(), e)),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    // The place only: serde's message could show a piece of a secret.
    let parsed = serde_json::from_slice(&bytes);
    parsed
        .map(Some)
        .map_err(|e| format(format!("line {}, column {}", e.line(), e.column())))
}

/// The names under which the whole registry may be filed: no repository among them.
fn registry_names(reference: &Reference) -> Vec<String> {
    let mut names = names(reference);
    names.retain(|name| !name.contains('/'));
    names
}

fn is_of(key: &str, registry: &[String]) -> bool {
    let host = host_of_url(key).unwrap_or(key);
    registry.iter().any(|name| name == host)
}

/// Whether the file says something of this very registry.
fn knows(document: &Map<String, Value>, reference: &Reference) -> bool {
    let registry = registry_names(reference);
    ["auths", "credHelpers"].iter().any(|part| {
        let part = document.get(*part).and_then(Value::as_object);
        part.is_some_and(|part| part.keys().any(|key| is_of(key, &registry)))
    })
}

/// The helper that keeps the registry's logins, if one does.
fn helper_of(document: &Map<String, Value>, reference: &Reference) -> Option<String> {
    let registry = registry_names(reference);
    let helpers = document.get("credHelpers").and_then(Value::as_object);
    let mut helpers = helpers.into_iter().flatten();
    let own = helpers.find(|(key, _)| is_of(key, &registry));
    let own = own.and_then(|(_, name)| name.as_str());
    let store = document.get("credsStore").and_then(Value::as_str);
    own.or(store)
        .filter(|name| !name.is_empty())
        .map(String::from)
}

/// Drops the registry's logins; whether there were any.
fn drop_entries(document: &mut Map<String, Value>, reference: &Reference) -> bool {
    let registry = registry_names(reference);
    let Some(auths) = document.get_mut("auths").and_then(Value::as_object_mut) else {
        return false;
    };
    let before = auths.len();
    auths.retain(|key, _| !is_of(key, &registry));
    auths.len() < before
}

/// How the file's own program names the registry.
fn key(path: &Path, reference: &Reference) -> String {
    match path.file_name().is_some_and(|name| name == "config.json") {
        true => server_name(reference).to_owned(),
        false => reference.registry().to_owned(),
    }
}

fn write(path: &Path, document: &Map<String, Value>) -> Result<(), CredentialsError> {
    let failed = |e| CredentialsError::Write(path.into(), e);
    // Who keeps the file elsewhere and links to it goes on to do so.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let directory = real.parent().unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    let mut bytes = serde_json::to_vec_pretty(document).map_err(|e| failed(e.into()))?;
    bytes.push(b'\n');
    let partial = directory.join(format!(
        ".rsmount-{}-{:08x}",
        std::process::id(),
        fastrand::u32(..)
    ));
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file: File = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, &real)
    };
    write().map_err(|e| {
        let _nothing_there = std::fs::remove_file(&partial);
        failed(e)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::registry::Credentials;

    fn logins(dir: &Path) -> Logins {
        let files = vec![dir.join("auth.json"), dir.join("docker/config.json")];
        let fresh = files[1].clone();
        Logins { files, fresh }
    }

    fn json_of(path: &Path) -> Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn logins_are_kept_beside_what_is_not_understood() {
        let dir = tempfile::tempdir().unwrap();
        let logins = logins(dir.path());
        let config = dir.path().join("docker/config.json");
        let reference: Reference = "h.io:5/x".parse().unwrap();
        let place = logins.keep(&reference, "u", "p:q").await.unwrap();
        assert_eq!(place, Place::File(config.clone()));
        let mode = std::fs::metadata(&config).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(
            &config,
            r#"{"psFormat":"x","auths":{"h.io:5":{"auth":"b2xk"},"o":{}}}"#,
        )
        .unwrap();
        logins.keep(&reference, "u", "p:q").await.unwrap();
        let kept = json_of(&config);
        assert_eq!(
            (&kept["psFormat"], &kept["auths"]["o"]),
            (&json!("x"), &json!({}))
        );
        let source = Source::Files(vec![config.clone()]);
        let found = source.find(&reference).await.unwrap();
        let password = crate::registry::Secret::new("p:q");
        let username = "u".to_owned();
        assert_eq!(found, Some(Credentials::Password { username, password }));
        // Docker Hub's old name.
        let hub: Reference = "ubuntu".parse().unwrap();
        logins.keep(&hub, "u", "p").await.unwrap();
        assert!(json_of(&config)["auths"]["https://index.docker.io/v1/"]["auth"].is_string());
        assert!(source.find(&hub).await.unwrap().is_some());
        assert_eq!(logins.forget(&hub).await.unwrap().len(), 1);
        assert!(logins.forget(&hub).await.unwrap().is_empty());
        assert_eq!(json_of(&config)["auths"].as_object().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_login_replaces_the_one_that_is_found_first() {
        let dir = tempfile::tempdir().unwrap();
        let logins = logins(dir.path());
        let first = dir.path().join("auth.json");
        std::fs::write(&first, r#"{"auths":{"h.io":{"auth":"b2xkOm9sZA=="}}}"#).unwrap();
        let reference: Reference = "h.io/x".parse().unwrap();
        let place = logins.keep(&reference, "new", "n").await.unwrap();
        assert_eq!(place, Place::File(first));
        assert!(!dir.path().join("docker").exists());
    }

    #[tokio::test]
    async fn a_file_that_makes_no_sense_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let logins = logins(dir.path());
        let first = dir.path().join("auth.json");
        std::fs::write(&first, "{\"auths\":").unwrap();
        let reference: Reference = "h.io/x".parse().unwrap();
        let error = logins.keep(&reference, "u", "secret").await.unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
        assert!(logins.forget(&reference).await.is_err());
        assert_eq!(std::fs::read(&first).unwrap(), b"{\"auths\":");
        assert!(!dir.path().join("docker").exists());
    }

    #[test]
    fn the_file_is_the_one_that_was_asked_for() {
        let of = |set: &[(&str, &str)]| {
            let variable = |name: &str| {
                let mut set = set.iter();
                set.find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
            };
            Logins::from_variables(variable).map(|l| l.fresh)
        };
        assert_eq!(of(&[("HOME", "/h")]), Some("/h/.docker/config.json".into()));
        let asked = [("HOME", "/h"), ("DOCKER_CONFIG", "/d")];
        assert_eq!(of(&asked), Some("/d/config.json".into()));
        let asked = [("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a.json")];
        assert_eq!(of(&asked), Some("/a.json".into()));
        assert_eq!(of(&[]), None);
    }
}
