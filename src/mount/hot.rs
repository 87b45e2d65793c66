//! Hot pages of a pack: asked for as early as can be, and streamed into the content while the mount is
//! usable already.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;

use crate::blob::{self, Blob, ByteRange, ByteStream};
use crate::content::{self, Content};
use crate::mount::discover::Pack;
use crate::mount::pack::refused;
use crate::mount::source::{LateSource, Source};
use crate::oci::Descriptor;
use crate::pack::{HotRange, HotReader};

/// Whether a pack's hot pages are asked for as soon as it has been found, before anything else is
/// known about the image: a round trip less, for nothing if the pack is then not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Early {
    HotPages,
    Never,
}

/// The answer to a request for hot pages that is on its way.
type Asked = tokio::task::JoinHandle<Result<ByteStream, blob::Error>>;

/// Hot pages that were asked for early, until somebody takes them.
#[derive(Clone, Default)]
pub(crate) struct Coming(Arc<Mutex<Option<Asked>>>);

impl fmt::Debug for Coming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Coming")
    }
}

impl Coming {
    /// Asks for all of `hot`, on the runtime that this is called on.
    pub(crate) fn ask(source: &Source, hot: &Descriptor) -> Coming {
        let Ok(blob) = source.blob(hot) else {
            return Coming::default();
        };
        let open = async move { blob.open(ByteRange::new(0, blob.size())).await };
        Coming(Arc::new(Mutex::new(Some(tokio::spawn(open)))))
    }

    /// The stream, if it was asked for and is coming.
    async fn take(&self) -> Option<ByteStream> {
        let asked = {
            let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            held.take()?
        };
        asked.await.ok()?.ok()
    }
}

/// Streams the pack's hot pages into `content`, from now on until all are there.
pub(crate) fn stream_hot(
    pack: &Pack,
    content: &Arc<Content>,
    late: &Arc<LateSource>,
    own: &[bool],
) -> Result<(), content::Error> {
    let sizes: Vec<u64> = pack.meta.layers.iter().map(|l| l.address_size).collect();
    let of = |h: &HotRange| (h.layer, h.range(sizes[h.layer as usize]));
    // Layers whose index was made here need nothing from a pack.
    let wanted = |h: &&HotRange| !own.get(h.layer as usize).copied().unwrap_or(true);
    let absent: Vec<_> = pack.meta.hot.iter().filter(wanted).map(of).collect();
    if absent
        .iter()
        .all(|(layer, range)| content.is_present(*layer, *range))
    {
        return Ok(());
    }
    let runtime = content.runtime()?;
    content.expect_hot(absent.into_iter());
    let (content, pack, own) = (content.clone(), pack.clone(), own.to_vec());
    let part = late.blob(pack.manifest.hot.clone());
    runtime.spawn(async move {
        if let Err(error) = receive(&content, &pack, &part, &own, &sizes).await {
            tracing::warn!(%error, "the pack's pages did not come");
        }
        content.hot_ended();
    });
    Ok(())
}

async fn receive(
    content: &Content,
    pack: &Pack,
    part: &Arc<dyn Blob>,
    own: &[bool],
    sizes: &[u64],
) -> Result<(), content::Error> {
    let mut reader = HotReader::new(&pack.meta.hot, &pack.meta.layers).map_err(refused)?;
    content.count_request();
    let mut stream = match pack.coming.take().await {
        Some(stream) => stream,
        None => part.open(ByteRange::new(0, part.size())).await?,
    };
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        content.count_fetched(piece.len() as u64);
        let mut stored = Ok(());
        let pushed = reader.push(&piece, &mut |hot, bytes| {
            let layer = hot.layer as usize;
            if !own[layer] && stored.is_ok() {
                stored = content.hot_came(hot.layer, hot.range(sizes[layer]), bytes);
            }
        });
        pushed.map_err(refused)?;
        stored?;
    }
    reader.finish().map_err(refused)
}
