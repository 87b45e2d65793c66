//! `commit`: the changes of a container become a layer, and the layer an image.
//!
//! The image below is needed for its metadata alone (manifest, configuration, tree); none of its
//! bytes is read. The new layer is in the cache afterwards as any layer is, with its index; the blob
//! that others can read is kept beside it, because no registry has it.

mod document;
mod instruction;
mod layer;
mod overrides;
mod pack;
mod tarball;
mod words;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::Notify;

use crate::cache::{Begin, Cache, CacheError, NewLayer, RememberedTag};
use crate::image::changes::{ChangesError, Line, Upper};
use crate::image::store;
use crate::layer::{AddressSink, Ingest, IngestOptions, LayerPath, codec};
use crate::monitor::{Event, Monitor, Silent};
use crate::mount::upper::{About, UpperError, read_about};
use crate::mount::{MountRequest, Pull, assemble};
use crate::oci::manifest::ManifestError;
use crate::oci::reference::ReferenceError;
use crate::oci::{Compression, Digest, ImageName, Reference};
use document::Base;
pub use instruction::InstructionError;
pub use overrides::Overrides;
use pack::{Packed, Packer};

/// Bytes of a blob that are read at once.
const PIECE_BYTES: usize = 256 << 10;

/// Where changes are, and what of them is none.
#[derive(Debug, Clone, Default)]
pub struct Changed {
    /// The directory given as `--upper`.
    pub upper: PathBuf,
    /// In the container: what was made only to mount something over it, as long as it is empty.
    pub stubs: Vec<PathBuf>,
}

impl Changed {
    /// As the walk knows them; what no layer could name is in none.
    fn stubs(&self) -> BTreeSet<LayerPath> {
        let path = |path: &PathBuf| LayerPath::parse(path.as_os_str().as_bytes()).ok();
        self.stubs.iter().filter_map(path).collect()
    }
}

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Commit {
    /// What was changed.
    pub changed: Changed,
    /// The new image's name.
    pub name: String,
    /// Who made it.
    pub author: Option<String>,
    /// What was done.
    pub message: Option<String>,
    /// What a container was given whose changes they are.
    pub given: Overrides,
    /// Dockerfile instructions, which go before that.
    pub changes: Vec<String>,
    /// How the layer is compressed.
    pub compression: Compression,
    /// What made the changes, for the history.
    pub created_by: String,
    /// When the image was made.
    pub created: SystemTime,
}

/// The new image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Committed {
    /// Its name, whole.
    pub image: String,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Digest of the layer's blob; `None` when nothing was changed.
    pub layer: Option<Digest>,
    /// Compressed bytes of the layer.
    pub size: u64,
    /// Entries of the layer.
    pub entries: u64,
}

/// Why there is no new image.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The name.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A name that no image can be given.
    #[error("`{0}`: an image is committed under a name with a tag (app:2)")]
    Name(String),
    /// An instruction.
    #[error(transparent)]
    Instruction(#[from] InstructionError),
    /// The upper directory.
    #[error(transparent)]
    Upper(#[from] UpperError),
    /// The changes.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// The image below.
    #[error("the image that was changed is not known any more: {0}")]
    Base(#[from] crate::mount::Error),
    /// Its documents.
    #[error(
        "the image that was changed is not known any more: {0} is not in the cache; pull it again by \
         that digest"
    )]
    Gone(Digest),
    /// A document of it makes no sense.
    #[error("the image that was changed cannot be extended: {0}")]
    Document(String),
    /// The new manifest.
    #[error("the new image would be one that nobody can use: {0}")]
    Manifest(#[from] ManifestError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The name could not be given.
    #[error(transparent)]
    Rename(crate::image::error::Error),
    /// The layer could not be written.
    #[error("cannot write the layer: {0}")]
    Write(#[source] io::Error),
    /// The layer that was written could not be read again.
    #[error("the layer that was written is not readable: {0}")]
    Layer(#[from] crate::layer::LayerError),
}

/// The changes in `dir`, with what is needed of the image below them.
pub(crate) struct Frozen {
    about: About,
    image: assemble::Assembled,
    cache: Cache,
}

impl Frozen {
    /// Reads what the changes in `dir` belong to. `request` says where the cache is; its image is not
    /// looked at.
    fn open(dir: &std::path::Path, request: &MountRequest) -> Result<Frozen, CommitError> {
        let about = read_about(dir)?;
        let request = MountRequest {
            image: about.image.clone(),
            pinned: Some(about.digest.clone()),
            platform: None,
            pull: Pull::Missing,
            offline: true,
            ..request.clone()
        };
        Ok(Frozen {
            image: assemble::assemble(&request, Arc::new(Silent), &Notify::new())?,
            cache: Cache::open(&request.cache_dir)?,
            about,
        })
    }
}

/// What was changed.
pub fn diff(changed: &Changed, request: &MountRequest) -> Result<Vec<Line>, CommitError> {
    let frozen = Frozen::open(&changed.upper, request)?;
    let upper = Upper {
        dir: &changed.upper.join("upper"),
        dialect: frozen.about.dialect,
        tree: frozen.image.fs.tree(),
        stubs: &changed.stubs(),
    };
    Ok(upper.lines()?)
}

/// Makes an image.
pub fn commit(
    commit: &Commit,
    request: &MountRequest,
    monitor: &dyn Monitor,
) -> Result<Committed, CommitError> {
    let name = name(&commit.name)?;
    let changed = &commit.changed;
    let frozen = Frozen::open(&changed.upper, request)?;
    let base = Base::read(&frozen.cache, &frozen.about)?;
    // Before the work that may be long.
    let config = base.changed(&commit.given, &commit.changes)?;
    let upper = Upper {
        dir: &changed.upper.join("upper"),
        dialect: frozen.about.dialect,
        tree: frozen.image.fs.tree(),
        stubs: &changed.stubs(),
    };
    let packer = Packer::new(frozen.cache.new_blob()?, commit.compression);
    let (packer, written) = layer::write(&upper, packer).map_err(full)?;
    for path in &written.left_out {
        let message = format!("{path}: a socket; no layer can hold it");
        monitor.event(Event::Warning { message });
    }
    let (mut layer, mut size) = (None, 0);
    if written.entries > 0 {
        let packed = packer.finish().map_err(CommitError::Write).map_err(full)?;
        size = packed.size;
        layer = Some((packed.digest.clone(), packed.diff_id.clone()));
        store(&frozen.cache, packed)?;
    }
    let described = layer.as_ref().map(|(digest, diff_id)| document::Layer {
        digest: digest.clone(),
        size,
        diff_id: diff_id.clone(),
        compression: commit.compression,
    });
    let documents = base.extended(config, commit, described.as_ref())?;
    frozen
        .cache
        .put_document(&documents.config_digest, &documents.config)?;
    frozen
        .cache
        .put_document(&documents.digest, &documents.manifest)?;
    let tag = RememberedTag {
        media_type: document::MANIFEST.to_owned(),
        digest: documents.digest.clone(),
        sources: sources(&frozen),
    };
    // What had the name, and nothing else needs, goes.
    store::rename(&frozen.cache, &name, tag).map_err(CommitError::Rename)?;
    Ok(Committed {
        image: name,
        digest: documents.digest,
        layer: layer.map(|(digest, _)| digest),
        size,
        entries: written.entries,
    })
}

/// The whole name, with its tag.
fn name(text: &str) -> Result<String, CommitError> {
    let reference: Reference = text.parse()?;
    if reference.digest().is_some() {
        return Err(CommitError::Name(text.to_owned()));
    }
    Ok(ImageName::Registry(reference).to_string())
}

/// Where the layers of the image below are.
fn sources(frozen: &Frozen) -> Vec<String> {
    let Ok(name) = frozen.about.image.parse::<ImageName>() else {
        return Vec::new();
    };
    let name = name.to_string();
    let given = frozen.cache.tag(&name).map(|tag| tag.sources);
    given.filter(|s| !s.is_empty()).unwrap_or(vec![name])
}

/// A full disk says so, whatever it was told through.
fn full(error: CommitError) -> CommitError {
    match error {
        CommitError::Write(e) => match e.downcast::<CacheError>() {
            Ok(error) => CommitError::Cache(error),
            Err(e) => CommitError::Write(e),
        },
        other => other,
    }
}

/// Takes the address space of a layer.
struct Sink(NewLayer);

impl AddressSink for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write(bytes).map_err(io::Error::other)
    }
}

/// Puts the layer into the cache, as if it had been streamed from a registry, and keeps the blob.
fn store(cache: &Cache, packed: Packed) -> Result<(), CommitError> {
    let Packed {
        blob,
        digest,
        size,
        diff_id,
    } = packed;
    if let Begin::New(new) = cache.begin(&digest, size)? {
        let mut options = IngestOptions::new(digest.clone(), size);
        options.diff_id = Some(diff_id);
        let mut ingest = Ingest::new(options, Sink(new))?;
        let (mut at, mut buffer) = (0, vec![0; PIECE_BYTES]);
        while at < size {
            let read = blob.file().read_at(&mut buffer, at);
            let read = read.map_err(CommitError::Write)?;
            if read == 0 {
                break;
            }
            ingest.push(&buffer[..read])?;
            at += read as u64;
        }
        let (index, Sink(new)) = ingest.finish()?;
        new.commit(&codec::encode(&index))?;
        cache.keep_within_budget();
    }
    Ok(blob.keep(&digest)?)
}
