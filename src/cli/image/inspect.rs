//! `rsmount inspect` and `rsmount history`.

use crate::cli::args::image::{HistoryArgs, InspectArgs, KindArg};
use crate::cli::containers;
use crate::cli::mount::reach_request;
use crate::cli::output::{self, Failure, size};
use crate::cli::settings::Settings;
use crate::container;
use crate::container::inspect::Inspected;
use crate::image::inspect::{self, HistoryLine, PlatformOf};
use crate::image::template;
use crate::mount::MountRequest;

/// Characters of a command that `history` shows, as docker does.
const COMMAND_CHARS: usize = 60;

pub(crate) fn inspect(args: &InspectArgs, settings: &Settings) -> Result<(), Failure> {
    let request = |image: &String| reach_request(image, &args.reach, settings.clone());
    if args.platforms || args.raw.is_some() {
        let requests: Result<Vec<MountRequest>, Failure> =
            args.images.iter().map(request).collect();
        return documents(args, &requests?);
    }
    let mut all = Vec::new();
    for name in &args.images {
        let one = match container(name, args.kind, settings)? {
            Some(container) => serde_json::to_value(&container).map_err(|e| Failure::of(&e))?,
            None => inspect::inspect(&request(name)?).map_err(|e| Failure::of(&e))?,
        };
        match &args.format {
            Some(text) => {
                let shown = template::render(text, &one).map_err(|e| Failure::of(&e))?;
                output::line(&shown);
            }
            None => all.push(one),
        }
    }
    match args.format {
        Some(_) => Ok(()),
        None => output::json(&all),
    }
}

/// The container `name`, if that is one and one may be meant.
fn container(
    name: &str,
    kind: Option<KindArg>,
    settings: &Settings,
) -> Result<Option<Inspected>, Failure> {
    if kind == Some(KindArg::Image) {
        return Ok(None);
    }
    let store = containers::existing(&settings.cache_dir).map_err(|e| Failure::of(&e))?;
    let found = store.map(|store| store.find(name));
    match (found, kind) {
        (Some(Ok(found)), _) => Ok(Some(container::inspect::inspect(&found))),
        (Some(Err(error)), Some(KindArg::Container)) => Err(Failure::of(&error)),
        (None, Some(KindArg::Container)) => {
            let none = container::Error::NoSuchContainer(name.to_owned());
            Err(Failure::of(&none))
        }
        _ => Ok(None),
    }
}

/// The documents themselves, and what an index names.
fn documents(args: &InspectArgs, requests: &[MountRequest]) -> Result<(), Failure> {
    if args.platforms {
        return requests.iter().try_for_each(|r| platforms(r, args.json));
    }
    if let Some(which) = args.raw {
        for request in requests {
            let bytes = inspect::raw(request, which.into()).map_err(|e| Failure::of(&e))?;
            output::bytes(&bytes)?;
        }
    }
    Ok(())
}

fn platforms(request: &MountRequest, json: bool) -> Result<(), Failure> {
    let platforms = inspect::platforms(request).map_err(|e| Failure::of(&e))?;
    if json {
        return output::json(&platforms);
    }
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let row = |p: &PlatformOf| {
        vec![
            p.os.clone(),
            p.architecture.clone(),
            or_dash(&p.variant),
            or_dash(&p.os_version),
            p.digest.to_string(),
            size(p.size),
        ]
    };
    let headings = [
        "OS",
        "ARCHITECTURE",
        "VARIANT",
        "OS.VERSION",
        "DIGEST",
        "SIZE",
    ];
    output::table(&headings, &platforms.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

pub(crate) fn history(args: &HistoryArgs, settings: Settings) -> Result<(), Failure> {
    let request = reach_request(&args.image, &args.reach, settings)?;
    let lines = inspect::history(&request).map_err(|e| Failure::of(&e))?;
    if args.json {
        return output::json(&lines);
    }
    let row = |l: &HistoryLine| {
        let layer = l
            .layer
            .as_ref()
            .map_or("-".to_owned(), |digest| match args.no_trunc {
                true => digest.to_string(),
                false => digest.short().to_owned(),
            });
        let command = l.created_by.clone().unwrap_or_default();
        vec![
            layer,
            l.created.clone().unwrap_or_else(|| "-".to_owned()),
            if args.no_trunc {
                command
            } else {
                shortened(&command)
            },
            size(l.size),
            l.comment.clone().unwrap_or_default(),
        ]
    };
    let headings = ["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"];
    output::table(&headings, &lines.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn shortened(command: &str) -> String {
    let mut words = command.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = words.char_indices().nth(COMMAND_CHARS) {
        words.truncate(at);
        words.push('…');
    }
    words
}
