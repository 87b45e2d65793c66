//! `rsmount cache …`.

use crate::cache::{Cache, LayerUsage, Usage};
use crate::cli::args::CacheCommand;
use crate::cli::output::{self, Failure, size};
use crate::cli::settings::Settings;

pub(crate) fn run(command: CacheCommand, settings: &Settings) -> Result<(), Failure> {
    let cache = Cache::open(&settings.cache_dir).map_err(|e| Failure::of(&e))?;
    match command {
        CacheCommand::Du { json } => du(&cache, json),
        CacheCommand::Prune { all, .. } => {
            let pruned = if all {
                cache.prune_all()
            } else {
                cache.prune_data()
            };
            let pruned = pruned.map_err(|e| Failure::of(&e))?;
            output::line(&format!(
                "{} layers, {} freed",
                pruned.layers,
                size(pruned.bytes)
            ));
            Ok(())
        }
    }
}

fn du(cache: &Cache, json: bool) -> Result<(), Failure> {
    let usage = cache.usage().map_err(|e| Failure::of(&e))?;
    if json {
        return output::json(&as_json(&usage));
    }
    let row = |l: &LayerUsage| vec![l.blob.to_string(), size(l.data_bytes), size(l.index_bytes)];
    output::table(
        &["LAYER", "DATA", "INDEX"],
        &usage.layers.iter().map(row).collect::<Vec<_>>(),
    );
    let data: u64 = usage.layers.iter().map(|l| l.data_bytes).sum();
    let index: u64 = usage.layers.iter().map(|l| l.index_bytes).sum();
    output::line(&format!(
        "{} data, {} indexes, {} manifests and configurations",
        size(data),
        size(index),
        size(usage.document_bytes)
    ));
    Ok(())
}

fn as_json(usage: &Usage) -> serde_json::Value {
    let layer = |l: &LayerUsage| {
        serde_json::json!({
            "digest": l.blob, "data_bytes": l.data_bytes, "index_bytes": l.index_bytes,
        })
    };
    serde_json::json!({
        "layers": usage.layers.iter().map(layer).collect::<Vec<_>>(),
        "documents": usage.documents,
        "document_bytes": usage.document_bytes,
    })
}
