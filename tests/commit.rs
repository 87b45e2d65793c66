//! An upper directory becomes a layer: with every kind of change, by all three kinds of overlay, the
//! image that is made shows what the container showed.
//!
//! Needs root, `/dev/fuse`, attr and fuse-overlayfs; says so loudly where something is skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::layout::{self, DIR, FILE, Layer, Meta, Pack};
use support::namespace::Namespace;
use support::ordinary::{Ordinary, USUAL, can_be_ordinary};
use support::place::{Mounted, Place, can_mount, skip};
use support::seen::{self, Seen};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(byte).collect()
}

/// Two layers with something for each change to be made on.
fn base(place: &Place) {
    let owned = Meta {
        uid: 1000,
        gid: 100,
        mode: 0o640,
        ..FILE
    };
    let theirs = Meta {
        mode: 0o644,
        ..owned
    };
    let noise = noise(3_000_000);
    let first = Layer::new()
        .dir("etc", DIR)
        .file("etc/gone", FILE, b"deleted")
        .file("etc/stays", owned, b"stays")
        .file("etc/chmod", FILE, b"chmod")
        .file("etc/chown", FILE, b"chown")
        .file("etc/setfattr", FILE, b"setfattr")
        .file("etc/touch", FILE, b"touch")
        .file("etc/written", owned, b"before")
        .file("etc/theirs", theirs, b"theirs")
        .file("etc/linked", FILE, b"linked")
        .file("etc/to-dir", FILE, b"becomes a directory")
        .symlink("etc/link", "stays")
        .dir("gone", DIR)
        .file("gone/a", FILE, b"a")
        .dir("gone/b", DIR)
        .file("gone/b/c", FILE, b"c")
        .dir("again", DIR)
        .file("again/old", FILE, b"old")
        .file("again/both", FILE, b"both, old")
        .dir("again/deep", DIR)
        .file("again/deep/old", FILE, b"old")
        .dir("to-file", DIR)
        .file("to-file/x", FILE, b"x");
    let second = Layer::new()
        .dir("renamed", DIR)
        .file("renamed/one", owned, b"one")
        .dir("renamed/two", DIR)
        .file("renamed/two/three", FILE, b"three")
        .dir("kept", DIR)
        .dir("kept/deep", DIR)
        .file("kept/deep/file", FILE, b"file")
        .file("kept/deep/gone", FILE, b"gone")
        .file("big", FILE, &noise);
    let tars = [first.tar(), second.tar()];
    layout::write(&place.path("image"), &tars, Pack::Gzip);
}

/// Every kind of change. `$1` is the mount, `$2` who makes them: `root`, `user` (in a namespace, who
/// makes no devices) or `fuse`.
const CHANGES: &str = r#"
set -eu
cd "$1"
rm etc/gone
rm -r gone
rm -r again; mkdir again; echo new >again/new; echo 'both, new' >again/both; mkdir -m 0700 again/deep
rm -r to-file; echo file >to-file
rm etc/to-dir; mkdir etc/to-dir; echo in >etc/to-dir/in
mv renamed moved
ln etc/linked etc/other-name
ln etc/linked kept/third-name
chmod 0600 etc/chmod
chown 1234:567 etc/chown
setfattr -n user.note -v changed etc/setfattr
touch -d '2001-02-03 04:05:06.123456789' etc/touch
touch -h -d '1969-12-31 23:59:58.5' etc/link
printf after >>etc/written
rm kept/deep/gone
truncate -s 10M sparse
printf start | dd of=sparse conv=notrunc status=none
printf middle | dd of=sparse bs=1M seek=5 conv=notrunc status=none
truncate -s 1M hole
printf end | dd of=tail bs=1 seek=9000 conv=notrunc status=none
mkfifo -m 0640 fifo
longest=255
# It keeps room for a prefix of its own.
if [ "$2" = fuse ]; then longest=251; fi
if [ "$2" != user ]; then
  mknod -m 0620 device c 5 1; mknod block b 7 3; setfattr -n trusted.mine -v 1 etc/stays
fi
echo set >set-id; chmod 6755 set-id
mkdir -m 3777 sticky; chown 65533:65533 sticky
ln -s 'target with  blanks' 'sym link'
ln -s "$(printf 'x%.0s' $(seq 300))" long-link
touch -- "$(printf 'odd\n\t\\name \377')" "$(printf 'n%.0s' $(seq $longest))" ' ' '-rf' '*' 'ünï' '.wh'
mkdir -p "$(printf 'deep/%.0s' $(seq 60))"; echo d >"$(printf 'deep/%.0s' $(seq 60))file"
: >empty
mkdir new-dir; echo n >new-dir/n; rm new-dir/n; touch -d '2002-02-02 02:02:02.5' new-dir
head -c 3000000 big | tail -c 2999999 >shifted
"#;

/// Directories tell nothing by their number of names in an overlay.
fn without_directory_links(mut seen: Seen) -> Seen {
    for node in seen.values_mut().filter(|node| node.kind == 'd') {
        node.nlink = 0;
    }
    seen
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

fn change(mnt: &Path, who: &str) {
    let mut command = Command::new("sh");
    run(command.args(["-c", CHANGES, "sh", text(mnt), who]));
}

fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        skip(&format!("needs {tool}"));
    }
    found
}

/// Commits, twice, and gives the layer's digest.
fn commit(place: &Place, target: &Path, image: &str, options: &[&str]) -> Value {
    let mut words = vec!["commit", text(target), image, "--json"];
    words.extend_from_slice(options);
    let parse = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let first = parse(place.ok(&words));
    let again = parse(place.ok(&words));
    assert_eq!(first["layer"], again["layer"], "not reproducible");
    first
}

/// What an image shows when it is mounted.
fn shown(place: &Place, image: &str) -> Seen {
    let mnt = place.path("shown");
    std::fs::create_dir_all(&mnt).unwrap();
    place.ok(&["-q", image, text(&mnt), "-o", "suid,dev"]);
    let seen = without_directory_links(seen::look(&mnt));
    place.ok(&["umount", text(&mnt)]);
    seen
}

/// Commits what is at `target`, in both compressions, and compares with `container`.
fn becomes_an_image(place: &Place, target: &Path, container: &Seen) {
    for compression in ["gzip", "zstd"] {
        let image = format!("local/app:{compression}");
        let made = commit(place, target, &image, &["--compression", compression]);
        assert!(made["entries"].as_u64().unwrap() > 40, "{made}");
        seen::assert_same(compression, container, &shown(place, &image));
        // From the kept blob, span by span.
        place.ok(&["cache", "prune", "--data"]);
        seen::assert_same("lazily", container, &shown(place, &image));
    }
}

#[test]
fn every_change_made_as_root_is_in_the_image() {
    if !can_mount() || !has("setfattr") {
        return;
    }
    let place = Place::new();
    base(&place);
    let upper = place.path("changes");
    let mounted = place.mount("image", &["--upper", text(&upper)]);
    change(&place.mnt(), "root");
    let container = without_directory_links(seen::look(&place.mnt()));
    becomes_an_image(&place, &place.mnt(), &container);
    // The directory alone is enough, and names the same layer.
    let of_mount = commit(&place, &place.mnt(), "local/app:a", &[]);
    drop(mounted);
    let of_dir = commit(&place, &upper, "local/app:b", &[]);
    assert_eq!(of_mount["layer"], of_dir["layer"]);
}

#[test]
fn every_change_made_in_a_user_namespace_is_in_the_image() {
    if !can_mount() || !has("setfattr") {
        return;
    }
    let Some(namespace) = Namespace::new() else {
        return skip("unshare makes no user namespace with many ids");
    };
    let place = Place::new();
    base(&place);
    let (mnt, upper) = (place.mnt(), place.path("changes"));
    let image = format!("oci:{}", place.path("image").display());
    let rsmount = |words: &[&str]| {
        let mut command = place.rsmount();
        command.args(words);
        namespace.run(&command)
    };
    rsmount(&["-q", &image, text(&mnt), "--upper", text(&upper)]);
    let mut command = Command::new("sh");
    namespace.run(command.args(["-c", CHANGES, "sh", text(&mnt), "user"]));
    // Without the right to open by handle the kernel remembers a file's number from before it was
    // linked only as long as the mount lasts.
    rsmount(&["umount", text(&mnt)]);
    rsmount(&["-q", &image, text(&mnt), "--upper", text(&upper)]);
    let container = without_directory_links(seen::look(&namespace.path(&mnt)));
    assert!(container.contains_key(&b"sparse"[..]));
    for compression in ["gzip", "zstd"] {
        let image = format!("local/app:{compression}");
        rsmount(&["commit", text(&mnt), &image, "--compression", compression]);
        seen::assert_same(compression, &container, &shown(&place, &image));
    }
    rsmount(&["umount", text(&mnt)]);
}

#[test]
fn every_change_made_by_fuse_overlayfs_is_in_the_image() {
    if !can_mount() || !has("setfattr") || !has("fuse-overlayfs") {
        return;
    }
    let place = Place::new();
    base(&place);
    let upper = place.path("changes");
    drop(place.mount("image", &["--upper", text(&upper)]));
    // From now on it is one of fuse-overlayfs.
    let about = upper.join("rsmount.json");
    let json = std::fs::read_to_string(&about).unwrap();
    std::fs::write(&about, json.replace("\"trusted\"", "\"fuse\"")).unwrap();
    let _mounted = place.mount("image", &["--upper", text(&upper)]);
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = format!(" {} ", place.mnt().display());
    let line = table.lines().find(|l| l.contains(&at)).unwrap();
    assert!(line.contains("fuse.fuse-overlayfs"), "{line}");
    change(&place.mnt(), "fuse");
    let container = without_directory_links(seen::look(&place.mnt()));
    becomes_an_image(&place, &place.mnt(), &container);
}

#[test]
fn diff_names_what_was_changed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    base(&place);
    let upper = place.path("changes");
    let mounted = place.mount("image", &["--upper", text(&upper)]);
    assert_eq!(place.ok(&["diff", text(&place.mnt())]), "");
    std::fs::write(mounted.path("etc/new"), "n").unwrap();
    std::fs::write(mounted.path("etc/written"), "w").unwrap();
    std::fs::remove_file(mounted.path("etc/gone")).unwrap();
    std::fs::remove_dir_all(mounted.path("again")).unwrap();
    std::fs::create_dir(mounted.path("again")).unwrap();
    std::fs::write(mounted.path("again/both"), "b").unwrap();
    std::fs::remove_dir_all(mounted.path("gone")).unwrap();
    // What came and went was never there.
    std::fs::write(mounted.path("etc/brief"), "b").unwrap();
    std::fs::remove_file(mounted.path("etc/brief")).unwrap();
    let expected = "C /again\nC /again/both\nD /again/deep\nD /again/old\nC /etc\nD /etc/gone\n\
                    A /etc/new\nC /etc/written\nD /gone\n";
    assert_eq!(place.ok(&["diff", text(&place.mnt())]), expected);
    let json = place.ok(&["diff", text(&upper), "--json"]);
    let lines: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(lines[0], json!({"kind": "C", "path": "/again"}));
    assert_eq!(lines.len(), 9);
}

#[test]
fn a_name_that_is_given_again_leaves_nothing_of_what_had_it() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    base(&place);
    let mounted = place.mount("image", &["--tmp"]);
    let layers = || {
        let usage: Value = serde_json::from_str(&place.ok(&["cache", "du", "--json"])).unwrap();
        usage["layers"].as_array().unwrap().len()
    };
    let before = layers();
    for text in ["one", "two", "three"] {
        std::fs::write(mounted.path("etc/new"), text).unwrap();
        place.ok(&["commit", self::text(&place.mnt()), "app:1"]);
    }
    assert_eq!(layers(), before + 1);
    assert_eq!(place.ok(&["cat", "app:1:/etc/new"]), "three");
}

#[test]
fn a_socket_is_left_out_and_what_it_replaced_is_gone() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    base(&place);
    let mounted = place.mount("image", &["--tmp"]);
    let list = |image: &str| place.ok(&["ls", &format!("{image}:/etc")]);
    let name = std::fs::read_dir(mounted.path("etc")).unwrap().flatten();
    let mut files = name.filter(|e| e.file_type().unwrap().is_file());
    let name = files.next().unwrap().file_name();
    let path = mounted.path("etc").join(&name);
    std::fs::remove_file(&path).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    place.ok(&["commit", text(&place.mnt()), "app:1"]);
    let name = name.to_str().unwrap();
    assert!(!list("app:1").lines().any(|line| line == name), "{name}");
}

#[test]
fn the_configuration_and_the_history_grow() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    base(&place);
    let mounted = place.mount("image", &["--tmp"]);
    std::fs::write(mounted.path("etc/new"), "n").unwrap();
    let mnt = place.mnt();
    let words = [
        "commit",
        text(&mnt),
        "app:2",
        "-a",
        "me",
        "-m",
        "why",
        "-c",
        "CMD [\"/run\"]",
        "--change",
        "ENV A=1",
    ];
    let digest = |epoch: &str| {
        let mut command = place.rsmount();
        let output = run(command.args(words).env("SOURCE_DATE_EPOCH", epoch));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(digest("1000000000"), digest("1000000000"));
    let config: Value =
        serde_json::from_str(&place.ok(&["inspect", "--raw=config", "app:2"])).unwrap();
    assert_eq!(config["config"]["Cmd"], json!(["/run"]));
    assert_eq!(config["config"]["Env"], json!(["A=1"]));
    assert_eq!(config["author"], "me");
    assert_eq!(config["created"], "2001-09-09T01:46:40Z");
    assert_eq!(config["history"][0]["comment"], "why");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
    // A container of the new image, and an image of that.
    drop(mounted);
    let second = place.mount_image("app:2", &["--tmp"]);
    std::fs::remove_file(second.path("etc/new")).unwrap();
    std::fs::write(second.path("etc/newer"), "n").unwrap();
    place.ok(&["commit", text(&mnt), "app:3"]);
    let third = shown(&place, "app:3");
    assert!(third.contains_key(&b"etc/newer"[..]) && !third.contains_key(&b"etc/new"[..]));
    place.ok(&["cache", "prune", "--data"]);
    seen::assert_same("lazily", &third, &shown(&place, "app:3"));
    // Nothing changed: no layer.
    drop(second);
    let _same = place.mount_image("app:3", &["--tmp"]);
    place.ok(&["commit", text(&mnt), "app:4", "-c", "USER 7"]);
    let config: Value =
        serde_json::from_str(&place.ok(&["inspect", "--raw=config", "app:4"])).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 4);
    assert_eq!(config["history"][2]["empty_layer"], true);
    seen::assert_same("the same", &third, &shown(&place, "app:4"));
}

#[test]
fn an_ordinary_users_changes_keep_the_images_owners() {
    if !can_be_ordinary() || !has("fuse-overlayfs") {
        return;
    }
    let user = Ordinary::on(USUAL);
    base(&user.place);
    let (mnt, upper) = (user.place.mnt(), user.home().join("changes"));
    let image = format!("oci:{}", user.place.path("image").display());
    user.ok(&["-q", &image, text(&mnt), "--upper", text(&upper)]);
    let script =
        "cd \"$1\" && echo more >>etc/theirs && chmod 0711 etc && echo new >etc/new && rm -r gone";
    let output = user.run("sh", &["-c", script, "sh", text(&mnt)]);
    assert!(output.status.success(), "{output:?}");
    user.ok(&["commit", text(&mnt), "app:1"]);
    user.ok(&["umount", text(&mnt)]);
    let listed = user.ok(&["dump", "app:1"]);
    let line = |path: &str| {
        let found = listed.lines().find(|l| l.contains(path));
        found
            .unwrap_or_else(|| panic!("{path}: {listed}"))
            .to_owned()
    };
    assert!(line("/etc/theirs").contains("1000"));
    assert!(!listed.contains("54321"), "{listed}");
    assert!(!listed.contains("/gone/"), "{listed}");
    assert!(line("/etc/new").contains("0"));
}

/// One line that says `expected`, exit code 1, and no image of that name.
fn refused(place: &Place, words: &[&str], expected: &str) {
    let output = place.run(words);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{words:?}: {said}");
    assert!(said.contains(expected), "{said:?} lacks {expected:?}");
    let left = std::fs::read_dir(place.path("cache/v1/tmp")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{words:?}");
    let blobs = std::fs::read_dir(place.path("cache/v1/blobs")).map_or(0, Iterator::count);
    assert_eq!(blobs, 0, "{words:?}");
    assert!(
        !place
            .run(&["inspect", "--offline", "bad:1"])
            .status
            .success()
    );
}

#[test]
fn what_cannot_be_committed_is_refused_in_one_line() {
    if !can_mount() || !has("setfattr") {
        return;
    }
    let place = Place::new();
    base(&place);
    let (mnt, upper) = (place.mnt(), place.path("changes"));
    refused(
        &place,
        &["commit", text(&mnt), "bad:1"],
        "neither a writable mount",
    );
    {
        let _read_only = place.mount("image", &[]);
        refused(&place, &["commit", text(&mnt), "bad:1"], "read-only");
        refused(&place, &["diff", text(&mnt)], "read-only");
    }
    let mounted = place.mount("image", &["--upper", text(&upper)]);
    std::fs::write(mounted.path("etc/new"), "n").unwrap();
    let bad = |words: &[&str], expected: &str| {
        let mut all = vec!["commit", text(&mnt)];
        all.extend_from_slice(words);
        refused(&place, &all, expected);
    };
    bad(&["Bad:1"], "Bad");
    bad(
        &["bad@sha256:0000000000000000000000000000000000000000000000000000000000000000"],
        "with a tag",
    );
    bad(&["bad:1", "-c", "RUN x"], "cannot be used with --change");
    bad(&["bad:1", "-c", "EXPOSE x"], "is not a port");
    std::fs::write(mounted.path("etc/.wh.name"), "n").unwrap();
    bad(&["bad:1"], "/etc/.wh.name");
    std::fs::remove_file(mounted.path("etc/.wh.name")).unwrap();
    // As a kernel with other defaults would write it.
    let moved = upper.join("upper/etc/moved");
    std::fs::create_dir(&moved).unwrap();
    let mark = |name: &str| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&moved, name, b"/etc", flags).unwrap();
    };
    for name in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
        mark(name);
        bad(&["bad:1"], "/etc/moved");
        rustix::fs::removexattr(&moved, name).unwrap();
    }
    place.ok(&["commit", text(&mnt), "good:1"]);
}

#[test]
fn a_file_that_changes_under_the_reading_fails_the_commit() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    base(&place);
    let mounted = place.mount("image", &["--tmp"]);
    let path = mounted.path("etc/busy");
    std::fs::write(&path, vec![7; 48 << 20]).unwrap();
    let busy = std::thread::spawn({
        let stop = place.path("stop");
        move || {
            let mut file = std::fs::File::options().append(true).open(&path).unwrap();
            while !stop.exists() {
                std::io::Write::write_all(&mut file, b"more").unwrap();
                std::thread::yield_now();
            }
        }
    });
    let mnt = place.mnt();
    refused(
        &place,
        &["commit", text(&mnt), "bad:1"],
        "/etc/busy: changed while it was read",
    );
    std::fs::write(place.path("stop"), "").unwrap();
    busy.join().unwrap();
    place.ok(&["commit", text(&mnt), "good:1"]);
}

#[test]
fn a_full_disk_leaves_the_changes_alone() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    base(&place);
    let upper = place.path("changes");
    // Room for the base, and for what is always kept free, but not for more.
    let cache = place.path("cache");
    std::fs::create_dir(&cache).unwrap();
    std::os::unix::fs::chown(&cache, Some(0), Some(0)).unwrap();
    let options = [
        "-t",
        "tmpfs",
        "-o",
        "size=100m,mode=0700",
        "tmpfs",
        text(&cache),
    ];
    run(Command::new("mount").args(options));
    let mounted = place.mount("image", &["--upper", text(&upper)]);
    let noise = noise(60_000_000);
    std::fs::write(mounted.path("noise"), &noise).unwrap();
    let before = seen::look(&upper.join("upper"));
    let mnt = place.mnt();
    refused(&place, &["commit", text(&mnt), "bad:1"], "no space left");
    seen::assert_same(
        "the upper directory",
        &before,
        &seen::look(&upper.join("upper")),
    );
    std::fs::remove_file(mounted.path("noise")).unwrap();
    place.ok(&["commit", text(&mnt), "good:1"]);
    drop(mounted);
    // The mount is gone before the processes that served it are.
    let umount = || Command::new("umount").arg(&cache).output().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut unmounted = umount();
    while !unmounted.status.success() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        unmounted = umount();
    }
    assert!(unmounted.status.success(), "{unmounted:?}");
}

#[test]
fn a_name_may_be_given_again() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    base(&place);
    let mounted: Mounted<'_> = place.mount("image", &["--tmp"]);
    let odd = mounted
        .path("etc")
        .join(std::ffi::OsStr::from_bytes(b"n\xffw"));
    std::fs::write(&odd, "1").unwrap();
    let mnt = place.mnt();
    let first = place.ok(&["commit", text(&mnt), "app:1"]);
    std::fs::write(&odd, "2").unwrap();
    let second = place.ok(&["commit", text(&mnt), "app:1"]);
    assert_ne!(first, second);
    let seen = shown(&place, "app:1");
    assert_eq!(seen[&b"etc/n\xffw"[..]].size, Some(1));
    // Nothing needs what had the name before.
    let digest = format!("app@{}:/etc", first.trim());
    assert!(!place.run(&["ls", "--offline", &digest]).status.success());
}
