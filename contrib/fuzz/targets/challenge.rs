//! `WWW-Authenticate` header values, one a line.
#![no_main]

use libfuzzer_sys::fuzz_target;

// Private to its room, but a file that needs nothing of it.
#[path = "../../../src/registry/challenge.rs"]
mod challenge;

fuzz_target!(|text: &str| {
    if let Some(challenge::Challenge::Bearer { realm, service, scope }) =
        challenge::Challenge::parse(text.lines())
    {
        assert!(!realm.is_empty());
        assert!(service.is_none_or(|text| !text.is_empty()));
        assert!(scope.is_none_or(|text| !text.is_empty()));
    }
});
