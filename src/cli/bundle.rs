//! `rsmount bundle`.

use std::path::Path;

use crate::cli::args::Global;
use crate::cli::args::container::BundleArgs;
use crate::cli::mount::{launch_mount, source_request};
use crate::cli::output::{self, Failure};
use crate::cli::settings::Settings;
use crate::cli::wishes;
use crate::container::bundle::Bundle;
use crate::mount::{Upper, privilege};
use crate::runtime::program;

pub(crate) fn bundle(
    args: &BundleArgs,
    global: &Global,
    settings: Settings,
) -> Result<(), Failure> {
    let wishes = wishes::wishes(&args.process, &args.command)?;
    let cache_dir = settings.cache_dir.clone();
    let unread = (settings.on_outage, settings.fill, settings.engine);
    let mut request = source_request(&args.source, settings)?;
    let absolute = |dir: &std::path::PathBuf| std::path::absolute(dir);
    let upper = args.upper.as_ref().map(absolute).transpose();
    let upper = upper.map_err(|e| Failure::of(&e))?.map(Upper::Directory);
    let bundle = Bundle::begin(&args.dir).map_err(|e| Failure::of(&e))?;
    request.mountpoint = bundle.rootfs();
    request.upper = upper.or(args.tmp.then_some(Upper::ThrowAway));
    request.on_outage = unread.0.unwrap_or_default();
    request.fill = unread.1.unwrap_or_default();
    request.engine = unread.2.unwrap_or(request.engine);
    // Whoever runs it decides what set-id programs and devices may do; a user's mount has neither.
    if privilege::is_system_root() {
        (request.suid, request.dev) = (Some(true), Some(true));
    }
    request.foreground = false;
    let mounted = launch_mount(&request, global)?.record;
    let finished = bundle.finish(&wishes, &cache_dir, &mounted);
    finished.map_err(|e| Failure::of(&e))?;
    if !global.quiet {
        let (dir, rootfs) = (args.dir.display(), mounted.mountpoint.display());
        let run = match program::find(None, Path::new("")).first() {
            Some(runtime) => format!("run it: {} run --bundle {dir} NAME", runtime.name()),
            None => format!("{dir}: no runtime was found to run it (install crun, runc or youki)"),
        };
        output::note(&format!("{run}; end it: rsmount umount {rootfs}"));
    }
    Ok(())
}
