//! `rsmount bench`: cold starts, each in a fresh process on a cache of its own, interleaved, so that
//! what else the machine does hits all modes alike.

mod numbers;
mod picture;
mod start;
mod stop;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;

use crate::cache::Cache;
use crate::cli::args::Global;
use crate::cli::args::look::{BenchArgs, Mode, Peer};
use crate::cli::bench::numbers::{LeftOut, Measured, Row, Start, seconds};
use crate::cli::bench::start::{Job, Podman};
use crate::cli::bench::stop::Stop;
use crate::cli::mount::source_request;
use crate::cli::output::{self, Failure, size};
use crate::cli::settings::Settings;
use crate::mount::defaults::{Defaults, defaults};
use crate::mount::{MountRequest, TrustIndex, explain};

/// Search path of an image that names none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A directory that is removed with everything in it.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Scratch, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let path = parent.join(format!("rsmount-bench.{}", std::process::id()));
        let path = std::path::absolute(path).map_err(|e| Failure::of(&e))?;
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|e| {
            Failure::new(format!(
                "{}: {e}; choose another with --scratch",
                path.display()
            ))
        })?;
        std::fs::create_dir(path.join("mnt")).map_err(|e| Failure::of(&e))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _best_effort = std::fs::remove_dir_all(&self.0);
    }
}

/// A mode or another tool.
enum Way {
    Mode(Mode),
    Podman(Podman),
}

impl Way {
    fn name(&self) -> String {
        match self {
            Way::Mode(mode) => mode_name(*mode),
            Way::Podman(_) => "podman".to_owned(),
        }
    }
}

fn mode_name(mode: Mode) -> String {
    let named = mode.to_possible_value();
    named.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// What all starts share.
struct Bench<'a> {
    scratch: Scratch,
    request: MountRequest,
    job: Job,
    drops: bool,
    stop: &'a Stop,
}

/// A signal ends it early: then nothing is left of it either, and the exit code says which it was.
pub(crate) fn bench(
    args: &BenchArgs,
    global: &Global,
    settings: Settings,
) -> Result<ExitCode, Failure> {
    let stop = Stop::register().map_err(|e| Failure::of(&e))?;
    let outcome = run(args, global, settings, &stop);
    match stop.exit_code() {
        Some(code) => Ok(ExitCode::from(code)),
        None => outcome.map(|()| ExitCode::SUCCESS),
    }
}

fn run(args: &BenchArgs, global: &Global, settings: Settings, stop: &Stop) -> Result<(), Failure> {
    if let Some(report) = &args.report {
        picture::check_name(report)?;
    }
    let scratch = Scratch::new(&args.scratch)?;
    let mut request = source_request(&args.source, settings)?;
    request.foreground = false;
    request.mountpoint = scratch.0.join("mnt");
    request.cache_dir = scratch.0.join("look");
    let asked = request.clone();
    let found = stop.during(move || defaults(&asked))?;
    let found = found.map_err(|e| Failure::of(&e))?;
    let mut environment = vec![PATH.to_owned(), "HOME=/root".to_owned()];
    environment.extend(found.environment.iter().cloned());
    let bench = Bench {
        drops: may_drop_caches(),
        scratch,
        request,
        job: Job {
            command: args.command.clone(),
            environment,
        },
        stop,
    };
    if !bench.drops && !global.quiet {
        output::note("only root may drop the page cache: starts are warmer than cold ones");
    }
    let (ways, mut left_out) = bench.ways(args)?;
    let modes = bench.measure(&ways, &mut left_out, args.runs, global.quiet)?;
    drop(ways);
    let measured = bench.measured(found, args.runs, modes, left_out);
    if let Some(report) = &args.report {
        picture::write(report, &measured)?;
    }
    match args.json {
        true => output::json(&measured),
        false => {
            print(&measured);
            Ok(())
        }
    }
}

/// Says what is left out, and why.
fn tell(LeftOut { mode, why }: &LeftOut) {
    output::note(&format!("{mode} is left out: {why}"));
}

/// The kernel's page cache belongs to everybody (the kernel's Documentation, sysctl/vm).
fn may_drop_caches() -> bool {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open("/proc/sys/vm/drop_caches");
    rustix::process::geteuid().is_root() && file.is_ok()
}

impl Bench<'_> {
    fn measured(
        &self,
        found: Defaults,
        runs: u32,
        modes: Vec<Row>,
        left_out: Vec<LeftOut>,
    ) -> Measured {
        Measured {
            image: self.request.image.clone(),
            digest: found.digest,
            platform: found.platform,
            compressed_bytes: found.compressed_bytes,
            command: self.job.command.clone(),
            runs,
            page_cache_dropped: self.drops,
            modes,
            left_out,
        }
    }

    /// What is measured, and what is left out.
    fn ways(&self, args: &BenchArgs) -> Result<(Vec<Way>, Vec<LeftOut>), Failure> {
        let (mut ways, mut left_out) = (Vec::new(), Vec::new());
        let distinct: BTreeSet<String> = args.modes.iter().map(|m| mode_name(*m)).collect();
        for mode in Mode::value_variants() {
            let name = mode_name(*mode);
            if !distinct.contains(&name) {
                continue;
            }
            let pack = match mode {
                Mode::Packed => self.pack()?,
                _ => Ok(()),
            };
            match pack {
                Ok(()) => ways.push(Way::Mode(*mode)),
                Err(why) => left_out.push(LeftOut { mode: name, why }),
            }
        }
        if args.vs.contains(&Peer::Podman) {
            let plain = self.is_plain();
            match Podman::version() {
                Ok(()) => {
                    let podman = Podman::new(&self.scratch.0, &self.request.image, plain);
                    ways.insert(0, Way::Podman(podman));
                }
                Err(why) => left_out.push(LeftOut {
                    mode: "podman".to_owned(),
                    why,
                }),
            }
        }
        for left in &left_out {
            tell(left);
        }
        if ways.is_empty() {
            return Err(Failure::new("nothing is left to measure"));
        }
        Ok((ways, left_out))
    }

    /// Whether a start would use a pack; the error says why not.
    fn pack(&self) -> Result<Result<(), String>, Failure> {
        let request = self.request.clone();
        let explained = self.stop.during(move || explain::explain(&request))?;
        Ok(match explained {
            Ok(explained) if explained.pack.used => Ok(()),
            Ok(explained) => Err(explained.pack.why),
            Err(error) => Err(error.to_string()),
        })
    }

    fn is_plain(&self) -> bool {
        let host = self.request.image.split('/').next().unwrap_or_default();
        let name = host.split(':').next().unwrap_or_default();
        let insecure = self.request.insecure_registries.iter();
        name == "localhost" || name.starts_with("127.") || insecure.into_iter().any(|i| i == host)
    }

    /// Another tool that fails is left out from then on; the numbers of the modes are worth having.
    fn measure(
        &self,
        ways: &[Way],
        left_out: &mut Vec<LeftOut>,
        runs: u32,
        quiet: bool,
    ) -> Result<Vec<Row>, Failure> {
        for way in ways {
            self.prepare(way)?;
        }
        let mut measured: Vec<(&Way, Vec<Start>)> = ways.iter().map(|w| (w, Vec::new())).collect();
        for run in 1..=runs {
            let mut failed = None;
            for (number, (way, starts)) in measured.iter_mut().enumerate() {
                let start = match self.start(way) {
                    Err(failure) if self.may_be_left_out(way) => {
                        failed = Some(number);
                        let left = LeftOut {
                            mode: way.name(),
                            why: failure.message().to_owned(),
                        };
                        tell(&left);
                        left_out.push(left);
                        continue;
                    }
                    start => start.map_err(|failure| failure.within(&way.name()))?,
                };
                if !quiet {
                    let ready = seconds(start.ready);
                    output::note(&format!("run {run} of {runs}: {}: {ready}", way.name()));
                }
                starts.push(start);
            }
            if let Some(number) = failed {
                measured.remove(number);
            }
        }
        if measured.is_empty() {
            return Err(Failure::new("nothing is left to measure"));
        }
        let rows = measured.into_iter();
        Ok(rows
            .map(|(way, starts)| Row::new(&way.name(), starts))
            .collect())
    }

    /// A failure of our own is one of the measurement, and a signal ends that.
    fn may_be_left_out(&self, way: &Way) -> bool {
        matches!(way, Way::Podman(_)) && self.stop.exit_code().is_none()
    }

    fn cache_dir(&self, mode: Mode) -> PathBuf {
        self.scratch.0.join(mode_name(mode))
    }

    fn request(&self, mode: Mode) -> MountRequest {
        let mut request = self.request.clone();
        request.cache_dir = self.cache_dir(mode);
        if mode != Mode::Packed {
            request.trust_index = TrustIndex::Local;
        }
        request
    }

    /// Makes known what has to be known before the first start.
    fn prepare(&self, way: &Way) -> Result<(), Failure> {
        let (mode, job) = match way {
            Way::Mode(mode @ Mode::Indexed) => (*mode, None),
            Way::Mode(mode @ (Mode::Profiled | Mode::Warm)) => (*mode, Some(&self.job)),
            Way::Mode(Mode::FirstContact | Mode::Packed) | Way::Podman(_) => return Ok(()),
        };
        let prepared = start::mounted(&self.request(mode), job, self.stop);
        prepared
            .map(drop)
            .map_err(|failure| failure.within(&way.name()))
    }

    /// Forgets what must not be known, and starts.
    fn start(&self, way: &Way) -> Result<Start, Failure> {
        let mode = match way {
            Way::Mode(mode) => *mode,
            Way::Podman(podman) => {
                self.drop_caches();
                return podman.start(&self.job, self.stop);
            }
        };
        let directory = self.cache_dir(mode);
        match mode {
            Mode::FirstContact | Mode::Packed => {
                let _none_yet = std::fs::remove_dir_all(&directory);
            }
            Mode::Indexed | Mode::Profiled => {
                let cache = Cache::open(&directory).map_err(|e| Failure::of(&e))?;
                cache.prune_data(true).map_err(|e| Failure::of(&e))?;
                if mode == Mode::Indexed {
                    cache.forget_profiles().map_err(|e| Failure::of(&e))?;
                }
            }
            Mode::Warm => {}
        }
        if mode != Mode::Warm {
            self.drop_caches();
        }
        start::mounted(&self.request(mode), Some(&self.job), self.stop)
    }

    fn drop_caches(&self) {
        if self.drops {
            // Dirty pages cannot be dropped.
            rustix::fs::sync();
            let _not_allowed = std::fs::write("/proc/sys/vm/drop_caches", "3");
        }
    }
}

fn print(measured: &Measured) {
    output::line(&format!(
        "{}, {} of layers, `{}`, medians of {}",
        measured.image,
        size(measured.compressed_bytes),
        measured.shown_command(),
        measured.runs,
    ));
    output::line("");
    let base = measured.base();
    let against = base.map_or_else(String::new, |row| format!("AGAINST {}", row.mode));
    let headings = [
        "MODE",
        "RESOLVED",
        "USABLE",
        "FIRST BYTE",
        "READY",
        "SPREAD",
        "FETCHED",
        "REQUESTS",
        &against,
    ];
    let row = |row: &Row| {
        let shown =
            |time: Option<std::time::Duration>| time.map_or_else(|| "-".to_owned(), seconds);
        let (median, spread) = (&row.median, &row.spread);
        let times = base.map_or(1.0, |base| {
            base.median.ready.as_secs_f64() / median.ready.as_secs_f64().max(1e-9)
        });
        vec![
            row.mode.clone(),
            shown(median.resolved),
            seconds(median.usable),
            shown(median.first_byte),
            seconds(median.ready),
            format!(
                "{:.3}–{:.3} s",
                spread.min.as_secs_f64(),
                spread.max.as_secs_f64()
            ),
            median.fetched_bytes.map_or_else(|| "-".to_owned(), size),
            median
                .requests
                .map_or_else(|| "-".to_owned(), |n| n.to_string()),
            format!("{times:.2} x"),
        ]
    };
    output::table(
        &headings,
        &measured.modes.iter().map(row).collect::<Vec<_>>(),
    );
}
