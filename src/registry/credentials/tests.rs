//! Where credentials are found, and under which names.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

fn login(user_password: &str) -> String {
    format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(user_password))
}

async fn user(source: &Source, name: &str) -> Option<String> {
    match source.find(&name.parse().unwrap()).await.unwrap()? {
        Credentials::Password { username, password } => {
            Some(format!("{username}:{}", password.expose()))
        }
        Credentials::IdentityToken(token) => Some(format!("token:{}", token.expose())),
    }
}

fn files(dir: &Path, contents: &[&str]) -> Source {
    let paths = contents.iter().enumerate().map(|(i, text)| {
        let path = dir.join(i.to_string());
        std::fs::write(&path, text).unwrap();
        path
    });
    Source::Files(paths.collect())
}

#[tokio::test]
async fn keys_of_docker_and_podman_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        r#"{{"auths": {{
            "https://index.docker.io/v1/": {}, "h.io:5000": {}, "https://url.io/v2/": {},
            "quay.io": {}, "quay.io/org": {}, "empty.io": {{}}, "azure.io": {{"identitytoken": "idt"}}
        }}}}"#,
        login("hub:p"),
        login("h:a:b"),
        login("u:p"),
        login("quay:p"),
        login("org:p"),
    );
    let source = files(dir.path(), &[&text]);
    for (name, expected) in [
        ("ubuntu", Some("hub:p")),
        ("h.io:5000/x", Some("h:a:b")),
        ("h.io/x", None),
        ("url.io/a/b", Some("u:p")),
        ("quay.io/else/x", Some("quay:p")),
        ("quay.io/org/x", Some("org:p")),
        ("quay.io/organic/x", Some("quay:p")),
        ("empty.io/x", None),
        ("azure.io/x", Some("token:idt")),
    ] {
        assert_eq!(user(&source, name).await.as_deref(), expected, "{name}");
    }
}

#[tokio::test]
async fn the_first_file_that_knows_wins() {
    let dir = tempfile::tempdir().unwrap();
    let one = format!(r#"{{"auths": {{"a.io": {}}}}}"#, login("one:p"));
    let two = format!(
        r#"{{"auths": {{"a.io": {0}, "b.io": {0}}}}}"#,
        login("two:p")
    );
    let Source::Files(mut paths) = files(dir.path(), &[&one, &two, ""]) else {
        panic!()
    };
    paths.insert(0, dir.path().join("missing"));
    let source = Source::Files(paths);
    assert_eq!(user(&source, "a.io/x").await.unwrap(), "one:p");
    assert_eq!(user(&source, "b.io/x").await.unwrap(), "two:p");
    assert_eq!(user(&source, "c.io/x").await, None);
}

#[tokio::test]
async fn bad_files_are_named_without_their_contents() {
    let dir = tempfile::tempdir().unwrap();
    for text in [
        r#"{"auths": "hunter2"}"#,
        r#"{"auths": {"a.io": {"auth": "hunter2!"}}}"#,
        r#"{"auths": {"a.io": {"auth": "aHVudGVyMg=="}}}"#,
        r#"{"credHelpers": {"a.io": "../hunter"}}"#,
    ] {
        let source = files(dir.path(), &[text]);
        let error = source
            .find(&"a.io/x".parse().unwrap())
            .await
            .unwrap_err()
            .to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
    let long = " ".repeat(file::FILE_BYTES_MAX as usize + 1);
    let source = files(dir.path(), &[&long]);
    assert!(source.find(&"a.io/x".parse().unwrap()).await.is_err());
}

#[tokio::test]
async fn helpers_are_asked_by_the_servers_name() {
    let dir = tempfile::tempdir().unwrap();
    // The name of a helper is a program on PATH; a test cannot change PATH safely, so the helper
    // that is certainly missing stands for all that fail.
    let source = files(dir.path(), &[r#"{"credsStore": "surely-not-installed"}"#]);
    let error = source.find(&"a.io/x".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, CredentialsError::Helper(..)), "{error}");
    assert_eq!(
        server_name(&"ubuntu".parse().unwrap()),
        "https://index.docker.io/v1/"
    );
    assert_eq!(server_name(&"h.io:5/x".parse().unwrap()), "h.io:5");
}

#[tokio::test]
async fn helpers_answer_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let program = |script: &str| {
        let path = dir.path().join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let ask = async |script: &str| {
        let path = program(script);
        helper::ask("test", path.as_os_str(), "h.io").await
    };
    let found = ask(r#"read s; echo "{\"Username\":\"$1\",\"Secret\":\"$s\"}""#)
        .await
        .unwrap();
    let password = Secret::new("h.io");
    assert_eq!(
        found,
        Some(Credentials::Password {
            username: "get".into(),
            password
        })
    );
    let token = ask(r#"echo '{"Username":"<token>","Secret":"t"}'"#)
        .await
        .unwrap();
    assert_eq!(token, Some(Credentials::IdentityToken(Secret::new("t"))));
    let none = ask("echo 'credentials not found in native keychain'; exit 1")
        .await
        .unwrap();
    assert_eq!(none, None);
    assert!(
        ask("echo broken; exit 1")
            .await
            .unwrap_err()
            .to_string()
            .contains("failed: broken")
    );
    assert!(ask("echo nonsense").await.is_err());
}

#[tokio::test]
async fn the_environment_s_password_goes_to_one_registry() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    std::fs::write(
        &file,
        format!(r#"{{"auths": {{"b.io": {}}}}}"#, login("b:q")),
    )
    .unwrap();
    let place = dir.path().to_str().unwrap().to_owned();
    let of = |own: Option<&str>, registry: &str| {
        let (place, registry) = (place.clone(), registry.to_owned());
        Source::from_variables(own, move |name| match name {
            "RSMOUNT_USERNAME" => Some("u".to_owned()),
            "RSMOUNT_PASSWORD" => Some("p".to_owned()),
            "RSMOUNT_REGISTRY" => Some(registry.clone()).filter(|r| !r.is_empty()),
            "DOCKER_CONFIG" => Some(place.clone()),
            _ => None,
        })
    };
    for (own, named, image, expected) in [
        (Some("a.io:5000"), "", "a.io:5000/x", Some("u:p")),
        (Some("a.io:5000"), "", "a.io/x", None),
        (Some("a.io:5000"), "", "b.io/x", Some("b:q")),
        (None, "", "a.io/x", None),
        // What is named holds, whatever the command is about.
        (Some("a.io"), "b.io", "a.io/x", None),
        (Some("a.io"), "b.io", "b.io/x", Some("u:p")),
        (
            Some("a.io"),
            "https://index.docker.io/v1/",
            "ubuntu",
            Some("u:p"),
        ),
    ] {
        let found = user(&of(own, named), image).await;
        assert_eq!(found.as_deref(), expected, "{own:?} {named} {image}");
    }
}

#[test]
fn the_environment_is_read_in_order() {
    let variables = |pairs: &'static [(&str, &str)]| {
        Source::from_variables(None, move |name| {
            pairs
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| String::from(*v))
        })
    };
    let fixed = variables(&[
        ("RSMOUNT_USERNAME", "u"),
        ("RSMOUNT_PASSWORD", "p"),
        ("HOME", "/h"),
    ]);
    assert!(matches!(&fixed, Source::Own { registry: None, .. }));
    assert!(!format!("{fixed:?}").contains("\"p\""));
    let paths = |all: &[&str]| Source::Files(all.iter().map(PathBuf::from).collect());
    assert_eq!(
        variables(&[
            ("HOME", "/h"),
            ("XDG_RUNTIME_DIR", "/r"),
            ("REGISTRY_AUTH_FILE", "/a")
        ]),
        paths(&[
            "/a",
            "/r/containers/auth.json",
            "/h/.config/containers/auth.json",
            "/h/.docker/config.json"
        ])
    );
    assert_eq!(
        variables(&[("DOCKER_CONFIG", "/d")]),
        paths(&["/d/config.json"])
    );
}
