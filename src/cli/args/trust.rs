//! Arguments of `key`: the keys that packs are signed with.

use std::path::PathBuf;

use clap::Subcommand;

/// `key …`.
#[derive(Debug, Clone, Subcommand)]
pub enum KeyCommand {
    /// Make a key pair: the secret key in FILE, the public key in FILE.pub
    ///
    /// Both are PEM, as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write them.
    Generate {
        /// A file that does not exist yet
        file: PathBuf,
        /// JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the public keys in FILE (or of the secret key in it)
    Show {
        /// A PEM file
        file: PathBuf,
        /// JSON
        #[arg(long)]
        json: bool,
    },
}
