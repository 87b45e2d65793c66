//! The nouns of the OCI image specification: digests, references, platforms, descriptors,
//! manifests, configurations. No I/O: text and bytes in, values out.

pub mod about;
pub mod command;
pub mod config;
pub mod descriptor;
pub mod digest;
pub mod manifest;
pub mod platform;
pub mod reference;
mod shown;

pub use about::{About, Step};
pub use config::ImageConfig;
pub use descriptor::{Compression, Descriptor};
pub use digest::Digest;
pub use manifest::{ImageIndex, ImageManifest, Manifest};
pub use platform::Platform;
pub use reference::{ImageName, Reference};
