//! Small archives of each kind, built here; and broken ones.

use std::path::{Path, PathBuf};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::blob::{ByteRange, ErrorKind};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The files of an archive: name and bytes.
type Files = Vec<(String, Vec<u8>)>;

fn blob_name(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

fn described(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
}

/// The files of a layout with one image a tag, whose only layer is the tag; with its manifests.
fn layout_files(tags: &[&str]) -> (Files, Vec<Vec<u8>>) {
    let mut files = vec![(
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    )];
    let (mut listed, mut manifests) = (Vec::new(), Vec::new());
    for tag in tags {
        let manifest = json!({ "schemaVersion": 2, "layers": [described(LAYER, tag.as_bytes())] });
        let manifest = manifest.to_string().into_bytes();
        let mut descriptor = described(MANIFEST, &manifest);
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        listed.push(descriptor);
        files.push((blob_name(&manifest), manifest.clone()));
        files.push((blob_name(tag.as_bytes()), tag.as_bytes().to_vec()));
        manifests.push(manifest);
    }
    let index = json!({ "schemaVersion": 2, "manifests": listed });
    files.push(("index.json".into(), index.to_string().into_bytes()));
    (files, manifests)
}

fn write_directory(dir: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn tar_of(files: &Files, links: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes.as_slice())
            .unwrap();
    }
    for (name, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, name, target).unwrap();
    }
    tar.into_inner().unwrap()
}

fn write_file(dir: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join("image.tar");
    std::fs::write(&path, bytes).unwrap();
    path
}

async fn read(blob: &Arc<dyn Blob>, range: ByteRange) -> Result<Vec<u8>, Error> {
    let mut stream = blob.open(range).await?;
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        assert!(piece.len() as u64 <= PIECE_BYTES);
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn read_all(archive: &Archive, bytes: &[u8]) -> Vec<u8> {
    let descriptor = Descriptor::new(LAYER, Digest::of(bytes), bytes.len() as u64);
    let blob = archive.blob(&descriptor).unwrap();
    assert_eq!(blob.size(), bytes.len() as u64);
    read(&blob, ByteRange::new(0, blob.size())).await.unwrap()
}

#[tokio::test]
async fn layouts_in_directories_and_tars() {
    let dir = TempDir::new().unwrap();
    let (files, manifests) = layout_files(&["one", "two"]);
    write_directory(dir.path(), &files);
    let tar = write_file(&dir, &tar_of(&files, &[]));
    type Open<'a> = Box<dyn Fn(Option<&str>) -> Result<Archive, Error> + 'a>;
    let ways: [Open<'_>; 2] = [
        Box::new(|tag| open_layout(dir.path(), tag)),
        Box::new(|tag| open_oci(&tar, tag)),
    ];
    for open in ways {
        let two = open(Some("two")).unwrap();
        assert_eq!(
            two.manifest().unwrap(),
            (manifests[1].clone(), Some(MANIFEST.into()))
        );
        assert_eq!(read_all(&two, b"two").await, b"two");
        let digest = Digest::of(&manifests[0]);
        assert_eq!(
            open(Some(&digest.to_string()))
                .unwrap()
                .manifest()
                .unwrap()
                .0,
            manifests[0]
        );
        assert_eq!(two.document(&digest, 4096).unwrap(), manifests[0]);
        assert_eq!(
            two.document(&digest, 10).unwrap_err().kind,
            ErrorKind::Unsupported
        );
        let unknown = open(Some("three")).unwrap_err();
        assert_eq!(unknown.kind, ErrorKind::NotFound);
        assert!(unknown.message.contains("one, two"), "{unknown}");
        let vague = open(None).unwrap_err();
        assert!(
            vague.message.contains("name one (it has: one, two)"),
            "{vague}"
        );
        let absent = Descriptor::new(LAYER, Digest::of(b"absent"), 6);
        assert_eq!(two.blob(&absent).unwrap_err().kind, ErrorKind::NotFound);
        let longer = Descriptor::new(LAYER, Digest::of(b"two"), 4);
        assert_eq!(two.blob(&longer).unwrap_err().kind, ErrorKind::Corrupt);
    }
}

#[test]
fn the_only_image_needs_no_tag() {
    let dir = TempDir::new().unwrap();
    let (files, manifests) = layout_files(&["one"]);
    write_directory(dir.path(), &files);
    assert_eq!(
        open_layout(dir.path(), None).unwrap().manifest().unwrap().0,
        manifests[0]
    );
}

#[test]
fn platforms_in_the_index_are_one_image() {
    let dir = TempDir::new().unwrap();
    let (mut files, _) = layout_files(&["same", "other"]);
    let index = files
        .iter_mut()
        .find(|(name, _)| name == "index.json")
        .unwrap();
    let mut value: Value = serde_json::from_slice(&index.1).unwrap();
    for (descriptor, arch) in value["manifests"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .zip(["a", "b"])
    {
        descriptor["annotations"]["org.opencontainers.image.ref.name"] = json!("same");
        descriptor["platform"] = json!({ "os": "linux", "architecture": arch });
    }
    index.1 = value.to_string().into_bytes();
    write_directory(dir.path(), &files);
    for tag in [None, Some("same")] {
        let (bytes, media_type) = open_layout(dir.path(), tag).unwrap().manifest().unwrap();
        let made: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(made["manifests"].as_array().unwrap().len(), 2);
        assert!(media_type.unwrap().contains("index"));
    }
}

#[test]
fn whole_references_and_containerd_names_are_found() {
    let dir = TempDir::new().unwrap();
    let (mut files, manifests) = layout_files(&["example.com/a/b:v1", "v2"]);
    let index = files
        .iter_mut()
        .find(|(name, _)| name == "index.json")
        .unwrap();
    let mut value: Value = serde_json::from_slice(&index.1).unwrap();
    value["manifests"][1]["annotations"]["io.containerd.image.name"] = json!("docker.io/x/y:v2");
    index.1 = value.to_string().into_bytes();
    write_directory(dir.path(), &files);
    let rows = [
        ("example.com/a/b:v1", 0),
        ("v1", 0),
        ("v2", 1),
        ("docker.io/x/y:v2", 1),
    ];
    for (tag, n) in rows {
        let archive = open_layout(dir.path(), Some(tag)).unwrap();
        assert_eq!(archive.manifest().unwrap().0, manifests[n], "{tag}");
    }
    assert!(open_layout(dir.path(), Some("1")).is_err());
}

#[test]
fn broken_layouts() {
    let broken = |name: &str, bytes: &[u8]| {
        let dir = TempDir::new().unwrap();
        let (mut files, manifests) = layout_files(&["one"]);
        files.retain(|(n, _)| n != name);
        files.push((name.into(), bytes.to_vec()));
        write_directory(dir.path(), &files);
        let opened = open_layout(dir.path(), None);
        opened
            .and_then(|a| a.document(&Digest::of(&manifests[0]), 4096))
            .unwrap_err()
    };
    let future = broken("oci-layout", br#"{"imageLayoutVersion":"2.0"}"#);
    assert_eq!(future.kind, ErrorKind::Unsupported);
    assert_eq!(broken("oci-layout", b"x").kind, ErrorKind::Corrupt);
    assert_eq!(broken("index.json", b"{}").kind, ErrorKind::Corrupt);
    assert_eq!(
        broken("index.json", br#"{"manifests":[]}"#).kind,
        ErrorKind::NotFound
    );
    let bad = br#"{"manifests":[{"digest":"sha256:../../x"}]}"#;
    assert_eq!(broken("index.json", bad).kind, ErrorKind::Corrupt);
    let (_, manifests) = layout_files(&["one"]);
    assert_eq!(
        broken(&blob_name(&manifests[0]), b"other").kind,
        ErrorKind::Corrupt
    );
    let long = vec![b' '; DOCUMENT_BYTES_MAX as usize + 1];
    assert_eq!(broken("index.json", &long).kind, ErrorKind::Unsupported);
    let empty = TempDir::new().unwrap();
    let error = open_layout(empty.path(), None).unwrap_err();
    assert!(error.message.contains("not an OCI layout"), "{error}");
}

/// `docker save` of two images: one layer each, plain and gzip; the second links to its layer.
fn docker_files() -> (Files, Vec<u8>, Vec<u8>) {
    let plain = vec![b'p'; 700_000];
    let gzip = [&[0x1f, 0x8b, 8, 0][..], &[7; 3000]].concat();
    let config = |diff: &[u8]| {
        let ids = [Digest::of(diff).to_string()];
        json!({ "rootfs": { "type": "layers", "diff_ids": ids } })
            .to_string()
            .into_bytes()
    };
    let manifest = json!([
        { "Config": "1.json", "RepoTags": ["redis:7"], "Layers": ["l/layer.tar"] },
        { "Config": "2.json", "RepoTags": ["a/b:latest", "c:d"], "Layers": ["m/layer.tar"] },
    ]);
    let files = vec![
        ("1.json".into(), config(&plain)),
        ("2.json".into(), config(b"inside")),
        ("l/layer.tar".into(), plain.clone()),
        ("k/layer.tar".into(), gzip.clone()),
        ("manifest.json".into(), manifest.to_string().into_bytes()),
    ];
    (files, plain, gzip)
}

#[tokio::test]
async fn docker_archives() {
    let dir = TempDir::new().unwrap();
    let (files, plain, gzip) = docker_files();
    let path = write_file(&dir, &tar_of(&files, &[("m/layer.tar", "../k/layer.tar")]));
    let rows = [
        ("redis:7", &plain, LAYER.to_owned()),
        ("docker.io/library/redis:7", &plain, LAYER.to_owned()),
        ("a/b", &gzip, format!("{LAYER}+gzip")),
        ("c:d", &gzip, format!("{LAYER}+gzip")),
    ];
    for (name, layer, media_type) in rows {
        let archive = open_docker(&path, Some(name)).unwrap();
        let (bytes, manifest_type) = archive.manifest().unwrap();
        assert_eq!(manifest_type.as_deref(), Some(MANIFEST));
        assert_eq!(archive.document(&Digest::of(&bytes), 4096).unwrap(), bytes);
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(manifest["layers"], json!([described(&media_type, layer)]));
        let config: Digest = manifest["config"]["digest"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!(archive.document(&config, 4096).is_ok());
        assert_eq!(&read_all(&archive, layer).await, layer);
    }
    for (name, hint) in [(None, "name one"), (Some("redis"), "no image `redis`")] {
        let error = open_docker(&path, name).unwrap_err();
        assert!(
            error.message.contains(hint) && error.message.contains("redis:7"),
            "{error}"
        );
    }
}

#[test]
fn broken_docker_archives() {
    let open = |files: &Files, links: &[(&str, &str)]| {
        let dir = TempDir::new().unwrap();
        open_docker(&write_file(&dir, &tar_of(files, links)), Some("a/b")).unwrap_err()
    };
    let (files, ..) = docker_files();
    assert!(
        open(&files, &[])
            .message
            .contains("has no file `m/layer.tar`")
    );
    for target in [
        "../../../etc/passwd",
        "/etc/passwd",
        "../m/layer.tar",
        "nothing",
    ] {
        let error = open(&files, &[("m/layer.tar", target)]);
        assert_eq!(error.kind, ErrorKind::NotFound, "{target}");
    }
    let mut without = files.clone();
    without.retain(|(n, _)| n != "manifest.json");
    assert!(
        open(&without, &[])
            .message
            .contains("not a `docker save` archive")
    );
    let mut fewer = files;
    fewer[1].1 = br#"{"rootfs":{"diff_ids":[]}}"#.to_vec();
    assert!(
        open(&fewer, &[("m/layer.tar", "../k/layer.tar")])
            .message
            .contains("diffIDs")
    );
}

#[test]
fn what_is_not_a_plain_tar() {
    let (files, ..) = docker_files();
    let whole = tar_of(&files, &[]);
    let open = |bytes: &[u8]| {
        let dir = TempDir::new().unwrap();
        open_docker(&write_file(&dir, bytes), None).unwrap_err()
    };
    assert!(
        open(&[0x1f, 0x8b, 8, 0, 0, 0, 0])
            .message
            .contains("decompress it first (gunzip)")
    );
    assert!(
        open(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0])
            .message
            .contains("zstd -d")
    );
    for bytes in [
        &b""[..],
        b"x",
        &[b'x'; 2048],
        &whole[..whole.len() / 2],
        &whole[..400_000],
    ] {
        assert_eq!(open(bytes).kind, ErrorKind::Corrupt, "{}", bytes.len());
    }
    let dir = TempDir::new().unwrap();
    assert_eq!(
        open_docker(dir.path(), None).unwrap_err().kind,
        ErrorKind::Unsupported
    );
    let nothing = open_docker(&dir.path().join("nothing"), None).unwrap_err();
    assert_eq!(nothing.kind, ErrorKind::NotFound);
}

#[test]
fn members_and_headers_are_bounded() {
    let dir = TempDir::new().unwrap();
    let many: Files = (0..=MEMBERS_MAX)
        .map(|n| (n.to_string(), Vec::new()))
        .collect();
    let error = open_docker(&write_file(&dir, &tar_of(&many, &[])), None).unwrap_err();
    assert!(error.message.contains("more than 100000 files"), "{error}");

    // A long name as long as the whole (sparse) file.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(HEADER_BYTES_MAX * 4);
    header.set_path("././@LongLink").unwrap();
    header.set_cksum();
    let path = write_file(&dir, header.as_bytes());
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(HEADER_BYTES_MAX * 5).unwrap();
    let error = open_docker(&path, None).unwrap_err();
    assert!(error.message.contains("headers are longer"), "{error}");
}

#[tokio::test]
async fn ranges_of_a_blob() {
    let dir = TempDir::new().unwrap();
    let (files, plain, _) = docker_files();
    let path = write_file(&dir, &tar_of(&files, &[("m/layer.tar", "../k/layer.tar")]));
    let archive = open_docker(&path, Some("redis:7")).unwrap();
    let size = plain.len() as u64;
    let blob = archive
        .blob(&Descriptor::new(LAYER, Digest::of(&plain), size))
        .unwrap();
    assert_eq!(read(&blob, ByteRange::new(5, 5)).await.unwrap(), b"");
    let cut = ByteRange::new(PIECE_BYTES - 1, 2 * PIECE_BYTES + 1);
    assert_eq!(read(&blob, cut).await.unwrap().len() as u64, cut.len());
    let outside = read(&blob, ByteRange::new(size - 1, size + 1))
        .await
        .unwrap_err();
    assert_eq!(outside.kind, ErrorKind::Unsupported);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(PIECE_BYTES).unwrap();
    let cut_off = read(&blob, ByteRange::new(0, size)).await.unwrap_err();
    assert_eq!(cut_off.kind, ErrorKind::Corrupt);
}
