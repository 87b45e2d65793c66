//! OCI runtimes: what a container is to be ([`Plan`] to `config.json`), and the programs that make it
//! so (`crun`, `runc`, `youki`), which are spawned, never linked.
//!
//! Knows nothing of images and mounts: the root file system is a path, the process is spelled out.
//! Shapes: OCI runtime-spec 1.0 (`config.md`, `config-linux.md`, `runtime.md`).

pub mod capabilities;
pub mod config;
pub mod console;
mod devices;
mod mounts;
pub mod program;
mod refusal;
pub mod seccomp;

pub use config::{Bind, Identity, Limits, Network, Plan, Process, Tmpfs};
pub use program::{Program, Spawn};
pub use refusal::Refusal;
