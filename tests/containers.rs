//! Containers made, reached and ended by the command: their life, and what is refused.
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

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::busybox;
use support::containers::{Containers, mounts_below, text};
use support::layout::Pack;
use support::place::Place;
use support::registry::{Asked, Registry};
use support::terminal::{Step, at_a_terminal};

/// Starts it, and returns when it has said a line.
fn begin(command: &mut Command) -> (Child, BufReader<std::process::ChildStdout>, String) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (child, reader, line)
}

#[test]
fn a_container_leaves_what_it_changed_until_it_is_removed() {
    let Some(containers) = Containers::new(&json!({"Cmd": ["true"]})) else {
        return;
    };
    let said = containers.run(
        &[
            "--name", "keeps", "-e", "GIVEN=1", "-u", "0:0", "-w", "/tmp",
        ],
        &[
            "sh",
            "-c",
            "echo out; echo err >&2; echo new >/made; exit 3",
        ],
    );
    assert_eq!(said.status.code(), Some(3), "{said:?}");
    assert_eq!(
        (text(&said.stdout), text(&said.stderr)),
        ("out\n".into(), "err\n".into())
    );
    let rows = containers.ps();
    assert_eq!(rows.len(), 1);
    let container = &rows[0]["container"];
    assert_eq!(container["name"], "keeps");
    assert_eq!(
        (&container["status"], &container["exit_code"]),
        (&json!("exited"), &json!(3))
    );
    assert_eq!(rows[0]["state"], "unmounted");
    assert!(rows[0]["digest"].as_str().unwrap().starts_with("sha256:"));
    let upper = Path::new(rows[0]["upper"].as_str().unwrap()).join("upper");
    assert_eq!(
        std::fs::read_to_string(upper.join("made")).unwrap(),
        "new\n"
    );
    // Nothing that was only mounted over is taken for a change.
    assert!(!upper.join("etc/hosts").exists() && !upper.join("etc/resolv.conf").exists());
    let logs = containers.0.run(&["logs", "keeps"]);
    assert_eq!(
        (text(&logs.stdout), text(&logs.stderr)),
        ("out\n".into(), "err\n".into())
    );
    let diff = containers.0.ok(&["diff", "keeps"]);
    assert!(diff.lines().any(|line| line == "A /made"), "{diff}");
    containers.0.ok(&["commit", "-q", "keeps", "test/kept:1"]);
    let made = containers.0.ok(&["cat", "--offline", "test/kept:1:/made"]);
    assert_eq!(made, "new\n");
    // What it was given is the image's now, as docker commit has it.
    let config = containers.0.ok(&["inspect", "--offline", "test/kept:1"]);
    let config: Value = serde_json::from_str(&config).unwrap();
    let config = &config[0]["Config"];
    assert_eq!(config["Cmd"][0], "sh", "{config}");
    let env = config["Env"].as_array().unwrap();
    assert!(env.contains(&json!("GIVEN=1")), "{config}");
    assert_eq!(
        (&config["User"], &config["WorkingDir"]),
        (&json!("0:0"), &json!("/tmp"))
    );
    let id = container["id"].as_str().unwrap();
    let again = containers.run(&["--name", "keeps"], &[]);
    assert_eq!(again.status.code(), Some(125));
    assert!(
        text(&again.stderr).contains("is taken by container"),
        "{again:?}"
    );
    assert_eq!(
        containers.0.ok(&["rm", &id[..10]]),
        format!("{}\n", &id[..10])
    );
    containers.nothing_is_left();
}

#[test]
fn rm_leaves_nothing() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let size = "cat /proc/self/limits >/dev/null; echo $HOME $HOSTNAME $PATH; hostname";
    let said = containers.ok(&["--rm", "--hostname", "box"], &["sh", "-c", size]);
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(said, format!("/root box {path}\nbox\n"));
    containers.nothing_is_left();
    for refused in [&["nope"][..], &["/etc"]] {
        let output = containers.run(&[], refused);
        assert!(
            matches!(output.status.code(), Some(126 | 127)),
            "{output:?}"
        );
        containers.nothing_is_left();
    }
}

#[test]
fn a_detached_container_is_reached_and_stopped() {
    let Some(containers) = Containers::new(&json!({"StopSignal": "SIGUSR1"})) else {
        return;
    };
    let script = "trap 'echo asked; exit 7' USR1; echo begun; while :; do sleep 0.05; done";
    let id = containers.ok(&["-d", "--name", "box", "-e", "A=1"], &["sh", "-c", script]);
    assert_eq!(id.trim().len(), 64);
    let place = &containers.0;
    let rows = containers.ps();
    assert_eq!(rows[0]["container"]["status"], "running");
    assert_eq!(rows[0]["state"], "ready");
    let refused = place.run(&["rm", "box"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("stop it first"),
        "{refused:?}"
    );
    let inside = "echo $A $B; pwd; id -u; id -gn; touch /from-exec";
    let exec = [
        "exec", "-e", "B=2", "-w", "/tmp", "-u", "web", "box", "sh", "-c", inside,
    ];
    let said = place.run(&exec);
    assert_eq!(text(&said.stdout), "1 2\n/tmp\n33\nweb\n", "{said:?}");
    assert_eq!(said.status.code(), Some(1), "user 33 may not write to /");
    assert_eq!(
        place
            .run(&["exec", "box", "sh", "-c", "exit 4"])
            .status
            .code(),
        Some(4)
    );
    assert_eq!(place.run(&["exec", "box", "nope"]).status.code(), Some(127));
    assert_eq!(
        place.run(&["exec", "none", "true"]).status.code(),
        Some(125)
    );
    let mut piped = place.rsmount();
    piped
        .args(["exec", "-i", "box", "cat"])
        .stdin(Stdio::piped());
    let mut child = piped.stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "through");
    place.ok(&["stop", "box"]);
    let container = &containers.ps()[0]["container"];
    assert_eq!(
        (&container["status"], &container["exit_code"]),
        (&json!("exited"), &json!(7))
    );
    assert_eq!(place.ok(&["logs", "box"]), "begun\nasked\n");
    assert_eq!(place.ok(&["wait", "box"]), "7\n");
    let gone = place.run(&["exec", "box", "true"]);
    assert!(text(&gone.stderr).contains("does not run"), "{gone:?}");
    place.ok(&["rm", "box"]);
    containers.nothing_is_left();
}

#[test]
fn logs_follow_and_kill_kills() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let script = "i=0; while :; do i=$((i + 1)); echo line $i; sleep 0.05; done";
    containers.ok(&["-d", "--name", "box"], &["sh", "-c", script]);
    let mut follow = containers.0.rsmount();
    let (mut child, mut rest, first) = begin(follow.args(["logs", "-f", "box"]));
    assert_eq!(first, "line 1\n");
    for n in 2..6 {
        let mut line = String::new();
        rest.read_line(&mut line).unwrap();
        assert_eq!(line, format!("line {n}\n"));
    }
    containers.0.ok(&["kill", "box"]);
    assert!(child.wait().unwrap().success());
    assert_eq!(containers.ps()[0]["container"]["exit_code"], 137);
    let all = containers.0.ok(&["logs", "--tail", "all", "box"]);
    assert_eq!(all, containers.0.ok(&["logs", "box"]));
    let tail = containers.0.ok(&["logs", "--tail", "2", "-t", "box"]);
    assert_eq!(tail.lines().count(), 2);
    assert!(tail.lines().all(|l| l.contains("Z line ")), "{tail}");
    // It has ended by the time that `kill` returns, so that it can be removed at once.
    let again = containers.0.run(&["kill", "box"]);
    let said = text(&again.stderr);
    assert!(
        again.status.code() == Some(1) && said.contains("does not run"),
        "{said}"
    );
    let state = [
        "inspect",
        "-f",
        "{{.State.Status}} {{.State.ExitCode}} {{index .Config.Cmd 0}}",
    ];
    let shown = containers.0.ok(&[&state[..], &["box"]].concat());
    assert_eq!(shown, "exited 137 sh\n");
    let ids = containers.0.ok(&["ps", "-aq"]);
    containers.0.ok(&["rm", ids.trim()]);
    containers.nothing_is_left();
}

#[test]
fn volumes_show_the_host_and_begin_with_the_image() {
    let config = json!({"Volumes": {"/data": {}}});
    let Some(containers) = Containers::new(&config) else {
        return;
    };
    let host = containers.0.path("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "of the host\n").unwrap();
    let bind = format!("{}:/mnt/deep:ro", host.display());
    let script = "cat /mnt/deep/file /data/seed; touch /mnt/deep/x 2>/dev/null || echo read-only; \
                  id -u; stat -c %u /data; touch /data/new /scratch/x && echo written";
    let options = [
        "--name",
        "v",
        "-v",
        &bind,
        "--read-only",
        "--tmpfs",
        "/scratch",
    ];
    let said = containers.ok(&options, &["sh", "-c", script]);
    let expected = "of the host\nfrom the image\nread-only\n0\n33\nwritten\n";
    assert_eq!(said, expected);
    let upper = containers.ps()[0]["upper"].as_str().unwrap().to_owned();
    let upper = Path::new(&upper).join("upper");
    assert!(
        !upper.join("data/new").exists(),
        "a volume is not part of what is committed"
    );
    assert_eq!(std::fs::read_dir(&host).unwrap().count(), 1);
}

#[test]
fn limits_reach_the_kernel() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let controllers = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    if !controllers.contains("memory") {
        return support::place::skip("needs the memory controller");
    }
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us \
                  2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";
    let said = containers.ok(
        &["--rm", "-m", "64m", "--cpus", "0.5"],
        &["sh", "-c", script],
    );
    let words: Vec<&str> = said.split_whitespace().take(2).collect();
    assert_eq!(words, ["67108864", "50000"]);
}

#[test]
fn the_sandbox_is_docker_s() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let status = [
        "grep",
        "-E",
        "^(CapEff|CapBnd|Seccomp|NoNewPrivs)",
        "/proc/self/status",
    ];
    let of = |options: &[&str]| -> Vec<String> {
        let said = containers.ok(&[&["--rm"], options].concat(), &status);
        let value = |line: &str| line.split_whitespace().nth(1).unwrap().to_owned();
        said.lines().map(value).collect()
    };
    let (docker, none) = ("00000000a80425fb", "0000000000000000");
    assert_eq!(of(&[])[..4], [docker, docker, "0", "2"]);
    let user = of(&["-u", "web", "--security-opt", "no-new-privileges"]);
    assert_eq!(user[..4], [none, docker, "1", "2"]);
    let open = of(&["--security-opt", "seccomp=unconfined", "--cap-drop", "ALL"]);
    assert_eq!(open[..4], [none, none, "0", "0"]);
    let masked = "cat /proc/kcore 2>/dev/null | wc -c; echo 1 2>/dev/null >/proc/sys/kernel/panic || \
                  echo refused; cat /proc/timer_list | wc -c";
    assert_eq!(
        containers.ok(&["--rm"], &["sh", "-c", masked]),
        "0\nrefused\n0\n"
    );
    let network = ["--rm", "--network", "none"];
    let links = containers.ok(&network, &["ip", "-o", "link"]);
    assert!(
        links.lines().count() >= 1 && !links.contains("eth"),
        "{links}"
    );
    assert!(
        containers
            .ok(&network, &["cat", "/etc/hosts"])
            .contains("ip6-loopback")
    );
}

#[test]
fn a_container_whose_watcher_was_killed_is_found_and_ended() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let script = "echo begun; while :; do sleep 0.05; done";
    let mut run = containers.run_command(&["--name", "orphan"], &["sh", "-c", script]);
    let (mut child, _rest, line) = begin(&mut run);
    assert_eq!(line, "begun\n");
    child.kill().unwrap();
    child.wait().unwrap();
    let container = &containers.ps()[0]["container"];
    assert_eq!(
        (&container["status"], &container["exit_code"]),
        (&json!("exited"), &json!(137))
    );
    assert_eq!(mounts_below(containers.0.dir.path()), Vec::<String>::new());
    containers.0.ok(&["rm", "orphan"]);
    let mut run = containers.run_command(&["--rm"], &["sh", "-c", script]);
    let (mut child, _rest, _line) = begin(&mut run);
    child.kill().unwrap();
    child.wait().unwrap();
    containers.nothing_is_left();
}

#[test]
fn what_is_run_detached_has_nobody_to_write_to() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let place = &containers.0;
    let mut run = containers.run_command(&["-d", "--name", "box"], &["sleep", "60"]);
    let said = run.env("RSMOUNT_ENGINE", "fuse").output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let choice = &containers.ps()[0];
    let named = choice["engine_why"].as_str().unwrap();
    assert!(
        choice["engine"] == "fuse" && named.contains("asked"),
        "{choice}"
    );
    for (options, file) in [(&["-d"][..], "/pipes"), (&["-d", "-t", "-i"], "/terminal")] {
        let script = format!("sleep 0.3; echo x && cat && ls -l /proc/$$/fd >{file}");
        let words = [&["exec"], options, &["box", "sh", "-c", &script]].concat();
        place.ok(&words);
        let wait = format!(
            "i=0; while [ ! -s {file} ] && [ $i -lt 200 ]; do i=$((i+1)); sleep 0.05; done; cat {file}"
        );
        let said = place.ok(&["exec", "box", "sh", "-c", &wait]);
        assert_eq!(
            said.matches("-> /dev/null").count(),
            2,
            "{options:?}: {said}"
        );
    }
    // The container's own variables hold for what is run in it.
    let given = [
        "-d",
        "--name",
        "told",
        "-t",
        "-e",
        "TERM=dumb",
        "-e",
        "HOME=/tmp",
    ];
    containers.ok(&given, &["sleep", "60"]);
    for (name, expected) in [("told", "/tmp dumb"), ("box", "/srv/web xterm")] {
        let exec = [
            "exec",
            "-t",
            "-u",
            "web",
            name,
            "sh",
            "-c",
            "echo $HOME $TERM",
        ];
        assert_eq!(place.ok(&exec).trim_end(), expected, "{name}");
    }
    containers.0.ok(&["rm", "-f", "box", "told"]);
    containers.nothing_is_left();
}

#[test]
fn a_terminal_that_nobody_reads_holds_nothing_up() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo last";
    let mut run = containers.run_command(&["-t", "--name", "box"], &["sh", "-c", script]);
    let (mut child, reader, first) = begin(&mut run);
    assert_eq!(first.trim_end(), "line 0");
    drop(reader);
    assert!(child.wait().unwrap().success());
    let last = containers.0.ok(&["logs", "--tail", "1", "box"]);
    assert_eq!(last.trim_end(), "last");
}

#[test]
fn waiting_gives_the_code_of_a_container_that_goes_with_its_end() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let script = "trap 'exit 9' TERM; while :; do sleep 0.05; done";
    containers.ok(&["-d", "--rm", "--name", "box"], &["sh", "-c", script]);
    let mut wait = containers.0.rsmount();
    let child = wait.args(["wait", "box"]).stdout(Stdio::piped()).spawn();
    let child = child.unwrap();
    let fds = format!("/proc/{}/fd", child.id());
    let waits = || {
        let fds = std::fs::read_dir(&fds).into_iter().flatten().flatten();
        let targets = fds.flat_map(|fd| std::fs::read_link(fd.path()));
        targets
            .into_iter()
            .any(|t| t.ends_with("lock") && t.parent().is_some_and(|p| !p.ends_with("containers")))
    };
    while !waits() {
        std::thread::yield_now();
    }
    // The store's own lock may have been it for a moment.
    std::thread::sleep(std::time::Duration::from_millis(200));
    containers.0.ok(&["stop", "box"]);
    let said = child.wait_with_output().unwrap();
    assert_eq!(text(&said.stdout), "9\n", "{said:?}");
    containers.nothing_is_left();
}

#[test]
fn a_cache_behind_a_link_leaks_no_mount() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let link = containers.0.path("link");
    std::fs::create_dir(containers.0.path("cache")).unwrap();
    std::os::unix::fs::symlink("cache", &link).unwrap();
    let mut run = containers.run_command(&["--rm"], &["true"]);
    let said = run.env("RSMOUNT_CACHE_DIR", &link).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    containers.nothing_is_left();
}

#[test]
fn a_container_that_cannot_be_read_is_left_alone() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    containers.ok(&["--name", "kept"], &["touch", "/made"]);
    let id = containers.left().remove(0);
    let dir = containers.0.path("cache/containers").join(&id);
    let record = dir.join("container.json");
    let good = std::fs::read(&record).unwrap();
    std::fs::write(&record, &good[..good.len() / 2]).unwrap();
    let said = containers.0.run(&["ps", "-a"]);
    assert!(
        said.status.success() && text(&said.stderr).contains(&id),
        "{said:?}"
    );
    assert!(dir.join("changes/upper/made").exists());
    std::fs::write(&record, &good).unwrap();
    assert_eq!(containers.ps()[0]["container"]["name"], "kept");
}

#[test]
fn the_caller_s_umask_and_the_order_of_words_mean_nothing() {
    let Some(containers) = Containers::new(&json!({"Volumes": {"/made": {}}})) else {
        return;
    };
    let host = containers.0.path("host");
    std::fs::create_dir(&host).unwrap();
    let bind = format!("{}:/deep/er/still", host.display());
    let script = "stat -c %a /etc/hosts /etc/resolv.conf /made /job /job/er; \
                  touch /deep/er/still/x /deep/er/y && echo written";
    let options = ["--rm", "-w", "/job/er", "-v", &bind, "--tmpfs", "/deep/er"];
    let run = containers.run_command(&options, &["sh", "-c", script]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "umask 077; exec \"$@\"", "sh"])
        .arg(run.get_program());
    for (name, value) in run.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let said = shell.args(run.get_args()).output().unwrap();
    assert_eq!(
        text(&said.stdout),
        "644\n644\n755\n755\n755\nwritten\n",
        "{said:?}"
    );
    let names = std::fs::read_dir(&host).unwrap().flatten();
    let names: Vec<_> = names.map(|e| e.file_name()).collect();
    assert_eq!(names, ["x"], "the file system in memory is below it");
}

#[test]
fn bad_input_is_one_line_and_leaves_nothing() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    for (options, command, said) in [
        (&[][..], &[][..], "names no command"),
        (&["-u", "nobody-here"], &["true"], "no user `nobody-here`"),
        (&["-u", "0:no-group"], &["true"], "no group `no-group`"),
        (&["-v", "/none/such:/x"], &["true"], "create it first"),
        (&["-v", "name:/x"], &["true"], "named volumes"),
        (&["-p", "80:80"], &["true"], "leave -p out"),
        (&["--cap-add", "FLY"], &["true"], "no capability `FLY`"),
        (&["--stop-signal", "X"], &["true"], "no signal `X`"),
        (&["--security-opt", "x"], &["true"], "no-new-privileges"),
        (&["--name", "a b"], &["true"], "cannot be a name"),
        (&["--runtime", "/none/such"], &["true"], "not installed"),
        (&["-w", "/etc/passwd/x"], &["true"], "working directory"),
        (&["--env-file", "/none/such"], &["true"], "/none/such"),
    ] {
        let id = containers.0.path("id");
        let options = &[options, &["--cidfile", id.to_str().unwrap()]].concat();
        let output = containers.run(options, command);
        assert!(!id.exists(), "{options:?}");
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{options:?}: {stderr}");
        assert!(stderr.contains(said), "{options:?}: {stderr}");
        assert_eq!(stderr.trim().lines().count(), 1, "{options:?}: {stderr}");
        containers.nothing_is_left();
    }
    let output = containers.0.run(&["run", "-q", "oci:/none/such", "true"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    containers.nothing_is_left();
    let wrong = containers.0.run(&["run", "--no-such-option"]);
    assert_eq!(wrong.status.code(), Some(125));
    for command in [&["logs", "none"][..], &["stop", "none"], &["rm", "none"]] {
        let output = containers.0.run(command);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text(&output.stderr).contains("no container `none`"),
            "{output:?}"
        );
    }
}

#[test]
fn a_terminal_has_its_size_and_its_interrupt() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let script = "stty size; trap 'echo interrupted; exit 7' INT; echo ready; \
                  while :; do sleep 0.05; done";
    let run = containers.run_command(&["--rm", "-it"], &["sh", "-c", script]);
    let steps = [Step::Size(33, 77), Step::See("ready"), Step::Type("\x03")];
    let output = at_a_terminal(&run, &steps);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.contains("33 77\r\n"), "{said}");
    assert!(said.contains("interrupted\r\n"), "{said}");
    containers.nothing_is_left();
}

#[test]
fn a_bundle_is_run_by_the_runtime_itself_and_entered_by_chroot() {
    let Some(containers) = Containers::new(&json!({"Cmd": ["echo", "from a bundle"]})) else {
        return;
    };
    let place = &containers.0;
    let dir = place.path("bundle");
    let words = [
        "bundle",
        "-q",
        "--tmp",
        &containers.image(),
        dir.to_str().unwrap(),
    ];
    place.ok(&words);
    // Nobody else reaches what is set-id in there, or reads its environment.
    let mode = |name: &str| dir.join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(""), mode("config.json")), (0o700, 0o600));
    let name = format!("rsmount-test-{}", std::process::id());
    let mut runc = Command::new("runc");
    runc.args(["run", "--bundle"]).arg(&dir).arg(&name);
    let output = runc.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout), "from a bundle\n");
    let mut chroot = Command::new("chroot");
    chroot.arg(dir.join("rootfs")).args(["sh", "-c", "id -un"]);
    assert_eq!(text(&chroot.output().unwrap().stdout), "root\n");
    place.ok(&["umount", dir.join("rootfs").to_str().unwrap()]);
    containers.nothing_is_left();
}

/// Bytes that do not compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

fn explained(place: &Place, image: &str) -> Value {
    serde_json::from_str(&place.ok(&["explain", "--json", image])).unwrap()
}

#[test]
fn an_image_stays_as_long_as_a_container_of_it() {
    let Some(containers) = Containers::new(&json!({})) else {
        return;
    };
    let place = &containers.0;
    let registry = Registry::serve(place.path("image"));
    let image = registry.image();
    place.ok(&["run", "-q", "--name", "box", &image, "true"]);
    let refused = place.run(&["rmi", &image]);
    let said = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("rsmount rm box"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    place.ok(&["rm", "box"]);
    place.ok(&["rmi", &image]);
    containers.nothing_is_left();
}

/// Waits until something is so; a worker keeps what it learned after its container has ended.
fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "not {what} in 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_command_is_started_by_what_it_read_before_not_by_what_others_did() {
    if !busybox::can_run() {
        return;
    }
    let place = Place::new();
    let (one, cold, other) = (noise(1 << 20, 1), noise(4 << 20, 2), noise(1 << 20, 3));
    let files: [(&str, &[u8]); 3] = [("one", &one), ("cold", &cold), ("other", &other)];
    busybox::write_with(&place.path("image"), &json!({}), &files, Pack::Plain);
    let registry = Registry::serve(place.path("image"));
    let image = registry.image();
    let gate = place.path("gate");
    std::fs::create_dir(&gate).unwrap();
    // Waits, so that what comes by itself can be told from what the command asks for.
    let script = "while [ ! -e /gate/open ]; do sleep 0.02; done; cat /$0 >/dev/null; echo read";
    let start = |name: &str| start_of(&place, &image, &[script, name]);
    let open = gate.join("open");
    std::fs::write(&open, "").unwrap();
    for (name, known) in [("one", 1), ("other", 2)] {
        assert!(start(name).wait().unwrap().success());
        wait_until("kept", || {
            explained(&place, &image)["commands"]
                .as_array()
                .unwrap()
                .len()
                == known
        });
    }
    let shown = explained(&place, &image);
    let read = |n: usize| shown["commands"][n]["profile_bytes"].as_u64().unwrap();
    assert_eq!(shown["commands"][0]["command"][3], "one", "{shown}");
    for n in 0..2 {
        assert!((1 << 20..4 << 20).contains(&read(n)), "{shown}");
    }
    // What they share, busybox, counts once.
    let all = shown["profile_bytes"].as_u64().unwrap();
    assert!(
        all > read(0) && all > read(1) && all < read(0) + read(1),
        "{shown}"
    );

    place.ok(&["cache", "prune", "--data"]);
    std::fs::remove_file(&open).unwrap();
    let before = registry.control.asked().len();
    let mut child = start("one");
    let asked = || registry.control.asked()[before..].to_vec();
    let bytes = || registry.control.blob_bytes.load(SeqCst);
    // It comes by itself, and ends.
    let mut last = 0;
    wait_until("still", || {
        let now = bytes();
        std::thread::sleep(Duration::from_millis(500));
        let came: u64 = asked().iter().map(|a| a.range.end - a.range.start).sum();
        came > 1 << 20 && std::mem::replace(&mut last, bytes()) == now
    });
    std::fs::write(&open, "").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(bytes(), last, "it had come before the command asked");
    let layer = registry.control.asked()[before].digest.clone();
    let blob = place.path("image/blobs").join(layer.replacen(':', "/", 1));
    let came = |file: &[u8]| came_of(&asked(), &std::fs::read(&blob).unwrap(), file);
    assert!(came(&one) >= (1 << 20) - 8192, "{:?}", asked());
    // What lies between two wanted spans may come along.
    assert!(came(&other) <= 64 << 10, "{:?}", asked());
}

/// How much was asked for of a file that `blob` has as it is.
fn came_of(asked: &[Asked], blob: &[u8], file: &[u8]) -> u64 {
    let start = blob.windows(64).position(|w| *w == file[..64]).unwrap() as u64;
    let end = start + file.len() as u64;
    let part = |a: &Asked| {
        a.range
            .end
            .min(end)
            .saturating_sub(a.range.start.max(start))
    };
    asked.iter().map(part).sum()
}

/// Starts a shell in the image, with `gate` of the place, that fetches only what is read.
fn start_of(place: &Place, image: &str, words: &[&str]) -> Child {
    let config = place.path("config/rsmount");
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("config.toml"), "fill = \"never\"\n").unwrap();
    let volume = format!("{}:/gate", place.path("gate").display());
    let mut run = place.rsmount();
    run.env("XDG_CONFIG_HOME", place.path("config"));
    run.args(["run", "-q", "--rm", "-v", &volume, image, "sh", "-c"]);
    run.args(words).stdout(Stdio::piped()).spawn().unwrap()
}
