//! Images made on the spot: layers as tars, written as an OCI layout.

use std::io::Write;
use std::path::Path;

use rsmount::oci::Digest;
use serde_json::json;

/// How the layers of a layout are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pack {
    Gzip,
    Zstd,
    Plain,
}

/// A layer in the making.
pub struct Layer(tar::Builder<Vec<u8>>);

/// What a test says of an entry; the rest is 0.
#[derive(Debug, Clone, Copy)]
pub struct Meta {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
}

pub const FILE: Meta = Meta {
    mode: 0o644,
    uid: 0,
    gid: 0,
    mtime: 1_700_000_000,
};
pub const DIR: Meta = Meta {
    mode: 0o755,
    ..FILE
};

impl Layer {
    pub fn new() -> Layer {
        let mut builder = tar::Builder::new(Vec::new());
        builder.mode(tar::HeaderMode::Deterministic);
        Layer(builder)
    }

    fn header(kind: tar::EntryType, meta: Meta, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_uid(meta.uid);
        header.set_gid(meta.gid);
        header.set_mtime(meta.mtime);
        header.set_size(size);
        header
    }

    pub fn file(mut self, path: &str, meta: Meta, bytes: &[u8]) -> Layer {
        let mut header = Self::header(tar::EntryType::Regular, meta, bytes.len() as u64);
        self.0.append_data(&mut header, path, bytes).unwrap();
        self
    }

    /// A file with extended attributes, as PAX records.
    pub fn file_with_xattrs(mut self, path: &str, meta: Meta, xattrs: &[(&str, &[u8])]) -> Layer {
        let named: Vec<_> = xattrs
            .iter()
            .map(|(n, v)| (format!("SCHILY.xattr.{n}"), *v))
            .collect();
        let records = named.iter().map(|(n, v)| (n.as_str(), *v));
        self.0.append_pax_extensions(records).unwrap();
        self.file(path, meta, b"x")
    }

    pub fn dir(mut self, path: &str, meta: Meta) -> Layer {
        let mut header = Self::header(tar::EntryType::Directory, meta, 0);
        self.0.append_data(&mut header, path, &[][..]).unwrap();
        self
    }

    pub fn symlink(mut self, path: &str, target: &str) -> Layer {
        let mut header = Self::header(tar::EntryType::Symlink, FILE, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn hard_link(self, path: &str, target: &str) -> Layer {
        self.hard_link_as(path, target, FILE)
    }

    /// The same, with what the entry says of the file: some tools go by that, others by the file's own.
    pub fn hard_link_as(mut self, path: &str, target: &str, meta: Meta) -> Layer {
        let mut header = Self::header(tar::EntryType::Link, meta, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    pub fn device(mut self, path: &str, major: u32, minor: u32) -> Layer {
        let mut header = Self::header(tar::EntryType::Char, FILE, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.0.append_data(&mut header, path, &[][..]).unwrap();
        self
    }

    /// A file whose name is written into the header as it is, which the builder would refuse.
    pub fn file_named_raw(mut self, name: &[u8]) -> Layer {
        let mut header = Self::header(tar::EntryType::Regular, FILE, 0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.0.append(&header, &[][..]).unwrap();
        self
    }

    pub fn whiteout(self, path: &str) -> Layer {
        let (dir, name) = path.rsplit_once('/').map_or(("", path), |(d, n)| (d, n));
        self.file(&format!("{dir}/.wh.{name}"), FILE, b"")
    }

    pub fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Where a layout can be spoilt before it is written.
pub type Spoil<'a> = &'a dyn Fn(&mut Parts);

/// The parts of an image, to be spoilt by tests of bad input.
pub struct Parts {
    pub blobs: Vec<Vec<u8>>,
    pub layer_digests: Vec<String>,
    pub layer_sizes: Vec<u64>,
    pub diff_ids: Vec<String>,
    pub architecture: String,
    /// What the configuration says of containers.
    pub config: serde_json::Value,
    pub manifest: Option<Vec<u8>>,
}

pub fn compress(tar: &[u8], pack: Pack) -> Vec<u8> {
    match pack {
        Pack::Plain => tar.to_vec(),
        Pack::Zstd => zstd::encode_all(tar, 3).unwrap(),
        Pack::Gzip => {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(tar).unwrap();
            gz.finish().unwrap()
        }
    }
}

/// Writes an image of `tars` (base first) into `dir`, tagged `latest`.
pub fn write(dir: &Path, tars: &[Vec<u8>], pack: Pack) {
    write_spoilt(dir, tars, pack, &|_| {});
}

pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The same, after `spoil` has changed something.
pub fn write_spoilt(dir: &Path, tars: &[Vec<u8>], pack: Pack, spoil: Spoil<'_>) {
    let blobs: Vec<Vec<u8>> = tars.iter().map(|t| compress(t, pack)).collect();
    let mut parts = Parts {
        layer_digests: blobs.iter().map(|b| Digest::of(b).to_string()).collect(),
        layer_sizes: blobs.iter().map(|b| b.len() as u64).collect(),
        diff_ids: tars.iter().map(|t| Digest::of(t).to_string()).collect(),
        architecture: host_architecture().to_owned(),
        config: json!({}),
        manifest: None,
        blobs,
    };
    spoil(&mut parts);
    let media_type = match pack {
        Pack::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Pack::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        Pack::Plain => "application/vnd.oci.image.layer.v1.tar",
    };
    let sha256 = dir.join("blobs/sha256");
    std::fs::create_dir_all(&sha256).unwrap();
    let put = |digest: &str, bytes: &[u8]| {
        std::fs::write(sha256.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
    };
    for (digest, blob) in parts.layer_digests.iter().zip(&parts.blobs) {
        put(digest, blob);
    }
    let config = json!({
        "architecture": parts.architecture, "os": "linux", "config": parts.config,
        "rootfs": { "type": "layers", "diff_ids": parts.diff_ids },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let config_digest = Digest::of(&config).to_string();
    put(&config_digest, &config);
    let layers: Vec<_> = parts
        .layer_digests
        .iter()
        .zip(&parts.layer_sizes)
        .map(|(digest, size)| json!({"mediaType": media_type, "digest": digest, "size": size}))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
                    "digest": config_digest, "size": config.len() },
        "layers": layers,
    });
    let manifest = parts
        .manifest
        .unwrap_or_else(|| serde_json::to_vec(&manifest).unwrap());
    let digest = Digest::of(&manifest).to_string();
    put(&digest, &manifest);
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{ "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest, "size": manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": "latest" } }],
    });
    std::fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
