//! `rsmount cache …`.

use crate::cache::{Cache, Held, LayerUsage, Pruned, Usage, Verified};
use crate::cli::args::cache::CacheCommand;
use crate::cli::mount::source_request;
use crate::cli::output::{self, Failure, size};
use crate::cli::settings::Settings;
use crate::mount::pin;

pub(crate) fn run(command: CacheCommand, settings: Settings) -> Result<(), Failure> {
    let cache = Cache::open_within(&settings.cache_dir, settings.cache_size);
    let cache = cache.map_err(|e| Failure::of(&e))?;
    match command {
        CacheCommand::Du { json } => du(&cache, json, settings.cache_size),
        CacheCommand::Prune {
            all, older, force, ..
        } => {
            let pruned = match older {
                Some(age) => cache.prune_older(age),
                None if all => cache.prune_all(),
                None => cache.prune_data(force),
            };
            pruned_line(&pruned.map_err(|e| Failure::of(&e))?);
            Ok(())
        }
        CacheCommand::Pin { source } => {
            let request = source_request(&source, settings)?;
            let pin = pin::pin(&request).map_err(|e| Failure::of(&e))?;
            output::line(&format!("{} {}", pin.image, pin.digest));
            Ok(())
        }
        CacheCommand::Unpin { image } => {
            let unpinned = pin::unpin(&cache, &image).map_err(|e| Failure::of(&e))?;
            output::line(&format!("{} {}", unpinned.image, unpinned.digest));
            Ok(())
        }
        CacheCommand::Verify { json } => {
            let verified = cache.verify().map_err(|e| Failure::of(&e))?;
            if json {
                return output::json(&verified_json(&verified));
            }
            print_verified(&verified);
            Ok(())
        }
    }
}

fn pruned_line(pruned: &Pruned) {
    let mut text = format!("{} layers, {} freed", pruned.layers, size(pruned.bytes));
    if pruned.pinned > 0 {
        text += &format!("; {} pinned layers stay", pruned.pinned);
    }
    output::line(&text);
    if pruned.kept > 0 {
        output::note(&format!(
            "{} layer(s) of loaded images kept their data, which is nowhere else; --force drops it",
            pruned.kept
        ));
    }
}

fn du(cache: &Cache, json: bool, budget: Option<u64>) -> Result<(), Failure> {
    let usage = cache.usage().map_err(|e| Failure::of(&e))?;
    let pins = cache.pins().map_err(|e| Failure::of(&e))?;
    if json {
        let mut value = as_json(&usage);
        value["pins"] = pins
            .iter()
            .map(|pin| serde_json::json!({"image": pin.image, "digest": pin.digest}))
            .collect();
        value["cache_size"] = budget.into();
        return output::json(&value);
    }
    let row = |l: &LayerUsage| {
        vec![
            l.blob.to_string(),
            size(l.data_bytes),
            size(l.index_bytes),
            if l.verified { "yes" } else { "-" }.to_owned(),
            held(l.held),
            used(l),
        ]
    };
    output::table(
        &["LAYER", "DATA", "INDEX", "WHOLE", "HELD", "LAST USED"],
        &usage.layers.iter().map(row).collect::<Vec<_>>(),
    );
    for pin in &pins {
        output::line(&format!("pinned: {} {}", pin.image, pin.digest));
    }
    let index: u64 = usage.layers.iter().map(|l| l.index_bytes).sum();
    let of = budget.map_or(String::new(), |b| format!(" of {}", size(b)));
    output::line(&format!(
        "{}{of} data ({} of it held), {} layers made here, {} indexes, {} manifests and configurations",
        size(data_bytes(&usage)),
        size(held_bytes(&usage)),
        size(usage.blob_bytes),
        size(index),
        size(usage.document_bytes)
    ));
    Ok(())
}

fn data_bytes(usage: &Usage) -> u64 {
    usage.layers.iter().map(|l| l.data_bytes).sum::<u64>() + usage.pack_bytes
}

/// What eviction cannot take.
fn held_bytes(usage: &Usage) -> u64 {
    let held = usage
        .layers
        .iter()
        .filter(|l| l.held.pinned || l.held.sole || l.held.lent);
    held.map(|l| l.data_bytes).sum()
}

fn held(held: Held) -> String {
    let words = [
        (held.pinned, "pinned"),
        (held.sole, "only copy"),
        (held.lent, "lent"),
        (held.in_use, "in use"),
    ];
    let words: Vec<&str> = words.iter().filter(|w| w.0).map(|w| w.1).collect();
    match words.is_empty() {
        true => "-".to_owned(),
        false => words.join(","),
    }
}

fn used(layer: &LayerUsage) -> String {
    let shown = |time| humantime::format_rfc3339_seconds(time).to_string();
    layer.used.map_or("-".to_owned(), shown)
}

fn as_json(usage: &Usage) -> serde_json::Value {
    let layer = |l: &LayerUsage| {
        serde_json::json!({
            "digest": l.blob, "data_bytes": l.data_bytes, "index_bytes": l.index_bytes,
            "pinned": l.held.pinned, "sole": l.held.sole, "lent": l.held.lent, "in_use": l.held.in_use,
            "verified": l.verified,
            "used": l.used.map(|t| humantime::format_rfc3339_seconds(t).to_string()),
        })
    };
    serde_json::json!({
        "layers": usage.layers.iter().map(layer).collect::<Vec<_>>(),
        "data_bytes": data_bytes(usage),
        "held_bytes": held_bytes(usage),
        "pack_bytes": usage.pack_bytes,
        "blob_bytes": usage.blob_bytes,
        "documents": usage.documents,
        "document_bytes": usage.document_bytes,
    })
}

fn print_verified(verified: &Verified) {
    let damaged = |l: &&crate::cache::VerifiedLayer| l.index_damaged || l.pages_damaged > 0;
    for layer in verified.layers.iter().filter(damaged) {
        let what = match layer.index_damaged {
            true => "its index was damaged, the layer is forgotten".to_owned(),
            false => format!(
                "{} of {} pages were damaged, and are fetched again when wanted",
                layer.pages_damaged, layer.pages
            ),
        };
        output::line(&format!("{}: {what}", layer.blob));
    }
    if verified.documents_damaged > 0 {
        output::line(&format!(
            "{} manifests, configurations, tags or pins were damaged and are removed",
            verified.documents_damaged
        ));
    }
    let pages: u64 = verified.layers.iter().map(|l| l.pages).sum();
    output::line(&format!(
        "{} layers, {} pages, {} documents looked at; {} damaged",
        verified.layers.len(),
        pages + verified.pack_pages,
        verified.documents,
        verified.damaged(),
    ));
}

fn verified_json(verified: &Verified) -> serde_json::Value {
    let layer = |l: &crate::cache::VerifiedLayer| {
        serde_json::json!({
            "digest": l.blob, "pages": l.pages, "pages_damaged": l.pages_damaged,
            "index_damaged": l.index_damaged,
        })
    };
    serde_json::json!({
        "layers": verified.layers.iter().map(layer).collect::<Vec<_>>(),
        "pack_pages": verified.pack_pages,
        "pack_pages_damaged": verified.pack_pages_damaged,
        "documents": verified.documents,
        "documents_damaged": verified.documents_damaged,
        "damaged": verified.damaged(),
    })
}
