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
    /// Bring whole images here, so that they need no network
    Pull(PullArgs),
    /// List the images that are known here; -q prints IDs alone
    Images(ImagesArgs),
    /// Forget images, and remove what only they needed
    Rmi(RmiArgs),
    /// Give an image another name
    Tag {
        /// An image that is known here
        source: String,
        /// Its further name
        target: String,
    },
    /// Write images to an archive that docker, podman and skopeo load
    Save(SaveArgs),
    /// Take images from an archive into the store
    Load(LoadArgs),
    /// Log in to a registry; the password is asked for, or read from standard input
    Login(LoginArgs),
    /// Forget the login of a registry
    Logout(LogoutArgs),
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
    /// The images, or containers: a name that both have is the container's, as docker has it
    #[arg(value_name = "IMAGE|CONTAINER", required = true)]
    pub images: Vec<String>,
    /// Only one of the two kinds
    #[arg(long = "type", value_enum, value_name = "KIND")]
    pub kind: Option<KindArg>,
    /// How to reach them
    #[command(flatten)]
    pub reach: ReachArgs,
    /// A template, as in '{{ Config.User }}', '{{ Config|json }}'; docker's '{{.Config.User}}',
    /// '{{json .Config}}', '{{range .Config.Env}}{{println .}}{{end}}' and their kin are read as well
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

/// `--type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindArg {
    /// Images
    Image,
    /// Containers
    Container,
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

/// Arguments of `pull`.
#[derive(Debug, Clone, ClapArgs)]
pub struct PullArgs {
    /// The images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Platform of a multi-platform image [default: this machine's]
    #[arg(
        long,
        value_name = "OS/ARCH[/VARIANT]",
        env = "RSMOUNT_PLATFORM",
        hide_env_values = true
    )]
    pub platform: Option<String>,
    /// Every platform
    #[arg(long, conflicts_with = "platform")]
    pub all_platforms: bool,
    /// JSON: what came, and what was here
    #[arg(long)]
    pub json: bool,
    /// How to reach the registry
    #[command(flatten)]
    pub hosts: HostArgs,
}

/// How to speak to registries.
#[derive(Debug, Clone, ClapArgs)]
pub struct HostArgs {
    /// A registry that may speak plain HTTP (loopback may always); can be given again
    #[arg(
        long,
        value_name = "HOST[:PORT]",
        env = "RSMOUNT_INSECURE_REGISTRY",
        hide_env_values = true
    )]
    pub insecure_registry: Vec<String>,
    /// More certificate authorities, PEM; can be given again
    #[arg(
        long,
        value_name = "FILE",
        env = "RSMOUNT_CA_FILE",
        hide_env_values = true
    )]
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
}

/// Arguments of `images`.
#[derive(Debug, Clone, ClapArgs)]
pub struct ImagesArgs {
    /// Only these: a repository, or a name with its tag; * and ? as in a shell
    #[arg(value_name = "NAME")]
    pub reference: Option<String>,
    /// Only what fits: reference=NAME, platform=OS/ARCH, mounted=true|false, complete=true|false
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Whole digests
    #[arg(long)]
    pub no_trunc: bool,
    /// JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `rmi`.
#[derive(Debug, Clone, ClapArgs)]
pub struct RmiArgs {
    /// Names, or the beginning of an ID or digest
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Also names of mounted images, whose data stays until they are unmounted; all names of an ID
    #[arg(short, long)]
    pub force: bool,
}

/// Arguments of `save`.
#[derive(Debug, Clone, ClapArgs)]
pub struct SaveArgs {
    /// The images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Where to [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Which kind of archive
    #[arg(long, value_enum, default_value_t = FormatArg::DockerArchive)]
    pub format: FormatArg,
    /// How to reach the images
    #[command(flatten)]
    pub reach: ReachArgs,
}

/// `--format` of `save`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// What `docker load` takes
    DockerArchive,
    /// An OCI layout in a tar
    OciArchive,
}

/// Arguments of `load`.
#[derive(Debug, Clone, ClapArgs)]
pub struct LoadArgs {
    /// The archive, of either kind [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// A name for an image that has none
    #[arg(long, value_name = "IMAGE")]
    pub name: Option<String>,
    /// Platform of a multi-platform image [default: this machine's]
    #[arg(
        long,
        value_name = "OS/ARCH[/VARIANT]",
        env = "RSMOUNT_PLATFORM",
        hide_env_values = true
    )]
    pub platform: Option<String>,
}

/// Arguments of `login`. There is none for the password: others could read it.
#[derive(Debug, Clone, ClapArgs)]
pub struct LoginArgs {
    /// The registry [default: Docker Hub]
    #[arg(value_name = "HOST[:PORT]")]
    pub registry: Option<String>,
    /// User name [default: asked for]
    #[arg(short, long, value_name = "NAME")]
    pub username: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// How to reach it
    #[command(flatten)]
    pub hosts: HostArgs,
}

/// Arguments of `logout`.
#[derive(Debug, Clone, ClapArgs)]
pub struct LogoutArgs {
    /// The registry [default: Docker Hub]
    #[arg(value_name = "HOST[:PORT]")]
    pub registry: Option<String>,
}
