//! Images as docker users know them: what they are, what is in them, and the store of those that
//! are known here. Nothing here mounts.
//!
//! | part | what it does |
//! |---|---|
//! | [`inspect`] | metadata, from manifests and configuration alone |
//! | [`template`] | `--format`: JSON through a template |
//! | [`path`] | `IMAGE[:/path]` |
//! | [`view`] | an image's tree and bytes, without a mount |
//! | [`list`], [`compare`] | what `ls` and `diff` show |
//! | [`pull`] | whole images |
//! | [`store`] | the images that are known here: listed, named again, removed |
//! | [`save`], [`load`] | archives of images, written and read |
//! | [`login`] | who we are, for registries |
//! | [`copy`], [`export`] | files and directories out of an image: to the disk, as a tar |
//! | [`changes`] | what a container has changed |
//! | [`commit`] | the changes become a layer, and the layer an image |
//! | [`push`] | an image goes to a registry |

pub mod changes;
pub mod commit;
pub mod compare;
pub mod copy;
mod error;
pub mod export;
pub mod inspect;
pub mod list;
pub mod load;
pub mod login;
pub mod path;
pub mod pull;
pub mod push;
mod reach;
pub mod save;
pub mod store;
pub mod template;
pub mod view;

pub use error::Error;
pub use reach::Dropped;
