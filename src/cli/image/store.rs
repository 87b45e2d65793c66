//! `rsmount pull`, `images`, `rmi` and `tag`.

use std::sync::Arc;

use crate::cache::Cache;
use crate::cli::args::Global;
use crate::cli::args::image::{ImagesArgs, PullArgs, RmiArgs};
use crate::cli::containers;
use crate::cli::mount::reach_request;
use crate::cli::output::{self, Failure, size};
use crate::cli::progress::Shown;
use crate::cli::settings::Settings;
use crate::image::Error;
use crate::image::pull::{self, Pulled};
use crate::image::store::{self, Filter, KnownImage};
use crate::monitor::Monitor;

fn cache(settings: &Settings) -> Result<Cache, Failure> {
    Cache::open_within(&settings.cache_dir, settings.cache_size).map_err(|e| Failure::of(&e))
}

pub(crate) fn pull(args: &PullArgs, global: &Global, settings: &Settings) -> Result<(), Failure> {
    let reach = args.hosts.reach(args.platform.clone());
    let mut all = Vec::new();
    for image in &args.images {
        let request = reach_request(image, &reach, settings.clone())?;
        let shown = Arc::new(Shown::new(global.quiet));
        let monitor: Arc<dyn Monitor> = shown.clone();
        let pulled = pull::pull(&request, args.all_platforms, &monitor);
        shown.finish();
        let pulled = pulled.map_err(|e| Failure::of(&e))?;
        if !args.json {
            print_pulled(&pulled, global.quiet);
        }
        all.push(pulled);
    }
    if args.json {
        return output::json(&all);
    }
    Ok(())
}

fn print_pulled(pulled: &Pulled, quiet: bool) {
    if quiet {
        return output::line(&pulled.name);
    }
    for image in &pulled.images {
        output::line(&format!(
            "{}: {} layers, {} fetched, {} were here",
            image.platform,
            image.layers,
            size(image.fetched_bytes),
            size(image.present_bytes)
        ));
    }
    output::line(&format!("Digest: {}", pulled.digest));
    let fetched: u64 = pulled.images.iter().map(|i| i.fetched_bytes).sum();
    let status = match (pulled.newer, fetched) {
        (true, _) => "Downloaded newer image for",
        (false, 0) => "Image is up to date for",
        (false, _) => "Image is whole now for",
    };
    output::line(&format!("Status: {status} {}", pulled.name));
}

pub(crate) fn images(
    args: &ImagesArgs,
    global: &Global,
    settings: &Settings,
) -> Result<(), Failure> {
    let filter = filter(args)?;
    let images = store::images(&cache(settings)?, &filter).map_err(|e| Failure::of(&e))?;
    if args.json {
        return output::json(&images);
    }
    let id = |image: &KnownImage| match args.no_trunc {
        true => image.id.to_string(),
        false => image.id.short().to_owned(),
    };
    if global.quiet {
        let mut ids: Vec<String> = images.iter().map(id).collect();
        ids.dedup();
        ids.iter().for_each(|id| output::line(id));
        return Ok(());
    }
    let row = |image: &KnownImage| {
        let digest = match args.no_trunc {
            true => image.digest.to_string(),
            false => image.digest.short().to_owned(),
        };
        vec![
            image.repository.clone(),
            image.tag.clone().unwrap_or_else(|| "<none>".to_owned()),
            id(image),
            digest,
            image.platform.clone(),
            image.created.as_deref().map_or("-", seconds).to_owned(),
            size(image.size),
            local(image),
        ]
    };
    let headings = [
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "DIGEST",
        "PLATFORM",
        "CREATED",
        "SIZE",
        "LOCAL",
    ];
    output::table(&headings, &images.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

/// A time without what is below a second.
fn seconds(time: &str) -> &str {
    time.get(..19).unwrap_or(time)
}

/// How much is here.
fn local(image: &KnownImage) -> String {
    let Some(all) = image.unpacked_bytes else {
        return match image.local_bytes {
            0 => "metadata".to_owned(),
            some => format!("{} and unknown layers", size(some)),
        };
    };
    match (image.local_bytes * 100).checked_div(all) {
        None | Some(100..) => "all".to_owned(),
        Some(percent) => format!("{percent} % of {}", size(all)),
    }
}

fn filter(args: &ImagesArgs) -> Result<Filter, Failure> {
    let mut filter = Filter {
        reference: args.reference.clone(),
        ..Filter::default()
    };
    for pair in &args.filter {
        let refuse = || {
            Failure::usage(format!(
                "--filter {pair}: expected reference=NAME, platform=OS/ARCH, mounted=true|false or \
                 complete=true|false"
            ))
        };
        let (key, value) = pair.split_once('=').ok_or_else(refuse)?;
        let truth = || value.parse::<bool>().map_err(|_| refuse());
        match key {
            "reference" => filter.reference = Some(value.to_owned()),
            "platform" => filter.platform = Some(value.to_owned()),
            "mounted" => filter.mounted = Some(truth()?),
            "complete" => filter.complete = Some(truth()?),
            _ => return Err(refuse()),
        }
    }
    Ok(filter)
}

pub(crate) fn rmi(args: &RmiArgs, settings: &Settings) -> Result<(), Failure> {
    let removed = store::remove(&cache(settings)?, &args.images, args.force);
    let removed = removed.map_err(|e| in_use(&e, settings))?;
    for name in &removed.names {
        output::line(&format!("Untagged: {name}"));
    }
    for layer in &removed.dropped.layers {
        output::line(&format!("Deleted: {layer}"));
    }
    if !removed.dropped.layers.is_empty() {
        output::line(&format!("{} freed", size(removed.dropped.bytes)));
    }
    Ok(())
}

/// Whose changes keep an image: of a container its name says more than its directory.
fn in_use(error: &Error, settings: &Settings) -> Failure {
    let Error::Changed { image, dir } = error else {
        return Failure::of(error);
    };
    let store = containers::existing(&settings.cache_dir).ok().flatten();
    let all = store
        .and_then(|store| store.list().ok())
        .unwrap_or_default();
    match all.iter().find(|container| container.changes() == *dir) {
        Some(container) => Failure::new(format!(
            "{image} is used by container {0}: remove that first (rsmount rm {0}), or give -f to \
             forget its name alone",
            container.record.name
        )),
        None => Failure::of(error),
    }
}

pub(crate) fn tag(source: &str, target: &str, settings: &Settings) -> Result<(), Failure> {
    store::tag(&cache(settings)?, source, target).map_err(|e| Failure::of(&e))
}
