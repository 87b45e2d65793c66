//! The image of edge cases (`tests/support/edge.rs`), mounted, against the naive model of what its
//! layers say (`tests/support/model.rs`). Needs root and `/dev/fuse`; says so loudly where it is
//! skipped.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub, reason = "a test")]

#[path = "support/all.rs"]
mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use support::edge::{self, Layer};
use support::layout::{self, Pack};
use support::model::{self, Says};
use support::place::{Place, can_mount};
use support::seen::{self, Seen};

const PACKS: [Pack; 3] = [Pack::Gzip, Pack::Zstd, Pack::Plain];

/// Somebody who owns nothing of the image.
const STRANGER: u32 = 65534;

fn expected(layers: &[Layer]) -> Seen {
    let says: Vec<Vec<Says>> = layers.iter().map(|layer| layer.says.clone()).collect();
    model::merged(&says)
}

fn written(layers: &[Layer], pack: Pack) -> Place {
    let place = Place::new();
    let tars: Vec<_> = layers.iter().map(Layer::tar).collect();
    layout::write(&place.path("image"), &tars, pack);
    place
}

/// At first contact, and again when every byte has to be fetched by its span.
fn assert_mounts_as(expected: &Seen, place: &Place, what: &str) {
    for state in ["first contact", "absent"] {
        let mount = place.mount("image", &[]);
        let found = seen::look(&mount.path(""));
        seen::assert_same(&format!("{what}, {state}"), expected, &found);
        assert_eq!(place.stats()["verify_failures"], 0);
        drop(mount);
        place.ok(&["cache", "prune", "--data"]);
    }
}

#[test]
fn every_edge_case_is_what_the_model_says_in_every_compression() {
    if !can_mount() {
        return;
    }
    let layers = edge::image(|_| true);
    let expected = expected(&layers);
    for (group, _) in edge::GROUPS {
        let alone = edge::image(|name| name == group);
        assert!(alone.iter().any(|l| !l.says.is_empty()), "{group} is empty");
    }
    for pack in PACKS {
        let place = written(&layers, pack);
        assert_mounts_as(&expected, &place, &format!("{pack:?}"));
    }
}

/// Its content is not summed with the others', because most of it is a hole.
#[test]
fn a_file_of_nine_gigabytes_is_read_at_both_ends() {
    if !can_mount() {
        return;
    }
    let layers = edge::image(|name| name == "sparse, old gnu, 9 GiB");
    let place = written(&layers, Pack::Gzip);
    let mount = place.mount("image", &[]);
    let file = File::open(mount.path("sparse-9g")).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), 9 << 30);
    // EROFS tells of a file's length only.
    let holes = place.stats()["engine"] == "fuse";
    assert!(
        !holes || meta.blocks() * 512 < 1 << 20,
        "holes take no room"
    );
    for (offset, piece) in edge::pieces(&layers, b"sparse-9g") {
        let before = offset - 100;
        let mut found = vec![0xff; 100 + piece.len()];
        file.read_exact_at(&mut found, before).unwrap();
        assert_eq!(found[..100], [0; 100], "the hole before {offset}");
        assert_eq!(found[100..], piece[..], "the piece at {offset}");
    }
    let mut middle = vec![0xff; 1 << 20];
    file.read_exact_at(&mut middle, 5 << 30).unwrap();
    assert!(middle.iter().all(|b| *b == 0));
}

/// 130 layers: each adds a file, changes one, hides what an earlier one added, links into the base.
fn many_layers() -> Vec<Layer> {
    let mut layers: Vec<Layer> = (0..130).map(|_| Layer::default()).collect();
    for (n, layer) in layers.iter_mut().enumerate() {
        edge::step(layer, n);
    }
    layers
}

#[test]
fn a_hundred_and_thirty_layers_are_what_the_model_says() {
    if !can_mount() {
        return;
    }
    let layers = many_layers();
    let place = written(&layers, Pack::Gzip);
    assert_mounts_as(&expected(&layers), &place, "130 layers");
}

#[test]
fn empty_layers_change_nothing() {
    if !can_mount() {
        return;
    }
    let content = edge::image(|name| ["replaced", "root"].contains(&name));
    let expected = expected(&content);
    // An end without a beginning, twice the same, and nothing at all.
    let (ended, nothing) = (Layer::default().tar(), Vec::new());
    let mut tars = vec![ended.clone(), nothing.clone()];
    tars.extend(content.iter().map(Layer::tar));
    tars.extend([nothing.clone(), ended]);
    for pack in PACKS {
        let place = Place::new();
        layout::write(&place.path("image"), &tars, pack);
        assert_mounts_as(&expected, &place, &format!("empty layers, {pack:?}"));
        layout::write(&place.path("empty"), std::slice::from_ref(&nothing), pack);
        let mount = place.mount("empty", &[]);
        let alone = model::merged(&[]);
        seen::assert_same(
            "nothing but an empty layer",
            &alone,
            &seen::look(&mount.path("")),
        );
    }
}

#[test]
fn an_opaque_root_hides_everything_below() {
    if !can_mount() {
        return;
    }
    let mut layers = edge::image(|name| ["nodes", "root", "opaque"].contains(&name)).to_vec();
    let mut top = Layer::default();
    edge::opaque_root(&mut top);
    layers.push(top);
    let place = written(&layers, Pack::Gzip);
    let expected = expected(&layers);
    assert_eq!(expected.len(), 3, "the root and what is new");
    assert_mounts_as(&expected, &place, "an opaque root");
}

#[test]
fn what_linux_allows_at_most_is_there() {
    if !can_mount() {
        return;
    }
    let mut layer = Layer::default();
    edge::limits(&mut layer);
    let layers = [layer];
    let place = written(&layers, Pack::Gzip);
    assert_mounts_as(&expected(&layers), &place, "limits");
}

/// Runs a program as somebody else.
fn as_stranger(program: &Path, argument: &Path) -> Output {
    let mut command = Command::new("setpriv");
    let ids = [format!("--reuid={STRANGER}"), format!("--regid={STRANGER}")];
    command.args(ids).args(["--clear-groups", "--"]);
    command.arg(program).arg(argument).output().unwrap()
}

fn let_others_in(place: &Place) {
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.dir.path(), open).unwrap();
}

#[test]
fn access_lists_are_enforced() {
    if !can_mount() {
        return;
    }
    let layers = edge::image(|name| name == "xattrs");
    let place = written(&layers, Pack::Gzip);
    let_others_in(&place);
    let mount = place.mount("image", &[]);
    let read = |name: &str| {
        let out = as_stranger(Path::new("cat"), &mount.path(name));
        (
            out.status.success(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    // Nobody but the owner by its mode, and this user by its list.
    assert_eq!(read("xattrs/allowed"), (true, String::new()));
    // Everybody by its mode, but not this user by its list.
    let (can, said) = read("xattrs/denied");
    assert!(!can && said.contains("Permission denied"), "{said}");
    // By their modes alone it would be the other way round.
    let mode = |name: &str| mount.path(name).metadata().unwrap().mode() & 0o777;
    assert_eq!(
        (mode("xattrs/allowed"), mode("xattrs/denied")),
        (0o660, 0o664)
    );
}

#[test]
fn capabilities_count_where_set_id_bits_do() {
    if !can_mount() {
        return;
    }
    let mut layer = Layer::default();
    edge::capable_program(&mut layer, "cat", &std::fs::read("/bin/cat").unwrap());
    let place = written(&[layer], Pack::Gzip);
    let_others_in(&place);
    for (options, effective) in [(&["-o", "suid"][..], 1 << 13), (&[], 0)] {
        let mount = place.mount("image", options);
        let out = as_stranger(&mount.path("cat"), Path::new("/proc/self/status"));
        let status = String::from_utf8_lossy(&out.stdout);
        let line = status.lines().find_map(|l| l.strip_prefix("CapEff:\t"));
        let found = line.map(|l| u64::from_str_radix(l, 16).unwrap());
        assert_eq!(found, Some(effective), "{options:?}: {out:?}");
    }
}
