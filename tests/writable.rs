//! Writable mounts: an overlay above the image, with the changes in a directory of the user's.
//!
//! Needs root and `/dev/fuse`; the tests as an ordinary user also util-linux, fuse3 and
//! fuse-overlayfs. Says so loudly where something is skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::layout::{self, DIR, FILE, Layer, Meta, Pack};
use support::ordinary::{Ordinary, UID, USUAL, can_be_ordinary};
use support::place::{Place, can_mount, skip};
use support::registry::Registry;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn image(motd: &[u8]) -> Layer {
    Layer::new()
        .dir("etc", DIR)
        .file("etc/motd", FILE, motd)
        .file("etc/issue", FILE, b"issue\n")
}

fn place() -> Place {
    let place = Place::new();
    layout::write(&place.path("image"), &[image(b"one\n").tar()], Pack::Gzip);
    place
}

fn name(place: &Place) -> String {
    format!("oci:{}", place.path("image").display())
}

/// One line that says `expected`, exit code 1, nothing mounted, no record.
fn refused(place: &Place, output: &Output, expected: &str) {
    refused_with(1, place, output, expected);
}

/// The same where wrong usage has another code than failure.
fn refused_with(code: i32, place: &Place, output: &Output, expected: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.contains(expected), "{said:?} lacks {expected:?}");
    assert!(!place.is_mounted(), "{said}");
    assert_eq!(place.leftovers(), 0, "{said}");
}

fn run(program: &str, arguments: &[&str]) -> Vec<String> {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn changes_stay_in_their_directory() {
    if !can_mount() {
        return;
    }
    let place = place();
    let upper = place.path("changes");
    let (mnt, dir) = (place.mnt(), text(&upper).to_owned());
    {
        let mounted = place.mount("image", &["--upper", &dir]);
        std::fs::remove_file(mounted.path("etc/motd")).unwrap();
        std::fs::write(mounted.path("etc/new"), "new\n").unwrap();
        assert_eq!(place.stats()["upper"], dir);
        let listed: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        assert_eq!(listed[0]["upper"], dir);
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|l| l.contains(text(&mnt))).unwrap();
        for option in ["overlay rsmount:", "redirect_dir=nofollow", "xino=on"] {
            assert!(line.contains(option), "{line}");
        }
        for option in ["metacopy=on", "index=on", "nosuid", "nodev"] {
            assert!(!line.contains(option), "{line}");
        }
        assert!(!table.contains(&format!(" {dir}/lower ")), "{table}");
    }
    assert!(!mnt.join("etc").exists());
    assert_eq!(upper.metadata().unwrap().mode() & 0o7777, 0o700);
    let about: Value =
        serde_json::from_slice(&std::fs::read(upper.join("rsmount.json")).unwrap()).unwrap();
    assert!(about["digest"].as_str().unwrap().starts_with("sha256:"));
    let mounted = place.mount("image", &["--upper", &dir]);
    assert!(!mounted.path("etc/motd").exists());
    assert_eq!(std::fs::read(mounted.path("etc/new")).unwrap(), b"new\n");
    assert_eq!(
        std::fs::read(mounted.path("etc/issue")).unwrap(),
        b"issue\n"
    );
    drop(mounted);
    assert_eq!(place.leftovers(), 0);
}

#[test]
fn a_directory_is_used_by_one_mount_and_above_one_image() {
    if !can_mount() {
        return;
    }
    let place = place();
    let upper = place.path("changes");
    let dir = text(&upper);
    let mounted = place.mount("image", &["--upper", dir]);
    let other = place.path("other");
    std::fs::create_dir(&other).unwrap();
    let second = place.run(&["-q", &name(&place), text(&other), "--upper", dir]);
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(
        !second.status.success() && said.contains("in use"),
        "{said}"
    );
    drop(mounted);
    layout::write(&place.path("second"), &[image(b"two\n").tar()], Pack::Gzip);
    let second = format!("oci:{}", place.path("second").display());
    let over = place.run(&["-q", &second, text(&place.mnt()), "--upper", dir]);
    refused(&place, &over, "holds changes to");
    // The same name keeps the image, whatever is there by now.
    layout::write(&place.path("image"), &[image(b"two\n").tar()], Pack::Gzip);
    let mounted = place.mount("image", &["--upper", dir]);
    assert_eq!(std::fs::read(mounted.path("etc/motd")).unwrap(), b"one\n");
}

#[test]
fn a_tag_that_moves_is_not_followed() {
    if !can_mount() {
        return;
    }
    let place = place();
    let upper = place.path("changes");
    let options = ["--pull", "always", "--upper", text(&upper)];
    let registry = Registry::serve(place.path("image"));
    let motd = |options: &[&str]| {
        let mounted = place.mount_image(&registry.image(), options);
        std::fs::read(mounted.path("etc/motd")).unwrap()
    };
    assert_eq!(motd(&options), b"one\n");
    layout::write(&place.path("image"), &[image(b"two\n").tar()], Pack::Gzip);
    assert_eq!(motd(&options), b"one\n");
    assert_eq!(motd(&["--pull", "always"]), b"two\n");
    assert_eq!(motd(&options), b"one\n");
    // Nor did the old one take the tag back.
    assert_eq!(motd(&[]), b"two\n");
}

#[test]
fn throw_away_changes_are_gone_at_the_end() {
    if !can_mount() {
        return;
    }
    let place = place();
    let all = place.path("cache/upper");
    let count = || std::fs::read_dir(&all).unwrap().count();
    for how in ["umount", "rsmount umount", "SIGTERM", "SIGKILL"] {
        let mounted = place.mount("image", &["--tmp"]);
        std::fs::write(mounted.path("etc/motd"), "changed").unwrap();
        std::fs::create_dir(mounted.path("d")).unwrap();
        assert_eq!(count(), 1, "{how}");
        let listed: Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
        let pid = listed[0]["pid"].to_string();
        let keeper = listed[0]["keeper"].to_string();
        match how {
            "umount" => drop(run("umount", &[text(&place.mnt())])),
            "SIGTERM" => drop(run("kill", &[&pid])),
            "SIGKILL" => {
                run("kill", &["-9", &keeper, &pid]);
                let dead = || place.ok(&["ps", "-a", "--json"]).contains("dead");
                wait_until(how, dead);
            }
            _ => {}
        }
        if how == "SIGKILL" {
            // Its directory is in use as long as the mount is in the table.
            let before = count();
            drop(place.run(&["-q", &name(&place), "/nowhere", "--tmp"]));
            assert_eq!(count(), before);
            drop(mounted);
            drop(place.mount("image", &["--tmp"]));
        } else {
            if how != "rsmount umount" {
                wait_until(how, || !place.is_mounted());
            }
            drop(mounted);
        }
        wait_until(how, || !place.is_mounted() && count() == 0);
        wait_until(how, || place.leftovers() == 0);
    }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_cannot_be_an_upper_directory_is_refused() {
    if !can_mount() {
        return;
    }
    let place = place();
    let mount = |options: &[&str]| {
        let (image, mnt) = (name(&place), place.mnt());
        let mut all = vec!["-q", &image, text(&mnt)];
        all.extend_from_slice(options);
        place.run(&all)
    };
    let full = place.path("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("f"), "mine").unwrap();
    refused(&place, &mount(&["--upper", text(&full)]), "not empty");
    let file = full.join("f");
    refused(&place, &mount(&["--upper", text(&file)]), "not a directory");
    let missing = place.path("missing/deep");
    refused(&place, &mount(&["--upper", text(&missing)]), "No such file");
    let inside = place.mnt().join("upper");
    refused(&place, &mount(&["--upper", text(&inside)]), "in each other");
    assert!(!inside.exists());
    let shm = format!("/dev/fuse/{}", std::process::id());
    refused(&place, &mount(&["--upper", &shm]), "Not a directory");
    let dir = place.path("new");
    let both = mount(&["--upper", text(&dir), "-o", "ro"]);
    refused_with(2, &place, &both, "leave out the option ro");
    refused_with(2, &place, &mount(&["-o", "rw"]), "--upper DIR or --tmp");
    let bad = place.run(&[
        "-q",
        "oci:/nowhere",
        text(&place.mnt()),
        "--upper",
        text(&dir),
    ]);
    refused(&place, &bad, "/nowhere");
    assert!(!dir.exists(), "a failed mount has left its upper directory");
    let both = mount(&["--upper", text(&dir), "--tmp"]);
    assert_eq!(both.status.code(), Some(2), "{both:?}");
}

#[test]
fn an_overlay_upon_an_overlay_is_refused_with_the_kernels_words() {
    if !can_mount() {
        return;
    }
    let place = place();
    let below = place.path("below");
    let outer = place.mount("image", &["--upper", text(&below)]);
    let inner = outer.path("etc/inner");
    let mnt = place.path("other");
    std::fs::create_dir(&mnt).unwrap();
    let output = place.run(&["-q", &name(&place), text(&mnt), "--upper", text(&inner)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not supported as upperdir"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(!inner.exists());
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(text(&inner)), "{table}");
}

#[test]
fn set_id_programs_and_devices_work_unless_told_otherwise() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.dir.path(), open).unwrap();
    let program = std::fs::read("/usr/bin/id").unwrap();
    let set_id = Meta {
        mode: 0o4755,
        ..FILE
    };
    let layer = Layer::new()
        .file("id", set_id, &program)
        .device("null", 1, 3);
    layout::write(&place.path("image"), &[layer.tar()], Pack::Gzip);
    let user = UID.to_string();
    let id = || {
        let program = place.mnt().join("id");
        let (reuid, regid) = (format!("--reuid={user}"), format!("--regid={user}"));
        let words = [&reuid, &regid, "--clear-groups", text(&program)];
        run("setpriv", &words).concat()
    };
    let null = || std::fs::read(place.mnt().join("null"));
    for (options, works) in [
        (&["--tmp"][..], true),
        (&["--tmp", "-o", "nosuid,nodev"], false),
        (&[], false),
        (&["-o", "suid,dev"], true),
    ] {
        let _mounted = place.mount("image", options);
        assert_eq!(id().contains("euid=0"), works, "{options:?}: {}", id());
        assert_eq!(null().is_ok(), works, "{options:?}");
    }
}

#[test]
fn who_could_use_set_id_programs_is_said_in_one_line() {
    use std::os::unix::fs::PermissionsExt;
    if !can_mount() {
        return;
    }
    let place = place();
    let said = |options: &[&str]| {
        let (image, mnt) = (name(&place), place.mnt());
        let words = [options, &[&image, text(&mnt)]].concat();
        let output = place.run(&words);
        assert!(output.status.success(), "{output:?}");
        place.ok(&["umount", text(&mnt)]);
        String::from_utf8(output.stderr).unwrap()
    };
    let mode = |mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(place.dir.path(), mode).unwrap();
    };
    mode(0o700);
    assert_eq!(said(&["-q", "--tmp"]), "", "nobody else gets there");
    mode(0o711);
    let warning = said(&["-q", "--tmp"]);
    assert_eq!(warning.lines().count(), 1, "{warning}");
    assert!(warning.contains("set-id programs and devices"), "{warning}");
    let half = said(&["-q", "--tmp", "-o", "nosuid"]);
    assert!(
        half.contains("devices") && !half.contains("set-id"),
        "{half}"
    );
    for quiet in ["nosuid,nodev", "suid,dev"] {
        assert_eq!(said(&["-q", "--tmp", "-o", quiet]), "", "{quiet}");
    }
    assert_eq!(said(&["-q"]), "", "a read-only mount has neither");
}

#[test]
fn programs_that_stay_on_one_file_system_see_all_of_it() {
    if !can_mount() {
        return;
    }
    let place = place();
    let upper = place.path("changes");
    let mounted = place.mount("image", &["--upper", text(&upper)]);
    std::fs::create_dir(mounted.path("d")).unwrap();
    std::fs::write(mounted.path("d/new"), vec![1; 1 << 20]).unwrap();
    std::fs::write(mounted.path("etc/issue"), "changed\n").unwrap();
    let mnt = place.mnt();
    let mut found = run("find", &[text(&mnt), "-xdev", "-type", "f"]);
    found.sort();
    let expected = ["d/new", "etc/issue", "etc/motd"];
    let expected: Vec<_> = expected.map(|n| text(&mnt.join(n)).to_owned()).into();
    assert_eq!(found, expected);
    let du = run("du", &["-x", "-s", "-k", text(&mnt)]).concat();
    let kib: u64 = du.split('\t').next().unwrap().parse().unwrap();
    assert!(kib >= 1024, "{du}");
    let tar = place.path("all.tar");
    run(
        "tar",
        &[
            "-C",
            text(&mnt),
            "--one-file-system",
            "-cf",
            text(&tar),
            ".",
        ],
    );
    let listed = run("tar", &["-tf", text(&tar)]);
    for name in ["./d/new", "./etc/issue", "./etc/motd"] {
        assert!(listed.iter().any(|l| l == name), "{listed:?}");
    }
    // One device for all, and the same number for a file whether it is listed or asked for.
    let root = mnt.metadata().unwrap();
    for name in ["etc", "etc/motd", "etc/issue", "d/new"] {
        let meta = mnt.join(name).metadata().unwrap();
        assert_eq!(meta.dev(), root.dev(), "{name}");
        assert!(meta.ino() > 0, "{name}");
    }
}

/// An ordinary user with an image.
fn user() -> Ordinary {
    let user = Ordinary::on(USUAL);
    let layer = image(b"one\n").dir("mine", DIR);
    layout::write(&user.place.path("image"), &[layer.tar()], Pack::Gzip);
    user
}

/// What a user does in the mount at `$2`, by the program `$1`: mount, change, look, end.
const SESSION: &str = r#"
set -eu
"$1" -q "oci:$3" "$2" --upper "$4"
cat "$2/etc/motd"
rm "$2/etc/motd"
echo new >"$2/etc/new"
"$1" ps --json | grep -c '"upper": "/'
"$1" umount "$2"
"$1" -q "oci:$3" "$2" --upper "$4"
ls "$2/etc"
"$1" umount "$2"
ls "$2"
"#;

fn session(user: &Ordinary, before: &[&str]) -> Output {
    let place = &user.place;
    let mut words = before.to_vec();
    let (program, mnt) = (place.path("rsmount"), place.mnt());
    let (image, upper) = (place.path("image"), user.home().join("changes"));
    words.extend(["sh", "-c", SESSION, "sh", text(&program)]);
    words.extend([text(&mnt), text(&image), text(&upper)]);
    user.run(words[0], &words[1..])
}

#[test]
fn in_a_user_namespace_the_kernel_makes_the_overlay() {
    if !can_be_ordinary() {
        return;
    }
    let user = user();
    if !user.run("unshare", &["-Ur", "-m", "true"]).status.success() {
        return skip("this kernel lets ordinary users make no user namespaces");
    }
    let output = session(&user, &["unshare", "-Ur", "-m"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said, "one\n1\nissue\nnew\n");
    let whiteout = user.home().join("changes/upper/etc/motd");
    assert_eq!(whiteout.symlink_metadata().unwrap().rdev(), 0);
}

#[test]
fn who_has_only_fusermount3_gets_fuse_overlayfs() {
    if !can_be_ordinary() {
        return;
    }
    if Command::new("fuse-overlayfs").arg("-V").output().is_err() {
        return skip("needs fuse-overlayfs");
    }
    let user = user();
    let output = session(&user, &["env"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said, "one\n1\nissue\nnew\n");
    let (mnt, upper) = (user.place.mnt(), user.home().join("changes"));
    let image = format!("oci:{}", user.place.path("image").display());
    let words = ["-q", &image, text(&mnt), "--upper", text(&upper)];
    let denied = user.refused(&[&words[..], &["-o", "suid"]].concat());
    assert!(denied.contains("only root"), "{denied}");
    // Without the program: which of the three is missing what.
    let mut command = user.command(UID, "env");
    let tools = user.home().join("tools");
    std::fs::create_dir(&tools).unwrap();
    std::os::unix::fs::symlink("/usr/bin/fusermount3", tools.join("fusermount3")).unwrap();
    command.arg(format!("PATH={}", text(&tools)));
    let output = command
        .arg(user.place.path("rsmount"))
        .args(words)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["root", "unshare -Ur -m", "fuse-overlayfs (not found"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert_eq!(user.mounted(), None);
}
