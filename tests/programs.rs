//! Programs run from a mount: chroot'ed into it, with a tmpfs where they have to write.
//!
//! Needs root and the registry that `contrib/test` starts. `RSMOUNT_TEST_IMAGES` says which images.

#[allow(dead_code, reason = "each test uses its own part")]
#[path = "support/images.rs"]
mod images;
#[path = "support/mounted.rs"]
mod mounted;
#[path = "support/programs.rs"]
mod programs;

use mounted::Mounted;
use programs::{PROGRAMS, run_in};

#[test]
fn programs_run_from_a_mount() {
    let Some(registry) = images::registry("programs_run_from_a_mount") else {
        return;
    };
    let wanted = images::wanted();
    for program in PROGRAMS
        .iter()
        .filter(|program| wanted.iter().any(|name| name == program.image))
    {
        let image = format!("{registry}/library/{}", program.image);
        let cache = images::scratch();
        let mounted = Mounted::new(&image, cache.path());
        let printed = run_in(mounted.path(), program);
        assert_eq!(printed.lines().last(), Some(program.says), "{image}");
    }
}
