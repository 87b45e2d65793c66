//! Unhappy answers as errors: what the status means, what the registry says about it, and what to
//! do.
//!
//! Error documents: OCI distribution-spec, "Error Codes".

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::http::Answer;
use crate::blob::{Error, ErrorKind};

/// No server's wish to wait is believed beyond a day.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// How much of the registry's own words is shown, in characters.
const WORDS_MAX: usize = 200;

/// Turns an answer into an error about `what`, as in `library/ubuntu:latest`.
pub(super) async fn error(answer: Answer, what: &str) -> Error {
    let (status, host) = (answer.status(), answer.host().to_owned());
    let wait = answer
        .header("retry-after")
        .and_then(|v| retry_after(v, SystemTime::now()));
    let limit = if status == 429 {
        rate_limit(&answer)
    } else {
        String::new()
    };
    let words = words(&answer.drain().await);
    let (kind, message) = match status {
        401 => (
            ErrorKind::Denied,
            format!("{host} does not give out {what}: check the name, or log in{words}"),
        ),
        403 => (
            ErrorKind::Denied,
            format!("{host} refuses {what}: log in as somebody who may read it{words}"),
        ),
        404 | 410 => (
            ErrorKind::NotFound,
            format!("{host} has no {what}: check the name{words}"),
        ),
        416 => (
            ErrorKind::Corrupt,
            format!("{what} is shorter at {host} than its manifest says{words}"),
        ),
        429 => (
            ErrorKind::Transient,
            format!("{host}: too many requests{limit}{words}"),
        ),
        408 | 425 | 500 | 502..=504 | 506..=599 => (
            ErrorKind::Transient,
            format!("{host} has trouble with {what} (HTTP {status}){words}"),
        ),
        300..=399 => (
            ErrorKind::Protocol,
            format!("{host}: a redirect of {what} that leads nowhere"),
        ),
        _ => {
            let message = format!("{host}: unexpected answer to {what} (HTTP {status}){words}");
            (ErrorKind::Protocol, message)
        }
    };
    Error::new(kind, message).with_retry_after(wait)
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        value.parse().map_or(RETRY_AFTER_MAX, Duration::from_secs)
    } else {
        httpdate::parse_http_date(value)
            .ok()?
            .duration_since(now)
            .unwrap_or_default()
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// Docker Hub's pull limit: `ratelimit-limit: 100;w=21600` (in seconds).
fn rate_limit(answer: &Answer) -> String {
    let number = |name: &str| {
        let value = answer.header(name)?;
        value.split(';').next()?.trim().parse::<u64>().ok()
    };
    let window = answer.header("ratelimit-limit").and_then(|v| {
        let seconds = v.split(';').find_map(|p| p.trim().strip_prefix("w="))?;
        seconds.parse::<u64>().ok()
    });
    let per = window
        .map(|s| format!(" in {} h", s.div_ceil(3600)))
        .unwrap_or_default();
    match (number("ratelimit-limit"), number("ratelimit-remaining")) {
        (Some(limit), Some(left)) => {
            format!(" ({left} of {limit} pulls left{per}; logging in raises the limit)")
        }
        (Some(limit), None) => {
            format!(" ({limit} pulls allowed{per}; logging in raises the limit)")
        }
        _ => String::new(),
    }
}

/// The first error of an error document, made safe for a terminal; empty when there is none.
fn words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Document {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else {
        return String::new();
    };
    let Some(item) = document.errors.into_iter().next() else {
        return String::new();
    };
    let said = if item.message.is_empty() {
        item.code
    } else {
        item.message
    };
    let said: String = said
        .chars()
        .filter(|c| !c.is_control())
        .take(WORDS_MAX)
        .collect();
    if said.is_empty() {
        said
    } else {
        format!(" (it says: {said})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_seconds_or_dates() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let wait = |v| retry_after(v, now).map(|d| d.as_secs());
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(wait("Sun, 06 Nov 1994 08:40:37 GMT"), Some(0));
        assert_eq!(wait("99999999999999999999999"), Some(86400));
        assert_eq!((wait(""), wait("-5"), wait("soon")), (None, None, None));
    }

    #[test]
    fn the_registrys_words_are_made_safe() {
        let body = br#"{"errors":[{"code":"X","message":"no\u001b[31m red"}]}"#;
        assert_eq!(words(body), " (it says: no[31m red)");
        assert_eq!(
            words(br#"{"errors":[{"code":"DENIED"}]}"#),
            " (it says: DENIED)"
        );
        assert_eq!(words(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(9999));
        assert!(words(long.as_bytes()).len() < 250);
    }
}
