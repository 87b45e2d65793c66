//! `rsmount login` and `rsmount logout`. A secret comes from the terminal, without echo, or from
//! standard input; never from the command line.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use crate::cli::args::image::{LoginArgs, LogoutArgs};
use crate::cli::mount::reach_request;
use crate::cli::output::{self, Failure};
use crate::cli::settings::Settings;
use crate::image::login::{self, Login};
use crate::registry::Secret;
use crate::registry::credentials::Place;

/// Longest password in bytes: tokens have some thousand.
const PASSWORD_BYTES_MAX: u64 = 64 << 10;

pub(crate) fn login(args: &LoginArgs, settings: Settings) -> Result<(), Failure> {
    let host = login::host(args.registry.as_deref()).map_err(|e| Failure::of(&e))?;
    let username = username(args, &host)?;
    let password = match args.password_stdin {
        true => from_stdin()?,
        false => prompt(&host, &username)?,
    };
    if password.is_empty() {
        return Err(Failure::new("the password is empty"));
    }
    let request = reach_request("login", &args.hosts.reach(None), settings)?;
    let done = login::login(Login {
        registry: args.registry.clone(),
        username,
        password: Secret::new(password),
        insecure_registries: request.insecure_registries,
        ca_files: request.ca_files,
        hosts: request.hosts,
    });
    let done = done.map_err(|e| Failure::of(&e))?;
    if !done.checked {
        output::note(&format!(
            "{host} lets everybody in, so it has not looked at the user name and password"
        ));
    }
    output::line(&match &done.place {
        Place::File(path) => format!("Login Succeeded (kept in {})", path.display()),
        Place::Helper(name, _) => format!("Login Succeeded (kept by docker-credential-{name})"),
    });
    if std::env::var_os("RSMOUNT_USERNAME").is_some() {
        output::note("RSMOUNT_USERNAME and RSMOUNT_PASSWORD are set, and go before this login");
    }
    Ok(())
}

fn username(args: &LoginArgs, host: &str) -> Result<String, Failure> {
    if let Some(name) = &args.username {
        return Ok(name.clone());
    }
    if args.password_stdin || !io::stdin().is_terminal() {
        return Err(Failure::new("no user name: give -u NAME"));
    }
    let mut name = String::new();
    let read = io::stderr()
        .write_all(format!("User name for {host}: ").as_bytes())
        .and_then(|()| io::stdin().lock().read_line(&mut name));
    read.map_err(|e| Failure::new(format!("cannot read the user name: {e}")))?;
    match name.trim() {
        "" => Err(Failure::new("the user name is empty")),
        name => Ok(name.to_owned()),
    }
}

/// All of standard input, without the line break at its end.
fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    io::stdin()
        .lock()
        .take(PASSWORD_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|e| Failure::new(format!("cannot read the password: {e}")))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

fn prompt(host: &str, username: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            "no terminal to ask for the password at: give --password-stdin",
        ));
    }
    let read = rpassword::prompt_password(format!("Password of {username} for {host}: "));
    read.map_err(|e| Failure::new(format!("cannot read the password: {e}")))
}

pub(crate) fn logout(args: &LogoutArgs) -> Result<(), Failure> {
    let host = login::host(args.registry.as_deref()).map_err(|e| Failure::of(&e))?;
    let places = login::logout(args.registry.as_deref()).map_err(|e| Failure::of(&e))?;
    if places.is_empty() {
        output::note(&format!("not logged in to {host}"));
    }
    for place in places {
        output::line(&match place {
            Place::File(path) => format!("Login of {host} removed from {}", path.display()),
            Place::Helper(name, _) => {
                format!("Login of {host} removed from docker-credential-{name}")
            }
        });
    }
    Ok(())
}
