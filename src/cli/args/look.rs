//! Arguments of the commands that look and measure: `why`, `index`, `doctor`, `bench`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use crate::cli::args::SourceArgs;

/// Arguments of `why`.
#[derive(Debug, Clone, ClapArgs)]
pub struct WhyArgs {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// How many waits to show, the longest first (JSON has all that are kept)
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub lines: usize,
    /// JSON
    #[arg(long)]
    pub json: bool,
}

/// `index …`.
#[derive(Debug, Clone, Subcommand)]
pub enum IndexCommand {
    /// Stream the layers that have no index here, and index them, without mounting
    Build {
        /// The image
        #[command(flatten)]
        source: SourceArgs,
        /// JSON
        #[arg(long, display_order = 12)]
        json: bool,
    },
    /// Show the indexes that are here
    Show {
        /// The image
        #[command(flatten)]
        source: SourceArgs,
        /// JSON
        #[arg(long, display_order = 12)]
        json: bool,
    },
}

/// Arguments of `doctor`.
#[derive(Debug, Clone, ClapArgs)]
pub struct DoctorArgs {
    /// An image or a registry's host that should be reachable
    #[arg(value_name = "IMAGE|HOST")]
    pub image: Option<String>,
    /// A registry that may speak plain HTTP (loopback may always); can be given again
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        env = "RSMOUNT_INSECURE_REGISTRY",
        hide_env_values = true
    )]
    pub insecure_registry: Vec<String>,
    /// More certificate authorities, PEM; can be given again
    #[arg(long, value_name = "FILE")]
    pub ca_file: Vec<PathBuf>,
    /// Where mirrors are configured, as containerd's hosts.toml [default: certs.d beside the
    /// configuration files, then /etc/containerd/certs.d]
    #[arg(
        long,
        value_name = "DIR",
        env = "RSMOUNT_HOSTS_DIR",
        hide_env_values = true
    )]
    pub hosts_dir: Option<PathBuf>,
    /// JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench`.
#[derive(Debug, Clone, ClapArgs)]
pub struct BenchArgs {
    /// The image
    #[command(flatten)]
    pub source: SourceArgs,
    /// What is run in the image: it is ready when this has ended
    #[arg(required = true, last = true, value_name = "CMD")]
    pub command: Vec<String>,
    /// Starts of each mode
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), display_order = 11)]
    pub runs: u32,
    /// What is known before a start
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "first-contact,indexed,profiled,packed,warm",
        display_order = 12
    )]
    pub modes: Vec<Mode>,
    /// Compare with: podman (pull, then run)
    #[arg(long, value_enum, value_delimiter = ',', display_order = 13)]
    pub vs: Vec<Peer>,
    /// Where the caches of the measurement are made; not in memory, unless that is to be measured
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/tmp",
        display_order = 14
    )]
    pub scratch: PathBuf,
    /// Write a picture of the stages: an HTML page, or an SVG
    #[arg(long, value_name = "FILE.html|FILE.svg", display_order = 15)]
    pub report: Option<PathBuf>,
    /// JSON
    #[arg(long, display_order = 16)]
    pub json: bool,
}

/// What is known before a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Nothing
    FirstContact,
    /// The indexes, made here
    Indexed,
    /// The indexes, and what earlier starts touched
    Profiled,
    /// Nothing here; the registry has a pack that is trusted
    Packed,
    /// Everything, also by the kernel's page cache
    Warm,
}

/// Another tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// `podman pull` and `podman run`, with a storage of its own
    Podman,
}
