//! Redirects: where they may lead, and how long their target is good. Pure.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use url::{Host, Url};

/// Most hops of one request: registries make one, mirrors in front of them two.
pub(super) const HOPS_MAX: usize = 5;
/// A signed URL is not used in its last seconds: clocks differ, and the request has to travel.
const MARGIN: Duration = Duration::from_secs(5);
/// How long a target is remembered that does not say when it expires: the common shortest life of
/// signed URLs. One that dies earlier is noticed by its answer.
const LIFE_DEFAULT: Duration = Duration::from_secs(300);
/// How long at most.
const LIFE_MAX: Duration = Duration::from_secs(3600);

/// Where a blob was found last.
#[derive(Debug, Clone)]
pub(super) struct Location {
    pub(super) url: Url,
    pub(super) until: Instant,
}

impl Location {
    /// The target of a redirect that was just received.
    pub(super) fn new(url: Url) -> Location {
        let life = life(&url, SystemTime::now());
        Location {
            url,
            until: Instant::now() + life,
        }
    }

    pub(super) fn is_fresh(&self) -> bool {
        Instant::now() < self.until
    }
}

/// Whether two URLs have the same scheme, host and port: the only case in which the second may see
/// credentials that are meant for the first.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.origin() == b.origin() && a.origin().is_tuple()
}

/// Whether the host is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// `host` or `host:port` of a URL: all of it that may be shown, since queries hold signatures.
pub(super) fn shown_host(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or("?").into(),
    }
}

/// How long a signed URL is good: S3's and Google's `X-…-Expires` (seconds after signing), and
/// CloudFront's `Expires` (seconds since 1970).
fn life(url: &Url, now: SystemTime) -> Duration {
    let mut life = LIFE_DEFAULT;
    for (name, value) in url.query_pairs() {
        let Ok(seconds) = value.parse::<u64>() else {
            continue;
        };
        if name.eq_ignore_ascii_case("x-amz-expires") || name.eq_ignore_ascii_case("x-goog-expires")
        {
            life = Duration::from_secs(seconds);
        } else if name == "Expires" {
            let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
            life = Duration::from_secs(seconds).saturating_sub(now);
        }
    }
    life.saturating_sub(MARGIN).min(LIFE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(s: &str) -> Url {
        Url::parse(s).unwrap()
    }

    #[test]
    fn credentials_stay_at_their_origin() {
        let base = url("https://r.io/v2/");
        assert!(same_origin(&base, &url("https://r.io:443/x")));
        for other in [
            "http://r.io/",
            "https://r.io:444/",
            "https://cdn.r.io/",
            "data:,x",
        ] {
            assert!(!same_origin(&base, &url(other)), "{other}");
        }
    }

    #[test]
    fn loopback_is_told_from_look_alikes() {
        for yes in [
            "http://localhost:5000",
            "http://127.9.9.9",
            "http://[::1]:1",
            "http://a.localhost",
        ] {
            assert!(is_loopback(&url(yes)), "{yes}");
        }
        for no in [
            "http://localhost.io",
            "http://127.0.0.1.io",
            "http://10.0.0.1",
            "http://notlocalhost",
        ] {
            assert!(!is_loopback(&url(no)), "{no}");
        }
    }

    #[test]
    fn signed_urls_say_how_long_they_are_good() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let seconds = |u: &str| life(&url(u), now).as_secs();
        assert_eq!(
            seconds("https://s3/x?X-Amz-Expires=1200&X-Amz-Signature=z"),
            1195
        );
        assert_eq!(seconds("https://cf/x?Expires=1100"), 95);
        assert_eq!(seconds("https://cf/x?Expires=900"), 0);
        assert_eq!(seconds("https://cdn/x"), 295);
        assert_eq!(
            seconds("https://s3/x?X-Amz-Expires=18446744073709551615"),
            3600
        );
    }
}
