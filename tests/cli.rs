//! The command line is a contract: its whole help is a snapshot, and output is what scripts expect.
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    clippy::print_stderr,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/all.rs"]
mod support;

use support::place::Place;

/// Help of the command and of every subcommand. On purpose a change here is a change of contract.
#[test]
fn the_command_line_is_as_agreed() {
    let place = Place::new();
    let mut all = String::new();
    for command in [
        "",
        "mount",
        "umount",
        "ps",
        "stats",
        "why",
        "index build",
        "index show",
        "doctor",
        "bench",
        "publish",
        "explain",
        "key generate",
        "key show",
        "inspect",
        "history",
        "pull",
        "images",
        "rmi",
        "tag",
        "save",
        "load",
        "login",
        "logout",
        "ls",
        "cat",
        "cp",
        "diff",
        "dump",
        "cache",
        "cache du",
        "cache prune",
        "cache pin",
        "cache unpin",
        "cache verify",
        "commit",
        "push",
        "upgrade",
        "completions",
        "man",
        "run",
        "exec",
        "logs",
        "stop",
        "kill",
        "wait",
        "rm",
        "bundle",
    ] {
        let mut args: Vec<&str> = command.split_whitespace().collect();
        args.push("--help");
        // The terminal's width must not matter.
        let output = place
            .rsmount()
            .args(&args)
            .env("COLUMNS", "100")
            .output()
            .unwrap();
        assert!(output.status.success());
        all.push_str(&format!("$ rsmount {}\n", args.join(" ")));
        all.push_str(&String::from_utf8(output.stdout).unwrap());
        all.push('\n');
    }
    insta::assert_snapshot!(all);
}

#[test]
fn completions_and_the_man_page_are_made() {
    let place = Place::new();
    assert!(place.ok(&["completions", "bash"]).contains("_rsmount"));
    assert!(
        place
            .ok(&["completions", "zsh"])
            .contains("#compdef rsmount")
    );
    let page = place.ok(&["man"]);
    assert!(page.contains(".TH rsmount") && page.contains("\\-\\-upper"));
    for inner in ["keeper", "watch"] {
        assert!(!page.contains(&format!("rsmount\\-{inner}")), "{inner}");
        assert!(!place.ok(&["completions", "fish"]).contains(inner));
    }
    let page = place.ok(&["man", "cache", "prune"]);
    assert!(page.contains("\\-\\-older"), "{page}");
    let pages = place.path("pages");
    place.ok(&["man", "--dir", pages.to_str().unwrap()]);
    for name in ["rsmount.1", "rsmount-mount.1", "rsmount-cache-prune.1"] {
        assert!(pages.join(name).exists(), "{name}");
    }
    assert_eq!(place.run(&["man", "nothing"]).status.code(), Some(1));
}

#[test]
fn what_was_meant_as_a_command_is_said() {
    let place = Place::new();
    let output = place.run(&["unmount", place.mnt().to_str().unwrap(), "--offline"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("did you mean the command `rsmount umount`"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    let output = place.run(&["stat"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(2) && said.contains("rsmount stats"),
        "{said}"
    );
}

#[test]
fn lists_are_json_when_asked() {
    let place = Place::new();
    assert_eq!(place.ok(&["ps", "--json"]).trim(), "[]");
    assert!(place.ok(&["ps"]).starts_with("IMAGE"));
    let usage: serde_json::Value =
        serde_json::from_str(&place.ok(&["cache", "du", "--json"])).unwrap();
    assert_eq!(usage["layers"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::new();
    let program = place.rsmount().get_program().to_owned();
    let output = std::process::Command::new("bash")
        .args(["-c", r#"set -e; for c in man "completions bash" "ps --help"; do "$0" $c | head -1; (exit "${PIPESTATUS[0]}"); done"#])
        .arg(program)
        .env("RSMOUNT_CACHE_DIR", place.path("cache"))
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let place = Place::new();
    for words in [
        &["ps"][..],
        &["images", "--json"],
        &["man"],
        &["completions", "bash"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        let output = place.rsmount().args(words).stdout(full.unwrap()).output();
        let output = output.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(said.contains("standard output: No space left"), "{said}");
    }
}

#[test]
fn configuration_files_are_read_and_checked() {
    let place = Place::new();
    let config = place.path("config/rsmount");
    std::fs::create_dir_all(&config).unwrap();
    let run = |text: &str| {
        std::fs::write(config.join("config.toml"), text).unwrap();
        let mut command = place.rsmount();
        command
            .env_remove("RSMOUNT_CACHE_DIR")
            .env("XDG_CONFIG_HOME", place.path("config"));
        command.args(["cache", "du"]).output().unwrap()
    };
    let wanted = place.path("elsewhere");
    let output = run(&format!("cache_dir = {wanted:?}\n"));
    assert!(output.status.success(), "{output:?}");
    assert!(wanted.join("v1").exists());
    // A relative name stands beside the file, wherever rsmount is called.
    let output = run("cache_dir = \"near\"\n");
    assert!(output.status.success(), "{output:?}");
    assert!(config.join("near/v1").exists());
    let output = run("cache_directory = 1\n");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("config.toml") && text.contains("cache_directory"),
        "{text}"
    );
    // What needs no settings works, and a list says what is wrong; a container's own code may be 1.
    let with = |args: &[&str]| {
        let mut command = place.rsmount();
        command.env("XDG_CONFIG_HOME", place.path("config"));
        command.args(args).output().unwrap()
    };
    for args in [&["completions", "bash"][..], &["man"], &["ps"]] {
        let output = with(args);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let told = String::from_utf8_lossy(&output.stderr).contains("config.toml");
        assert_eq!(told, args == ["ps"], "{output:?}");
    }
    let mnt = place.mnt();
    let umount = String::from_utf8(with(&["umount", mnt.to_str().unwrap()]).stderr).unwrap();
    assert!(umount.contains("no image is mounted here"), "{umount}");
    for args in [&["run", "oci:x", "true"][..], &["exec", "x", "true"]] {
        assert_eq!(with(args).status.code(), Some(125));
    }
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let place = Place::new();
    let mnt = place.mnt();
    let mnt = mnt.to_str().unwrap();
    for args in [
        &["-o", "sideways", "oci:none", mnt][..],
        &["-o", "rw", "oci:none", mnt],
        &["cat", "oci:none"],
        &["images", "--filter", "colour=red"],
        &["--offline", "--pull", "always", "oci:none", mnt],
        &["ls", "--offline", "--pull", "always", "oci:none"],
    ] {
        let output = place.run(args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    for (name, value, args) in [
        ("RSMOUNT_ON_OUTAGE", "never", &["images"][..]),
        ("RSMOUNT_FILL", "perhaps", &["images"]),
        ("RSMOUNT_ENGINE", "steam", &["images"]),
        (
            "SOURCE_DATE_EPOCH",
            "18446744073709551615",
            &["commit", mnt, "x"],
        ),
    ] {
        // A place that could be committed.
        std::fs::write(place.mnt().join("rsmount.json"), "{}").unwrap();
        let output = place
            .rsmount()
            .env(name, value)
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(name),
            "{output:?}"
        );
    }
}
