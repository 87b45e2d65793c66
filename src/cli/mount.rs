//! `rsmount mount` and `rsmount umount`.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cache::Cache;
use crate::cli::args::{Global, LogFormat, MountArgs, PullArg, ReachArgs, SourceArgs, UmountArgs};
use crate::cli::key;
use crate::cli::output::{self, Failure};
use crate::cli::progress::Progress;
use crate::cli::settings::{self, KeyName, Settings};
use crate::content::{Fill, Outage};
use crate::image::store;
use crate::mount::launch::{self, LaunchError, Launched};
use crate::mount::service::{Found, Service};
use crate::mount::{
    Engine, MountRequest, Pull, Sandbox, TrustIndex, Upper, mountpoint, privilege, record,
};
use crate::oci::Digest;
use crate::registry::HostsDirs;

/// How often a foreground mount looks whether it has ended.
const GLANCE: Duration = Duration::from_millis(20);

pub(crate) fn mount(
    args: &MountArgs,
    global: &Global,
    settings: Settings,
) -> Result<ExitCode, Failure> {
    if args.foreground
        && let Some(service) = Service::started()
    {
        return serve(service, args, global, settings);
    }
    let request = request(args, settings)?;
    if !args.foreground {
        launch_mount(&request, global)?;
        warn_of_privileges(&request);
        return Ok(ExitCode::SUCCESS);
    }
    // From the beginning: the mount can be seen before this process hears that it is there.
    let stop = stop_signals().map_err(|e| Failure::of(&e))?;
    let launched = launch_mount_unless(&request, global, Some(stop.as_fd()))?;
    warn_of_privileges(&request);
    wait(launched.child, &stop)
}

/// Mounts for a service manager. This process does not wait for a keeper but becomes it.
fn serve(
    mut service: Service,
    args: &MountArgs,
    global: &Global,
    settings: Settings,
) -> Result<ExitCode, Failure> {
    let place = mountpoint::absolute(&args.mountpoint).map_err(|e| Failure::of(&e))?;
    let mut request = request_at(place, args, settings)?;
    let found = service.find(&request).map_err(|e| Failure::of(&e))?;
    if let Found::Ended(why) = &found {
        output::note(&format!(
            "what the service manager has kept is not gone on with: {why}"
        ));
    }
    if found != Found::Mount {
        request.mountpoint = usable(args)?;
        warn_of_privileges(&request);
    }
    match service.keep(&request, &log_words(global)) {
        Ok(never) => match never {},
        Err(e) => Err(Failure::of(&e)),
    }
}

/// What can be read as soon as a signal has asked for the end.
fn stop_signals() -> std::io::Result<UnixStream> {
    let (stop, sender) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    stop.set_nonblocking(true)?;
    Ok(stop)
}

/// Starts a worker for `request`, and shows its progress until the mount can be used.
pub(super) fn launch_mount(request: &MountRequest, global: &Global) -> Result<Launched, Failure> {
    launch_mount_unless(request, global, None)
}

/// The same, given up as soon as `stop` can be read.
fn launch_mount_unless(
    request: &MountRequest,
    global: &Global,
    stop: Option<BorrowedFd<'_>>,
) -> Result<Launched, Failure> {
    let mut progress = Progress::new(global.quiet);
    let show = |event| progress.show(event);
    let launched = launch::launch_unless(request, &log_words(global), show, stop);
    progress.finish();
    launched.map_err(|e| match e {
        LaunchError::Failed { message, causes } => Failure::new(message).with_causes(causes),
        other => Failure::of(&other),
    })
}

/// The options of this command that hold for the worker's log as well.
pub(super) fn log_words(global: &Global) -> Vec<String> {
    let mut words = vec!["-v".to_owned(); usize::from(global.verbose)];
    if global.log_format == LogFormat::Json {
        words.push("--log-format=json".to_owned());
    }
    words
}

fn request(args: &MountArgs, settings: Settings) -> Result<MountRequest, Failure> {
    request_at(usable(args)?, args, settings)
}

/// Where to mount, once that was looked at.
fn usable(args: &MountArgs) -> Result<PathBuf, Failure> {
    let checked = mountpoint::check(&args.mountpoint).map_err(|e| Failure::of(&e))?;
    if checked.not_empty {
        output::note(&format!(
            "{}: not empty; what is in it is hidden until the image is unmounted",
            checked.path.display()
        ));
    }
    Ok(checked.path)
}

fn request_at(
    place: PathBuf,
    args: &MountArgs,
    settings: Settings,
) -> Result<MountRequest, Failure> {
    let on_outage = args.on_outage.or(settings.on_outage);
    let fill = args.fill.map(Fill::from).or(settings.fill);
    let sandbox = args.sandbox.map(Sandbox::from).or(settings.sandbox);
    let mut request = source_request(&args.source, settings)?;
    request.mountpoint = place;
    request.on_outage = on_outage.unwrap_or_default();
    request.fill = fill.unwrap_or_default();
    request.engine = args.engine.into();
    request.sandbox = sandbox.unwrap_or_default();
    request.foreground = args.foreground;
    request.upper = upper(args)?;
    for option in &args.options {
        apply_option(&mut request, option)?;
    }
    Ok(request)
}

/// In a writable mount set-id programs and devices work, as they do in a container; but everybody who
/// gets there may use them. Who has said what they want is not told.
fn warn_of_privileges(request: &MountRequest) {
    let unsaid: Vec<&str> = [("set-id programs", request.suid), ("devices", request.dev)]
        .into_iter()
        .filter_map(|(what, said)| said.is_none().then_some(what))
        .collect();
    let matters = request.upper.is_some() && !unsaid.is_empty() && privilege::is_system_root();
    if matters && mountpoint::is_reachable(&request.mountpoint) {
        output::note(&format!(
            "{}: other users can get there, and {} in it work; mount it in a directory of mode 0700, or \
             give -o nosuid,nodev (or suid,dev, if that is meant)",
            request.mountpoint.display(),
            unsaid.join(" and ")
        ));
    }
}

/// Where changes go, as an absolute path. The directory is made if it is missing.
fn upper(args: &MountArgs) -> Result<Option<Upper>, Failure> {
    let Some(dir) = &args.upper else {
        return Ok(args.tmp.then_some(Upper::ThrowAway));
    };
    let absolute = std::path::absolute(dir);
    let absolute = absolute.map_err(|e| Failure::new(format!("{}: {e}", dir.display())))?;
    Ok(Some(Upper::Directory(absolute)))
}

/// What an image's source says, for a request that mounts nothing yet: whoever asks fails rather
/// than waits, and fetches nothing that is not needed.
pub(super) fn source_request(
    args: &SourceArgs,
    settings: Settings,
) -> Result<MountRequest, Failure> {
    reach_request(&args.image, &args.reach, settings)
}

/// The directory that was given, else the one of the configuration, else the usual ones.
fn hosts_dirs(given: Option<&Path>, configured: Option<PathBuf>) -> Result<HostsDirs, Failure> {
    let given = given.map(|dir| {
        std::path::absolute(dir).map_err(|e| Failure::new(format!("{}: {e}", dir.display())))
    });
    Ok(match given.transpose()?.or(configured) {
        Some(dir) => HostsDirs {
            dirs: vec![dir],
            strict: true,
        },
        None => HostsDirs {
            dirs: settings::default_hosts_dirs(),
            strict: false,
        },
    })
}

/// The name of an image that was named by name or by the beginning of its ID; in that case also the
/// digest that it stands for, whatever becomes of the name.
fn named(image: &str, cache_dir: &Path) -> Result<(String, Option<Digest>), Failure> {
    let found = match store::may_be_id(image) {
        true => {
            let cache = Cache::open(cache_dir).map_err(|e| Failure::of(&e))?;
            store::by_id(&cache, image).map_err(|e| Failure::of(&e))?
        }
        false => None,
    };
    match found {
        Some(found) => Ok((found.name, Some(found.manifest))),
        None => Ok((absolute_image(image)?, None)),
    }
}

/// The same for an image that is named otherwise.
pub(super) fn reach_request(
    image: &str,
    args: &ReachArgs,
    settings: Settings,
) -> Result<MountRequest, Failure> {
    // What is in the environment gives way, as what is in a file does.
    let is_typed = std::env::var_os("RSMOUNT_PULL").is_none();
    if args.offline && is_typed && args.pull == Some(PullArg::Always) {
        return Err(Failure::usage(
            "--offline never asks the registry, --pull always always does: leave one of them out",
        ));
    }
    let here = std::env::current_dir().unwrap_or_default();
    let mut trusted_keys = Vec::new();
    for name in &args.trusted_key {
        trusted_keys.extend(key::public(name, &here)?);
    }
    for KeyName { name, base } in &settings.trusted_keys {
        trusted_keys.extend(key::public(name, base)?);
    }
    let Settings {
        cache_dir,
        cache_size,
        mut insecure_registries,
        mut ca_files,
        hosts_dir,
        ..
    } = settings;
    insecure_registries.extend(args.insecure_registry.iter().cloned());
    for file in &args.ca_file {
        let absolute = std::path::absolute(file);
        ca_files.push(absolute.map_err(|e| Failure::new(format!("{}: {e}", file.display())))?);
    }
    let hosts = hosts_dirs(args.hosts_dir.as_deref(), hosts_dir)?;
    let trust = args.trust_index.map(TrustIndex::from);
    let (image, pinned) = named(image, &cache_dir)?;
    Ok(MountRequest {
        image,
        mountpoint: PathBuf::new(),
        command: None,
        upper: None,
        pinned,
        resumed: false,
        begun_by: None,
        platform: args.platform.clone().or(settings.platform),
        cache_dir,
        cache_size,
        offline: args.offline,
        // What was typed goes before what is configured.
        pull: match args.pull.map(Pull::from).or(settings.pull) {
            Some(Pull::Always) if args.offline => Pull::Missing,
            pull => pull.unwrap_or_default(),
        },
        on_outage: Outage::Eio,
        fill: Fill::Never,
        trust_index: trust.or(settings.trust_index).unwrap_or_default(),
        trusted_keys,
        engine: Engine::Auto,
        insecure_registries,
        ca_files,
        hosts,
        sandbox: Sandbox::Auto,
        suid: None,
        dev: None,
        noexec: false,
        allow_other: None,
        foreground: true,
    })
}

/// The worker runs in `/`: a relative layout or archive is made absolute for it.
fn absolute_image(image: &str) -> Result<String, Failure> {
    for scheme in ["oci:", "oci-archive:", "docker-archive:"] {
        if let Some(path) = image.strip_prefix(scheme).filter(|p| !p.starts_with('/')) {
            let cwd = std::env::current_dir().map_err(|e| Failure::of(&e))?;
            let cwd = cwd.to_str().ok_or_else(|| {
                Failure::new("the working directory is not UTF-8; give the image's full path")
            })?;
            return Ok(format!("{scheme}{cwd}/{path}"));
        }
    }
    Ok(image.to_owned())
}

fn apply_option(request: &mut MountRequest, option: &str) -> Result<(), Failure> {
    match option {
        "suid" => request.suid = Some(true),
        "nosuid" => request.suid = Some(false),
        "dev" => request.dev = Some(true),
        "nodev" => request.dev = Some(false),
        "exec" => request.noexec = false,
        "noexec" => request.noexec = true,
        "allow_other" => request.allow_other = Some(true),
        "noallow_other" => request.allow_other = Some(false),
        "default_permissions" | "" => {}
        "ro" if request.upper.is_none() => {}
        "rw" if request.upper.is_some() => {}
        "ro" => {
            return Err(Failure::usage(
                "--upper and --tmp make the mount writable; leave out the option ro, or them",
            ));
        }
        "rw" => {
            return Err(Failure::usage(
                "an image is read-only; for a writable mount give --upper DIR or --tmp",
            ));
        }
        other => {
            return Err(Failure::usage(format!(
                "mount option `{other}` is not known (suid, dev, noexec, allow_other are)"
            )));
        }
    }
    Ok(())
}

/// Waits for a foreground worker; signals end the mount, not just this process.
fn wait(mut child: Child, mut stop: &UnixStream) -> Result<ExitCode, Failure> {
    loop {
        if let Some(status) = child.try_wait().map_err(|e| Failure::of(&e))? {
            return Ok(if status.success() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        if matches!(stop.read(&mut [0; 64]), Ok(1..))
            && let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed())
        {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        std::thread::sleep(GLANCE);
    }
}

pub(crate) fn umount(args: &UmountArgs) -> Result<(), Failure> {
    let path = mountpoint::absolute(&args.mountpoint).map_err(|e| Failure::of(&e))?;
    let known = record::find(&path).map_err(|e| Failure::of(&e))?;
    if let Some(ended) = known
        .as_ref()
        .filter(|r| r.state == record::State::Poisoned)
        && !mountpoint::is_mounted(&path)
    {
        record::forget(ended);
        return Ok(());
    }
    mountpoint::unmount(&path, args.lazy).map_err(|e| Failure::of(&e))?;
    match known {
        Some(dead) if dead.state == record::State::Dead => record::forget(&dead),
        Some(_) if !args.lazy => record::wait_until_gone(&path),
        _ => {}
    }
    Ok(())
}
