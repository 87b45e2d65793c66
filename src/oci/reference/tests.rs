//! The grammar of references, case by case, with the cases of the distribution project's own tests.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const SHA: &str = "sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

fn full(s: &str) -> String {
    s.parse::<Reference>()
        .unwrap_or_else(|e| panic!("{s}: {e}"))
        .to_string()
}

fn refused(s: &str) -> ReferenceError {
    s.parse::<Reference>().expect_err(s)
}

#[test]
fn names_are_normalised_as_docker_does() {
    for (typed, canonical) in [
        ("ubuntu", "docker.io/library/ubuntu:latest"),
        ("ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
        ("jpetazzo/clock", "docker.io/jpetazzo/clock:latest"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
        (
            "index.docker.io/library/ubuntu",
            "docker.io/library/ubuntu:latest",
        ),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("localhost:5000/x:1", "localhost:5000/x:1"),
        ("LOCALHOST/x", "LOCALHOST/x:latest"),
        (
            "registry.example.com:5000/my-private/image",
            "registry.example.com:5000/my-private/image:latest",
        ),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("[2001:db8::1]/x/y:z", "[2001:db8::1]/x/y:z"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
        ("a--b/c__d/e.f_g-h", "docker.io/a--b/c__d/e.f_g-h:latest"),
        ("host.com/x:_T.a-G", "host.com/x:_T.a-G"),
    ] {
        assert_eq!(full(typed), canonical);
        assert_eq!(full(canonical), canonical);
    }
}

#[test]
fn digests_replace_the_default_tag_and_stand_beside_a_tag() {
    assert_eq!(
        full(&format!("x@{SHA}")),
        format!("docker.io/library/x@{SHA}")
    );
    let both: Reference = format!("h.io/x:1@{SHA}").parse().unwrap();
    assert_eq!(
        (both.tag(), both.tag_or_digest()),
        (Some("1"), SHA.to_owned())
    );
    assert_eq!(both.to_string(), format!("h.io/x:1@{SHA}"));
    let pinned = "ubuntu"
        .parse::<Reference>()
        .unwrap()
        .with_digest(SHA.parse().unwrap());
    assert_eq!(
        pinned.to_string(),
        format!("docker.io/library/ubuntu:latest@{SHA}")
    );
    assert_eq!(pinned.familiar(), format!("ubuntu:latest@{SHA}"));
    assert_eq!(
        "docker.io/a/b".parse::<Reference>().unwrap().familiar(),
        "a/b:latest"
    );
}

#[test]
fn what_is_no_name_is_refused() {
    assert_eq!(refused(""), ReferenceError::Empty);
    let ReferenceError::UpperCase { hint, .. } = refused("library/Ubuntu:LTS") else {
        panic!()
    };
    assert_eq!(hint, "library/ubuntu:LTS");
    assert!(matches!(
        refused("https://ghcr.io/x"),
        ReferenceError::Url(_, "https://")
    ));
    assert!(matches!(
        refused(&"a".repeat(64)),
        ReferenceError::ImageId(_)
    ));
    for bad in [
        "a//b", "/a", "a/", "-a", "a-", "a..b", "a___b", "a._b", "ä", "a b", "a\0", ":x",
    ] {
        assert!(
            matches!(refused(bad), ReferenceError::Repository(_)),
            "{bad}"
        );
    }
    for bad in [
        "h.io:x/a",
        "h.io:/a",
        "h.io:99999/a",
        "-h.io/a",
        "h..io/a",
        "[::1/a",
        "[zz:1]/a",
        "[::1]5/a",
        ".h/a",
    ] {
        assert!(matches!(refused(bad), ReferenceError::Domain(_)), "{bad}");
    }
    for bad in ["a:", "a:.x", "a:-x", "a:b:c", "a:ä"] {
        assert!(matches!(refused(bad), ReferenceError::Tag(_)), "{bad}");
    }
    for bad in ["@", "a@", "a@sha256:ff", "a@md5:00", "a@b@c"] {
        assert!(matches!(refused(bad), ReferenceError::Digest(_)), "{bad}");
    }
}

#[test]
fn lengths_are_limited() {
    let longest = "a".repeat(REPOSITORY_BYTES_MAX - "x/".len());
    assert!(format!("h.io/x/{longest}").parse::<Reference>().is_ok());
    assert!(matches!(
        refused(&format!("h.io/x/a{longest}")),
        ReferenceError::TooLong(_, 256)
    ));
    assert!(
        format!("a:{}", "t".repeat(TAG_BYTES_MAX))
            .parse::<Reference>()
            .is_ok()
    );
    assert!(matches!(
        refused(&format!("a:{}", "t".repeat(129))),
        ReferenceError::Tag(_)
    ));
    let domain = format!("{}.io", "d".repeat(DOMAIN_BYTES_MAX));
    assert!(matches!(
        refused(&format!("{domain}/a")),
        ReferenceError::Domain(_)
    ));
}

#[test]
fn local_names_are_split_at_the_right_colon() {
    let layout = |dir: &str, tag: Option<&str>| ImageName::Layout {
        dir: PathBuf::from(dir),
        tag: tag.map(String::from),
    };
    let docker = |file: &str, name: Option<&str>| ImageName::DockerArchive {
        file: PathBuf::from(file),
        name: name.map(String::from),
    };
    for (typed, name) in [
        ("oci:dir", layout("dir", None)),
        ("oci:/a:b/c", layout("/a:b/c", None)),
        ("oci:/a:b/c:v1", layout("/a:b/c", Some("v1"))),
        (
            "docker-archive:x.tar:ubuntu:latest",
            docker("x.tar", Some("ubuntu:latest")),
        ),
        (
            "docker-archive:x.tar:h.io:5/u/v:1",
            docker("x.tar", Some("h.io:5/u/v:1")),
        ),
        ("docker-archive:/a:b/saved", docker("/a:b/saved", None)),
        (
            "docker-archive:/a:b/saved:u:1",
            docker("/a:b/saved", Some("u:1")),
        ),
    ] {
        assert_eq!(typed.parse::<ImageName>().unwrap(), name);
        assert_eq!(name.to_string(), typed);
    }
    let archive = "oci-archive:x.tar:v1".parse::<ImageName>().unwrap();
    assert_eq!(
        archive,
        ImageName::OciArchive {
            file: "x.tar".into(),
            tag: Some("v1".into())
        }
    );
    assert_eq!(
        "docker://a".parse::<ImageName>().unwrap().to_string(),
        "docker.io/library/a:latest"
    );
    for bad in ["oci:", "oci::tag", "docker-archive:", "oci-archive::x"] {
        assert!(
            matches!(bad.parse::<ImageName>(), Err(ReferenceError::NoPath(..))),
            "{bad}"
        );
    }
}

proptest! {
    #[test]
    fn whatever_parses_round_trips(s in "[a-zA-Z0-9:@/._\\[\\]-]{0,40}") {
        if let Ok(reference) = s.parse::<Reference>() {
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn nothing_panics(s in ".{0,80}") {
        let _ = s.parse::<ImageName>();
    }
}

#[test]
fn a_path_with_colons_survives() {
    for text in [
        "oci:::::x/y",
        "oci::::::",
        "docker-archive:x.gz:y.tar:",
        "oci-archive:a:b:",
    ] {
        let name: ImageName = text.parse().unwrap();
        assert_eq!(name.to_string().parse::<ImageName>(), Ok(name), "{text}");
    }
}

#[test]
fn a_host_named_like_a_scheme_survives() {
    for host in ["oci:42", "oci-archive:5000", "docker-archive:1"] {
        let text = format!("docker://{host}/image:latest");
        let name: ImageName = text.parse().unwrap();
        assert!(matches!(&name, ImageName::Registry(r) if r.registry() == host));
        assert_eq!(name.to_string(), text);
        assert_eq!(text.parse::<ImageName>(), Ok(name));
    }
}
