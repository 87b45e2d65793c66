//! A program at a terminal, and somebody who types when they have seen what they wait for.

use std::process::{Command, Output};

use rustix::process::Signal;

/// What the person at the terminal does, in this order.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// Makes the window that large: lines, columns.
    Size(u16, u16),
    /// Waits until this was printed.
    See(&'a str),
    /// Types.
    Type(&'a str),
    /// Sends a signal to the program from elsewhere.
    Signal(Signal),
}

/// Argument 1 are the steps, the rest is the program. The first size counts before it starts.
const DRIVER: &str = r#"
import fcntl, json, os, pty, struct, sys, termios
steps, program = json.loads(sys.argv[1]), sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    sys.stdin.readline()
    os.execvp(program[0], program)
def resize(lines, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
if steps and steps[0][0] == "size":
    resize(*steps.pop(0)[1:])
os.write(terminal, b"\n")
said, seen = b"", 0
while True:
    try:
        more = os.read(terminal, 4096)
    except OSError:
        break
    if not more:
        break
    said += more
    while steps:
        kind, *rest = steps[0]
        if kind == "see":
            at = said.find(rest[0].encode(), seen)
            if at < 0:
                break
            seen = at + len(rest[0])
        elif kind == "size":
            resize(*rest)
        elif kind == "signal":
            os.kill(pid, rest[0])
        else:
            os.write(terminal, rest[0].encode())
        steps.pop(0)
sys.stdout.buffer.write(said)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

/// Runs `command` at a terminal of its own; standard output of the outcome is all that was seen there.
pub fn at_a_terminal(command: &Command, steps: &[Step<'_>]) -> Output {
    let step = |step: &Step<'_>| match step {
        Step::Size(lines, columns) => serde_json::json!(["size", lines, columns]),
        Step::See(text) => serde_json::json!(["see", text]),
        Step::Type(text) => serde_json::json!(["type", text]),
        Step::Signal(signal) => serde_json::json!(["signal", signal.as_raw()]),
    };
    let steps: Vec<serde_json::Value> = steps.iter().map(step).collect();
    let mut python = Command::new("python3");
    python.args(["-c", DRIVER]);
    python.arg(serde_json::to_string(&steps).unwrap());
    python.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    python.output().unwrap()
}
