//! Authorization: what to send with a request, and how it is renewed.
//!
//! A *ticket* is the value of the `Authorization` header for one scope. The first request goes
//! without; the registry's challenge says how to get one. Renewal happens under a lock per scope,
//! and each ticket has a number: whoever comes to renew a ticket that was renewed meanwhile gets the
//! new one, so that any number of waiting readers costs one token request. A token that is about to
//! expire is renewed before it is used.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;
use url::Url;

use super::challenge::Challenge;
use super::credentials::{self, Credentials, Source};
use super::http::{Http, Request};
use super::redirect::shown_host;
use super::secret::Secret;
use super::status;
use super::token::{TOKEN_BYTES_MAX, Token, TokenRequest};
use crate::blob::{Error, ErrorKind};
use crate::oci::Reference;

/// A token with less life left is renewed first, because the request has to travel; or with less
/// than a quarter, so that a short-lived one is used at all.
const LIFE_MARGIN: Duration = Duration::from_secs(5);
/// Some registries say 403 to an expired token, without a challenge. A token that is younger than
/// this has not expired, so a 403 then means what it says.
const FORBIDDEN_AGE: Duration = Duration::from_secs(60);

/// What one request is sent with.
#[derive(Debug, Clone, Default)]
pub(super) struct Ticket {
    /// `None` for nothing at all.
    pub(super) header: Option<Secret>,
    number: u64,
    since: Option<Instant>,
    /// When to renew it; `None` for what does not expire.
    until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Grant {
    ticket: Ticket,
    challenge: Option<Challenge>,
    /// Why there were no credentials, for the error if they turn out to be needed.
    problem: Option<String>,
}

/// The tickets of one repository, by scope.
#[derive(Debug)]
pub(super) struct Auth {
    reference: Reference,
    source: Source,
    /// The registry, which a relative realm is relative to.
    base: Url,
    grants: Mutex<HashMap<String, Arc<AsyncMutex<Grant>>>>,
}

impl Ticket {
    fn is_stale(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Whether an answer of this status, with or without a challenge, may mean that the ticket is
    /// missing or has expired.
    pub(super) fn may_be_renewed(&self, status: u16, challenged: bool) -> bool {
        let is_old = self
            .since
            .is_some_and(|since| since.elapsed() >= FORBIDDEN_AGE);
        match status {
            401 => challenged || self.header.is_some(),
            403 => challenged || self.is_stale() || is_old,
            _ => false,
        }
    }
}

impl Auth {
    pub(super) fn new(reference: &Reference, source: Source, base: Url) -> Auth {
        Auth {
            reference: reference.clone(),
            source,
            base,
            grants: Mutex::default(),
        }
    }

    /// The ticket to try first.
    pub(super) async fn ticket(&self, scope: &str, at: &Gate<'_>) -> Result<Ticket, Error> {
        let grant = self.grant(scope);
        let mut grant = grant.lock().await;
        if grant.ticket.is_stale() && grant.challenge.is_some() {
            self.renew_locked(&mut grant, scope, at).await?;
        }
        Ok(grant.ticket.clone())
    }

    /// Another ticket than `used`, which was refused; `None` when there is no other, with the
    /// reason if it is known.
    pub(super) async fn renew(
        &self,
        scope: &str,
        used: &Ticket,
        challenge: Option<Challenge>,
        at: &Gate<'_>,
    ) -> Result<Result<Ticket, Option<String>>, Error> {
        let grant = self.grant(scope);
        let mut grant = grant.lock().await;
        if grant.ticket.number != used.number {
            return Ok(Ok(grant.ticket.clone()));
        }
        grant.challenge = challenge.or(grant.challenge.take());
        self.renew_locked(&mut grant, scope, at).await?;
        let is_new = grant.ticket.header.is_some()
            && (grant.ticket.until.is_some() || grant.ticket.header != used.header);
        Ok(if is_new {
            Ok(grant.ticket.clone())
        } else {
            Err(grant.problem.clone())
        })
    }

    fn grant(&self, scope: &str) -> Arc<AsyncMutex<Grant>> {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.entry(scope.into()).or_default().clone()
    }

    async fn renew_locked(
        &self,
        grant: &mut Grant,
        scope: &str,
        at: &Gate<'_>,
    ) -> Result<(), Error> {
        let Some(challenge) = grant.challenge.clone() else {
            return Ok(());
        };
        let credentials = match self.source.find(&self.reference).await {
            Ok(found) => {
                grant.problem = None;
                found
            }
            Err(error) => {
                tracing::warn!(%error, "going on without credentials");
                grant.problem = Some(error.to_string());
                None
            }
        };
        let (header, life) = match challenge {
            Challenge::Basic => (credentials.as_ref().and_then(credentials::basic), None),
            Challenge::Bearer {
                realm,
                service,
                scope: asked,
            } => {
                let realm = self.realm(&realm, at)?;
                let scope = asked.as_deref().unwrap_or(scope);
                let request =
                    TokenRequest::new(realm, service.as_deref(), scope, credentials.as_ref());
                let token = fetch(&request, at, credentials.as_ref()).await?;
                (Some(token.value), Some(token.life))
            }
        };
        let now = Instant::now();
        grant.ticket = Ticket {
            header,
            number: grant.ticket.number + 1,
            since: Some(now),
            until: life.map(|life| now + life - LIFE_MARGIN.min(life / 4)),
        };
        Ok(())
    }

    /// The token server's URL; it sees passwords, so plain HTTP only where the registry may.
    fn realm(&self, realm: &str, at: &Gate<'_>) -> Result<Url, Error> {
        let host = shown_host(&self.base);
        let url = self.base.join(realm).map_err(|e| {
            let what = format!("{host} names a token server that is not a URL");
            Error::new(ErrorKind::Protocol, what).with_source(e)
        })?;
        if !(at.allows)(&url) {
            let server = shown_host(&url);
            let what = format!("{host} wants credentials sent to {server} without TLS: refused");
            return Err(Error::new(ErrorKind::Denied, what));
        }
        Ok(url)
    }
}

/// The way to the outside: the client, and which URLs may be asked.
pub(super) struct Gate<'a> {
    pub(super) http: &'a Http,
    pub(super) allows: &'a (dyn Fn(&Url) -> bool + Send + Sync),
}

async fn fetch(
    request: &TokenRequest,
    at: &Gate<'_>,
    credentials: Option<&Credentials>,
) -> Result<Token, Error> {
    let (authorization, form) = (request.authorization.as_ref(), request.form.as_ref());
    let ask = Request {
        authorization,
        form,
        ..Request::default()
    };
    let answer = at.http.send(&request.url, ask).await?;
    let host = answer.host().to_owned();
    match (answer.status(), credentials) {
        (200, _) => {}
        (400 | 401 | 403, Some(_)) => {
            let what = format!("{host} does not accept the stored credentials: log in again");
            return Err(Error::new(ErrorKind::Denied, what));
        }
        _ => return Err(status::error(answer, "a token").await),
    }
    let bytes = answer
        .read(TOKEN_BYTES_MAX, &format!("the token from {host}"))
        .await?;
    Token::parse(&bytes).map_err(|why| {
        Error::new(
            ErrorKind::Protocol,
            format!("{host} gives no usable token: {why}"),
        )
    })
}
