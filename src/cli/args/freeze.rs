//! Arguments of the commands that make an image of changes.

use std::path::PathBuf;

use clap::{ArgAction, Args as ClapArgs, ValueEnum};

use crate::cli::args::ReachArgs;
use crate::oci::Compression;

/// Arguments of `commit`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CommitArgs {
    /// Where a writable mount is, the directory that was its --upper, or a container
    pub target: PathBuf,
    /// Name of the new image
    #[arg(value_name = "NAME[:TAG]")]
    pub image: String,
    /// Who made it
    #[arg(short, long)]
    pub author: Option<String>,
    /// What was done
    #[arg(short, long)]
    pub message: Option<String>,
    /// A Dockerfile instruction that changes the configuration (CMD, ENTRYPOINT, ENV, EXPOSE, LABEL,
    /// ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR); can be given again
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Whether a container that runs stands still meanwhile; a file that changes while it is read fails
    /// the commit
    #[arg(
        short,
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true"
    )]
    pub pause: bool,
    /// How the layer is compressed
    #[arg(long, value_enum, default_value_t = CompressionArg::Gzip)]
    pub compression: CompressionArg,
    /// JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `push`.
#[derive(Debug, Clone, ClapArgs)]
pub struct PushArgs {
    /// The image
    pub image: String,
    /// Where to, when not to its own name
    #[arg(value_name = "DEST")]
    pub to: Option<String>,
    /// How to reach both
    #[command(flatten)]
    pub reach: ReachArgs,
    /// Put the image into what DEST stands for, beside its other platforms
    #[arg(long)]
    pub update_index: bool,
    /// JSON
    #[arg(long)]
    pub json: bool,
}

/// `--compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompressionArg {
    /// What every tool reads
    Gzip,
    /// Smaller and faster, for tools that read it
    Zstd,
}

impl From<CompressionArg> for Compression {
    fn from(arg: CompressionArg) -> Compression {
        match arg {
            CompressionArg::Gzip => Compression::Gzip,
            CompressionArg::Zstd => Compression::Zstd,
        }
    }
}
