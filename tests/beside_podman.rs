//! `rsmount run` beside `podman run`: the same containers under both, row by row of a table; exit code and
//! output have to be the same, or the row says what Docker does instead.
//!
//! Needs root, podman, runc, docker-registry, skopeo and busybox-static; says so loudly where it is skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "support/images.rs"]
mod images;
#[path = "support/all.rs"]
mod support;

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use support::busybox;
use support::docker_registry::DockerRegistry;
use support::place::Place;
use support::podman::Podman;
use support::terminal::{Step, at_a_terminal};

/// Name of the container of each row, so that it can be reached from outside.
const NAME: &str = "beside";

/// Longer than any row takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to a container that runs.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Nothing; its standard input is closed from the beginning.
    Nothing,
    /// It is given this on standard input, which then ends.
    Input(&'static str),
    /// Its standard input is open and stays so.
    OpenInput,
    /// When it has said `ready`: a signal to the process of `rsmount` or `podman`.
    ToClient(Signal),
    /// When it has said `ready`: another command of the tool, with the container's name behind.
    Tool(&'static [&'static str]),
    /// It is at a terminal.
    Terminal(&'static [Step<'static>]),
}

/// What has to come out.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Exit code and output are podman's.
    Same,
    /// What Docker does instead: exit code and standard output, and why.
    Docker(i32, &'static str, &'static str),
}

struct Row {
    /// Which of [`configs`].
    image: &'static str,
    options: &'static [&'static str],
    command: &'static [&'static str],
    act: Act,
    outcome: Outcome,
}

const fn row(
    image: &'static str,
    options: &'static [&'static str],
    command: &'static [&'static str],
) -> Row {
    Row {
        image,
        options,
        command,
        act: Act::Nothing,
        outcome: Outcome::Same,
    }
}

impl Row {
    const fn act(self, act: Act) -> Row {
        Row { act, ..self }
    }

    const fn docker(self, code: i32, stdout: &'static str, why: &'static str) -> Row {
        Row {
            outcome: Outcome::Docker(code, stdout, why),
            ..self
        }
    }
}

/// The images: the same files, under different configurations.
fn configs() -> Vec<(&'static str, Value)> {
    vec![
        ("plain", json!({})),
        ("e", json!({"Entrypoint": ["echo", "E"]})),
        ("c", json!({"Cmd": ["echo", "C"]})),
        (
            "ec",
            json!({"Entrypoint": ["echo", "E"], "Cmd": ["echo", "C"]}),
        ),
        (
            "shell",
            json!({"Entrypoint": ["/bin/sh", "-c", "echo shell form of $0"], "Cmd": ["me"]}),
        ),
        ("user", json!({"User": "web"})),
        ("user-group", json!({"User": "web:log"})),
        ("user-number", json!({"User": "33:40"})),
        ("user-unknown", json!({"User": "ghost"})),
        ("dir", json!({"WorkingDir": "/made/deep"})),
        ("dir-file", json!({"WorkingDir": "/etc/passwd"})),
        (
            "user-dir",
            json!({"User": "web", "WorkingDir": "/made/deep"}),
        ),
        ("env", json!({"Env": ["A=0", "C=2", "HOME=/data"]})),
        ("stop-usr1", json!({"StopSignal": "SIGUSR1"})),
    ]
}

const WAITS: &str = "echo ready; i=0; while [ $i -lt 40 ]; do sleep 0.05; i=$((i + 1)); done; \
                     echo survived; exit 5";
const TRAPS: &str = "trap 'echo TERM; exit 7' TERM; trap 'echo INT; exit 8' INT; \
                     trap 'echo HUP; exit 9' HUP; trap 'echo USR1; exit 10' USR1; \
                     echo ready; while :; do sleep 0.05; done";
const WHO: &str = "id; echo $HOME; pwd; touch /tmp/mine && stat -c '%u %g' /tmp/mine";
const WHERE: &str = "pwd; stat -c '%a %u %g %n' /made /made/deep";
const NOT_THE_PROGRAM: &str = "126 is for programs that cannot be run; podman gives it here too";
const NO_ENTRY: &str = "podman puts a line for the number into the container's passwd";
const CTRL_C: &[Step<'static>] = &[Step::Size(33, 77), Step::See("ready"), Step::Type("\x03")];

/// Exit codes.
const CODES: &[Row] = &[
    row("plain", &[], &["true"]),
    row("plain", &[], &["false"]),
    row(
        "plain",
        &[],
        &["sh", "-c", "echo out; echo err >&2; exit 42"],
    ),
    row("plain", &[], &["sh", "-c", "exit 255"]),
    row("plain", &[], &["sh", "-c", "sh -c 'kill -9 $$'"]),
    row("plain", &[], &["sh", "-c", "kill -9 $$; echo init; exit 6"]),
    row("plain", &["--no-such-option"], &["true"]),
    row("plain", &["-v", "/none/such:/x"], &["true"]),
    row("plain", &["--name", "a b"], &["true"]),
    row("plain", &[], &["/etc"]),
    row("plain", &[], &["/etc/passwd"]),
    row("plain", &[], &["/etc/no-program"]),
    row("plain", &[], &["nope"]),
    row("plain", &[], &["/nope"]),
    row("plain", &[], &["/etc/passwd/nope"]),
    row("plain", &[], &[""]),
    row("plain", &["-e", "PATH=/nowhere"], &["true"]),
    row("plain", &[], &["sh", "-c", WAITS]).act(Act::Tool(&["kill"])),
    row("plain", &[], &["sh", "-c", WAITS]).act(Act::Tool(&["stop", "-t", "1"])),
    row("plain", &[], &["sh", "-c", TRAPS]).act(Act::Tool(&["stop", "-t", "5"])),
    row("stop-usr1", &[], &["sh", "-c", TRAPS]).act(Act::Tool(&["stop", "-t", "5"])),
    row("plain", &["--stop-signal", "HUP"], &["sh", "-c", TRAPS])
        .act(Act::Tool(&["stop", "-t", "5"])),
];

/// Signals to the client, which are the container's.
const SIGNALS: &[Row] = &[
    row("plain", &[], &["sh", "-c", TRAPS]).act(Act::ToClient(Signal::TERM)),
    row("plain", &[], &["sh", "-c", TRAPS]).act(Act::ToClient(Signal::INT)),
    row("plain", &[], &["sh", "-c", TRAPS]).act(Act::ToClient(Signal::HUP)),
    row("plain", &[], &["sh", "-c", TRAPS]).act(Act::ToClient(Signal::USR1)),
    row("plain", &["-i"], &["sh", "-c", TRAPS]).act(Act::ToClient(Signal::TERM)),
    row("plain", &[], &["sh", "-c", WAITS]).act(Act::ToClient(Signal::TERM)),
    row("plain", &[], &["sh", "-c", WAITS]).act(Act::ToClient(Signal::INT)),
    row("plain", &[], &["sh", "-c", "echo ready; exec sleep 1"]).act(Act::ToClient(Signal::TERM)),
    row("stop-usr1", &[], &["sh", "-c", TRAPS]).act(Act::ToClient(Signal::TERM)),
];

/// Terminals.
const TERMINALS: &[Row] = &[
    row(
        "plain",
        &["-i", "-t"],
        &["sh", "-c", "sleep 1; stty size; tty; exit 3"],
    )
    .act(Act::Terminal(&[Step::Size(33, 77)])),
    row("plain", &["-i", "-t"], &["sh", "-c", TRAPS]).act(Act::Terminal(CTRL_C)),
    row("plain", &["-i", "-t"], &["sh", "-c", WAITS]).act(Act::Terminal(CTRL_C)),
    row("plain", &["-i", "-t"], &["sh", "-c", TRAPS]).act(Act::Terminal(&[
        Step::See("ready"),
        Step::Signal(Signal::TERM),
    ])),
    row(
        "plain",
        &["-i", "-t"],
        &[
            "sh",
            "-c",
            "trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.05; done",
        ],
    )
    .act(Act::Terminal(&[
        Step::Size(33, 77),
        Step::See("ready"),
        Step::Size(44, 88),
    ])),
    row("plain", &["-i", "-t"], &["cat"]).act(Act::Terminal(&[
        Step::Size(33, 77),
        Step::Type("word\n"),
        Step::See("word\r\nword"),
        Step::Type("\x04"),
    ])),
    row(
        "plain",
        &["-t"],
        &["sh", "-c", "echo out; echo err >&2; echo $TERM; exit 2"],
    ),
];

/// Standard input.
const INPUTS: &[Row] = &[
    row("plain", &["-i"], &["cat"]).act(Act::Input("one\ntwo\nno end of line")),
    row("plain", &["-i"], &["cat"]).act(Act::Input("")),
    row("plain", &["-i"], &["head", "-n", "1"]).act(Act::Input("one\ntwo\n")),
    row("plain", &["-i"], &["cat"]),
    row("plain", &[], &["cat"]).act(Act::Input("nobody reads this")),
    row("plain", &["-i"], &["true"]).act(Act::OpenInput),
    row("plain", &[], &["cat"]).act(Act::OpenInput),
];

/// Users.
const USERS: &[Row] = &[
    row("plain", &[], &["sh", "-c", WHO]).docker(
        0,
        "uid=0(root) gid=0(root) groups=0(root),41(ssl)\n/root\n/\n0 0\n",
        "the first group is among the groups, so that dropping it lifts nothing it forbids",
    ),
    row("user", &[], &["sh", "-c", WHO]),
    row("user-group", &[], &["sh", "-c", WHO]),
    row("user-number", &[], &["sh", "-c", WHO]),
    row("user", &["-u", "root"], &["sh", "-c", WHO]),
    row("plain", &["-u", "web"], &["sh", "-c", WHO]),
    row("plain", &["-u", "33"], &["sh", "-c", WHO]),
    row("plain", &["-u", "web:ssl"], &["sh", "-c", WHO]),
    row("plain", &["-u", "1000"], &["sh", "-c", WHO]).docker(
        0,
        "uid=1000 gid=0(root) groups=0(root)\n/\n/\n1000 0\n",
        NO_ENTRY,
    ),
    row("plain", &["-u", "1000:1001"], &["sh", "-c", WHO]).docker(
        0,
        "uid=1000 gid=1001 groups=1001\n/\n/\n1000 1001\n",
        NO_ENTRY,
    ),
    row("plain", &["-u", "web", "--group-add", "ssl"], &["id", "-G"]),
    row("plain", &["-u", "ghost"], &["true"]).docker(125, "", NOT_THE_PROGRAM),
    row("plain", &["-u", "root:ghost"], &["true"]).docker(125, "", NOT_THE_PROGRAM),
    row("user-unknown", &[], &["true"]).docker(125, "", NOT_THE_PROGRAM),
];

/// Working directories.
const DIRECTORIES: &[Row] = &[
    row("dir", &[], &["sh", "-c", WHERE]),
    row("user-dir", &[], &["sh", "-c", WHERE]).docker(
        0,
        "/made/deep\n755 0 0 /made\n755 0 0 /made/deep\n",
        "what is made is root's; podman gives it to the user",
    ),
    row("plain", &["-w", "/made/deep"], &["sh", "-c", WHERE]).docker(
        0,
        "/made/deep\n755 0 0 /made\n755 0 0 /made/deep\n",
        "it is made as well; podman makes only what the image names",
    ),
    row("dir", &["-w", "/data"], &["pwd"]),
    row("dir-file", &[], &["true"]).docker(125, "", NOT_THE_PROGRAM),
];

/// Entrypoint and command: of the image and of the command line, and both with another entrypoint.
const COMMANDS: &[Row] = &[
    row("plain", &[], &[]),
    row("plain", &[], &["echo", "given"]),
    row("c", &[], &[]),
    row("c", &[], &["echo", "given"]),
    row("e", &[], &[]),
    row("e", &[], &["echo", "given"]),
    row("ec", &[], &[]),
    row("ec", &[], &["echo", "given"]),
    row("ec", &["--entrypoint", "pwd"], &[]),
    row("ec", &["--entrypoint", "ls"], &["-d", "/etc"]),
    row("ec", &["--entrypoint", "[\"echo\", \"J\"]"], &["given"]),
    row("ec", &["--entrypoint", ""], &["echo", "given"]),
    row("c", &["--entrypoint", ""], &[]),
    row("shell", &[], &[]),
    row("shell", &[], &["you"]),
    row("plain", &[], &["echo", "-n", "$HOME", "a  b", "--rm", ""]),
];

/// What else a program sees.
const REST: &[Row] = &[
    row(
        "env",
        &["-e", "A=1", "-e", "B=x=y", "-e", "NOT_SET"],
        &["sh", "-c", "echo $A $B $C $HOME $PATH ${NOT_SET-unset}"],
    ),
    row("plain", &["--hostname", "box"], &["hostname"]),
    row("plain", &["--read-only"], &["touch", "/new"]),
    row("plain", &["--tmpfs", "/new"], &["touch", "/new/file"]),
    row("plain", &[], &["sh", "-c", "umask; ls /dev"]),
    row("plain", &[], &["sh", "-c", "echo $$; ls -d /proc/[0-9]*"]),
];

/// What one of the two did.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Seen {
    fn from(output: Output) -> Seen {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Seen {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

impl Seen {
    /// What the container has to do with: of the tools' own words only that there are some.
    fn comparable(mut self) -> Seen {
        if matches!(self.code, Some(125..=127)) && !self.stderr.is_empty() {
            self.stderr = "(says why)".to_owned();
        }
        self
    }
}

/// The same command, which heeds signals even where whoever runs the tests has them ignored, as a
/// shell's background jobs and nohup have: what is ignored stays so over exec, and podman then passes
/// it to nobody.
fn heeding(command: &Command) -> Command {
    let mut heeding = Command::new("env");
    heeding.arg("--default-signal=INT,HUP,QUIT,TERM,USR1");
    heeding.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => heeding.env(name, value),
            None => heeding.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        heeding.current_dir(dir);
    }
    heeding
}

/// Runs `command`, to which `act` happens; `tool` is what makes a further command of the same tool.
fn play(command: &mut Command, act: Act, tool: &dyn Fn() -> Command) -> Seen {
    if let Act::Terminal(steps) = act {
        return at_a_terminal(command, steps).into();
    }
    let stdin = match act {
        Act::Input(_) | Act::OpenInput => Stdio::piped(),
        _ => Stdio::null(),
    };
    let mut child = heeding(command)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let stderr = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).unwrap();
        text
    });
    let (said, hear) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = out.read(&mut buffer) {
            let _nobody = said.send(buffer[..length].to_vec());
        }
    });
    let mut stdout = Vec::new();
    let is_ready = |bytes: &[u8]| bytes.starts_with(b"ready\n");
    let mut acted = false;
    if let Act::Input(text) = act {
        // Who does not read closes the other end.
        let _closed = input.take().unwrap().write_all(text.as_bytes());
    }
    while let Ok(bytes) = hear.recv_timeout(PATIENCE) {
        stdout.extend(bytes);
        if acted || !is_ready(&stdout) {
            continue;
        }
        acted = true;
        if let Act::ToClient(_) = act {
            // podman shows output before it passes signals on.
            std::thread::sleep(Duration::from_millis(500));
        }
        match act {
            Act::ToClient(signal) => {
                let pid = Pid::from_child(&child);
                rustix::process::kill_process(pid, signal).unwrap();
            }
            Act::Tool(words) => {
                let done = tool().args(words).arg(NAME).output().unwrap();
                assert!(done.status.success(), "{words:?}: {done:?}");
            }
            _ => {}
        }
    }
    let _stuck = child.try_wait().unwrap().is_none() && {
        std::thread::sleep(Duration::from_secs(1));
        child.try_wait().unwrap().is_none() && child.kill().is_ok()
    };
    let code = child.wait().unwrap().code();
    drop(input);
    Seen {
        code,
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: stderr.join().unwrap(),
    }
}

/// Both tools, with the same images.
struct Both {
    place: Place,
    podman: Podman,
    registry: DockerRegistry,
    _scratch: tempfile::TempDir,
}

impl Both {
    fn new() -> Option<Both> {
        if !busybox::can_run() {
            return None;
        }
        let (place, scratch) = (Place::new(), images::scratch());
        let podman = Podman::new(scratch.path())?;
        let registry = DockerRegistry::serve(&place.path("registry"), false)?;
        Some(Both {
            place,
            podman,
            registry,
            _scratch: scratch,
        })
    }

    fn image(&self, key: &str) -> String {
        self.registry.image(&format!("odd/{key}:1"))
    }

    /// Pushes those images that `rows` want.
    fn push(&self, rows: &[Row]) {
        for (key, config) in configs() {
            if !rows.iter().any(|row| row.image == key) {
                continue;
            }
            let dir = self.place.path(key);
            busybox::write(&dir, &config);
            let image = self.image(key);
            let (from, to) = (
                format!("oci:{}:latest", dir.display()),
                format!("docker://{image}"),
            );
            images::run(
                "skopeo",
                &["copy", "-q", "--dest-tls-verify=false", &from, &to],
            );
            self.podman.pull(&image);
        }
    }

    /// The row under rsmount and under podman.
    fn play(&self, row: &Row) -> (Seen, Seen) {
        let words = |mut command: Command| {
            if !row.options.contains(&"--name") {
                command.args(["--name", NAME]);
            }
            command.arg("--rm").args(row.options);
            command.arg(self.image(row.image)).args(row.command);
            command
        };
        let mut ours = self.place.rsmount();
        ours.args(["run", "-q"]);
        let ours = play(&mut words(ours), row.act, &|| self.place.rsmount());
        let mut theirs = words(self.podman.run());
        let theirs = play(&mut theirs, row.act, &|| self.podman.command());
        // A client that was killed has left it.
        self.podman.ok(&["rm", "--ignore", "-f", "-t", "0", NAME]);
        (ours, theirs)
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        let _ended = self.place.run(&["rm", "--all", "--force"]);
    }
}

/// What is wrong with a row, if anything is.
fn judge(row: &Row, ours: Seen, theirs: Seen) -> Option<String> {
    let (ours, theirs) = (ours.comparable(), theirs.comparable());
    let wrong = match row.outcome {
        Outcome::Same => ours != theirs,
        Outcome::Docker(code, stdout, _) => {
            let as_docker = ours.code == Some(code) && ours.stdout == stdout;
            // A row that needs no excuse may not have one.
            !as_docker || ours == theirs
        }
    };
    wrong.then(|| {
        let Row {
            image,
            options,
            command,
            act,
            outcome,
        } = row;
        let mut text = format!("{options:?} {image} {command:?} {act:?}\n");
        if let Outcome::Docker(code, stdout, why) = outcome {
            let _written = writeln!(text, "    docker  {code} {stdout:?}, because {why}");
        }
        let _written = writeln!(text, "    rsmount {ours:?}\n    podman  {theirs:?}");
        text
    })
}

fn check(rows: &[Row]) {
    let Some(both) = Both::new() else { return };
    both.push(rows);
    let wrong = rows.iter().filter_map(|row| {
        let (ours, theirs) = both.play(row);
        judge(row, ours, theirs)
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn exit_codes() {
    check(CODES);
}

#[test]
fn signals_to_the_client() {
    check(SIGNALS);
}

#[test]
fn terminals() {
    check(TERMINALS);
}

#[test]
fn ends_of_standard_input() {
    check(INPUTS);
}

#[test]
fn users_by_name_and_number() {
    check(USERS);
}

#[test]
fn working_directories_that_are_not_there() {
    check(DIRECTORIES);
}

#[test]
fn entrypoint_and_command() {
    check(COMMANDS);
}

#[test]
fn environment_and_devices() {
    check(REST);
}
