//! Progress of a first contact: a bar a layer on a terminal, a line a layer elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::output::{note, size};
use crate::monitor::{Event, Monitor};
use crate::oci::Digest;

/// Shows events as they come.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Nothing but warnings.
    Quiet,
    /// One line a layer.
    Lines,
    /// One bar a layer.
    Bars {
        all: MultiProgress,
        bars: HashMap<Digest, ProgressBar>,
    },
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Progress {
        if quiet {
            Progress::Quiet
        } else if std::io::stderr().is_terminal() {
            Progress::Bars {
                all: MultiProgress::new(),
                bars: HashMap::new(),
            }
        } else {
            Progress::Lines
        }
    }

    pub(crate) fn show(&mut self, event: Event) {
        if let Event::Warning { message } = &event {
            return note(message);
        }
        match self {
            Progress::Quiet => {}
            Progress::Lines => lines(&event),
            Progress::Bars { all, bars } => draw(all, bars, event),
        }
    }

    /// Takes the bars off the screen.
    pub(crate) fn finish(&self) {
        if let Progress::Bars { all, .. } = self {
            let _closed = all.clear();
        }
    }
}

/// Shows progress of work that is done in this process.
pub(crate) struct Shown(Mutex<Progress>);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shown")
    }
}

impl Monitor for Shown {
    fn event(&self, event: Event) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .show(event);
    }
}

impl Shown {
    pub(crate) fn new(quiet: bool) -> Shown {
        Shown(Mutex::new(Progress::new(quiet)))
    }

    /// Takes the bars off the screen.
    pub(crate) fn finish(&self) {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shown.finish();
    }
}

fn lines(event: &Event) {
    match event {
        Event::LayerStarted { layer, size: bytes } => {
            note(&format!(
                "layer {}: fetching {}",
                layer.short(),
                size(*bytes)
            ));
        }
        Event::LayerDone { layer } => note(&format!("layer {}: verified", layer.short())),
        Event::PushStarted { blob, size: bytes } => {
            note(&format!("blob {}: pushing {}", blob.short(), size(*bytes)));
        }
        Event::Pushed { blob, how } => note(&format!("blob {}: {how}", blob.short())),
        _ => {}
    }
}

fn draw(all: &MultiProgress, bars: &mut HashMap<Digest, ProgressBar>, event: Event) {
    match event {
        Event::LayerStarted { layer, size } | Event::PushStarted { blob: layer, size } => {
            let bar = all.add(ProgressBar::new(size).with_prefix(layer.short().to_owned()));
            let template = "{prefix} {bar:32} {bytes:>10}/{total_bytes:10} {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bars.insert(layer, bar);
        }
        Event::LayerProgress { layer, bytes } | Event::PushProgress { blob: layer, bytes } => {
            if let Some(bar) = bars.get(&layer) {
                bar.set_position(bytes);
            }
        }
        Event::LayerDone { layer } => {
            if let Some(bar) = bars.get(&layer) {
                bar.finish_with_message("verified");
            }
        }
        Event::Pushed { blob, how } => match bars.get(&blob) {
            Some(bar) => bar.finish_with_message(how),
            None => {
                let _closed = all.println(format!("{} {how}", blob.short()));
            }
        },
        Event::Resolved { .. } | Event::Warning { .. } => {}
    }
}
