//! The arguments, as clap types. Their documentation is the help text and the man page.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::cli::args::cache::CacheCommand;
use crate::cli::args::container::ContainerCommand;
use crate::cli::args::image::ImageCommand;
use crate::cli::args::upgrade::UpgradeArgs;
use crate::content::{Fill, Outage};
use crate::mount::{Engine, Pull, Sandbox, TrustIndex};

pub mod cache;
pub mod container;
pub mod freeze;
pub mod image;
pub mod look;
pub mod trust;
pub mod upgrade;
mod words;

pub use words::{Arranged, arranged};

/// Mount a container image as a file system: lazily, verified, exactly as it was pushed.
#[derive(Debug, Parser)]
#[command(name = "rsmount", version, args_conflicts_with_subcommands = false)]
#[command(
    override_usage = "rsmount [OPTIONS] IMAGE MOUNTPOINT\n       rsmount [OPTIONS] <COMMAND>",
    arg_required_else_help = true
)]
#[command(
    after_help = "IMAGE is a registry reference (ubuntu, localhost:5000/app:1, name@sha256:…),\n\
    oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME]."
)]
pub struct Args {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Cache directory [default: /var/lib/rsmount for root, else $XDG_CACHE_HOME/rsmount]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "RSMOUNT_CACHE_DIR",
        hide_env_values = true
    )]
    pub cache_dir: Option<PathBuf>,
    /// What layers may take in the cache; what was used least recently goes first [default: no bound]
    #[arg(
        long,
        global = true,
        value_name = "BYTES|n[KMGT][B]",
        env = "RSMOUNT_CACHE_SIZE",
        hide_env_values = true,
        value_parser = cache::bytes
    )]
    pub cache_size: Option<u64>,
    /// Print nothing but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more: causes of errors, debug log (twice: trace)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Format of the log
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount an image (the word `mount` may be left out)
    Mount(MountArgs),
    /// Unmount what is mounted at MOUNTPOINT
    Umount(UmountArgs),
    /// List the mounts and the containers; -q prints the containers' IDs alone
    Ps(PsArgs),
    /// Show the numbers of a mount
    Stats(StatsArgs),
    /// Show which files made readers wait, for how long, what it cost and what avoids it
    Why(look::WhyArgs),
    /// Look at the cache and clean it
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Publish what was learned of an image here, for other machines' first start
    Publish {
        /// The image
        #[command(flatten)]
        source: SourceArgs,
        /// Sign it with the secret key in FILE (see `rsmount key generate`)
        #[arg(long, value_name = "FILE", display_order = 11)]
        key: Option<PathBuf>,
        /// Replace also a pack that is signed, or has hot pages, by one that is not, or has none
        #[arg(short, long, display_order = 11)]
        force: bool,
        /// JSON
        #[arg(long, display_order = 12)]
        json: bool,
    },
    /// Make and show the indexes of an image's layers
    #[command(subcommand)]
    Index(look::IndexCommand),
    /// Make and show keys that packs are signed with
    #[command(subcommand)]
    Key(trust::KeyCommand),
    /// Explain what a mount of an image would start from, and why
    Explain {
        /// The image
        #[command(flatten)]
        source: SourceArgs,
        /// JSON
        #[arg(long, display_order = 12)]
        json: bool,
    },
    /// Measure cold starts: how long until CMD has run, by what is known before
    Bench(look::BenchArgs),
    /// Check what this machine has of what mounts need
    Doctor(look::DoctorArgs),
    /// Make an image of what was changed in a writable mount
    Commit(freeze::CommitArgs),
    /// Push an image to a registry: what is missing there; a broken push goes on the next time
    Push(freeze::PushArgs),
    /// Images: what is known of them, what is in them, the store
    #[command(flatten)]
    Image(ImageCommand),
    /// Have this binary take over running mounts, without unmounting
    Upgrade(UpgradeArgs),
    /// Containers: made, reached, ended
    #[command(flatten)]
    Container(ContainerCommand),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the man page, of a command as well
    Man(ManArgs),
    /// Keep one mount served (started by `mount`)
    #[command(hide = true)]
    Keeper,
    /// Look up credentials for a worker that is shut in (started by `keeper`)
    #[command(hide = true)]
    Credentials {
        /// For what
        reference: String,
    },
    /// Serve one mount (started by `keeper`)
    #[command(hide = true)]
    Worker,
}

/// Which image, and how to reach it.
#[derive(Debug, Clone, ClapArgs)]
pub struct SourceArgs {
    /// The image
    pub image: String,
    /// How to reach it
    #[command(flatten)]
    pub reach: ReachArgs,
}

/// How to reach an image. The numbers keep the order of the help of `mount`, whose own options stand
/// between these.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct ReachArgs {
    /// Platform of a multi-platform image [default: this machine's]
    #[arg(
        long,
        value_name = "OS/ARCH[/VARIANT]",
        env = "RSMOUNT_PLATFORM",
        hide_env_values = true,
        display_order = 0
    )]
    pub platform: Option<String>,
    /// Never use the network
    #[arg(long, display_order = 3)]
    pub offline: bool,
    /// When to ask the registry for a tag that is known here [default: missing]
    #[arg(
        long,
        value_enum,
        env = "RSMOUNT_PULL",
        hide_env_values = true,
        display_order = 4
    )]
    pub pull: Option<PullArg>,
    /// Whose packs are used [default: tag]
    #[arg(
        long,
        value_enum,
        env = "RSMOUNT_TRUST_INDEX",
        hide_env_values = true,
        display_order = 7
    )]
    pub trust_index: Option<TrustArg>,
    /// A public key (PEM file, or ed25519:BASE64) whose signed packs are used; can be given again
    #[arg(
        long,
        value_name = "KEY",
        env = "RSMOUNT_TRUSTED_KEY",
        hide_env_values = true,
        display_order = 8
    )]
    pub trusted_key: Vec<String>,
    /// A registry that may speak plain HTTP (loopback may always); can be given again
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        env = "RSMOUNT_INSECURE_REGISTRY",
        hide_env_values = true,
        display_order = 9
    )]
    pub insecure_registry: Vec<String>,
    /// More certificate authorities, PEM; can be given again
    #[arg(
        long,
        value_name = "FILE",
        env = "RSMOUNT_CA_FILE",
        hide_env_values = true,
        display_order = 10
    )]
    pub ca_file: Vec<PathBuf>,
    /// Where mirrors are configured, as containerd's hosts.toml [default: certs.d beside the
    /// configuration files, then /etc/containerd/certs.d]
    #[arg(
        long,
        value_name = "DIR",
        env = "RSMOUNT_HOSTS_DIR",
        hide_env_values = true,
        display_order = 10
    )]
    pub hosts_dir: Option<PathBuf>,
}

/// Arguments of `mount`.
#[derive(Debug, Clone, ClapArgs)]
pub struct MountArgs {
    /// The image
    #[command(flatten)]
    pub source: SourceArgs,
    /// An existing directory
    pub mountpoint: PathBuf,
    /// Make the mount writable and keep the changes in DIR, which is made if it is missing
    #[arg(long, value_name = "DIR", conflicts_with = "tmp", display_order = 1)]
    pub upper: Option<PathBuf>,
    /// Make the mount writable and drop the changes when it ends
    #[arg(long, display_order = 1)]
    pub tmp: bool,
    /// Mount options: suid, dev, noexec, allow_other (and their opposites), as in mount(8)
    #[arg(
        short = 'o',
        value_name = "OPTS",
        value_delimiter = ',',
        display_order = 1
    )]
    pub options: Vec<String>,
    /// Stay in the foreground until unmounted
    #[arg(short, long, display_order = 2)]
    pub foreground: bool,
    /// What readers of absent bytes get while the registry is away: wait, eio, or eio after SECONDS
    /// [default: wait]
    #[arg(
        long,
        value_name = "wait|eio|SECONDS",
        value_parser = on_outage,
        env = "RSMOUNT_ON_OUTAGE",
        hide_env_values = true,
        display_order = 5
    )]
    pub on_outage: Option<Outage>,
    /// When bytes that nobody has read yet are fetched [default: auto]
    #[arg(
        long,
        value_enum,
        env = "RSMOUNT_FILL",
        hide_env_values = true,
        display_order = 6
    )]
    pub fill: Option<FillArg>,
    /// Who answers for names and metadata: auto takes the kernel's EROFS as root where it can
    #[arg(
        long,
        value_enum,
        default_value_t = EngineArg::Auto,
        env = "RSMOUNT_ENGINE",
        hide_env_values = true,
        display_order = 6
    )]
    pub engine: EngineArg,
    /// Whether the process that serves the mount is shut in [default: auto]
    #[arg(
        long,
        value_enum,
        env = "RSMOUNT_SANDBOX",
        hide_env_values = true,
        display_order = 6
    )]
    pub sandbox: Option<SandboxArg>,
}

/// `--sandbox`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SandboxArg {
    /// With all that this kernel has; `stats` says what that is
    Auto,
    /// Not at all
    Off,
    /// Completely, or there is no mount
    Required,
}

impl From<SandboxArg> for Sandbox {
    fn from(arg: SandboxArg) -> Sandbox {
        match arg {
            SandboxArg::Auto => Sandbox::Auto,
            SandboxArg::Off => Sandbox::Off,
            SandboxArg::Required => Sandbox::Required,
        }
    }
}

/// `--engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    /// The kernel where that is possible, else FUSE; `stats` says which and why
    Auto,
    /// FUSE
    Fuse,
    /// The kernel's EROFS, over FUSE for the bytes; or nothing
    Kernel,
}

impl From<EngineArg> for Engine {
    fn from(arg: EngineArg) -> Engine {
        match arg {
            EngineArg::Auto => Engine::Auto,
            EngineArg::Fuse => Engine::Fuse,
            EngineArg::Kernel => Engine::Kernel,
        }
    }
}

/// `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PullArg {
    /// Only when the tag is not known
    Missing,
    /// Ask; use what is known when the registry is away
    Newer,
    /// Ask; fail when the registry is away
    Always,
}

impl From<PullArg> for Pull {
    fn from(arg: PullArg) -> Pull {
        match arg {
            PullArg::Missing => Pull::Missing,
            PullArg::Newer => Pull::Newer,
            PullArg::Always => Pull::Always,
        }
    }
}

/// `--fill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FillArg {
    /// When readers have been quiet for 10 s, after one had to wait at all
    Auto,
    /// Never: only what is read, and what earlier starts read
    Never,
    /// At once; readers go first
    Now,
}

impl From<FillArg> for Fill {
    fn from(arg: FillArg) -> Fill {
        match arg {
            FillArg::Auto => Fill::Auto,
            FillArg::Never => Fill::Never,
            FillArg::Now => Fill::Now,
        }
    }
}

/// `--trust-index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrustArg {
    /// Those of the same repository, but for an image named by digest only signed ones
    Tag,
    /// Those of the same repository, and signed ones
    Registry,
    /// Those that a trusted key has signed
    Signed,
    /// None: only what was learned on this machine
    Local,
}

impl From<TrustArg> for TrustIndex {
    fn from(arg: TrustArg) -> TrustIndex {
        match arg {
            TrustArg::Tag => TrustIndex::Tag,
            TrustArg::Registry => TrustIndex::Registry,
            TrustArg::Signed => TrustIndex::Signed,
            TrustArg::Local => TrustIndex::Local,
        }
    }
}

/// `wait`, `eio`, or a number of seconds.
pub(super) fn on_outage(text: &str) -> Result<Outage, String> {
    match text {
        "wait" => Ok(Outage::Wait),
        "eio" => Ok(Outage::Eio),
        _ => text
            .parse()
            .map(Outage::Seconds)
            .map_err(|_| "expected wait, eio, or a number of seconds".to_owned()),
    }
}

/// Arguments of `man`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ManArgs {
    /// The page of this command, as `rsmount man cache prune`
    pub command: Vec<String>,
    /// Write the pages of all commands into DIR, as `rsmount-mount.1`
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
}

/// Arguments of `umount`.
#[derive(Debug, Clone, ClapArgs)]
pub struct UmountArgs {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// Detach a busy mount; it ends with its last user
    #[arg(short, long)]
    pub lazy: bool,
}

/// Arguments of `ps`.
#[derive(Debug, Clone, ClapArgs)]
pub struct PsArgs {
    /// Also mounts whose process has died, and containers that have ended
    #[arg(short, long)]
    pub all: bool,
    /// JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `stats`.
#[derive(Debug, Clone, ClapArgs)]
pub struct StatsArgs {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn clap_finds_no_contradiction() {
        Args::command().debug_assert();
    }
}
