//! Unhappy answers: what becomes of them, and that none of them takes long or much.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::server::Body;
use super::*;

async fn refusal(reply: Reply) -> Error {
    let server = Server::start(move |_| reply.clone()).await;
    let retry = Policy {
        attempts: 1,
        ..settings().retry
    };
    registry_with(
        &server,
        Settings {
            retry,
            ..settings()
        },
    )
    .resolve("1")
    .await
    .unwrap_err()
}

#[tokio::test]
async fn a_busy_registry_is_obeyed() {
    let limits = |r: Reply| {
        r.with("RateLimit-Limit", "100;w=21600")
            .with("RateLimit-Remaining", "0;w=21600")
    };
    let error = refusal(limits(Reply::new(429, "").with("Retry-After", "17"))).await;
    assert_eq!(
        (error.kind, error.retry_after),
        (ErrorKind::Transient, Some(Duration::from_secs(17)))
    );
    assert!(
        error.message.contains("0 of 100 pulls left in 6 h"),
        "{error}"
    );
    let at = AtomicUsize::new(0);
    let server = Server::start(move |_| match at.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(429, "").with("Retry-After", "1"),
        1 => Reply::new(503, ""),
        _ => Reply::new(200, "{}"),
    })
    .await;
    let started = Instant::now();
    registry(&server).resolve("1").await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn statuses_become_kinds_with_advice() {
    for (status, kind, words) in [
        (404, ErrorKind::NotFound, "check the name"),
        (401, ErrorKind::Denied, "log in"),
        (403, ErrorKind::Denied, "log in"),
        (500, ErrorKind::Transient, "HTTP 500"),
        (418, ErrorKind::Protocol, "HTTP 418"),
        (304, ErrorKind::Protocol, "redirect"),
    ] {
        let error = refusal(Reply::new(status, "")).await;
        assert_eq!(error.kind, kind, "{error}");
        assert!(
            error.message.contains(words) && !error.message.contains('\n'),
            "{error}"
        );
    }
}

#[tokio::test]
async fn nobody_home_is_said_so() {
    let port = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let ask = |name: String| async move {
        let registry = Registry::new(&name.parse().unwrap(), settings()).unwrap();
        registry.resolve("1").await.unwrap_err()
    };
    let refused = ask(format!("{port}/x")).await;
    assert!(
        refused.is_transient() && refused.message.contains("refuses connections"),
        "{refused}"
    );
    let unknown = ask("nobody.invalid.localhost:1/x".into()).await;
    assert!(unknown.is_transient(), "{unknown}");
}

#[tokio::test]
async fn a_server_without_tls_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut connection, _) = listener.accept().await.unwrap();
        let _ = connection.read(&mut [0; 4096]).await;
        let _ = connection
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await;
    });
    let url = Url::parse(&format!("https://{host}/v2/")).unwrap();
    let http = super::super::http::Http::new(&settings(), &hosts::Host::plain(), &url).unwrap();
    let error = http
        .send(&url, super::super::http::Request::default())
        .await
        .unwrap_err();
    assert!(
        error.message.contains("does not speak TLS"),
        "{error} {:?}",
        error.source
    );
}

#[tokio::test]
async fn huge_and_endless_answers_are_cut() {
    let huge = refusal(Reply::new(200, "").body(Body::Short(5 << 20, Vec::new()))).await;
    assert!(
        huge.kind == ErrorKind::Protocol && huge.message.contains("longer than"),
        "{huge}"
    );
    let endless = refusal(Reply::new(200, "").body(Body::Endless)).await;
    assert!(
        endless.message.contains("longer than 4194304 bytes"),
        "{endless}"
    );
    let started = Instant::now();
    assert_eq!(
        refusal(Reply::new(404, "").body(Body::Endless)).await.kind,
        ErrorKind::NotFound
    );
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn manifests_have_the_digest_that_was_asked_for() {
    let server = Server::start(|_| {
        Reply::new(200, "{}").with("Docker-Content-Digest", Digest::of(b"a lie").to_string())
    })
    .await;
    let registry = registry(&server);
    assert_eq!(
        registry.resolve("1").await.unwrap().digest,
        Digest::of(b"{}")
    );
    registry
        .resolve(&Digest::of(b"{}").to_string())
        .await
        .unwrap();
    let error = registry
        .resolve(&Digest::of(b"a lie").to_string())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
    for bad in ["", "../x", "a/b", "a?b", "sha256:12"] {
        assert_eq!(
            registry.resolve(bad).await.unwrap_err().kind,
            ErrorKind::Unsupported,
            "{bad}"
        );
    }
    assert_eq!(server.requests().len(), 3);
    let accept = server.requests()[0].header("accept").unwrap().to_owned();
    assert!(
        crate::oci::descriptor::MANIFEST_MEDIA_TYPES
            .iter()
            .all(|t| accept.contains(t))
    );
}

#[tokio::test]
async fn ca_files_are_read_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let attempt = |path: PathBuf| {
        let ca_files = vec![path];
        Registry::new(
            &"h.io/x".parse().unwrap(),
            Settings {
                ca_files,
                ..settings()
            },
        )
        .unwrap_err()
    };
    assert!(
        attempt(path.clone())
            .message
            .contains("cannot use the CA file")
    );
    std::fs::write(&path, "no certificate").unwrap();
    assert!(attempt(path).message.contains("holds no certificate"));
}

#[tokio::test]
async fn plain_http_is_for_loopback_and_listed_hosts() {
    let base = |name: &str, listed: &[&str]| {
        let insecure_hosts = listed.iter().map(|h| String::from(*h)).collect();
        let with = Settings {
            insecure_hosts,
            ..settings()
        };
        let registry = Registry::new(&name.parse().unwrap(), with).unwrap();
        format!("{:?}", registry.mirrors).contains("scheme: \"http\"")
    };
    assert!(base("localhost:5000/x", &[]) && base("[::1]:5/x", &[]) && base("127.0.0.1/x", &[]));
    assert!(base("h.io/x", &["H.io"]) && base("h.io:5000/x", &["h.io:5000"]));
    assert!(!base("h.io/x", &[]) && !base("h.io:5001/x", &["h.io:5000"]) && !base("x", &[]));
    let hub = api_url(&"ubuntu".parse().unwrap(), false).unwrap();
    assert_eq!(
        hub.as_str(),
        "https://registry-1.docker.io/v2/library/ubuntu/"
    );
}
