//! One question to a registry: ticket, redirects, and one renewal when the ticket is refused.

use url::Url;

use super::auth::{Auth, Gate, Ticket};
use super::challenge::Challenge;
use super::hosts::Host;
use super::http::{Answer, Http, Method, Payload, Request};
use super::redirect::{HOPS_MAX, is_loopback, same_origin, shown_host};
use super::{Settings, Source, api_url, status};
use crate::blob::{ByteRange, Error, ErrorKind};
use crate::oci::Reference;

/// What all questions to one repository share.
#[derive(Debug)]
pub(super) struct Exchange {
    base: Url,
    repository: String,
    http: Http,
    auth: Auth,
    insecure_hosts: Vec<String>,
    /// What a mirror is told that it stands for, as containerd does.
    stands_for: Option<String>,
}

/// What is wanted of a URL.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ask<'a> {
    pub(super) accept: Option<&'a str>,
    pub(super) range: Option<ByteRange>,
    pub(super) method: Method,
    pub(super) payload: Option<&'a Payload>,
    /// Whether the right to change the repository is needed.
    pub(super) push: bool,
    /// Whether nothing is asked for but who we are.
    pub(super) login: bool,
    /// Another repository of the same registry that is read on the way.
    pub(super) other_repository: Option<&'a str>,
    /// What the registry has to go through before it answers, in bytes.
    pub(super) work: u64,
}

/// An answer, and the other place that it came from, if it did.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) answer: Answer,
    pub(super) elsewhere: Option<Url>,
}

impl Exchange {
    /// The way to `host`, which stands for the registry of `reference`. One that is not the registry
    /// itself gets credentials that are stored for its own name, never those of the registry.
    pub(super) fn new(
        reference: &Reference,
        settings: &Settings,
        host: &Host,
    ) -> Result<Exchange, Error> {
        let secure = api_url(reference, false)?;
        let plain = is_loopback(&secure) || is_listed(&settings.insecure_hosts, &secure);
        let own = api_url(reference, plain)?;
        let mut insecure_hosts = settings.insecure_hosts.clone();
        let base = match &host.root {
            None => own.clone(),
            Some(root) => {
                if root.scheme() == "http" {
                    let port = root.port_or_known_default().unwrap_or_default();
                    insecure_hosts.push(format!("{}:{port}", root.host_str().unwrap_or_default()));
                }
                let mut base = root.clone();
                let path = root.path().trim_end_matches('/');
                base.set_path(&format!("{path}/{}/", reference.repository()));
                base
            }
        };
        let is_itself = shown_host(&base) == shown_host(&own);
        let auth = match (is_itself, &settings.credentials) {
            (true, source) => Auth::new(reference, source.clone(), base.clone()),
            (false, source) => match (named_by(&base, reference.repository()), source) {
                (Some(named), Source::Files(_) | Source::Own { .. }) => {
                    Auth::new(&named, source.clone(), base.clone())
                }
                _ => Auth::new(reference, Source::Anonymous, base.clone()),
            },
        };
        Ok(Exchange {
            auth,
            repository: reference.repository().into(),
            insecure_hosts,
            http: Http::new(settings, host, &base)?,
            stands_for: (!is_itself).then(|| reference.registry().to_owned()),
            base,
        })
    }

    /// The registry's host, for messages.
    pub(super) fn host(&self) -> String {
        shown_host(&self.base)
    }

    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// Asks for `path` below the repository, as in `manifests/latest`, or for a URL that the registry
    /// itself named. The answer has a status of 2xx, or 4xx and 5xx; it is of the registry itself or
    /// of where it redirects to.
    pub(super) async fn get(&self, path: &str, ask: Ask<'_>) -> Result<Found, Error> {
        let mut url = self.base.join(path).map_err(|e| {
            let what = format!("`{path}` is not a name that can be asked for");
            Error::new(ErrorKind::Unsupported, what).with_source(e)
        })?;
        if let Some(registry) = &self.stands_for {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        let allows = |url: &Url| self.allows(url);
        let gate = Gate {
            http: &self.http,
            allows: &allows,
        };
        let rights = if ask.push { "pull,push" } else { "pull" };
        let mut scope = match ask.login {
            true => String::new(),
            false => format!("repository:{}:{rights}", self.repository),
        };
        if let Some(other) = ask.other_repository {
            scope.push_str(&format!(" repository:{other}:pull"));
        }
        let ticket = self.auth.ticket(&scope, &gate).await?;
        let found = self.follow(&url, ask, &ticket).await?;
        let headers = found.answer.headers("www-authenticate");
        let challenge = Challenge::parse(headers.iter().map(String::as_str));
        let renewable = ticket.may_be_renewed(found.answer.status(), challenge.is_some());
        if found.elsewhere.is_some() || !renewable {
            return Ok(found);
        }
        match self.auth.renew(&scope, &ticket, challenge, &gate).await? {
            Ok(ticket) => {
                // Read to its end, so that its connection serves the next request.
                found.answer.drain().await;
                self.follow(&url, ask, &ticket).await
            }
            Err(None) => Ok(found),
            Err(Some(problem)) => {
                let mut error = status::error(found.answer, &self.repository).await;
                error.message = format!("{}; {problem}", error.message);
                Err(error)
            }
        }
    }

    /// Whether the registry has asked who we are, at the last request with `login`.
    pub(super) async fn was_asked(&self) -> Result<bool, Error> {
        let allows = |url: &Url| self.allows(url);
        let gate = Gate {
            http: &self.http,
            allows: &allows,
        };
        Ok(self.auth.ticket("", &gate).await?.header.is_some())
    }

    /// Asks a URL that is not the registry's: no credentials.
    pub(super) async fn get_elsewhere(&self, url: &Url, ask: Ask<'_>) -> Result<Answer, Error> {
        Ok(self.follow(url, ask, &Ticket::default()).await?.answer)
    }

    async fn follow(&self, url: &Url, ask: Ask<'_>, ticket: &Ticket) -> Result<Found, Error> {
        let mut url = url.clone();
        for _ in 0..=HOPS_MAX {
            if !self.allows(&url) {
                let what = format!("{} leads to {}: refused", self.host(), shown_host(&url));
                return Err(Error::new(
                    ErrorKind::Protocol,
                    format!("{what} (no TLS, or not HTTP)"),
                ));
            }
            let own = same_origin(&self.base, &url);
            let authorization = ticket.header.as_ref().filter(|_| own);
            let request = Request {
                method: ask.method,
                payload: ask.payload,
                authorization,
                accept: ask.accept,
                range: ask.range,
                form: None,
                work: ask.work,
            };
            let answer = self.http.send(&url, request).await?;
            let target = match answer.status() {
                301 | 302 | 303 | 307 | 308 => answer.header("location").map(|l| url.join(l)),
                _ => None,
            };
            let Some(target) = target else {
                return Ok(Found {
                    answer,
                    elsewhere: (!own).then_some(url),
                });
            };
            url = target.map_err(|e| {
                let what = format!("{}: a redirect that is not a URL", answer.host());
                Error::new(ErrorKind::Protocol, what).with_source(e)
            })?;
            // A name and password in the URL would become an Authorization header.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            answer.drain().await;
        }
        let what = format!("{}: more than {HOPS_MAX} redirects", self.host());
        Err(Error::new(ErrorKind::Protocol, what))
    }

    /// HTTPS always; plain HTTP to hosts that are listed, and to loopback when the registry is
    /// there itself (a distant registry has no business with this machine's own services).
    fn allows(&self, url: &Url) -> bool {
        match url.scheme() {
            "https" => true,
            "http" => {
                is_listed(&self.insecure_hosts, url)
                    || (is_loopback(url) && is_loopback(&self.base))
            }
            _ => false,
        }
    }
}

/// The repository under the name of the host of `base`. `None` for a host that cannot stand in a name,
/// as one without a dot and without a port: that would be taken for a part of a repository of Docker
/// Hub, and get what is stored for that.
fn named_by(base: &Url, repository: &str) -> Option<Reference> {
    let host = shown_host(base);
    let named: Reference = format!("{host}/{repository}").parse().ok()?;
    (named.registry() == host).then_some(named)
}

fn is_listed(hosts: &[String], url: &Url) -> bool {
    let name = url.host_str().unwrap_or_default();
    let with_port = format!("{name}:{}", url.port_or_known_default().unwrap_or_default());
    hosts
        .iter()
        .any(|h| h.eq_ignore_ascii_case(name) || h.eq_ignore_ascii_case(&with_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_only_ever_named_as_itself() {
        let registry = |base: &str| {
            let named = named_by(&Url::parse(base).unwrap(), "library/x")?;
            assert_eq!(named.repository(), "library/x");
            Some(named.registry().to_owned())
        };
        for (base, host) in [
            ("https://mirror.example/v2/", "mirror.example"),
            ("http://mirror:5000/v2/", "mirror:5000"),
            ("https://localhost/v2/", "localhost"),
            ("http://[::1]:5000/v2/", "[::1]:5000"),
        ] {
            assert_eq!(registry(base).as_deref(), Some(host), "{base}");
        }
        for base in ["https://mirror/v2/", "https://index.docker.io/v2/"] {
            assert_eq!(registry(base), None, "{base}");
        }
    }
}
