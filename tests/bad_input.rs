//! Bad input: each case gives one line that says what is wrong, exit code 1, no mount, and nothing
//! half-written in the cache.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::type_complexity,
    clippy::print_stderr,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/all.rs"]
mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use rsmount::oci::Digest;
use support::layout::{self, DIR, FILE, Layer, Pack, Parts};
use support::place::{Place, can_mount};

fn plain() -> Layer {
    Layer::new()
        .dir("etc", DIR)
        .file("etc/motd", FILE, b"hello\n")
}

/// Checks the promise: one line, nothing left.
fn refused(place: &Place, output: &Output, expected: &str, case: &str) {
    refused_with(1, place, output, expected, case);
}

/// The same where wrong usage has another code than failure.
fn refused_with(code: i32, place: &Place, output: &Output, expected: &str, case: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{case}: {text}");
    assert_eq!(
        text.trim_end().lines().count(),
        1,
        "{case}: not one line: {text}"
    );
    assert!(text.starts_with("rsmount: "), "{case}: {text}");
    assert!(
        text.contains(expected),
        "{case}: {text:?} does not say {expected:?}"
    );
    assert!(!place.is_mounted(), "{case}");
    assert_eq!(place.leftovers(), 0, "{case}: a record was left");
    // A layer that was verified whole may stay although the image cannot be merged.
    let left = std::fs::read_dir(place.path("cache/v1/tmp")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{case}: the cache has something half-written");
}

fn mount_image(place: &Place, image: &str) -> Output {
    place.run(&["-q", image, place.mnt().to_str().unwrap()])
}

type Case = (
    &'static str,
    Pack,
    Layer,
    &'static dyn Fn(&mut Parts),
    &'static str,
);

/// Replaces the bytes of the layer and makes the descriptor agree with them.
fn rewrite(parts: &mut Parts, change: &dyn Fn(&mut Vec<u8>)) {
    change(&mut parts.blobs[0]);
    parts.layer_digests[0] = Digest::of(&parts.blobs[0]).to_string();
    parts.layer_sizes[0] = parts.blobs[0].len() as u64;
}

fn cases() -> Vec<Case> {
    let truncate: &dyn Fn(&mut Parts) = &|p| rewrite(p, &|b| b.truncate(b.len() - 9));
    let garbage: &dyn Fn(&mut Parts) = &|p| rewrite(p, &|b| b.extend_from_slice(b"garbage!"));
    let corrupt: &dyn Fn(&mut Parts) = &|p| {
        rewrite(p, &|b| {
            let middle = b.len() / 2;
            b[middle..middle + 4].iter_mut().for_each(|b| *b ^= 0x55);
        });
    };
    let other_digest: &dyn Fn(&mut Parts) = &|p| p.blobs[0][10] ^= 1;
    let wrong_diff: &dyn Fn(&mut Parts) = &|p| p.diff_ids[0] = Digest::of(b"").to_string();
    let wrong_size: &dyn Fn(&mut Parts) = &|p| p.layer_sizes[0] += 1;
    let nothing: &dyn Fn(&mut Parts) = &|_| {};
    let one_layer_more: &dyn Fn(&mut Parts) = &|p| p.diff_ids.push(Digest::of(b"").to_string());
    let schema1: &dyn Fn(&mut Parts) = &|p| {
        p.manifest = Some(br#"{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[]}"#.to_vec());
    };
    let no_json: &dyn Fn(&mut Parts) = &|p| p.manifest = Some(b"{".to_vec());
    vec![
        ("truncated gzip", Pack::Gzip, plain(), truncate, "ends"),
        ("truncated zstd", Pack::Zstd, plain(), truncate, "ends"),
        ("garbage after gzip", Pack::Gzip, plain(), garbage, "gzip"),
        ("garbage after zstd", Pack::Zstd, plain(), garbage, ""),
        ("corrupt gzip", Pack::Gzip, plain(), corrupt, ""),
        ("corrupt zstd", Pack::Zstd, plain(), corrupt, ""),
        ("wrong layer digest", Pack::Gzip, plain(), other_digest, ""),
        ("wrong diffID", Pack::Gzip, plain(), wrong_diff, "diffID"),
        ("wrong layer size", Pack::Gzip, plain(), wrong_size, ""),
        (
            "more diffIDs than layers",
            Pack::Gzip,
            plain(),
            one_layer_more,
            "layers",
        ),
        ("schema 1", Pack::Gzip, plain(), schema1, "schema 1"),
        (
            "manifest that is no JSON",
            Pack::Gzip,
            plain(),
            no_json,
            "manifest",
        ),
        (
            "link loop",
            Pack::Gzip,
            plain().hard_link("a", "b").hard_link("b", "a"),
            nothing,
            "link",
        ),
        (
            "link to nothing",
            Pack::Plain,
            plain().hard_link("a", "nowhere"),
            nothing,
            "nowhere",
        ),
        (
            "long name",
            Pack::Plain,
            plain().file(&"x".repeat(256), FILE, b""),
            nothing,
            "256",
        ),
        (
            "deep path",
            Pack::Plain,
            plain().file(&"d/".repeat(3000), DIR, b""),
            nothing,
            "deep",
        ),
        ("dot dot", Pack::Plain, dot_dot(), nothing, ".."),
        (
            "no tar",
            Pack::Gzip,
            plain(),
            &|p: &mut Parts| {
                let text = vec![b'x'; 2048];
                p.diff_ids[0] = Digest::of(&text).to_string();
                rewrite(p, &|b| *b = layout::compress(&vec![b'x'; 2048], Pack::Gzip));
            },
            "",
        ),
    ]
}

/// The builder refuses `..`, so the name is changed in the finished header.
fn dot_dot() -> Layer {
    plain().file_named_raw(b"../evil")
}

#[test]
fn bad_images_are_refused_in_one_line() {
    if !can_mount() {
        return;
    }
    for (case, pack, layer, spoil, expected) in cases() {
        let place = Place::new();
        let dir = place.path("image");
        layout::write_spoilt(&dir, &[layer.tar()], pack, spoil);
        let output = mount_image(&place, &format!("oci:{}", dir.display()));
        refused(&place, &output, expected, case);
    }
}

#[test]
fn bad_names_and_places_are_refused_in_one_line() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    layout::write(&place.path("image"), &[plain().tar()], Pack::Gzip);
    let image = format!("oci:{}", place.path("image").display());
    for (image, expected) in [
        ("ubuntu/UPPER", "lower"),
        ("127.0.0.1:9/nobody/listens:1", "127.0.0.1:9"),
        ("no-such-host.invalid/a:1", "no-such-host.invalid"),
        ("oci:/nonexistent", "/nonexistent"),
        ("docker-archive:/nonexistent.tar", "/nonexistent.tar"),
        (&format!("{image}:other-tag"), "other-tag"),
        ("", ""),
    ] {
        refused(&place, &mount_image(&place, image), expected, image);
    }
    let file = place.path("file");
    std::fs::write(&file, "").unwrap();
    for (mountpoint, expected) in [
        (place.path("missing"), "no such directory"),
        (file, "not a directory"),
    ] {
        let output = place.run(&["-q", &image, mountpoint.to_str().unwrap()]);
        refused(&place, &output, expected, expected);
    }
    let output = place.run(&[
        "-q",
        "--platform",
        "linux/s390x",
        &image,
        place.mnt().to_str().unwrap(),
    ]);
    refused(&place, &output, "linux/s390x", "platform");
    let output = place.run(&["-q", "-o", "rw", &image, place.mnt().to_str().unwrap()]);
    refused_with(2, &place, &output, "read-only", "rw");
}

#[test]
fn an_image_is_not_mounted_twice_in_one_place() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    layout::write(&place.path("image"), &[plain().tar()], Pack::Gzip);
    let mount = place.mount("image", &[]);
    let output = mount_image(&place, &format!("oci:{}", place.path("image").display()));
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("already"), "{text}");
    assert!(mount.path("etc/motd").exists());
}

#[test]
fn a_full_mountpoint_is_a_warning() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    layout::write(&place.path("image"), &[plain().tar()], Pack::Gzip);
    std::fs::write(place.mnt().join("hidden"), "").unwrap();
    let image = format!("oci:{}", place.path("image").display());
    let output = mount_image(&place, &image);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not empty"));
    assert!(!place.mnt().join("hidden").exists());
    place.ok(&["umount", place.mnt().to_str().unwrap()]);
    assert!(place.mnt().join("hidden").exists());
}

#[test]
fn an_unusable_cache_is_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    layout::write(&place.path("image"), &[plain().tar()], Pack::Gzip);
    let image = format!("oci:{}", place.path("image").display());
    std::fs::write(place.path("cache"), "a file").unwrap();
    let output = mount_image(&place, &image);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("cache"),
        "{output:?}"
    );
    assert!(!place.is_mounted());
}

#[test]
fn a_full_disk_is_refused_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let big = plain().file("big", FILE, &vec![7; 8 << 20]);
    layout::write(&place.path("image"), &[big.tar()], Pack::Gzip);
    std::fs::create_dir(place.path("cache")).unwrap();
    let tmpfs = Path::new("/bin/mount");
    let status = std::process::Command::new(tmpfs)
        .args(["-t", "tmpfs", "-o", "size=4m,mode=700", "none"])
        .arg(place.path("cache"))
        .status()
        .unwrap();
    assert!(status.success());
    let output = mount_image(&place, &format!("oci:{}", place.path("image").display()));
    let check = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        refused(&place, &output, "space", "full disk");
    }));
    let _ = std::process::Command::new("umount")
        .arg(place.path("cache"))
        .status();
    check.unwrap();
}

/// A registry that gives the same answer to everything.
fn registry_that_says(status: &'static str, body: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/some/image:1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let kind = if body.contains("manifests") {
                "index"
            } else {
                "manifest"
            };
            let type_and_length = format!(
                "Content-Type: application/vnd.oci.image.{kind}.v1+json\r\nContent-Length: {}",
                body.len()
            );
            let head =
                format!("HTTP/1.1 {status}\r\n{type_and_length}\r\nConnection: close\r\n\r\n");
            let _client_has_left = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    image
}

#[test]
fn what_registries_refuse_is_told_in_one_line() {
    if !can_mount() {
        return;
    }
    let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
        {"mediaType":"application/vnd.oci.image.manifest.v1+json","size":7,
        "digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "platform":{"os":"linux","architecture":"s390x"}}]}"#;
    for (status, body, expected) in [
        ("404 Not Found", "{}", "has no some/image:1"),
        ("401 Unauthorized", "{}", "log in"),
        ("403 Forbidden", "{}", "refuses some/image"),
        ("200 OK", index, "linux/s390x"),
        ("200 OK", r#"{"schemaVersion":1}"#, "schema 1"),
    ] {
        let place = Place::new();
        let output = mount_image(&place, &registry_that_says(status, body));
        refused(&place, &output, expected, status);
    }
    let place = Place::new();
    let (image, _) = registry_that_says("200 OK", "{}")
        .rsplit_once(':')
        .map_or_else(
            || unreachable!("it has a tag"),
            |(name, tag)| (format!("{name}@{}", Digest::of(b"other")), tag.to_owned()),
        );
    refused(
        &place,
        &mount_image(&place, &image),
        "digest",
        "wrong manifest digest",
    );
}

#[test]
fn a_configuration_that_is_not_what_the_manifest_says_is_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let dir = place.path("image");
    layout::write(&dir, &[plain().tar()], Pack::Gzip);
    for blob in std::fs::read_dir(dir.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        if bytes.windows(8).any(|w| w == b"diff_ids") {
            let spoilt = String::from_utf8(bytes).unwrap().replace("linux", "Linux");
            std::fs::write(path, spoilt).unwrap();
        }
    }
    let output = mount_image(&place, &format!("oci:{}", dir.display()));
    refused(&place, &output, "digest", "wrong config digest");
}

#[test]
fn a_cache_of_somebody_else_is_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    layout::write(&place.path("image"), &[plain().tar()], Pack::Gzip);
    std::fs::create_dir(place.path("cache")).unwrap();
    std::os::unix::fs::chown(place.path("cache"), Some(12345), None).unwrap();
    let output = mount_image(&place, &format!("oci:{}", place.path("image").display()));
    refused(&place, &output, "12345", "cache of another user");
}

#[test]
fn a_machine_without_fuse_is_told_what_it_lacks() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    layout::write(&place.path("image"), &[plain().tar()], Pack::Gzip);
    let rsmount = place.rsmount();
    let settings = rsmount.get_envs().filter_map(|(k, v)| Some((k, v?)));
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-euc"])
        .arg("mount -t tmpfs none /dev; mknod /dev/null c 1 3; exec \"$@\"")
        .arg("sh")
        .arg(rsmount.get_program())
        .args(["-q", &format!("oci:{}", place.path("image").display())])
        .arg(place.mnt())
        .envs(settings)
        .output()
        .unwrap();
    refused(&place, &output, "/dev/fuse is missing", "no /dev/fuse");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let place = Place::new();
    for args in [
        &[][..],
        &["mount"],
        &["--no-such-option"],
        &["only-an-image"],
    ] {
        assert_eq!(place.run(args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(place.run(&["--help"]).status.code(), Some(0));
}
