//! `rsmount doctor`.

use std::process::ExitCode;

use crate::cli::args::ReachArgs;
use crate::cli::args::look::DoctorArgs;
use crate::cli::mount::reach_request;
use crate::cli::output::{self, Failure};
use crate::cli::settings::Settings;
use crate::mount::doctor::{self, Check, Verdict};

pub(crate) fn doctor(args: &DoctorArgs, settings: Settings) -> Result<ExitCode, Failure> {
    let reach = ReachArgs {
        insecure_registry: args.insecure_registry.clone(),
        ca_file: args.ca_file.clone(),
        hosts_dir: args.hosts_dir.clone(),
        ..ReachArgs::default()
    };
    let image = args.image.as_deref().unwrap_or_default();
    let request = reach_request(image, &reach, settings)?;
    let checks = doctor::examine(&request);
    if args.json {
        output::json(&checks)?;
    } else {
        print(&checks);
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(match failed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn print(checks: &[Check]) {
    let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    for check in checks {
        let word = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        let advice = check.advice.as_ref();
        let advice = advice.map_or_else(String::new, |advice| format!(": {advice}"));
        let line = format!("{word:4}  {:width$}  {}{advice}", check.name, check.found);
        output::line(&output::one_line(&line));
    }
}
