//! `rsmount save` and `rsmount load`.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use crate::cli::args::Global;
use crate::cli::args::image::{FormatArg, HostArgs, LoadArgs, SaveArgs};
use crate::cli::mount::reach_request;
use crate::cli::output::{self, Failure};
use crate::cli::progress::Shown;
use crate::cli::settings::Settings;
use crate::image::load::{self, Spooled};
use crate::image::save::{self, Format, WholeFile};
use crate::monitor::Monitor;
use crate::mount::MountRequest;

pub(crate) fn save(args: &SaveArgs, global: &Global, settings: &Settings) -> Result<(), Failure> {
    let request = |image: &String| reach_request(image, &args.reach, settings.clone());
    let requests: Result<Vec<MountRequest>, Failure> = args.images.iter().map(request).collect();
    let requests = requests?;
    let format = match args.format {
        FormatArg::DockerArchive => Format::Docker,
        FormatArg::OciArchive => Format::Oci,
    };
    let shown = Shown::new(global.quiet);
    let saved = match &args.output {
        Some(path) => WholeFile::create(path).and_then(|mut file| {
            save::save(&requests, format, &mut file, &shown)?;
            file.finish()
        }),
        None if io::stdout().is_terminal() => {
            return Err(Failure::new(
                "an archive is not written to a terminal: give -o FILE",
            ));
        }
        None => save::save(&requests, format, &mut io::stdout().lock(), &shown),
    };
    shown.finish();
    saved.map_err(|e| Failure::of(&e))
}

pub(crate) fn load(args: &LoadArgs, global: &Global, settings: Settings) -> Result<(), Failure> {
    let hosts = HostArgs {
        insecure_registry: Vec::new(),
        ca_file: Vec::new(),
        hosts_dir: None,
    };
    let mut request = reach_request("load", &hosts.reach(args.platform.clone()), settings)?;
    let spooled = match &args.input {
        Some(_) => None,
        None if io::stdin().is_terminal() => {
            return Err(Failure::new("no archive: give -i FILE, or pipe one in"));
        }
        None => Some(Spooled::new(&mut io::stdin().lock()).map_err(|e| {
            Failure::new(format!("cannot keep the archive in a temporary file: {e}"))
        })?),
    };
    let path = match (&args.input, &spooled) {
        (Some(path), _) => path.clone(),
        (None, Some(spooled)) => spooled.path(),
        (None, None) => return Ok(()),
    };
    request.image = match &args.input {
        Some(path) => {
            let absolute = std::path::absolute(path);
            absolute.map_or_else(|_| path.display().to_string(), |p| p.display().to_string())
        }
        None => "(standard input)".to_owned(),
    };
    let shown = Arc::new(Shown::new(global.quiet));
    let monitor: Arc<dyn Monitor> = shown.clone();
    let loaded = load::load(&request, &path, args.name.as_deref(), &monitor);
    shown.finish();
    for image in loaded.map_err(|e| Failure::of(&e))? {
        output::line(&format!("Loaded image: {}", image.name));
    }
    Ok(())
}
