//! Mirrors: who is asked for what, with what, and who is asked next.

use std::path::Path;

use super::server::Request;
use super::*;

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;

/// Has everything.
fn good(request: &Request) -> Reply {
    match request.path.split('?').next().unwrap() {
        _ if request.method == "HEAD" => Reply::new(200, ""),
        path if path.contains("/blobs/") => Reply::part(request, TEXT),
        path if path.contains("/manifests/") => Reply::new(200, MANIFEST),
        _ => Reply::new(200, r#"{"manifests":[]}"#),
    }
}

/// The registry `server`, for which `hosts` is written in a `hosts.toml`.
fn mirrored(server: &Server, hosts: &str, credentials: Source) -> Result<Registry, Error> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &server.host.replace(':', "_"), hosts);
    let settings = Settings {
        hosts: HostsDirs {
            dirs: vec![dir.path().to_owned()],
            strict: true,
        },
        credentials,
        ..settings()
    };
    let reference = format!("{}/library/x:1", server.host).parse().unwrap();
    Registry::new(&reference, settings)
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::create_dir(dir.join(format!("{name}_"))).unwrap();
    std::fs::write(dir.join(format!("{name}_/hosts.toml")), text).unwrap();
}

fn plain(server: &Server, hosts: &str) -> Registry {
    mirrored(server, hosts, Source::Anonymous).unwrap()
}

fn digest() -> String {
    Digest::of(MANIFEST).to_string()
}

#[tokio::test]
async fn mirrors_are_asked_for_digests_and_the_registry_for_tags() {
    let (origin, mirror) = (Server::start(good).await, Server::start(good).await);
    let hosts = format!("[host.'http://{}']\ncapabilities = ['pull']", mirror.host);
    let registry = plain(&origin, &hosts);
    registry.resolve("1").await.unwrap();
    registry.digest_of("1").await.unwrap();
    registry.referrers(&Digest::of(MANIFEST)).await.unwrap();
    assert_eq!(mirror.paths(), Vec::<String>::new());
    let asked = origin.requests().len();
    assert_eq!(asked, 3);
    registry.resolve(&digest()).await.unwrap();
    assert_eq!(read(&registry.blob(&text()), 4, 9).await.unwrap(), b"quick");
    assert_eq!(origin.requests().len(), asked);
    // What the mirror stands for, as containerd tells it.
    let named = format!("ns={}", origin.host.replace(':', "%3A"));
    assert!(
        mirror.paths().iter().all(|path| path.ends_with(&named)),
        "{:?}",
        mirror.paths()
    );
    let used = registry.hosts();
    assert_eq!((used[0].answers, used[1].answers), (2, 3), "{used:?}");
    assert_eq!(
        (used[0].blob_bytes, &used[0].capabilities[..]),
        (5, &["pull".to_owned()][..])
    );
}

#[tokio::test]
async fn a_mirror_that_may_resolve_is_asked_for_tags_first_and_never_pushed_to() {
    let (origin, mirror) = (Server::start(good).await, Server::start(good).await);
    let hosts = format!(
        "[host.'http://{}']\ncapabilities = ['pull', 'resolve']",
        mirror.host
    );
    let registry = plain(&origin, &hosts);
    registry.resolve("1").await.unwrap();
    assert_eq!(origin.requests().len(), 0);
    assert!(registry.has_blob(&Digest::of(TEXT)).await.unwrap());
    assert_eq!((origin.requests().len(), mirror.requests().len()), (1, 1));
    // Without any that may push there is an error, not a guess.
    let nobody = plain(&origin, "capabilities = ['pull']");
    let error = nobody.has_blob(&Digest::of(TEXT)).await.unwrap_err();
    assert!(error.message.contains("may be pushed to"), "{error}");
}

#[tokio::test]
async fn the_next_host_is_asked_when_one_is_away_or_lacks_it() {
    let origin = Server::start(good).await;
    let lacking = Server::start(|_| Reply::new(404, "")).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = gone.local_addr().unwrap();
    drop(gone);
    let hosts = format!("[host.'http://{dead}']\n[host.'http://{}']", lacking.host);
    let registry = plain(&origin, &hosts);
    registry.resolve("1").await.unwrap();
    let blob = registry.blob(&text());
    for _ in 0..3 {
        assert_eq!(read(&blob, 4, 9).await.unwrap(), b"quick");
    }
    let used = registry.hosts();
    // Who is away rests, who lacks the blob is not asked for it again.
    assert_eq!((used[0].failures, used[0].answers), (1, 0), "{used:?}");
    assert_eq!((used[1].failures, used[2].answers), (2, 4), "{used:?}");
}

#[tokio::test]
async fn wrong_bytes_are_blamed_on_who_gave_them() {
    let wrong = |request: &Request| match request.path.contains("/blobs/") {
        true => Reply::part(request, &[b'x'; TEXT.len()]),
        false => Reply::new(200, "{}"),
    };
    let (origin, liar) = (Server::start(good).await, Server::start(wrong).await);
    let registry = plain(&origin, &format!("[host.'http://{}']", liar.host));
    // What is verified in this room.
    let bytes = registry.blob_bytes(&text(), 1000).await.unwrap();
    assert_eq!(bytes, TEXT);
    assert_eq!(registry.resolve(&digest()).await.unwrap().bytes, MANIFEST);
    // What the caller verifies.
    let blob = registry.blob(&text());
    assert_eq!(read(&blob, 0, 3).await.unwrap(), b"xxx");
    let part = ByteRange::new(1, 2);
    for turn_away in [<dyn Blob>::avoid, <dyn Blob>::distrust] {
        assert!(turn_away(&blob, part));
        assert_eq!(read(&blob, 0, 3).await.unwrap(), b"The");
        assert!(!turn_away(&blob, part), "nobody else is left");
        assert_eq!(
            read(&blob, 0, 3).await.unwrap(),
            b"xxx",
            "all are asked anew"
        );
    }
}

#[tokio::test]
async fn headers_and_paths_are_the_hosts_own() {
    let elsewhere = Server::start(good).await;
    let target = elsewhere.url("/storage");
    let mirror = Server::start(move |r| match r.path.contains("/blobs/") {
        true => Reply::new(307, "").with("Location", &target),
        false => good(r),
    })
    .await;
    let origin = Server::start(good).await;
    let hosts = format!(
        "[host.'http://{0}/deep/root']\noverride_path = true\n[host.'http://{0}/deep/root'.header]\n\
         x-key = 'k'\nauthorization = 'Basic c2VjcmV0'",
        mirror.host
    );
    let registry = plain(&origin, &hosts);
    registry.resolve(&digest()).await.unwrap();
    let _not_a_part = read(&registry.blob(&text()), 4, 9).await;
    let asked = mirror.requests();
    let expected = format!("/deep/root/library/x/manifests/{}", digest());
    assert!(asked[0].path.starts_with(&expected), "{}", asked[0].path);
    for request in &asked {
        assert_eq!(request.header("x-key"), Some("k"));
        assert_eq!(request.header("authorization"), Some("Basic c2VjcmV0"));
    }
    let redirected = &elsewhere.requests()[0];
    assert_eq!(redirected.header("x-key"), None);
    assert_eq!(redirected.header("authorization"), None);
}

#[tokio::test]
async fn a_mirror_never_sees_the_credentials_of_the_registry() {
    let challenge = |r: &Request| match r.header("authorization") {
        None => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
        Some(_) => good(r),
    };
    let (origin, mirror) = (
        Server::start(challenge).await,
        Server::start(challenge).await,
    );
    let hosts = format!("[host.'http://{}']", mirror.host);
    let registry = mirrored(&origin, &hosts, password("user", "pass")).unwrap();
    registry.resolve(&digest()).await.unwrap();
    let sent = |server: &Server| {
        let all = server.requests();
        all.iter().any(|r| r.header("authorization").is_some())
    };
    assert!(sent(&origin) && !sent(&mirror));
    // But its own, which are stored under its name.
    let file = tempfile::NamedTempFile::new().unwrap();
    let auths = format!(r#"{{"auths":{{"{}":{{"auth":"bTpw"}}}}}}"#, mirror.host);
    std::fs::write(file.path(), auths).unwrap();
    let own = Source::Files(vec![file.path().to_owned()]);
    let registry = mirrored(&origin, &hosts, own).unwrap();
    registry.resolve(&digest()).await.unwrap();
    assert_eq!(
        mirror.requests().last().unwrap().header("authorization"),
        Some("Basic bTpw")
    );
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_an_error() {
    let origin = Server::start(good).await;
    for (hosts, word) in [
        ("[host", "line 1"),
        ("ca = 'no/such.pem'", "no/such.pem"),
        ("client = 'no/such.pem'", "client certificate"),
        ("[header]\n\"a b\" = 'x'", "not a header"),
    ] {
        let error = mirrored(&origin, hosts, Source::Anonymous).unwrap_err();
        assert!(error.message.contains(word), "{hosts}: {error}");
    }
}
