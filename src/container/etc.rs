//! The three files that a container gets from its host, as Docker makes them: `/etc/hosts`,
//! `/etc/hostname`, `/etc/resolv.conf`. They stand beside the container's record and are mounted over
//! the image's.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::runtime::{Bind, Network};

/// Names of this machine that hold in every network (Docker's file for containers without one).
const LOOPBACK: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";

/// The files' names in `/etc` and beside the record.
const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// What goes into the files.
#[derive(Debug)]
pub(super) struct Names<'a> {
    /// Of the container.
    pub(super) hostname: &'a str,
    /// What it can reach.
    pub(super) network: Network,
    /// `NAME:ADDRESS`.
    pub(super) hosts: &'a [String],
}

/// Writes the files into `dir`; gives where they are to be mounted.
pub(super) fn write(dir: &Path, names: &Names<'_>) -> io::Result<Vec<Bind>> {
    let host = |name: &str| std::fs::read_to_string(Path::new("/etc").join(name));
    let resolv = host("resolv.conf").unwrap_or_default();
    let texts = [
        hosts(names, &host("hosts").unwrap_or_default()),
        format!("{}\n", names.hostname),
        resolv,
    ];
    let mut binds = Vec::with_capacity(NAMES.len());
    for (name, text) in NAMES.iter().zip(texts) {
        let source = dir.join(name);
        std::fs::write(&source, text)?;
        // For all users of the container, whatever the umask of who makes it.
        std::fs::set_permissions(&source, PermissionsExt::from_mode(0o644))?;
        binds.push(Bind {
            source,
            destination: Path::new("/etc").join(name),
            read_only: false,
        });
    }
    Ok(binds)
}

/// With the host's network its names count as well. The container's own name leads to itself.
fn hosts(names: &Names<'_>, of_host: &str) -> String {
    let mut text = match names.network {
        Network::Host if !of_host.trim().is_empty() => of_host.to_owned(),
        _ => LOOPBACK.to_owned(),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    for extra in names.hosts {
        if let Some((name, address)) = extra.split_once(':') {
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
    let mut known = text
        .lines()
        .flat_map(|line| line.split_whitespace().skip(1));
    if !known.any(|name| name == names.hostname) {
        text.push_str(&format!("127.0.0.1\t{}\n", names.hostname));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_decides_whose_names_count() {
        let extra = ["db:10.0.0.5".to_owned()];
        let mut names = Names {
            hostname: "box",
            network: Network::Host,
            hosts: &extra,
        };
        let text = hosts(&names, "10.1.1.1 intranet");
        assert_eq!(text, "10.1.1.1 intranet\n10.0.0.5\tdb\n127.0.0.1\tbox\n");
        assert!(!hosts(&names, "127.0.1.1 box\n").ends_with("127.0.0.1\tbox\n"));
        names.network = Network::None;
        let text = hosts(&names, "10.1.1.1 intranet");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n") && !text.contains("intranet"));
    }
}
