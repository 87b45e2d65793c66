//! The HTTP client: one request, one answer, with bounds on time and length. With `certificates`
//! the only file that names reqwest; it knows nothing of registries.
//!
//! Redirects are not followed here, nothing is decompressed and nothing is tried again: whoever
//! calls has to see every answer. Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`, …),
//! but never stand before loopback. Connections are shared; HTTP/2 windows adapt, since the fixed
//! ones of 64 KiB would hold one stream to 64 KiB a round trip.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, RANGE,
};
use url::Url;

use super::certificates;
use super::hosts::Host;
use super::redirect::{is_loopback, same_origin, shown_host};
use super::secret::Secret;
use super::{Settings, Timeouts};
use crate::blob::{ByteRange, ByteStream, Error, ErrorKind};

/// Longest body of an answer that is not what was hoped for, in bytes. Error documents have some
/// hundred bytes.
pub(super) const ERROR_BYTES_MAX: u64 = 64 << 10;
/// How long such a body may take; then the connection is dropped.
const ERROR_TIME_MAX: Duration = Duration::from_secs(2);
/// The slowest link that an upload is waited for on.
const UPLOAD_BYTES_PER_SECOND: u64 = 32 << 10;
/// The slowest registry that is waited for when it has to go through what it was sent: some hash it
/// again, some copy it from one object store to another, before they answer.
const WORK_BYTES_PER_SECOND: u64 = 4 << 20;

/// What is done to a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Patch,
}

/// Bytes that a request brings, and what they are.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

/// A request; POST when there is a form.
#[derive(Debug, Default)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) payload: Option<&'a Payload>,
    pub(super) authorization: Option<&'a Secret>,
    pub(super) accept: Option<&'a str>,
    pub(super) range: Option<ByteRange>,
    pub(super) form: Option<&'a Secret>,
    /// What the registry has to go through before it answers, in bytes.
    pub(super) work: u64,
}

impl From<Method> for reqwest::Method {
    fn from(method: Method) -> reqwest::Method {
        match method {
            Method::Get => reqwest::Method::GET,
            Method::Head => reqwest::Method::HEAD,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            Method::Patch => reqwest::Method::PATCH,
        }
    }
}

/// Makes connections; clients are built when first needed, because that reads certificates.
#[derive(Debug)]
pub(super) struct Http {
    timeouts: Timeouts,
    certificates: Vec<reqwest::Certificate>,
    /// What proves who we are, where a host asks for it.
    identity: Option<reqwest::Identity>,
    skip_verify: bool,
    /// Headers that are sent to one origin.
    origin: Url,
    headers: HeaderMap,
    outside: OnceLock<reqwest::Client>,
    loopback: OnceLock<reqwest::Client>,
}

/// The head of an answer, and its body still on the way.
#[derive(Debug)]
pub(super) struct Answer {
    response: reqwest::Response,
    host: String,
    pace: Pace,
}

/// The bounds of a body: how long it may be silent, and how slow it may be.
#[derive(Debug, Clone, Copy)]
struct Pace {
    idle: Duration,
    slowest: u64,
    /// Time that was spent waiting for the bytes since the last look. What a reader does with them
    /// meanwhile does not count.
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(timeouts: &Timeouts) -> Pace {
        Pace {
            idle: timeouts.idle,
            slowest: timeouts.slowest,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Counts a piece; whether they come too slowly.
    fn is_too_slow(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < self.idle {
            return false;
        }
        let least = self.waited.as_secs_f64() * self.slowest as f64;
        let slow = (self.bytes as f64) < least;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        slow
    }
}

impl Http {
    /// A client for `host`, whose API is at `origin`.
    pub(super) fn new(settings: &Settings, host: &Host, origin: &Url) -> Result<Http, Error> {
        let mut certificates = Vec::new();
        for path in settings.ca_files.iter().chain(&host.tls.ca_files) {
            certificates.extend(certificates::authorities(path)?);
        }
        let identity = host.tls.client.as_ref();
        let identity = identity.map(|(file, key)| certificates::identity(file, key));
        let mut timeouts = settings.timeouts;
        timeouts.connect = host.connect.unwrap_or(timeouts.connect);
        Ok(Http {
            timeouts,
            certificates,
            identity: identity.transpose()?,
            skip_verify: host.tls.skip_verify,
            origin: origin.clone(),
            headers: header_map(&host.headers)?,
            outside: OnceLock::new(),
            loopback: OnceLock::new(),
        })
    }

    /// Sends a request and waits for the head of the answer, whatever its status.
    pub(super) async fn send(&self, url: &Url, request: Request<'_>) -> Result<Answer, Error> {
        let host = shown_host(url);
        let client = self.client(is_loopback(url))?;
        let mut builder = match request.form {
            Some(form) => client
                .post(url.clone())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.expose().to_owned()),
            None => client.request(request.method.into(), url.clone()),
        };
        if let Some(payload) = request.payload {
            builder = builder
                .header(CONTENT_TYPE, &payload.media_type)
                .body(payload.bytes.clone());
        }
        if same_origin(&self.origin, url) {
            builder = builder.headers(self.headers.clone());
        }
        builder = builder.header(ACCEPT_ENCODING, "identity");
        if let Some(authorization) = request.authorization {
            let mut value = HeaderValue::from_str(authorization.expose()).map_err(|e| {
                let what = format!("the credentials for {host} have characters no header can hold");
                Error::new(ErrorKind::Denied, what).with_source(e)
            })?;
            value.set_sensitive(true);
            // In place of one that was configured, not beside it.
            builder = builder.headers(HeaderMap::from_iter([(AUTHORIZATION, value)]));
        }
        if let Some(accept) = request.accept {
            builder = builder.header(ACCEPT, accept);
        }
        if let Some(range) = request.range.filter(|range| !range.is_empty()) {
            let bytes = format!("{}-{}", range.start(), range.end() - 1);
            builder = match request.method {
                // A piece of an upload (OCI distribution-spec: without the unit).
                Method::Patch => builder.header(CONTENT_RANGE, bytes),
                _ => builder.header(RANGE, format!("bytes={bytes}")),
            };
        }
        tracing::debug!(%host, path = url.path(), range = ?request.range, "request");
        let sent = request
            .payload
            .map_or(0, |payload| payload.bytes.len() as u64);
        let patience = patience(self.timeouts.header, sent, request.work);
        match tokio::time::timeout(patience, builder.send()).await {
            Ok(Ok(response)) => Ok(Answer {
                response,
                host,
                pace: Pace::new(&self.timeouts),
            }),
            Ok(Err(error)) => Err(unreachable(&host, error)),
            Err(_) => Err(silent(&host, patience)),
        }
    }

    fn client(&self, loopback: bool) -> Result<&reqwest::Client, Error> {
        let place = if loopback {
            &self.loopback
        } else {
            &self.outside
        };
        if let Some(client) = place.get() {
            return Ok(client);
        }
        let client = self.build(loopback).map_err(|e| {
            Error::new(
                ErrorKind::Unsupported,
                "cannot set up TLS: no usable root certificates",
            )
            .with_source(e)
        })?;
        Ok(place.get_or_init(|| client))
    }

    fn build(&self, loopback: bool) -> reqwest::Result<reqwest::Client> {
        // An error means that a provider is there already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("rsmount/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .http2_adaptive_window(true)
                .tcp_keepalive(Duration::from_secs(30))
                .connect_timeout(self.timeouts.connect)
                .tls_danger_accept_invalid_certs(self.skip_verify);
            let builder = match &self.identity {
                Some(identity) => builder.identity(identity.clone()),
                None => builder,
            };
            if loopback {
                builder.no_proxy()
            } else {
                builder
            }
        };
        let trusting = builder().tls_certs_merge(self.certificates.iter().cloned());
        // A machine without root certificates can still speak to plain HTTP registries, and to
        // those whose certificates are given.
        trusting.build().or_else(|_| {
            builder()
                .tls_certs_only(self.certificates.iter().cloned())
                .build()
        })
    }
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// Where the answer is from, for messages.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The first value of a header, if it is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// All values of a header that are text.
    pub(super) fn headers(&self, name: &str) -> Vec<String> {
        let values = self.response.headers().get_all(name).iter();
        values
            .filter_map(|v| v.to_str().ok())
            .map(String::from)
            .collect()
    }

    /// The length of the body, when the head says it.
    pub(super) fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// The body as it arrives.
    pub(super) fn into_stream(self) -> ByteStream {
        let body = Box::pin(self.response.bytes_stream());
        let state = Some((body, self.host, self.pace));
        Box::pin(stream::unfold(state, |state| async {
            let (mut body, host, mut pace) = state?;
            let began = Instant::now();
            match tokio::time::timeout(pace.idle, body.next()).await {
                Ok(Some(Ok(bytes))) if pace.is_too_slow(began.elapsed(), bytes.len()) => {
                    Some((Err(slow(&host, pace.slowest)), None))
                }
                Ok(Some(Ok(bytes))) => Some((Ok(bytes), Some((body, host, pace)))),
                Ok(Some(Err(error))) => Some((Err(unreachable(&host, error)), None)),
                Ok(None) => None,
                Err(_) => Some((Err(silent(&host, pace.idle)), None)),
            }
        }))
    }

    /// The whole body, of at most `max` bytes; `what` is for messages.
    pub(super) async fn read(self, max: u64, what: &str) -> Result<Bytes, Error> {
        let too_long = || {
            let message = format!("{what} is longer than {max} bytes: refused");
            Error::new(ErrorKind::Protocol, message)
        };
        if self.length().is_some_and(|length| length > max) {
            return Err(too_long());
        }
        let mut all = BytesMut::new();
        let mut body = self.into_stream();
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            if all.len() as u64 + bytes.len() as u64 > max {
                return Err(too_long());
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    /// What there is of a body that nobody hoped for. One that ends within the bounds leaves its
    /// connection usable for the next request, any other is dropped with it.
    pub(super) async fn drain(self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut body = self.into_stream();
        let read = async {
            while let Some(Ok(bytes)) = body.next().await {
                let room = (ERROR_BYTES_MAX as usize).saturating_sub(all.len());
                all.extend_from_slice(&bytes[..bytes.len().min(room)]);
                if all.len() as u64 >= ERROR_BYTES_MAX {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(ERROR_TIME_MAX, read).await;
        all
    }
}

/// How long the head of an answer may take.
fn patience(header: Duration, sent: u64, work: u64) -> Duration {
    header + Duration::from_secs(sent / UPLOAD_BYTES_PER_SECOND + work / WORK_BYTES_PER_SECOND)
}

fn header_map(headers: &[(String, Secret)]) -> Result<HeaderMap, Error> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let parsed = name.parse::<HeaderName>().ok();
        let parsed = parsed.zip(HeaderValue::from_str(value.expose()).ok());
        let (name, mut value) = parsed.ok_or_else(|| {
            let what = format!("`{}` in a hosts.toml is not a header", name.escape_debug());
            Error::new(ErrorKind::Unsupported, what)
        })?;
        value.set_sensitive(true);
        map.append(name, value);
    }
    Ok(map)
}

fn slow(host: &str, slowest: u64) -> Error {
    let message = format!("{host} gives less than {slowest} bytes a second");
    Error::new(ErrorKind::Slow, message)
}

fn silent(host: &str, waited: Duration) -> Error {
    let message = format!("no answer from {host} in {:.0} s", waited.as_secs_f64());
    Error::new(ErrorKind::Transient, message)
}

/// What kept a request or a body from arriving, in words that say what to do.
fn unreachable(host: &str, error: reqwest::Error) -> Error {
    // A URL may hold a signature.
    let error = error.without_url();
    let io = find::<std::io::Error>(&error).map(std::io::Error::kind);
    let (kind, message) = if let Some(tls) = find::<rustls::Error>(&error) {
        (ErrorKind::Protocol, tls_message(host, tls))
    } else if error.is_timeout() {
        (
            ErrorKind::Transient,
            format!("no connection to {host}: timed out"),
        )
    } else if error.is_dns() || says(&error, "dns error") {
        let message = format!("unknown host {host}: check the name and the network");
        (ErrorKind::Transient, message)
    } else if io == Some(std::io::ErrorKind::ConnectionRefused) {
        let message = format!("{host} refuses connections: is the registry up, is the port right?");
        (ErrorKind::Transient, message)
    } else if error.is_connect() {
        (
            ErrorKind::Transient,
            format!("no connection to {host}: check the network and proxies"),
        )
    } else if error.is_builder() {
        (ErrorKind::Unsupported, format!("{host} cannot be asked"))
    } else {
        (
            ErrorKind::Transient,
            format!("the connection to {host} broke"),
        )
    };
    Error::new(kind, message).with_source(error)
}

fn tls_message(host: &str, error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(_) => format!(
            "the certificate of {host} is not trusted: if it is your registry's, add its CA file"
        ),
        rustls::Error::InvalidMessage(_) => format!(
            "{host} does not speak TLS: if it is a plain HTTP registry, name it as insecure"
        ),
        _ => format!("no TLS connection to {host}"),
    }
}

/// An error and its causes. What an I/O error wraps is not its `source`, so it is looked into.
fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |e| {
        let wrapped = e
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        wrapped
            .map(|w| w as &(dyn std::error::Error + 'static))
            .or_else(|| e.source())
    })
}

fn find<T: std::error::Error + 'static>(error: &reqwest::Error) -> Option<&T> {
    chain(error).find_map(|e| e.downcast_ref::<T>())
}

fn says(error: &reqwest::Error, words: &str) -> bool {
    chain(error).any(|e| e.to_string().contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_much_to_do_gets_time_for_it() {
        let seconds = |sent, work| patience(Duration::from_secs(30), sent, work).as_secs();
        assert_eq!(seconds(0, 0), 30);
        assert_eq!(seconds(8 << 20, 0), 30 + 256);
        assert_eq!(seconds(0, 10 << 30), 30 + 2560);
    }
}
