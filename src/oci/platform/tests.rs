//! Names of platforms, and which manifest is taken.

use super::*;
use crate::oci::Digest;

fn platform(s: &str) -> Platform {
    s.parse().unwrap()
}

fn chosen<'a>(wanted: &str, have: &[&'a str]) -> Option<&'a str> {
    let descriptors: Vec<Descriptor> = have
        .iter()
        .map(|p| {
            let mut d = Descriptor::new("m", Digest::of(p.as_bytes()), 1);
            let raw: Vec<&str> = p.split('/').collect();
            d.platform = (*p != "none").then(|| Platform {
                os: raw[0].into(),
                architecture: raw[1].into(),
                variant: raw.get(2).map(|v| String::from(*v)),
                os_version: None,
            });
            d
        })
        .collect();
    let found = select(&platform(wanted), descriptors.iter())?;
    have.iter()
        .copied()
        .find(|p| Digest::of(p.as_bytes()) == found.digest)
}

#[test]
fn names_have_one_normal_form() {
    for (typed, normal) in [
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("Linux/AMD64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("windows(10.0.17763.1)/amd64", "windows(10.0.17763.1)/amd64"),
    ] {
        assert_eq!(platform(typed).to_string(), normal);
        assert_eq!(platform(normal).to_string(), normal);
    }
    for bad in [
        "",
        "linux",
        "linux/",
        "/amd64",
        "a/b/c/d",
        "linux/a b",
        "x()/y",
    ] {
        assert!(bad.parse::<Platform>().is_err(), "{bad}");
    }
    let long = "a".repeat(PART_BYTES_MAX + 1);
    assert!(format!("linux/{long}").parse::<Platform>().is_err());
    assert_eq!(
        Platform::host(),
        Platform::host().to_string().parse().unwrap()
    );
}

#[test]
fn the_best_fit_is_taken_whatever_its_place() {
    assert_eq!(
        chosen(
            "linux/amd64",
            &["linux/386", "linux/amd64", "linux/arm64/v8"]
        ),
        Some("linux/amd64")
    );
    assert_eq!(
        chosen("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"]),
        Some("linux/arm64/v8")
    );
    assert_eq!(
        chosen("linux/arm64/v8", &["linux/arm64"]),
        Some("linux/arm64")
    );
    assert_eq!(
        chosen(
            "linux/arm/v7",
            &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"]
        ),
        Some("linux/arm/v6")
    );
    assert_eq!(
        chosen("linux/arm/v6", &["linux/arm/v7", "linux/arm/v5"]),
        Some("linux/arm/v5")
    );
    assert_eq!(chosen("linux/arm/v6", &["linux/arm"]), None);
    assert_eq!(
        chosen(
            "linux/amd64/v3",
            &["linux/amd64", "linux/amd64/v4", "linux/amd64/v2"]
        ),
        Some("linux/amd64/v2")
    );
    assert_eq!(chosen("linux/amd64", &["linux/amd64/v2"]), None);
    assert_eq!(
        chosen(
            "linux/arm64/v9.1",
            &["linux/arm64", "linux/arm64/v8.6", "linux/arm64/v8.7"]
        ),
        Some("linux/arm64/v8.6")
    );
    assert_eq!(chosen("linux/amd64", &["windows/amd64"]), None);
}

#[test]
fn attestations_are_skipped_and_silence_is_the_last_resort() {
    assert_eq!(chosen("linux/amd64", &["unknown/unknown"]), None);
    assert_eq!(
        chosen("linux/amd64", &["none", "linux/amd64"]),
        Some("linux/amd64")
    );
    assert_eq!(
        chosen("linux/amd64", &["linux/s390x", "none"]),
        Some("none")
    );
    let mut d = Descriptor::new("m", Digest::of(b""), 1);
    d.annotations.insert(
        "vnd.docker.reference.type".into(),
        "attestation-manifest".into(),
    );
    assert!(select(&platform("linux/amd64"), [&d].into_iter()).is_none());
}

#[test]
fn windows_versions_are_compared_by_build() {
    let mut have = platform("windows/amd64");
    have.os_version = Some("10.0.17763.1000".into());
    assert!(platform("windows(10.0.17763.5)/amd64").runs(&have));
    assert!(!platform("windows(10.0.20348.5)/amd64").runs(&have));
    assert!(platform("windows/amd64").runs(&have));
}
