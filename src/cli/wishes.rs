//! From the arguments of `run` and `bundle` to what a container's process is to have.

use std::path::Path;

use crate::cli::args::container::ProcessArgs;
use crate::cli::output::Failure;
use crate::container::prepare::{SHM_BYTES, Wishes};
use crate::container::volume::{self, Volume};
use crate::runtime::Limits;
use crate::runtime::seccomp::{PROFILE_BYTES_MAX, Seccomp};

pub(super) fn wishes(args: &ProcessArgs, command: &[String]) -> Result<Wishes, Failure> {
    if let Some(ports) = args.publish.first() {
        return Err(Failure::usage(format!(
            "-p {ports}: ports are not published here; with --network host (the default) the \
             container's ports are this machine's, so leave -p out"
        )));
    }
    let here = std::env::current_dir().map_err(|e| Failure::of(&e))?;
    let volumes = args.volume.iter().map(|v| Volume::parse(v, &here));
    let tmpfs = args.tmpfs.iter().map(|t| volume::tmpfs(t));
    let (no_new_privileges, seccomp) = security(&args.security_opt)?;
    let hosts = args.add_host.iter().map(|host| extra_host(host));
    Ok(Wishes {
        entrypoint: args.entrypoint.clone(),
        command: command.to_vec(),
        env: variables(&args.env_file, &args.env)?,
        working_dir: args.workdir.clone(),
        user: args.user.clone(),
        groups: args.group_add.clone(),
        hostname: args.hostname.clone(),
        hosts: hosts.collect::<Result<_, _>>()?,
        network: args.network.into(),
        volumes: volumes
            .collect::<Result<_, _>>()
            .map_err(|e| Failure::of(&e))?,
        tmpfs: tmpfs
            .collect::<Result<_, _>>()
            .map_err(|e| Failure::of(&e))?,
        read_only: args.read_only,
        limits: Limits {
            memory: args.memory,
            millicpus: args.cpus,
            // None, as in Docker.
            pids: args.pids_limit.filter(|most| *most > 0),
        },
        shm_bytes: args.shm_size.unwrap_or(SHM_BYTES),
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        no_new_privileges,
        seccomp,
        stop_signal: args.stop_signal.clone(),
        terminal: args.tty,
    })
}

/// `NAME:ADDRESS` or, as newer docker takes it, `NAME=ADDRESS`. With this machine's network its gateway
/// is the machine itself.
fn extra_host(text: &str) -> Result<String, Failure> {
    let bad = |why: &str| Failure::usage(format!("--add-host {text}: {why}"));
    let parts = text.split_once('=').or_else(|| text.split_once(':'));
    let Some((name, address)) = parts.filter(|(name, _)| !name.is_empty()) else {
        return Err(bad("expected NAME:ADDRESS"));
    };
    if name.contains(char::is_whitespace) {
        return Err(bad("a name holds no white space"));
    }
    if address == "host-gateway" {
        return Ok(format!("{name}:127.0.0.1"));
    }
    let inner = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
    let address: std::net::IpAddr = inner
        .unwrap_or(address)
        .parse()
        .map_err(|_| bad("the address is no IP address (10.0.0.5, ::1, host-gateway)"))?;
    Ok(format!("{name}:{address}"))
}

/// Those of the files, then those of the command line; a name alone is looked up here, and when it
/// is not set here it is taken away from the container.
pub(super) fn variables(
    files: &[std::path::PathBuf],
    given: &[String],
) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    for path in files {
        let text = read(path)?;
        let lines = text.lines().map(str::trim_start);
        for line in lines.filter(|l| !l.is_empty() && !l.starts_with('#')) {
            all.push(variable(line)?);
        }
    }
    for text in given {
        all.push(variable(text)?);
    }
    Ok(all)
}

fn variable(text: &str) -> Result<String, Failure> {
    let name = text.split('=').next().unwrap_or_default();
    if name.is_empty() || name.contains(char::is_whitespace) || text.contains('\0') {
        return Err(Failure::usage(format!("`{text}` is no NAME=VALUE")));
    }
    if name.len() < text.len() {
        return Ok(text.to_owned());
    }
    let here = std::env::var(name).ok();
    Ok(here.map_or_else(|| name.to_owned(), |value| format!("{name}={value}")))
}

fn security(options: &[String]) -> Result<(bool, Seccomp), Failure> {
    let (mut no_new_privileges, mut seccomp) = (false, Seccomp::Default);
    for option in options {
        match option.as_str() {
            "no-new-privileges" | "no-new-privileges=true" | "no-new-privileges:true" => {
                no_new_privileges = true;
            }
            "no-new-privileges=false" | "no-new-privileges:false" => no_new_privileges = false,
            "seccomp=unconfined" | "seccomp:unconfined" => seccomp = Seccomp::Unconfined,
            other => match other.strip_prefix("seccomp=") {
                Some(path) => seccomp = Seccomp::Profile(read(Path::new(path))?),
                None => {
                    return Err(Failure::usage(format!(
                        "--security-opt {other}: expected no-new-privileges, seccomp=unconfined \
                         or seccomp=FILE"
                    )));
                }
            },
        }
    }
    Ok((no_new_privileges, seccomp))
}

fn read(path: &Path) -> Result<String, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new(format!("{}: {e}", path.display()));
    let length = path.metadata().map_err(|e| failed(&e))?.len();
    if length > PROFILE_BYTES_MAX {
        return Err(failed(&"too long"));
    }
    std::fs::read_to_string(path).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_files_and_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(
            &file,
            "# a comment\n\n  A=1\nB=two words\nRSMOUNT_NO_SUCH\n",
        )
        .unwrap();
        let all = variables(std::slice::from_ref(&file), &["B=3".into()]).unwrap();
        assert_eq!(all, ["A=1", "B=two words", "RSMOUNT_NO_SUCH", "B=3"]);
        std::fs::write(&file, "A B=1\n").unwrap();
        assert!(variables(&[file], &[]).is_err());
        assert!(variables(&[], &["=1".into()]).is_err());
        assert!(variables(&["/none/such".into()], &[]).is_err());
    }

    #[test]
    fn extra_hosts_are_addresses() {
        for (text, expected) in [
            ("db:10.0.0.5", "db:10.0.0.5"),
            ("db=10.0.0.5", "db:10.0.0.5"),
            ("six:::1", "six:::1"),
            ("six:[2001:db8::1]", "six:2001:db8::1"),
            (
                "host.docker.internal:host-gateway",
                "host.docker.internal:127.0.0.1",
            ),
        ] {
            assert_eq!(extra_host(text).unwrap(), expected);
        }
        for wrong in [
            "db",
            ":1.2.3.4",
            "db:",
            "db:other",
            "a b:1.2.3.4",
            "db:1.2.3.4\n6.6.6.6 x",
        ] {
            assert!(extra_host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn security_options_are_read() {
        let of = |text: &str| security(&[text.to_owned()]);
        assert!(of("no-new-privileges").unwrap().0);
        assert_eq!(of("seccomp=unconfined").unwrap().1, Seccomp::Unconfined);
        assert!(of("seccomp=/none/such").is_err());
        assert!(of("apparmor=x").is_err());
    }
}
