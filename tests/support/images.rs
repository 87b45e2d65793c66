//! The images to test with: which, where they are served, and what other tools make of them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::SystemTime;
use tempfile::TempDir;

/// A directory for one test. Not in /tmp, which may be a tmpfs: those have less room, and no user
/// xattrs in older kernels. `contrib/test` names a place that it sweeps afterwards.
pub(crate) fn scratch() -> TempDir {
    let parent = std::env::var_os("RSMOUNT_TEST_SCRATCH").unwrap_or_else(|| "/var/tmp".into());
    TempDir::with_prefix_in("rsmount-test.", parent).expect("a scratch directory")
}

/// The registry that `contrib/test` started, as `HOST:PORT`.
///
/// Without one the caller's test has nothing to do: that is said loudly, past libtest's capture.
pub(crate) fn registry(test: &str) -> Option<String> {
    skip_unless(
        test,
        rustix::process::geteuid().is_root(),
        "it mounts, and chroots: run it as root",
    )?;
    let registry = std::env::var("RSMOUNT_TEST_REGISTRY").ok();
    skip_unless(
        test,
        registry.is_some(),
        "RSMOUNT_TEST_REGISTRY is not set: use contrib/test",
    )?;
    registry
}

fn skip_unless(test: &str, condition: bool, why: &str) -> Option<()> {
    if !condition {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
    }
    condition.then_some(())
}

/// `NAME:TAG` of the images to test, below `library/` in the registry.
pub(crate) fn wanted() -> Vec<String> {
    std::env::var("RSMOUNT_TEST_IMAGES")
        .unwrap_or_else(|_| "debian:12 python:3.11 redis:7".to_owned())
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

/// Runs a program that has to succeed; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let printed = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success(),
        "{program} {arguments:?}: {}\n{printed}{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
    printed
}

/// A file of this repository.
pub(crate) fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The layers of `image`, base first, as plain tars in `scratch`.
pub(crate) fn tars(image: &str, scratch: &Path) -> Vec<PathBuf> {
    let copy = scratch.join("copy");
    let source = format!("docker://{image}");
    let target = format!("dir:{}", copy.to_str().expect("a plain path"));
    let options = ["copy", "--quiet", "--src-tls-verify=false"];
    run("skopeo", &[&options[..], &[&source, &target]].concat());
    let manifest = std::fs::read(copy.join("manifest.json")).expect("a manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers").iter();
    layers
        .enumerate()
        .map(|(n, layer)| {
            let digest = layer["digest"].as_str().expect("a digest");
            let (_, hex) = digest.split_once(':').expect("an algorithm");
            let packed = std::fs::File::open(copy.join(hex)).expect("a layer");
            let tar = scratch.join(format!("{n}.tar"));
            let mut to = std::fs::File::create(&tar).expect("a new file");
            let mut from = flate2::read::MultiGzDecoder::new(packed);
            std::io::copy(&mut from, &mut to).expect("gzip");
            tar
        })
        .collect()
}

/// Unpacks `image` into `scratch` by skopeo and umoci.
/// Returns the root file system and when the unpacking began, in seconds since 1970.
pub(crate) fn unpack(image: &str, scratch: &Path) -> (PathBuf, u64) {
    let layout = scratch.join("layout:image");
    let layout = layout.to_str().expect("a plain path");
    let bundle = scratch.join("bundle");
    let source = format!("docker://{image}");
    let target = format!("oci:{layout}");
    run(
        "skopeo",
        &[
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            &source,
            &target,
        ],
    );
    let began = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let bundle_text = bundle.to_str().expect("a plain path");
    run(
        "umoci",
        &["unpack", "--keep-dirlinks", "--image", layout, bundle_text],
    );
    (bundle.join("rootfs"), began)
}

/// Pushes `library/python:3.11` with its layers in another form and returns the new image's name.
/// Tests run at the same time, so one lock for all: the tool is as busy as a core can be.
pub(crate) fn recompressed(registry: &str, form: &str) -> String {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock();
    let image = format!("{registry}/library/python:3.11");
    let program = in_repository("contrib/images/recompress");
    let program = program.to_str().expect("a plain path");
    run(program, &[&image, &format!("3.11-{form}"), form])
        .trim()
        .to_owned()
}
