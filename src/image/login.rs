//! Logins: asked of the registry before they are kept.

use crate::content::Content;
use crate::image::error::Error;
use crate::oci::{ImageName, Reference};
use crate::registry::credentials::{Logins, Place};
use crate::registry::{self, Credentials, Secret, Settings};

/// What is needed to log in.
#[derive(Debug, Clone)]
pub struct Login {
    /// `host[:port]`; Docker Hub when absent.
    pub registry: Option<String>,
    /// The user.
    pub username: String,
    /// The password, or an access token.
    pub password: Secret,
    /// Hosts that may speak plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Extra CA certificates, PEM.
    pub ca_files: Vec<std::path::PathBuf>,
    /// Where mirrors are configured.
    pub hosts: registry::HostsDirs,
}

/// What a login came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedIn {
    /// Where it is kept.
    pub place: Place,
    /// Whether the registry has looked at it: one that lets everybody in does not.
    pub checked: bool,
}

/// A name in the registry that was typed: `host[:port]`, a URL of it, or nothing for Docker Hub.
fn reference(typed: Option<&str>) -> Result<Reference, Error> {
    let typed = typed.unwrap_or("docker.io");
    let host = ["https://", "http://"]
        .iter()
        .find_map(|scheme| typed.strip_prefix(scheme))
        .unwrap_or(typed);
    let host = host.split('/').next().unwrap_or(host);
    let refuse = || {
        Error::Name(format!(
            "`{typed}` is no registry (expected host or host:port)"
        ))
    };
    match format!("{host}/rsmount").parse() {
        Ok(ImageName::Registry(r)) if r.registry() == host || r.registry() == "docker.io" => {
            let is_hub = ["docker.io", "index.docker.io", "registry-1.docker.io"].contains(&host);
            match r.registry() == "docker.io" && !is_hub {
                true => Err(refuse()),
                false => Ok(r),
            }
        }
        _ => Err(refuse()),
    }
}

/// The host of the registry that was typed, for prompts.
pub fn host(typed: Option<&str>) -> Result<String, Error> {
    Ok(reference(typed)?.registry().to_owned())
}

fn logins() -> Result<Logins, Error> {
    Logins::from_environment().ok_or_else(|| {
        Error::Name("no place for logins: set HOME, DOCKER_CONFIG or REGISTRY_AUTH_FILE".to_owned())
    })
}

/// Asks the registry, and keeps the login if it is good.
pub fn login(login: Login) -> Result<LoggedIn, Error> {
    let reference = reference(login.registry.as_deref())?;
    let logins = logins()?;
    let runtime = Content::new_runtime()
        .map_err(crate::mount::Error::io("cannot start the network threads"))?;
    let credentials = Credentials::Password {
        username: login.username.clone(),
        password: login.password.clone(),
    };
    let settings = Settings {
        insecure_hosts: login.insecure_registries,
        ca_files: login.ca_files,
        hosts: login.hosts,
        credentials: registry::Source::Fixed(credentials),
        ..Settings::default()
    };
    runtime.block_on(async {
        let checked = registry::check_login(&reference, settings).await?;
        let (username, password) = (&login.username, login.password.expose());
        let place = logins.keep(&reference, username, password).await?;
        Ok(LoggedIn { place, checked })
    })
}

/// What there is to prove who we are to the registry of `reference`, for another process of ours.
pub fn look_up(reference: &str) -> Result<Vec<u8>, Error> {
    let reference = reference
        .parse()
        .map_err(|e: crate::oci::reference::ReferenceError| Error::Name(e.to_string()))?;
    let runtime = Content::new_runtime()
        .map_err(crate::mount::Error::io("cannot start the network threads"))?;
    Ok(runtime.block_on(registry::credentials::look_up(&reference)))
}

/// Forgets the logins of a registry; says where there were any.
pub fn logout(registry: Option<&str>) -> Result<Vec<Place>, Error> {
    let reference = reference(registry)?;
    let logins = logins()?;
    let runtime = Content::new_runtime()
        .map_err(crate::mount::Error::io("cannot start the network threads"))?;
    Ok(runtime.block_on(logins.forget(&reference))?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn registries_are_named_in_several_ways() {
        for (typed, host) in [
            (None, "docker.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
            (Some("localhost"), "localhost"),
            (Some("h.io:5000"), "h.io:5000"),
            (Some("http://h.io/v2/"), "h.io"),
        ] {
            assert_eq!(super::host(typed).ok().as_deref(), Some(host), "{typed:?}");
        }
        for bad in ["", "just-a-name", "a b", "h.io:port"] {
            assert!(super::host(Some(bad)).is_err(), "{bad}");
        }
    }
}
