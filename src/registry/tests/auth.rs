//! Who is told what: challenges, tokens, renewal, and where credentials never go.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn count() -> Arc<AtomicUsize> {
    Arc::default()
}

fn challenged(token_server: &Server) -> Reply {
    let realm = token_server.url("/token");
    Reply::new(401, "{}").with(
        "WWW-Authenticate",
        format!(r#"Bearer realm="{realm}",service="reg",scope="repository:library/x:pull""#),
    )
}

/// Gives out `t1`, `t2`, … and says that they live for `life` seconds.
async fn token_server(life: u64) -> Server {
    let given = count();
    Server::start(move |_| {
        let number = given.fetch_add(1, Ordering::SeqCst) + 1;
        let body = format!(r#"{{"token":"t{number}","expires_in":{life}}}"#);
        Reply::new(200, body).after(Duration::from_millis(50))
    })
    .await
}

#[tokio::test]
async fn docker_hubs_dance_takes_each_step_once() {
    let cdn = Server::start(|r| match r.header("authorization") {
        None => Reply::part(r, TEXT),
        Some(_) => Reply::new(400, "two kinds of authorization"),
    })
    .await;
    let tokens = Arc::new(token_server(300).await);
    let (location, hub_tokens) = (cdn.url("/data?X-Amz-Expires=600"), tokens.clone());
    let hub = Server::start(move |r| match r.header("authorization") {
        Some("Bearer t1") if r.path.contains("/manifests/") => {
            Reply::new(200, "{}").with("Content-Type", "application/json")
        }
        Some("Bearer t1") => Reply::new(307, "").with("Location", location.clone()),
        _ => challenged(&hub_tokens),
    })
    .await;
    let registry = registry_with(
        &hub,
        Settings {
            credentials: password("u", "p"),
            ..settings()
        },
    );
    let fetched = registry.resolve("1").await.unwrap();
    assert_eq!(
        (&fetched.bytes[..], fetched.digest),
        (&b"{}"[..], Digest::of(b"{}"))
    );
    assert_eq!(fetched.media_type.as_deref(), Some("application/json"));
    let blob = registry.blob(&text());
    assert_eq!(read(&blob, 4, 9).await.unwrap(), b"quick");
    assert_eq!(read(&blob, 10, 15).await.unwrap(), b"brown");
    let manifest = "/v2/library/x/manifests/1";
    assert_eq!(
        hub.paths(),
        [
            manifest,
            manifest,
            &format!("/v2/library/x/blobs/{}", text().digest)
        ]
    );
    assert_eq!(
        tokens.paths(),
        ["/token?service=reg&scope=repository%3Alibrary%2Fx%3Apull"]
    );
    assert_eq!(
        tokens.requests()[0].header("authorization"),
        Some("Basic dTpw")
    );
    assert_eq!(cdn.requests().len(), 2);
    assert!(
        cdn.requests()
            .iter()
            .all(|r| r.header("authorization").is_none())
    );
    assert_eq!(hub.requests()[0].header("authorization"), None);
}

/// Eight readers at once, whom the registry wants to see `token` of.
async fn eight_read(blob: &Arc<RegistryBlob>, wanted: &Mutex<&str>, token: &'static str) {
    *wanted.lock().unwrap() = token;
    let readers = (0..8).map(|_| {
        let blob = blob.clone();
        tokio::spawn(async move { read(&*blob, 0, 3).await })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert_eq!(reader.await.unwrap().unwrap(), b"The");
    }
}

#[tokio::test]
async fn eight_waiters_cost_one_token() {
    // A life of 2 s ends, for us, after 1.5 s; one of 300 s is cut short by the registry.
    for (life, pause) in [(300, Duration::ZERO), (2, Duration::from_millis(1600))] {
        let tokens = Arc::new(token_server(life).await);
        let (server_tokens, wanted) = (tokens.clone(), Arc::new(Mutex::new("")));
        let server_wants = wanted.clone();
        let server = Server::start(move |r| {
            if r.header("authorization") == Some(*server_wants.lock().unwrap()) {
                Reply::part(r, TEXT)
            } else {
                challenged(&server_tokens)
            }
        })
        .await;
        let blob = Arc::new(registry(&server).blob(&text()));
        eight_read(&blob, &wanted, "Bearer t1").await;
        assert_eq!(tokens.requests().len(), 1);
        tokio::time::sleep(pause).await;
        eight_read(&blob, &wanted, "Bearer t2").await;
        assert_eq!(tokens.requests().len(), 2);
        let refused = server.requests().len() - 16;
        assert_eq!(refused, if pause.is_zero() { 16 } else { 8 });
    }
}

#[tokio::test]
async fn forbidden_with_a_challenge_means_expired() {
    let tokens = Arc::new(token_server(300).await);
    let (server_tokens, realm) = (tokens.clone(), tokens.url("/token"));
    let server = Server::start(move |r| match r.header("authorization") {
        Some("Bearer t2") => Reply::part(r, TEXT),
        Some(_) => {
            Reply::new(403, "").with("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
        }
        None => challenged(&server_tokens),
    })
    .await;
    let registry = registry(&server);
    let blob = registry.blob(&text());
    assert_eq!(read(&blob, 0, 3).await.unwrap_err().kind, ErrorKind::Denied);
    // The refused token is replaced at the next question, once.
    assert_eq!(read(&blob, 0, 3).await.unwrap(), b"The");
    assert_eq!(tokens.requests().len(), 2);
}

#[tokio::test]
async fn forbidden_without_a_challenge_is_final_for_a_fresh_token() {
    let tokens = Arc::new(token_server(300).await);
    let server_tokens = tokens.clone();
    let server = Server::start(move |r| match r.header("authorization") {
        Some(_) => Reply::new(403, r#"{"errors":[{"message":"no pull for you"}]}"#),
        None => challenged(&server_tokens),
    })
    .await;
    let registry = registry(&server);
    for _ in 0..2 {
        let error = registry.resolve("1").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied);
        assert!(error.message.contains("no pull for you"), "{error}");
    }
    assert_eq!(tokens.requests().len(), 1);
}

#[tokio::test]
async fn basic_is_sent_after_a_challenge_and_refused_once() {
    let server = Server::start(|r| match r.header("authorization") {
        Some("Basic dTpw") => Reply::new(200, "{}"),
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
    })
    .await;
    let good = registry_with(
        &server,
        Settings {
            credentials: password("u", "p"),
            ..settings()
        },
    );
    good.resolve("1").await.unwrap();
    good.resolve("1").await.unwrap();
    assert_eq!(server.requests().len(), 3);
    let bad = registry_with(
        &server,
        Settings {
            credentials: password("u", "q"),
            ..settings()
        },
    );
    let error = bad.resolve("1").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.message.contains("log in"), "{error}");
    assert_eq!(server.requests().len(), 5);
    assert_eq!(
        registry(&server).resolve("1").await.unwrap_err().kind,
        ErrorKind::Denied
    );
    assert_eq!(server.requests().len(), 6);
}

#[tokio::test]
async fn an_identity_token_buys_access_tokens() {
    let tokens = Arc::new(token_server(300).await);
    let server_tokens = tokens.clone();
    let server = Server::start(move |r| match r.header("authorization") {
        Some("Bearer t1") => Reply::new(200, "{}"),
        _ => challenged(&server_tokens),
    })
    .await;
    let credentials = Source::Fixed(Credentials::IdentityToken(Secret::new("id")));
    registry_with(
        &server,
        Settings {
            credentials,
            ..settings()
        },
    )
    .resolve("1")
    .await
    .unwrap();
    let bought = &tokens.requests()[0];
    assert_eq!(
        (bought.method.as_str(), bought.path.as_str()),
        ("POST", "/token")
    );
    assert!(bought.body.ends_with("refresh_token=id"), "{}", bought.body);
}

#[tokio::test]
async fn bad_token_servers_are_told_from_bad_credentials() {
    for (reply, kind, words) in [
        (Reply::new(401, ""), ErrorKind::Denied, "log in again"),
        (Reply::new(503, ""), ErrorKind::Transient, "trouble"),
        (
            Reply::new(200, "nonsense"),
            ErrorKind::Protocol,
            "not the JSON",
        ),
        (
            Reply::new(200, vec![b' '; (1 << 20) + 1]),
            ErrorKind::Protocol,
            "longer than",
        ),
    ] {
        let tokens = Arc::new(Server::start(move |_| reply.clone()).await);
        let server = Server::start(move |_| challenged(&tokens)).await;
        let with = Settings {
            credentials: password("u", "p"),
            ..settings()
        };
        let error = registry_with(&server, with).resolve("1").await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(words), "{error}");
    }
}

#[tokio::test]
async fn passwords_do_not_leave_without_tls() {
    let server = Server::start(|_| {
        let challenge = "Bearer realm=\"http://tokens.example.com/\"";
        Reply::new(401, "").with("WWW-Authenticate", challenge)
    })
    .await;
    let with = Settings {
        credentials: password("u", "p"),
        ..settings()
    };
    let error = registry_with(&server, with).resolve("1").await.unwrap_err();
    assert!(error.message.contains("without TLS: refused"), "{error}");
}

#[tokio::test]
async fn missing_credentials_are_explained_when_they_are_needed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, "{ not json").unwrap();
    let server =
        Server::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\"")).await;
    let with = Settings {
        credentials: Source::Files(vec![path]),
        ..settings()
    };
    let error = registry_with(&server, with).resolve("1").await.unwrap_err();
    assert!(
        error.message.contains("is not a file of credentials"),
        "{error}"
    );
}
