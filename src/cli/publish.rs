//! `rsmount publish` and `rsmount explain`.

use std::path::Path;
use std::sync::Arc;

use crate::cli::args::{Global, SourceArgs};
use crate::cli::key;
use crate::cli::mount::source_request;
use crate::cli::output::{self, Failure, one_line, size};
use crate::cli::progress::Shown;
use crate::cli::settings::Settings;
use crate::mount::explain::{self, Explanation, Pack};
use crate::mount::publish;
use crate::registry::HostUse;

pub(crate) fn publish(
    args: &SourceArgs,
    (key, force, json): (Option<&Path>, bool, bool),
    global: &Global,
    settings: Settings,
) -> Result<(), Failure> {
    let key = key.map(key::secret).transpose()?;
    let request = source_request(args, settings)?;
    let shown = Arc::new(Shown::new(global.quiet));
    let done = publish::publish(request, key.as_ref(), force, shown.clone());
    shown.finish();
    let done = done.map_err(|e| Failure::of(&e))?;
    if json {
        return output::json(&done);
    }
    let signed = done.signer.as_ref();
    let signed = signed.map_or_else(String::new, |key| format!("\n  signed   by key {key}"));
    output::line(&format!(
        "{}\n  tag      {}{signed}\n  indexes  {}\n  hot      {} ({} unpacked)\n  windows  {}",
        done.pack,
        done.tag,
        size(done.meta_bytes),
        size(done.hot_bytes),
        size(done.hot_address_bytes),
        size(done.window_bytes),
    ));
    if done.hot_bytes == 0 {
        output::note(
            "no start of this image was recorded here, so the pack has no hot pages; mount it, \
             run what it is for, unmount it and publish again",
        );
    }
    Ok(())
}

pub(crate) fn explain(args: &SourceArgs, json: bool, settings: Settings) -> Result<(), Failure> {
    let request = source_request(args, settings)?;
    let explanation = explain::explain(&request).map_err(|e| Failure::of(&e))?;
    if json {
        return output::json(&explanation);
    }
    print(&explanation);
    Ok(())
}

fn print(e: &Explanation) {
    let platform = one_line(&e.platform);
    let mut text = format!(
        "{} {platform}\n  digest   {}\n",
        one_line(&e.image),
        e.digest
    );
    for layer in &e.layers {
        let known = match layer.by {
            "index" => format!(
                "indexed here, {} of {} present",
                size(layer.present_bytes),
                size(layer.address_bytes.unwrap_or(0))
            ),
            "pack" => "known by the pack".to_owned(),
            _ => "unknown: a mount streams it first".to_owned(),
        };
        let slow = match (layer.from_start, layer.compression) {
            (true, _) => "; one zstd frame, decoded from its start but for a pack's hot pages",
            (false, Some("zstd")) => "; read by whole zstd frames, which cannot be cut anew",
            _ if layer.narrow => "; cut anew for what starts touch",
            _ => "",
        };
        let digest = layer.digest.get(..19).unwrap_or(&layer.digest);
        text += &format!(
            "  layer    {digest}  {:>9}  {known}{slow}\n",
            size(layer.size)
        );
    }
    for host in &e.hosts {
        text += &format!("  host     {}\n", used(host));
    }
    text += &match e.profile_bytes {
        0 => "  profile  none: no start was recorded here\n".to_owned(),
        bytes => format!("  profile  {} touched by earlier starts\n", size(bytes)),
    };
    for run in &e.commands {
        let words = output::shell_words(&run.command);
        text += &format!("           {} by `{words}`\n", size(run.profile_bytes));
    }
    text += &pack(&e.pack);
    output::line(text.trim_end());
}

/// What a host may be asked, and what came of it.
pub(super) fn used(host: &HostUse) -> String {
    let mut text = format!("{} may {}", host.host, host.capabilities.join(", "));
    text += &match host.answers {
        0 => "; not asked, or without an answer".to_owned(),
        answers => format!("; {answers} answers"),
    };
    if host.blob_bytes > 0 {
        text += &format!(", {} of blobs", size(host.blob_bytes));
    }
    if host.failures > 0 {
        text += &format!(", {} failures", host.failures);
    }
    text
}

fn pack(pack: &Pack) -> String {
    let Some(digest) = &pack.digest else {
        return format!("  pack     not used: {}\n", one_line(&pack.why));
    };
    let mut text = format!("  pack     {digest}\n");
    if !pack.signers.is_empty() {
        let keys = one_line(&pack.signers.join(", "));
        text += &format!("           says that it is signed by {keys}\n");
    }
    let word = match (pack.trusted, pack.used) {
        (true, true) => "trusted and used",
        (true, false) => "trusted, not used",
        (false, _) => "not trusted, not used",
    };
    text += &format!("           {word}: {}\n", one_line(&pack.why));
    if pack.trusted {
        text += &format!("           {} of hot pages\n", size(pack.hot_bytes));
    }
    text
}
