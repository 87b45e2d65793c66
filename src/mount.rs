//! Mounts: the composition root. The only room that names all others, and the only place where a
//! reference, a registry, a cache, a tree and FUSE are wired together.
//!
//! [`launch`] (in the command) starts a fresh process that runs [`keeper`], which starts one that
//! runs [`worker`]: spawned before any thread exists, holding nothing of the caller's. The command
//! and the worker talk in JSON lines: the [`MountRequest`] goes in, progress events and then `ready`
//! or `failed` come out. The keeper stays, and starts another worker should that one die. A command
//! that is a [`service`] becomes the keeper itself.

pub mod assemble;
pub mod control;
mod deaths;
pub mod defaults;
mod discover;
pub mod doctor;
pub mod engine;
mod erofs_mount;
mod errands;
mod error;
pub mod explain;
mod handover;
mod hot;
mod image_file;
pub mod indexes;
pub mod keeper;
mod known_tree;
pub mod launch;
mod layers;
mod learn;
mod lookup;
mod mounting;
pub mod mountpoint;
mod narrow;
mod notify;
mod overlay;
mod own_layer;
mod pack;
mod pack_begun;
mod parcel;
pub mod pin;
pub mod privilege;
pub mod publish;
mod readahead;
pub mod record;
mod refused;
pub mod request;
mod resend;
pub(crate) mod resolve;
mod resume;
mod revalidate;
pub mod sandbox;
mod selftest;
mod serve;
pub mod service;
mod shut_in;
pub(crate) mod source;
pub mod stats;
mod stored;
mod trust;
pub mod upper;
mod whole;
pub mod why;
pub mod worker;

pub use error::Error;
pub(crate) use lookup::{lookup, lookup_top};
pub use request::{Engine, MountRequest, Pull, TrustIndex, Upper};
pub use sandbox::Sandbox;
