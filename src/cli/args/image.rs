//! Arguments of the commands about images that are not mounted.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use crate::cli::args::ReachArgs;
use crate::image::inspect::Raw;

/// Commands about images, in docker's words.
#[derive(Debug, Clone, Subcommand)]
pub enum ImageCommand {
    /// Show what is known of images, as JSON; never more than manifests and configuration is fetched
    Inspect(InspectArgs),
    /// Show the steps that made an image, last one first
    History(HistoryArgs),
    /// List a directory of an image, without mounting it
    Ls(LsArgs),
    /// Write files of images to standard output, without mounting
    Cat(CatArgs),
    /// Copy a file or directory out of an image, without mounting it
    Cp(CpArgs),
    /// Show what differs between two images, or what was changed in a mount: A added, C changed, D
    /// deleted
    Diff(DiffArgs),
    /// Print an image's tree, one line a name, in a stable order
    Dump(DumpArgs),
}

/// Arguments of `inspect`.
#[derive(Debug, Clone, ClapArgs)]
pub struct InspectArgs {
    /// The images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// How to reach them
    #[command(flatten)]
    pub reach: ReachArgs,
    /// A template, as in '{{ Config.User }}', '{{ Config|json }}'; docker's {{.Config.User}} and
    /// {{json .Config}} are read as well
    #[arg(long, short, value_name = "TEMPLATE", conflicts_with_all = ["raw", "platforms"])]
    pub format: Option<String>,
    /// The exact bytes of a document: of what the name stands for, or of one platform's
    #[arg(
        long,
        value_enum,
        value_name = "WHICH",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "top",
        conflicts_with = "platforms"
    )]
    pub raw: Option<RawArg>,
    /// List the platforms that the name stands for
    #[arg(long)]
    pub platforms: bool,
    /// JSON (with --platforms; all else is JSON anyway)
    #[arg(long)]
    pub json: bool,
}

/// `--raw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RawArg {
    /// What the name stands for: the index of a multi-platform image, else the manifest
    Top,
    /// The platform's manifest
    Manifest,
    /// The platform's configuration
    Config,
}

impl From<RawArg> for Raw {
    fn from(arg: RawArg) -> Raw {
        match arg {
            RawArg::Top => Raw::Top,
            RawArg::Manifest => Raw::Manifest,
            RawArg::Config => Raw::Config,
        }
    }
}

/// Arguments of `history`.
#[derive(Debug, Clone, ClapArgs)]
pub struct HistoryArgs {
    /// The image
    pub image: String,
    /// How to reach it
    #[command(flatten)]
    pub reach: ReachArgs,
    /// Show commands and digests whole
    #[arg(long)]
    pub no_trunc: bool,
    /// JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ls`.
#[derive(Debug, Clone, ClapArgs)]
pub struct LsArgs {
    /// The image, and a path in it: debian:12:/etc
    #[arg(value_name = "IMAGE[:/PATH]")]
    pub path: OsString,
    /// How to reach the image
    #[command(flatten)]
    pub reach: ReachArgs,
    /// Mode, owner, size, time and what links hold
    #[arg(short)]
    pub long: bool,
    /// Directories below as well
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// The directory itself
    #[arg(short, long)]
    pub directory: bool,
    /// JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `cat`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CatArgs {
    /// Images and files in them
    #[arg(value_name = "IMAGE:/PATH", required = true)]
    pub paths: Vec<OsString>,
    /// How to reach the images
    #[command(flatten)]
    pub reach: ReachArgs,
}

/// Arguments of `cp`.
#[derive(Debug, Clone, ClapArgs)]
pub struct CpArgs {
    /// An image and a path in it; `DIR/.` means what is in the directory
    #[arg(value_name = "IMAGE:/PATH")]
    pub path: OsString,
    /// Where to, as for docker cp; `-` writes a tar to standard output
    #[arg(value_name = "DST|-")]
    pub to: PathBuf,
    /// How to reach the image
    #[command(flatten)]
    pub reach: ReachArgs,
    /// Keep owners, set-id bits, extended attributes and devices as well
    #[arg(short, long)]
    pub archive: bool,
    /// Follow a symbolic link at the end of PATH
    #[arg(short = 'L', long)]
    pub follow_link: bool,
}

/// Arguments of `diff`.
#[derive(Debug, Clone, ClapArgs)]
pub struct DiffArgs {
    /// The first image; or, alone, where a writable mount is, or its --upper
    #[arg(value_name = "IMAGE_A|MOUNTPOINT")]
    pub old: String,
    /// The second image
    #[arg(value_name = "IMAGE_B")]
    pub new: Option<String>,
    /// How to reach them
    #[command(flatten)]
    pub reach: ReachArgs,
    /// JSON, with what has changed
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `dump`.
#[derive(Debug, Clone, ClapArgs)]
pub struct DumpArgs {
    /// The image, and a path in it
    #[arg(value_name = "IMAGE[:/PATH]")]
    pub path: OsString,
    /// How to reach the image
    #[command(flatten)]
    pub reach: ReachArgs,
    /// Inode numbers as well
    #[arg(long)]
    pub numbers: bool,
}
