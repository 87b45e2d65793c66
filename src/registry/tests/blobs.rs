//! Blobs by range: what the server may do to them, and how streams go on.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::server::Body;
use super::*;
use crate::blob::retry::Retry;

/// Answers the first requests with `replies` in turn, then as a good server.
async fn planned(replies: Vec<Reply>) -> Server {
    let at = AtomicUsize::new(0);
    Server::start(move |r| {
        let planned = replies.get(at.fetch_add(1, Ordering::SeqCst));
        planned.cloned().unwrap_or_else(|| Reply::part(r, TEXT))
    })
    .await
}

fn ranges(server: &Server) -> Vec<String> {
    let range = |r: &server::Request| r.header("range").unwrap_or("-").to_owned();
    server.requests().iter().map(range).collect()
}

#[tokio::test]
async fn ranges_are_asked_for_and_the_whole_is_not() {
    let server = planned(vec![]).await;
    let blob = registry(&server).blob(&text());
    assert_eq!(read(&blob, 4, 9).await.unwrap(), b"quick");
    assert_eq!(read(&blob, 0, blob.size()).await.unwrap(), TEXT);
    assert_eq!(read(&blob, 7, 7).await.unwrap(), b"");
    assert_eq!(ranges(&server), ["bytes=4-8", "-"]);
    let outside = read(&blob, 40, 44).await.unwrap_err();
    assert_eq!(outside.kind, ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_forward() {
    let server = planned(vec![Reply::new(200, TEXT)]).await;
    let blob = registry(&server).blob(&text());
    assert_eq!(read(&blob, 4, 9).await.unwrap(), b"quick");
    assert!(blob.ignores_ranges());
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn wrong_parts_are_refused() {
    let part = |range: &str| Reply::new(206, "quick").with("Content-Range", range);
    for (reply, kind) in [
        (part("bytes 5-9/43"), ErrorKind::Protocol),
        (part("bytes 4-9/43"), ErrorKind::Protocol),
        (part("bytes 4-8/44"), ErrorKind::Corrupt),
        (part("nonsense"), ErrorKind::Protocol),
        (Reply::new(206, "quick"), ErrorKind::Protocol),
        (
            part("bytes 4-8/43").with("Content-Encoding", "gzip"),
            ErrorKind::Protocol,
        ),
        (
            Reply::new(206, "quick!").with("Content-Range", "bytes 4-8/43"),
            ErrorKind::Protocol,
        ),
        (Reply::new(200, "too short"), ErrorKind::Corrupt),
        (Reply::new(416, ""), ErrorKind::Corrupt),
        (Reply::new(404, ""), ErrorKind::NotFound),
        (Reply::new(204, ""), ErrorKind::Protocol),
    ] {
        let server = planned(vec![reply.clone()]).await;
        let blob = registry(&server).blob(&text());
        let error = read(&blob, 4, 9).await.expect_err(&format!("{reply:?}"));
        assert_eq!(error.kind, kind, "{error}");
    }
}

#[tokio::test]
async fn a_broken_body_goes_on_where_it_stopped() {
    let cut = |from: usize, to: usize, bytes: &str| {
        Reply::new(206, "")
            .with("Content-Range", format!("bytes {from}-{}/43", to - 1))
            .body(Body::Short(to - from, bytes.into()))
    };
    let server = planned(vec![
        cut(4, 15, "qui"),
        Reply::new(500, ""),
        // Less than asked for, and honest about it.
        Reply::new(206, "ck ").with("Content-Range", "bytes 7-9/43"),
    ])
    .await;
    let blob = Retry::new(registry(&server).blob(&text()), settings().retry);
    assert_eq!(read(&blob, 4, 15).await.unwrap(), b"quick brown");
    assert_eq!(
        ranges(&server),
        ["bytes=4-14", "bytes=7-14", "bytes=7-14", "bytes=10-14"]
    );
}

#[tokio::test]
async fn a_silent_body_is_given_up_and_taken_up() {
    let server = planned(vec![Reply::new(200, "").body(Body::Silence)]).await;
    let blob = registry(&server).blob(&text());
    let error = read(&blob, 0, 3).await.unwrap_err();
    assert!(
        error.is_transient() && error.message.contains("no answer from"),
        "{error}"
    );
    assert_eq!(read(&blob, 0, 3).await.unwrap(), b"The");
}

#[tokio::test]
async fn an_expired_location_is_asked_for_anew() {
    for status in [400, 401, 403, 404] {
        let at = AtomicUsize::new(0);
        let cdn = Server::start(move |r| match at.fetch_add(1, Ordering::SeqCst) {
            1 => Reply::new(status, "<Error>expired</Error>"),
            _ => Reply::part(r, TEXT),
        })
        .await;
        let location = cdn.url("/data?X-Amz-Expires=600");
        let server =
            Server::start(move |_| Reply::new(307, "").with("Location", location.clone())).await;
        let blob = registry(&server).blob(&text());
        for _ in 0..3 {
            assert_eq!(read(&blob, 4, 9).await.unwrap(), b"quick");
        }
        assert_eq!((server.requests().len(), cdn.requests().len()), (2, 4));
    }
}

#[tokio::test]
async fn a_location_past_its_time_is_not_tried() {
    let cdn = Server::start(|r| Reply::part(r, TEXT)).await;
    let location = cdn.url("/data?X-Amz-Expires=1");
    let server =
        Server::start(move |_| Reply::new(302, "").with("Location", location.clone())).await;
    let blob = registry(&server).blob(&text());
    for _ in 0..2 {
        read(&blob, 4, 9).await.unwrap();
    }
    assert_eq!((server.requests().len(), cdn.requests().len()), (2, 2));
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start(|_| Reply::new(307, "").with("Location", "round")).await;
    let error = read(&registry(&server).blob(&text()), 0, 3)
        .await
        .unwrap_err();
    assert!(error.message.contains("more than 5 redirects"), "{error}");
    assert_eq!(server.requests().len(), 6);
    for bad in [
        "http://example.com/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
    ] {
        let server = Server::start(move |_| Reply::new(307, "").with("Location", bad)).await;
        let error = read(&registry(&server).blob(&text()), 0, 3)
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    }
}

#[tokio::test]
async fn foreign_layers_are_found_elsewhere_without_credentials() {
    let elsewhere = Server::start(|r| Reply::part(r, TEXT)).await;
    let server = Server::start(|r| match r.header("authorization") {
        Some(_) => Reply::new(404, ""),
        None => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
    })
    .await;
    let with = Settings {
        credentials: password("u", "p"),
        ..settings()
    };
    let mut descriptor = text();
    descriptor.urls = vec![
        "nonsense".into(),
        server.url("/no"),
        elsewhere.url("/layer"),
    ];
    let blob = registry_with(&server, with).blob(&descriptor);
    assert_eq!(read(&blob, 4, 9).await.unwrap(), b"quick");
    assert_eq!(elsewhere.requests()[0].header("authorization"), None);
}

#[tokio::test]
async fn small_blobs_are_verified() {
    let server = planned(vec![]).await;
    let registry = registry(&server);
    assert_eq!(&registry.blob_bytes(&text(), 43).await.unwrap()[..], TEXT);
    let error = registry.blob_bytes(&text(), 42).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    let mut other = text();
    other.digest = Digest::of(b"something else");
    let error = registry.blob_bytes(&other, 43).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
}
