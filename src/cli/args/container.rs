//! Arguments of the commands for containers, in Docker's words.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use crate::cli::args::SourceArgs;
use crate::runtime::Network;

/// Commands for containers.
#[derive(Debug, Clone, Subcommand)]
pub enum ContainerCommand {
    /// Run a program in a new container of an image
    Run(Box<RunArgs>),
    /// Run a further program in a container
    Exec(ExecArgs),
    /// Show what a container has printed
    Logs(LogsArgs),
    /// Ask containers to end
    Stop(StopArgs),
    /// Send a signal to containers
    Kill(KillArgs),
    /// Wait until containers have ended, and print their exit codes
    Wait(WaitArgs),
    /// Remove containers, and what they changed
    Rm(RmArgs),
    /// Write an OCI bundle of an image, mounted lazily, for any runtime
    Bundle(Box<BundleArgs>),
    /// Watch one container (started by `run -d`)
    #[command(hide = true)]
    Watch(WatchArgs),
}

/// What a container's process is to have: for `run` and `bundle`.
#[derive(Debug, Clone, Args)]
pub struct ProcessArgs {
    /// Set a variable; a name alone takes it from here; can be given again
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read variables from a file, one a line; can be given again
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Show a directory or file of this machine in the container; can be given again
    #[arg(short, long, value_name = "[SOURCE:]TARGET[:ro]")]
    pub volume: Vec<String>,
    /// A file system in memory; can be given again
    #[arg(long, value_name = "TARGET[:OPTIONS]")]
    pub tmpfs: Vec<String>,
    /// Where the program starts; it is made if it is missing
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Whom it runs as: names of the image, or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// A further group; can be given again
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// Run this instead of the image's entrypoint; empty for none
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Name of the machine in the container
    #[arg(short = 'h', long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// A further line of /etc/hosts; can be given again
    #[arg(long, value_name = "NAME:ADDRESS")]
    pub add_host: Vec<String>,
    /// What it can reach: what this machine can, or only itself
    #[arg(long, value_enum, default_value_t = NetworkArg::Host)]
    pub network: NetworkArg,
    /// Ports cannot be published
    #[arg(short, long, value_name = "PORTS", hide = true)]
    pub publish: Vec<String>,
    /// Its root file system cannot be written
    #[arg(long)]
    pub read_only: bool,
    /// Most memory
    #[arg(short, long, value_name = "BYTES[k|m|g]", value_parser = size)]
    pub memory: Option<u64>,
    /// Most processor time, in processors
    #[arg(long, value_name = "NUMBER", value_parser = millicpus)]
    pub cpus: Option<u64>,
    /// Most processes; -1 for no limit
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(i64).range(-1..),
        allow_negative_numbers = true
    )]
    pub pids_limit: Option<i64>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "BYTES[k|m|g]", value_parser = size)]
    pub shm_size: Option<u64>,
    /// Give a capability (capabilities(7)), or ALL; can be given again
    #[arg(long, value_name = "NAME")]
    pub cap_add: Vec<String>,
    /// Take a capability, or ALL; can be given again
    #[arg(long, value_name = "NAME")]
    pub cap_drop: Vec<String>,
    /// no-new-privileges, seccomp=unconfined or seccomp=FILE; can be given again
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<String>,
    /// The signal that asks it to end
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Say more: causes of errors, debug log (twice: trace)
    // Without its letter, which means a volume here, as in Docker.
    #[arg(id = "verbose", long = "verbose", action = ArgAction::Count)]
    pub _verbose: u8,
    /// Print help
    // Without its letter, which means the hostname here, as in Docker.
    #[arg(long, action = ArgAction::Help)]
    pub help: Option<bool>,
}

/// Arguments of `run`.
#[derive(Debug, Clone, Args)]
#[command(disable_help_flag = true)]
pub struct RunArgs {
    /// The image
    #[command(flatten)]
    pub source: SourceArgs,
    /// What to run in it, instead of the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Return when it runs, and print its id
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Write the container's id into this new file
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// What its process is to have
    #[command(flatten)]
    pub process: ProcessArgs,
    /// Which program makes the container [default: crun, else runc, else youki]
    #[arg(
        long,
        value_name = "PROGRAM",
        env = "RSMOUNT_RUNTIME",
        hide_env_values = true
    )]
    pub runtime: Option<String>,
}

/// Arguments of `bundle`.
#[derive(Debug, Clone, Args)]
#[command(disable_help_flag = true)]
pub struct BundleArgs {
    /// The image
    #[command(flatten)]
    pub source: SourceArgs,
    /// A new or empty directory
    pub dir: PathBuf,
    /// What config.json says to run, instead of the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
    /// Keep changes in this directory; without it (and --tmp) the root cannot be written
    #[arg(long, value_name = "DIR", conflicts_with = "tmp")]
    pub upper: Option<PathBuf>,
    /// Make the root writable, and throw changes away when it is unmounted
    #[arg(long)]
    pub tmp: bool,
    /// What its process is to have
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `--network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetworkArg {
    /// What this machine can reach
    Host,
    /// Only itself
    None,
}

impl From<NetworkArg> for Network {
    fn from(arg: NetworkArg) -> Network {
        match arg {
            NetworkArg::Host => Network::Host,
            NetworkArg::None => Network::None,
        }
    }
}

/// Arguments of `exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// Name or id
    pub container: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub command: Vec<String>,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Return when it runs
    #[arg(short, long)]
    pub detach: bool,
    /// Set a variable; a name alone takes it from here; can be given again
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read variables from a file, one a line; can be given again
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Where it starts
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Whom it runs as: names of the container, or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
}

/// Arguments of `logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// Name or id
    pub container: String,
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines [default: all]
    #[arg(short = 'n', long, value_name = "NUMBER|all", value_parser = tail)]
    pub tail: Option<usize>,
    /// The time before each line
    #[arg(short, long)]
    pub timestamps: bool,
}

/// Arguments of `stop`.
#[derive(Debug, Clone, Args)]
pub struct StopArgs {
    /// Names or ids
    #[arg(required = true)]
    pub containers: Vec<String>,
    /// How long to wait before they are killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    pub time: u64,
    /// The signal that asks [default: the container's]
    #[arg(short, long)]
    pub signal: Option<String>,
}

/// Arguments of `kill`.
#[derive(Debug, Clone, Args)]
pub struct KillArgs {
    /// Names or ids
    #[arg(required = true)]
    pub containers: Vec<String>,
    /// Which signal
    #[arg(short, long, default_value = "KILL")]
    pub signal: String,
}

/// Arguments of `wait`.
#[derive(Debug, Clone, Args)]
pub struct WaitArgs {
    /// Names or ids
    #[arg(required = true)]
    pub containers: Vec<String>,
}

/// Arguments of `rm`.
#[derive(Debug, Clone, Args)]
pub struct RmArgs {
    /// Names or ids
    #[arg(required_unless_present = "all")]
    pub containers: Vec<String>,
    /// All that do not run
    #[arg(short, long, conflicts_with = "containers")]
    pub all: bool,
    /// Also those that run; they are killed
    #[arg(short, long)]
    pub force: bool,
}

/// Arguments of the watcher of a detached container; its standard input is the container's lock.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// Id
    pub container: String,
    /// Keep standard input open
    #[arg(long)]
    pub interactive: bool,
    /// Which program makes the container
    #[arg(long)]
    pub runtime: Option<String>,
}

/// `512`, `64k`, `64m`, `2g`, in units of 1024 as Docker reads them.
fn size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let bare = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match bare.chars().last() {
        Some('k') => (&bare[..bare.len() - 1], 10),
        Some('m') => (&bare[..bare.len() - 1], 20),
        Some('g') => (&bare[..bare.len() - 1], 30),
        _ => (bare, 0),
    };
    let number: Option<u64> = digits.parse().ok().filter(|n| *n > 0);
    let bytes = number.and_then(|n| n.checked_mul(1 << shift));
    bytes.ok_or_else(|| "expected a size: 512, 64k, 64m, 2g".to_owned())
}

/// A number of lines. All of them are as many as there may be.
fn tail(text: &str) -> Result<usize, String> {
    match text {
        "all" => Ok(usize::MAX),
        _ => text
            .parse()
            .map_err(|_| "expected a number of lines, or all".to_owned()),
    }
}

/// `1.5` processors in thousandths.
fn millicpus(text: &str) -> Result<u64, String> {
    let number: Option<f64> = text.parse().ok().filter(|n| (0.01..=4096.0).contains(n));
    let thousandths = number.map(|n| (n * 1000.0).round() as u64);
    thousandths.ok_or_else(|| "expected a number of processors: 0.5, 2".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_processors_are_read() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("64m"), Ok(64 << 20));
        assert_eq!(size("2GB"), Ok(2 << 30));
        for wrong in ["", "m", "0", "1.5g", "-1", "99999999999g"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(millicpus("1.5"), Ok(1500));
        for wrong in ["", "0", "x", "-1", "inf", "NaN"] {
            assert!(millicpus(wrong).is_err(), "{wrong}");
        }
    }
}
