//! Images that were made to do harm: too many, too deep, too often, too long, and far more than they look
//! like. Each is mounted as it is, or refused in one line; neither takes more memory than its limit
//! allows.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::type_complexity,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test"
)]

#[path = "support/all.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

use rsmount::layer::limit::{INDEX_BYTES_MAX, PAX_BYTES_MAX};
use rsmount::layer::path::PATH_DEPTH_MAX;
use rsmount::oci::Digest;
use rsmount::oci::manifest::{LAYERS_MAX, MANIFEST_BYTES_MAX};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::docker_registry::DockerRegistry;
use support::layout::{self, Pack};
use support::place::{Mounted, Place, can_mount, long, private_kib};
use support::raw_tar::Member;
use support::registry::Registry;

const MIB: u64 = 1 << 20;

/// Address space of everything that is started for a mount, in bytes: what an image's indexes may take,
/// and room for stacks, buffers of the FUSE library, and libraries.
const ADDRESS_BYTES_MAX: u64 = 2 * INDEX_BYTES_MAX + 1024 * MIB;

/// Most memory of a worker for each name of its image, in bytes, besides what every worker has.
const BYTES_A_NAME: u64 = 1024;

/// Most private memory of a worker that does nothing but serve, in bytes.
const WORKER_BYTES_MAX: u64 = 64 * MIB;

/// Hashes and counts what passes.
struct Sum<W> {
    to: W,
    hash: Sha256,
    len: u64,
}

impl<W: Write> Write for Sum<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = self.to.write(bytes)?;
        self.hash.update(&bytes[..len]);
        self.len += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

impl<W> Sum<W> {
    fn of(to: W) -> Sum<W> {
        Sum {
            to,
            hash: Sha256::new(),
            len: 0,
        }
    }

    fn digest(self) -> String {
        let hash = self.hash.finalize();
        let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
        format!("sha256:{hex}")
    }
}

/// A layer of a layout.
struct Blob {
    descriptor: Value,
    diff_id: String,
}

fn blobs(dir: &Path) -> std::path::PathBuf {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    blobs
}

/// Writes a layer without holding it: `write` gives the tar, the end of which is added.
fn layer(dir: &Path, pack: Pack, write: impl FnOnce(&mut dyn Write)) -> Blob {
    let partial = dir.join("partial");
    let blobs = blobs(dir);
    let packed = Sum::of(BufWriter::new(File::create(&partial).unwrap()));
    let all = |out: &mut dyn Write| {
        write(out);
        out.write_all(&[0; 1024]).unwrap();
    };
    let (packed, plain, kind) = match pack {
        Pack::Gzip => {
            let packer = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
            let mut plain = Sum::of(packer);
            all(&mut plain);
            let Sum { to, hash, len } = plain;
            let plain = Sum { to: (), hash, len };
            (to.finish().unwrap(), plain, "+gzip")
        }
        Pack::Zstd => {
            let mut plain = Sum::of(zstd::Encoder::new(packed, 1).unwrap());
            all(&mut plain);
            let Sum { to, hash, len } = plain;
            let plain = Sum { to: (), hash, len };
            (to.finish().unwrap(), plain, "+zstd")
        }
        Pack::Plain => unreachable!("no test wants it"),
    };
    let mut packed = packed;
    packed.flush().unwrap();
    let size = packed.len;
    let digest = packed.digest();
    std::fs::rename(&partial, blobs.join(&digest[7..])).unwrap();
    Blob {
        descriptor: json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{kind}"),
            "digest": digest, "size": size,
        }),
        diff_id: plain.digest(),
    }
}

/// Puts a document into the layout; gives its descriptor.
fn document(dir: &Path, kind: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    std::fs::write(blobs(dir).join(digest.hex()), bytes).unwrap();
    json!({ "mediaType": kind, "digest": digest.to_string(), "size": bytes.len() })
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The manifest of an image of these layers.
fn manifest(dir: &Path, layers: &[&Blob]) -> Value {
    let diff_ids: Vec<&str> = layers.iter().map(|l| l.diff_id.as_str()).collect();
    let config = json!({
        "architecture": layout::host_architecture(), "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let kind = "application/vnd.oci.image.config.v1+json";
    let config = document(dir, kind, config.to_string().as_bytes());
    let layers: Vec<&Value> = layers.iter().map(|l| &l.descriptor).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
    });
    document(dir, MANIFEST, manifest.to_string().as_bytes())
}

/// Says what `latest` is.
fn tag(dir: &Path, top: &Value) {
    let mut top = top.clone();
    top["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let index = json!({ "schemaVersion": 2, "manifests": [top] });
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// A place with an image of one layer, pushed to a registry.
struct Pushed {
    place: Place,
    /// Ends with this value.
    _registry: DockerRegistry,
    image: String,
}

impl Pushed {
    fn new(pack: Pack, write: impl FnOnce(&mut dyn Write)) -> Option<Pushed> {
        Pushed::of(|dir| {
            let layer = layer(dir, pack, write);
            manifest(dir, &[&layer])
        })
    }

    /// `make` makes a layout, and gives what its tag names.
    fn of(make: impl FnOnce(&Path) -> Value) -> Option<Pushed> {
        if !can_mount() {
            return None;
        }
        let place = Place::new();
        let registry = DockerRegistry::serve(&place.path("registry"), false)?;
        let dir = place.path("image");
        tag(&dir, &make(&dir));
        let image = registry.image("hostile:1");
        let from = format!("oci:{}:latest", dir.display());
        let all = ["copy", "--quiet", "--all", "--preserve-digests"];
        let copied = Command::new("skopeo")
            .args(all)
            .args([
                "--dest-tls-verify=false",
                &from,
                &format!("docker://{image}"),
            ])
            .status();
        assert!(copied.unwrap().success());
        Some(Pushed {
            place,
            _registry: registry,
            image,
        })
    }

    fn mount(&self, image: &str, engine: &str) -> Output {
        self.mount_with(&["--engine", engine], image)
    }

    fn mount_with(&self, options: &[&str], image: &str) -> Output {
        let path = self.place.mnt();
        // Everything that a mount starts inherits the limit.
        let mut command = Command::new("prlimit");
        let rsmount = self.place.rsmount();
        command
            .arg(format!("--as={ADDRESS_BYTES_MAX}"))
            .arg(rsmount.get_program())
            .arg("-q")
            .args(options)
            .args([image, path.to_str().unwrap()]);
        for (name, value) in rsmount.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.output().unwrap()
    }

    /// Mounts it, looks, and unmounts; by both engines, where this kernel has both.
    fn mounted(&self, look: impl Fn(&Path, u64)) {
        for engine in ["fuse", "auto"] {
            let output = self.mount(&self.image, engine);
            assert!(output.status.success(), "{engine}: {output:?}");
            let shown = self.place.ok(&["ps", "--json"]);
            let shown: Value = serde_json::from_str(&shown).unwrap();
            look(&self.place.mnt(), shown[0]["pid"].as_u64().unwrap());
            drop(Mounted::adopt(&self.place));
        }
    }

    /// It is refused in one line, and nothing is left.
    fn refused(&self, expected: &str) {
        refused(&self.place, &self.mount(&self.image, "auto"), expected);
    }
}

fn refused(place: &Place, output: &Output, expected: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "not one line: {said}");
    assert!(said.contains(expected), "{said:?} without {expected:?}");
    assert!(!place.is_mounted());
    assert_eq!(place.leftovers(), 0, "a record was left");
}

fn directory(name: &str) -> Vec<u8> {
    Member::new(b'5', name.as_bytes()).bytes()
}

/// A GNU header that gives the next one a long name.
fn long_name(name: &[u8]) -> Vec<u8> {
    let data = [name, b"\0"].concat();
    Member::new(b'L', b"././@LongLink").data(&data).bytes()
}

#[test]
fn a_directory_of_very_many_names_is_listed_whole() {
    let count: u64 = if long() { 1_000_000 } else { 50_000 };
    let pushed = Pushed::new(Pack::Gzip, |out| {
        out.write_all(&directory("d")).unwrap();
        for n in 0..count {
            let name = format!("d/{n:07}");
            out.write_all(&Member::new(b'0', name.as_bytes()).bytes())
                .unwrap();
        }
    });
    let Some(pushed) = pushed else { return };
    pushed.mounted(|mnt, pid| {
        let names: BTreeSet<_> = std::fs::read_dir(mnt.join("d"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let expected = (0..count).map(|n| format!("{n:07}"));
        assert!(names.into_iter().eq(expected), "not all names, once each");
        for n in [0, count / 2, count - 1] {
            assert!(mnt.join(format!("d/{n:07}")).is_file());
        }
        assert!(!mnt.join(format!("d/{count:07}")).exists());
        let private = private_kib(pid) << 10;
        println!("{count} names: {} KiB private", private >> 10);
        assert!(private < WORKER_BYTES_MAX + count * BYTES_A_NAME);
    });
}

/// Opens one directory after the other: no path is as long.
fn depth_of(mnt: &Path) -> usize {
    use rustix::fs::{Mode, OFlags, openat};
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(mnt, flags, Mode::empty()).unwrap();
    let mut depth = 0;
    while let Ok(next) = openat(&at, "a", flags, Mode::empty()) {
        (at, depth) = (next, depth + 1);
    }
    depth
}

fn deep(components: usize) -> Vec<u8> {
    let name = vec!["a"; components].join("/");
    let member = Member::new(b'5', b"a").bytes();
    [long_name(name.as_bytes()), member].concat()
}

#[test]
fn directories_may_be_as_deep_as_a_path_and_no_deeper() {
    let pushed = Pushed::new(Pack::Gzip, |out| {
        out.write_all(&deep(PATH_DEPTH_MAX)).unwrap();
    });
    let Some(pushed) = pushed else { return };
    pushed.mounted(|mnt, _| {
        assert_eq!(depth_of(mnt), PATH_DEPTH_MAX);
        let found = Command::new("find").arg(mnt).output().unwrap();
        let lines = found.stdout.iter().filter(|b| **b == b'\n').count();
        assert_eq!((lines, found.stderr), (PATH_DEPTH_MAX + 1, Vec::new()));
    });
    // What walks the whole tree otherwise.
    let listed = pushed.place.ok(&["diff", &pushed.image, &pushed.image]);
    assert_eq!(listed, "");

    for components in [PATH_DEPTH_MAX + 1, 4096] {
        let pushed = Pushed::new(Pack::Gzip, |out| {
            out.write_all(&deep(components)).unwrap();
        });
        pushed.unwrap().refused("deep");
    }
    // By way of a link, which leads an entry of fewer components as deep.
    let pushed = Pushed::new(Pack::Gzip, |out| {
        out.write_all(&deep(PATH_DEPTH_MAX / 2)).unwrap();
        let half = vec!["a"; PATH_DEPTH_MAX / 2].join("/");
        let link = |name: &str, target: &str| {
            let data = [target.as_bytes(), b"\0"].concat();
            let long = Member::new(b'K', b"././@LongLink").data(&data).bytes();
            [long, Member::new(b'2', name.as_bytes()).bytes()].concat()
        };
        out.write_all(&link("l", &half)).unwrap();
        let name = format!("l/{half}/b/c");
        out.write_all(&long_name(name.as_bytes())).unwrap();
        out.write_all(&Member::new(b'0', b"c").bytes()).unwrap();
    });
    pushed.unwrap().refused("too deep");
}

#[test]
fn a_layer_is_listed_as_often_as_an_image_has_layers_and_no_oftener() {
    let one = |dir: &Path| {
        layer(dir, Pack::Gzip, |out| {
            out.write_all(&directory("d")).unwrap();
            out.write_all(&Member::new(b'0', b"d/f").data(b"here").bytes())
                .unwrap();
        })
    };
    let pushed = Pushed::of(|dir| {
        let one = one(dir);
        manifest(dir, &vec![&one; LAYERS_MAX])
    });
    let Some(pushed) = pushed else { return };
    pushed.mounted(|mnt, pid| {
        assert_eq!(std::fs::read(mnt.join("d/f")).unwrap(), b"here");
        let private = private_kib(pid) << 10;
        println!("{LAYERS_MAX} layers: {} KiB private", private >> 10);
        assert!(private < WORKER_BYTES_MAX);
    });
    // Clients that copy images take minutes for such a manifest, so it is pushed by itself.
    let (dir, one) = (pushed.place.path("image"), one(&pushed.place.path("image")));
    for count in [LAYERS_MAX + 1, 10_000] {
        let top = manifest(&dir, &vec![&one; count]);
        let digest = top["digest"].as_str().unwrap();
        let bytes = std::fs::read(blobs(&dir).join(&digest[7..])).unwrap();
        let image = push_manifest(&pushed, bytes);
        let output = pushed.mount(&image, "auto");
        refused(&pushed.place, &output, &format!("has {count} layers"));
    }
}

/// Pushes a manifest to the repository of an image; gives the image's name by the tag `more`.
fn push_manifest(pushed: &Pushed, manifest: Vec<u8>) -> String {
    let image = pushed.image.replace("hostile:1", "hostile:more");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let reference: rsmount::oci::Reference = image.parse().unwrap();
    let registry = rsmount::registry::Registry::new(&reference, Default::default()).unwrap();
    let config = serde_json::from_slice::<Value>(&manifest).unwrap()["config"]["digest"].clone();
    let config = config.as_str().unwrap().to_owned();
    let bytes = std::fs::read(blobs(&pushed.place.path("image")).join(&config[7..])).unwrap();
    runtime.block_on(async {
        let config: Digest = config.parse().unwrap();
        let blob = registry.push_blob(&config, bytes.into());
        blob.await.unwrap();
        let named = registry.push_manifest("more", MANIFEST, manifest.into());
        named.await.unwrap();
    });
    image
}

#[test]
fn a_manifest_may_be_as_long_as_registries_take_and_no_longer() {
    if !can_mount() {
        return;
    }
    // Served as it is: a registry would look for every manifest that is named.
    let place = Place::new();
    let dir = place.path("image");
    let one = layer(&dir, Pack::Gzip, |out| {
        out.write_all(&Member::new(b'0', b"f").data(b"here").bytes())
            .unwrap();
    });
    let mut named = manifest(&dir, &[&one]);
    named["platform"] = json!({ "os": "linux", "architecture": layout::host_architecture() });
    // The one that fits comes last.
    let mut other = named.clone();
    other["platform"]["architecture"] = "riscv64".into();
    let count = MANIFEST_BYTES_MAX as usize / (other.to_string().len() + 1) - 2;
    let mut manifests = vec![other; count];
    manifests.push(named);
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let mut bytes = index.to_string().into_bytes();
    for (len, fits) in [(MANIFEST_BYTES_MAX, true), (MANIFEST_BYTES_MAX + 1, false)] {
        // White space is no more of a document, and as long.
        bytes.resize(len as usize, b' ');
        tag(&dir, &document(&dir, INDEX, &bytes));
        let registry = Registry::serve(dir.clone());
        if fits {
            let mounted = place.mount_image(&registry.image(), &[]);
            assert_eq!(std::fs::read(mounted.path("f")).unwrap(), b"here");
        } else {
            let path = place.mnt();
            let output = place.run(&["-q", &registry.image(), path.to_str().unwrap()]);
            refused(&place, &output, &MANIFEST_BYTES_MAX.to_string());
        }
    }
    println!("{count} descriptors");
}

/// Writes a member with `len` zeros, whatever its header says.
fn zeros(out: &mut dyn Write, header: Member, len: u64) {
    out.write_all(&header.bytes()).unwrap();
    let piece = vec![0; MIB as usize];
    let mut left = len.next_multiple_of(512);
    while left > 0 {
        let now = left.min(MIB) as usize;
        out.write_all(&piece[..now]).unwrap();
        left -= now as u64;
    }
}

#[test]
fn a_file_of_zeros_that_was_packed_to_nothing_is_a_file_of_zeros() {
    let bytes = if long() { 8192 * MIB } else { 512 * MIB };
    for pack in [Pack::Gzip, Pack::Zstd] {
        let pushed = Pushed::new(pack, |out| {
            let header = Member::new(b'0', b"zeros").base256(support::raw_tar::SIZE, bytes as i64);
            zeros(out, header, bytes);
        });
        let Some(pushed) = pushed else { return };
        pushed.mounted(|mnt, pid| {
            let file = File::open(mnt.join("zeros")).unwrap();
            assert_eq!(file.metadata().unwrap().len(), bytes);
            for at in [0, bytes / 2, bytes - 4096] {
                let mut page = [1; 4096];
                file.read_exact_at(&mut page, at).unwrap();
                assert!(page == [0; 4096], "WRONG BYTES");
            }
            let private = private_kib(pid) << 10;
            println!(
                "{pack:?} of {} MiB: {} KiB private",
                bytes / MIB,
                private >> 10
            );
            assert!(private < WORKER_BYTES_MAX);
        });
    }
}

#[test]
fn attributes_and_names_that_were_packed_to_nothing_are_refused() {
    let bytes = if long() { 4096 * MIB } else { 256 * MIB };
    for pack in [Pack::Gzip, Pack::Zstd] {
        for (kind, name, expected) in [
            (b'x', "a PAX header", PAX_BYTES_MAX.to_string()),
            (b'g', "a global PAX header", PAX_BYTES_MAX.to_string()),
            (b'L', "a long name", "long".to_owned()),
            (b'K', "a long link", "long".to_owned()),
        ] {
            let pushed = Pushed::new(pack, |out| {
                let header = Member::new(kind, b"h").base256(support::raw_tar::SIZE, bytes as i64);
                zeros(out, header, bytes);
                out.write_all(&Member::new(b'0', b"f").bytes()).unwrap();
            });
            let Some(pushed) = pushed else { return };
            println!("{pack:?}: {name}");
            pushed.refused(&expected);
        }
    }
}

/// Names that take `bytes` of memory, and nearly nothing when packed.
fn names(out: &mut dyn Write, seed: u64, bytes: u64) {
    let tail = vec!["b".repeat(250); 16].join("/");
    let mut left = bytes;
    let mut n = 0;
    while left > 0 {
        let name = format!("{seed}-{n}/{tail}");
        out.write_all(&long_name(name.as_bytes())).unwrap();
        out.write_all(&Member::new(b'0', b"f").bytes()).unwrap();
        left = left.saturating_sub(name.len() as u64);
        n += 1;
    }
}

#[test]
fn names_that_take_more_memory_than_an_image_may_are_refused() {
    if !long() {
        support::place::skip("takes a gigabyte of names: RSMOUNT_TEST_LONG=1");
        return;
    }
    let pushed = Pushed::new(Pack::Zstd, |out| names(out, 0, INDEX_BYTES_MAX + MIB));
    let Some(pushed) = pushed else { return };
    pushed.refused(&INDEX_BYTES_MAX.to_string());
    let pushed = Pushed::of(|dir| {
        together_too_large(dir, |out, seed| {
            names(out, seed, INDEX_BYTES_MAX * 3 / 4);
        })
    });
    let pushed = pushed.unwrap();
    let output = pushed.mount(&pushed.image, "auto");
    refused(&pushed.place, &output, "of all layers take more than");
}

/// An image of layers none of which is too large, and all together are.
fn together_too_large(dir: &Path, write: impl Fn(&mut dyn Write, u64)) -> Value {
    let layers = (0..3).map(|seed| layer(dir, Pack::Zstd, |out| write(out, seed)));
    let layers: Vec<Blob> = layers.collect();
    manifest(dir, &layers.iter().collect::<Vec<_>>())
}

/// Files that take `bytes` of memory, with a block of tar for each MiB: all of them have the attributes
/// that a global header has.
fn attributed(out: &mut dyn Write, seed: u64, bytes: u64) {
    let value = [b'v'; 64 << 10];
    let records = (0..15).flat_map(|n| {
        let text = [format!("SCHILY.xattr.user.{n:02}=").as_bytes(), &value].concat();
        // The length of a record is that of its own digits as well: five, a blank, and a line feed.
        let head = format!("{} ", text.len() + 7);
        [head.as_bytes(), &text, b"\n"].concat()
    });
    let records: Vec<u8> = records.collect();
    let of_file = 15 * value.len() as u64;
    out.write_all(&Member::new(b'g', b"g").data(&records).bytes())
        .unwrap();
    for n in 0..bytes / of_file {
        let name = format!("{seed}-{n}");
        out.write_all(&Member::new(b'0', name.as_bytes()).bytes())
            .unwrap();
    }
}

/// Neither the registry nor its mirror is to blame: both have what was pushed.
#[test]
fn layers_that_together_take_more_memory_than_an_image_may_are_refused() {
    let pushed = Pushed::of(|dir| {
        together_too_large(dir, |out, seed| {
            attributed(out, seed, INDEX_BYTES_MAX * 3 / 4);
        })
    });
    let Some(pushed) = pushed else { return };
    let place = &pushed.place;
    let mirror = Registry::serve(place.path("image"));
    let hosts = place.path("certs.d");
    let host = hosts.join(pushed.image.split('/').next().unwrap());
    std::fs::create_dir_all(&host).unwrap();
    let mirrors = format!(
        "[host.'http://127.0.0.1:{}']\ncapabilities = ['pull']\n",
        mirror.port()
    );
    std::fs::write(host.join("hosts.toml"), mirrors).unwrap();
    let options = ["--hosts-dir", hosts.to_str().unwrap()];
    let output = pushed.mount_with(&options, &pushed.image);
    refused(place, &output, "of all layers take more than");
    let log = std::fs::read_to_string(place.path("log")).unwrap();
    assert!(log.contains("asking elsewhere"), "{log}");
    assert!(!log.contains("wrong bytes"), "{log}");

    // By itself each is allowed.
    let dir = place.path("image");
    let one = layer(&dir, Pack::Zstd, |out| {
        attributed(out, 0, INDEX_BYTES_MAX * 3 / 4);
    });
    let alone = manifest(&dir, &[&one]);
    let digest = alone["digest"].as_str().unwrap();
    let bytes = std::fs::read(blobs(&dir).join(&digest[7..])).unwrap();
    let output = pushed.mount(&push_manifest(&pushed, bytes), "auto");
    assert!(output.status.success(), "{output:?}");
    let mut value = vec![0; 64 << 10];
    let len = rustix::fs::getxattr(place.mnt().join("0-1"), "user.14", &mut value[..]);
    assert_eq!((len, value), (Ok(64 << 10), vec![b'v'; 64 << 10]));
    drop(Mounted::adopt(place));
}
