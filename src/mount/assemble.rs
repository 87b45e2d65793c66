//! From a request to a file system: resolve, make every layer known, merge, wire.
//!
//! A layer is known by the index that was made here, else by a pack that may be used, else it
//! streams past now (first contact).

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::cache::{Cache, StoredLayer};
use crate::content::first_contact::{self, Wanted};
use crate::content::{Content, LateIndex, Options};
use crate::fs::{ImageFs, LoadTree};
use crate::monitor::{Event, Monitor};
use crate::mount::discover::{self, Finding, Found, Pack, Refused};
use crate::mount::error::Error;
use crate::mount::hot::{self, Early};
use crate::mount::known_tree;
use crate::mount::layers;
use crate::mount::learn::Learner;
use crate::mount::pack_begun::{
    PACK_PATIENCE, begins_by, begun_by, beside, foreknown, is_of_index, late, without_packs,
};
use crate::mount::request::{BegunBy, MountRequest, Pull};
use crate::mount::resolve::{Image, Resolver, Top};
use crate::mount::source::{self, Access, Here, LateSource, Source};
use crate::mount::trust::Trust;
use crate::mount::why::Foreknown;
use crate::oci::{Descriptor, Digest, ImageManifest, ImageName, Platform};

/// A file system that can be mounted, and what it was made from.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) fs: Arc<ImageFs>,
    pub(crate) image: ResolvedImage,
    /// Base first.
    pub(crate) indexes: Vec<LateIndex>,
    /// The layers whose index was made here, base first.
    pub(crate) stored: Vec<Option<StoredLayer>>,
    /// Names of the layers' address spaces, base first.
    pub(crate) diff_ids: Vec<crate::oci::Digest>,
    /// Keeps what this start teaches.
    pub(crate) learner: Learner,
    /// Where absent bytes come from, for people.
    pub(crate) source: String,
    /// Where they come from.
    pub(crate) late: Arc<LateSource>,
    /// What was known of readers before they came.
    pub(crate) foreknown: Foreknown,
    /// Whether what the name stands for was not asked, but remembered.
    pub(crate) from_cache: bool,
    /// The pack that it begins with.
    pub(crate) begun_by: Option<BegunBy>,
}

/// What was resolved.
#[derive(Debug, Clone)]
pub(crate) struct ResolvedImage {
    pub(crate) digest: Digest,
    pub(crate) platform: Platform,
}

/// What is known of each layer, base first, and how to learn the rest.
struct Known {
    image: Image,
    layers: Vec<Option<StoredLayer>>,
    pack: Option<Pack>,
    /// Sizes of the layers that were streamed just now.
    streamed: Vec<u64>,
    /// The source and its threads, when somebody had to be asked already.
    opened: Option<(Runtime, Source)>,
}

impl Known {
    /// The name is resolved.
    fn announce(&self, monitor: &dyn Monitor) {
        monitor.event(Event::Resolved {
            digest: self.image.digest.clone(),
            layers: self.image.manifest.layers.len(),
        });
    }

    /// Where packs of it are looked for, and whose word they are: a name that was given here says
    /// nothing of either.
    fn place<'a>(&'a self, access: &'a Access) -> &'a ImageName {
        self.image.sources.first().unwrap_or(&access.name)
    }

    fn is_enough(&self) -> bool {
        self.pack.is_some() || self.layers.iter().all(Option::is_some)
    }
}

/// Makes the file system of `request`; `interrupted` ends it early.
pub(crate) fn assemble(
    request: &MountRequest,
    monitor: Arc<dyn Monitor>,
    interrupted: &Notify,
) -> Result<Assembled, Error> {
    match attempt(request, monitor.clone(), interrupted) {
        // An index was of no use, and its layer is forgotten by now: it is met as a new one.
        Err(error) if is_of_index(&error) => attempt(request, monitor, interrupted),
        made => made,
    }
}

fn attempt(
    request: &MountRequest,
    monitor: Arc<dyn Monitor>,
    interrupted: &Notify,
) -> Result<Assembled, Error> {
    let again = monitor.clone();
    let cache = Cache::open_within(&request.cache_dir, request.cache_size)?;
    let access = source::access(request)?;
    let resolver = Resolver::new(request, &access, &cache)?;
    let local = match resolver.cached()? {
        Some(image) => Some(known_here(request, &access, &cache, image)?),
        None => None,
    };
    let from_cache = local.is_some();
    let known = match local {
        Some(known) if known.is_enough() => {
            known.announce(&*monitor);
            known
        }
        _ if request.offline && matches!(access.name, ImageName::Registry(_)) => {
            return Err(Error::Offline(request.image.clone()));
        }
        local => {
            // A name that was given here is not known where it points to.
            let place = match &local {
                Some(known) => known.place(&access).clone(),
                None => access.name.clone(),
            };
            let contact = Contact {
                request,
                place,
                access: &access,
                cache: &cache,
                resolver,
                monitor,
            };
            contact.run(local, interrupted)?
        }
    };
    let by_pack = known.pack.is_some() && request.begun_by.is_none();
    let (place, image) = (known.place(&access).clone(), known.image.digest.clone());
    match wire(request, &cache, access, known) {
        Ok(assembled) => Ok(Assembled {
            from_cache,
            ..assembled
        }),
        Err(error) if by_pack && !is_of_index(&error) => {
            // A pack saves time, and nothing that is wrong with it keeps anybody from mounting.
            let message = format!("the pack of {} is not used: {error}", request.image);
            again.event(Event::Warning { message });
            discover::forget(&cache, &place, &image)?;
            attempt(&without_packs(request), again, interrupted)
        }
        Err(error) => Err(error),
    }
}

/// What is known without asking anybody.
fn known_here(
    request: &MountRequest,
    access: &Access,
    cache: &Cache,
    image: Image,
) -> Result<Known, Error> {
    let mut layers = stored_layers(cache, &image.manifest)?;
    let mut pack = None;
    if let Some(begun) = &request.begun_by {
        pack = Some(begun_by(request, access, cache, &image)?);
        // Also what was streamed since: it does not prove the pack.
        for at in &begun.layers {
            layers.get_mut(*at).map(Option::take);
        }
    }
    let mut known = Known {
        image,
        layers,
        pack,
        streamed: Vec::new(),
        opened: None,
    };
    remember_pack(request, access, cache, &mut known);
    Ok(known)
}

/// Takes the pack that an earlier mount has used, if one is needed.
fn remember_pack(request: &MountRequest, access: &Access, cache: &Cache, known: &mut Known) {
    if !known.is_enough() {
        let trust = Trust::of(request, known.place(access));
        known.pack = discover::remembered(cache, trust, &known.image);
    }
}

/// The layers of the image that have an index in the cache.
fn stored_layers(
    cache: &Cache,
    manifest: &ImageManifest,
) -> Result<Vec<Option<StoredLayer>>, Error> {
    let stored = |layer: &Descriptor| Ok(cache.layer(&layer.digest)?);
    manifest.layers.iter().map(stored).collect()
}

/// The first meeting with an image: somebody has to be asked.
struct Contact<'a> {
    request: &'a MountRequest,
    access: &'a Access,
    /// Who is asked.
    place: ImageName,
    cache: &'a Cache,
    resolver: Resolver<'a>,
    monitor: Arc<dyn Monitor>,
}

impl Contact<'_> {
    /// `local` is what is known here, which is not enough.
    fn run(self, local: Option<Known>, interrupted: &Notify) -> Result<Known, Error> {
        let runtime =
            Content::new_runtime().map_err(Error::io("cannot start the network threads"))?;
        let met = runtime.block_on(async {
            tokio::select! {
                done = self.meet(local) => done,
                () = interrupted.notified() => Err(Error::Interrupted),
            }
        });
        let (mut known, source) = met?;
        // Its connections live as long as the threads.
        known.opened = Some((runtime, source));
        Ok(known)
    }

    async fn meet(&self, local: Option<Known>) -> Result<(Known, Source), Error> {
        let source = match self.place == self.access.name {
            true => self.access.open()?,
            false => self.access.of(&self.place).open()?,
        };
        let mut known = self.resolve(&source, local).await?;
        known.announce(&*self.monitor);
        if !known.is_enough() {
            self.stream(&source, &mut known).await?;
        }
        Ok((known, source))
    }

    async fn stream(&self, source: &Source, known: &mut Known) -> Result<(), Error> {
        let image = &known.image;
        let mut wanted = Vec::with_capacity(image.manifest.layers.len());
        for (layer, diff_id) in image.manifest.layers.iter().zip(&image.config.diff_ids) {
            let blob = source.blob(layer)?;
            wanted.push(Wanted {
                descriptor: layer.clone(),
                diff_id: diff_id.clone(),
                blob,
                sole: false,
            });
        }
        let mut streamed = BTreeMap::new();
        for (layer, here) in image.manifest.layers.iter().zip(&known.layers) {
            if here.is_none() {
                streamed.insert(layer.digest.to_string(), layer.size);
            }
        }
        let stored = first_contact::ingest(self.cache, wanted, self.monitor.clone()).await?;
        known.streamed = streamed.into_values().collect();
        known.layers = stored.into_iter().map(Some).collect();
        Ok(())
    }

    async fn resolve(&self, source: &Source, local: Option<Known>) -> Result<Known, Error> {
        if let Some(mut known) = local {
            self.look_for_pack(source, &mut known).await;
            return Ok(known);
        }
        match self.ask(source).await {
            Err(Error::Blob(e)) if e.is_transient() && self.request.pull == Pull::Newer => {
                let Some(image) = self.resolver.known()? else {
                    return Err(Error::Blob(e));
                };
                let message = format!("{e}; using what was known of {}", self.request.image);
                self.monitor.event(Event::Warning { message });
                known_here(self.request, self.access, self.cache, image)
            }
            asked => asked,
        }
    }

    /// What can be asked for at the same time is: a pack of what the name stood for last with the
    /// name itself, else a pack with the rest of the image's documents. The pack comes first, because
    /// the first to ask gets the connection that is open already, and more depends on it.
    async fn ask(&self, source: &Source) -> Result<Known, Error> {
        let guess = self.guess()?;
        let guessed = async {
            match &guess {
                Some(digest) => Some(self.find(source, digest).await),
                None => None,
            }
        };
        let (guessed, top) = beside(guessed, self.resolver.top(source)).await;
        let guessed = guessed.unwrap_or_else(|| Some(Err(late())));
        let top = top?;
        let find = async {
            if guess.as_ref() == Some(top.digest()) {
                return Ok(guessed);
            }
            Ok(match self.wants_pack(&top)? {
                true => Some(self.find(source, top.digest()).await),
                false => None,
            })
        };
        let (found, image) = beside(find, self.resolver.image_of(source, &top)).await;
        let found: Result<_, Error> = found.unwrap_or_else(|| Ok(Some(Err(late()))));
        let image = image?;
        let mut known = Known {
            layers: stored_layers(self.cache, &image.manifest)?,
            image,
            pack: None,
            streamed: Vec::new(),
            opened: None,
        };
        if let Some(found) = found? {
            self.take(found, &mut known);
        }
        remember_pack(self.request, self.access, self.cache, &mut known);
        Ok(known)
    }

    /// The image manifest that the name probably stands for, when a pack of it is wanted.
    fn guess(&self) -> Result<Option<Digest>, Error> {
        if !self.admits_packs() {
            return Ok(None);
        }
        if let Some(image) = self.resolver.known()? {
            let layers = stored_layers(self.cache, &image.manifest)?;
            let wanted = layers.iter().any(Option::is_none);
            return Ok(wanted.then_some(image.digest));
        }
        Ok(match &self.place {
            ImageName::Registry(reference) => reference.digest().cloned(),
            _ => None,
        })
    }

    /// Whether a pack is wanted, as far as is known before the manifest is.
    fn wants_pack(&self, top: &Top) -> Result<bool, Error> {
        let Some(manifest) = self.resolver.manifest_here(top)? else {
            return Ok(self.admits_packs());
        };
        let layers = stored_layers(self.cache, &manifest)?;
        Ok(self.admits_packs() && layers.iter().any(Option::is_none))
    }

    /// A pack that was used before has its hot pages here.
    fn early(&self, image: &Digest) -> Early {
        match discover::is_remembered(self.cache, &self.place, image) {
            true => Early::Never,
            false => Early::HotPages,
        }
    }

    fn trust(&self) -> Trust<'_> {
        Trust::of(self.request, &self.place)
    }

    fn admits_packs(&self) -> bool {
        self.trust().admits_any().is_ok()
    }

    async fn find(&self, source: &Source, image: &Digest) -> Result<Found, Refused> {
        let early = self.early(image);
        discover::find(self.cache, self.trust(), (source, image), early).await
    }

    async fn look_for_pack(&self, source: &Source, known: &mut Known) {
        if self.admits_packs() {
            let found = self.find(source, &known.image.digest);
            let found = tokio::time::timeout(PACK_PATIENCE, found).await;
            self.take(found.unwrap_or_else(|_| Err(late())), known);
        }
    }

    fn take(&self, found: Result<Found, Refused>, known: &mut Known) {
        let accept = |found: Found| found.accept(self.cache, &self.place, &known.image);
        match found.map_or_else(Finding::Not, accept) {
            Finding::Used(pack) => known.pack = Some(*pack),
            Finding::Not(Refused {
                digest: Some(digest),
                why,
                ..
            }) => {
                let message = format!(
                    "the pack {} of {} is not used: {why}",
                    digest.short(),
                    self.request.image
                );
                self.monitor.event(Event::Warning { message });
            }
            Finding::Not(none) => tracing::debug!(why = none.why, "no pack"),
        }
    }
}

fn wire(
    request: &MountRequest,
    cache: &Cache,
    access: Access,
    known: Known,
) -> Result<Assembled, Error> {
    cache.trim();
    let described = access.describe();
    let Known {
        image,
        layers,
        pack,
        streamed,
        opened,
    } = known;
    let (runtime, source) = opened.map_or((None, None), |(r, s)| (Some(r), Some(s)));
    let here = Here {
        cache: cache.clone(),
        offline: request.offline,
    };
    let late = LateSource::new(access, &image.sources, source, here);
    let own: Vec<bool> = layers.iter().map(Option::is_some).collect();
    let key = Some(&image.digest).filter(|_| own.iter().all(|own| *own));
    let is_known = key.is_some_and(|key| known_tree::is_known(cache, key));
    let known = layers.clone();
    let from = (&late, &image.manifest);
    let sources = layers::sources(request, cache, (layers, pack.as_ref()), from, is_known)?;
    let indexes: Vec<LateIndex> = sources.iter().map(|s| s.index.clone()).collect();
    let tree = match key.filter(|_| is_known) {
        Some(key) => known_tree::late(cache, key, &indexes),
        None => made_tree(request, cache, key, &indexes)?,
    };
    let learner = Learner::new(cache.clone(), &image.manifest)
        .of_command(request.command.as_ref(), &image.config);
    let (foreknown, is_known) = foreknown(&learner, pack.as_ref());
    let options = Options {
        outage: request.on_outage,
        fill: request.fill,
        // A pack's hot pages come without being asked for.
        prefetch: pack.is_none() && !request.offline,
        is_known,
    };
    let content = Content::new(sources, options, foreknown.profile.clone(), runtime);
    for bytes in streamed {
        content.count_request();
        content.count_fetched(bytes);
    }
    if let Some(pack) = &pack
        && !request.offline
    {
        hot::stream_hot(pack, &content, &late, &own)?;
    }
    Ok(Assembled {
        fs: foreknown.told(ImageFs::late(tree, content)),
        image: ResolvedImage {
            digest: image.digest,
            platform: image.platform,
        },
        indexes,
        stored: known,
        diff_ids: image.config.diff_ids.clone(),
        learner,
        source: described,
        late,
        foreknown,
        from_cache: false,
        begun_by: pack.map(|pack| begins_by(pack, &own)),
    })
}

fn made_tree(
    request: &MountRequest,
    cache: &Cache,
    key: Option<&Digest>,
    indexes: &[LateIndex],
) -> Result<LoadTree, Error> {
    let made = known_tree::make(cache, key, indexes);
    let tree = made.map_err(|source| Error::Merge {
        image: request.image.clone(),
        source,
    })?;
    Ok(Box::new(move || tree))
}
