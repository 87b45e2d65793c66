//! What the tests that mount share: images made on the spot, mounts that end with the test.
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    clippy::print_stderr,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod busybox;
pub mod containers;
pub mod docker_registry;
pub mod edge;
pub mod layout;
pub mod manager;
pub mod model;
pub mod namespace;
pub mod ordinary;
pub mod place;
pub mod podman;
pub mod raw_tar;
pub mod receiver;
pub mod registry;
pub mod seen;
pub mod terminal;
