//! Containers: an image's mount with a writable layer of its own, and a process in it.
//!
//! # The life of one
//!
//! [`store::Store::claim`] makes its directory and locks it; the image is mounted there;
//! [`prepare::prepare`] reads the image's configuration and writes the runtime's; [`supervise`] has
//! the runtime make it, passes its streams and signals on, keeps its log, and waits for its end;
//! [`store::Container::finish`] unmounts. What it changed stays until it is removed.
//!
//! # Invariants
//!
//! - No daemon: the process that started a container watches it, and holds its lock as long.
//! - A container whose watcher has died is ended by the next command that looks.
//! - Nothing of an image is followed out of its root (`container::rootfs`).

pub mod bundle;
pub mod command;
mod copy;
mod error;
mod etc;
pub mod exec;
pub mod freeze;
pub mod image;
pub mod inspect;
pub mod log;
pub mod prepare;
pub mod record;
mod rootfs;
pub mod signal;
pub mod stop;
pub mod store;
pub mod streams;
pub mod supervise;
mod terminal;
pub mod user;
pub mod volume;

pub use error::Error;
pub use record::{Record, Status};
pub use store::{Container, Store};
