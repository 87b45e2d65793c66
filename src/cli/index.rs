//! `rsmount index build` and `rsmount index show`.

use std::sync::Arc;

use crate::cli::args::Global;
use crate::cli::args::look::IndexCommand;
use crate::cli::mount::source_request;
use crate::cli::output::{self, Failure, size};
use crate::cli::progress::Shown;
use crate::cli::settings::Settings;
use crate::mount::indexes::{self, Indexes, Layer};

pub(crate) fn run(
    command: &IndexCommand,
    global: &Global,
    settings: Settings,
) -> Result<(), Failure> {
    let (found, json) = match command {
        IndexCommand::Build { source, json } => {
            let request = source_request(source, settings)?;
            let shown = Arc::new(Shown::new(global.quiet));
            let built = indexes::build(request, shown.clone());
            shown.finish();
            (built, *json)
        }
        IndexCommand::Show { source, json } => {
            (indexes::show(&source_request(source, settings)?), *json)
        }
    };
    let found = found.map_err(|e| Failure::of(&e))?;
    if json {
        return output::json(&found);
    }
    print(&found);
    Ok(())
}

fn print(found: &Indexes) {
    output::line(&format!("{} {}", found.digest, found.platform));
    output::line("");
    let headings = [
        "LAYER",
        "COMPRESSED",
        "AS",
        "UNPACKED",
        "SPANS",
        "CHECKPOINTS",
        "ENTRIES",
        "INDEX",
        "RATIO",
    ];
    let mut rows: Vec<Vec<String>> = found.layers.iter().map(row).collect();
    let known = || found.layers.iter().filter_map(|l| Some((l.size, l.index?)));
    if found.layers.len() > 1 && known().next().is_some() {
        let compressed: u64 = known().map(|(size, _)| size).sum();
        let of = |field: fn(&indexes::Index) -> u64| known().map(|(_, i)| field(&i)).sum::<u64>();
        let bytes = of(|i| i.index_bytes);
        rows.push(vec![
            "together".to_owned(),
            size(compressed),
            String::new(),
            size(of(|i| i.address_bytes)),
            of(|i| i.spans).to_string(),
            of(|i| i.checkpoints).to_string(),
            of(|i| i.entries).to_string(),
            size(bytes),
            ratio(bytes, compressed),
        ]);
    }
    output::table(&headings, &rows);
    let unknown = found.layers.iter().filter(|l| l.index.is_none()).count();
    if unknown > 0 {
        output::note(&format!(
            "{unknown} layer(s) have no index here: rsmount index build {}",
            found.image
        ));
    }
}

fn row(layer: &Layer) -> Vec<String> {
    let hex = layer.digest.split(':').nth(1).unwrap_or(&layer.digest);
    let mut row = vec![hex.get(..12).unwrap_or(hex).to_owned(), size(layer.size)];
    match &layer.index {
        None => row.extend((0..7).map(|_| "-".to_owned())),
        Some(index) => row.extend([
            index.compression.to_owned(),
            size(index.address_bytes),
            index.spans.to_string(),
            index.checkpoints.to_string(),
            index.entries.to_string(),
            size(index.index_bytes),
            ratio(index.index_bytes, layer.size),
        ]),
    }
    row
}

fn ratio(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{:.2} %", part as f64 * 100.0 / whole as f64),
    }
}
