//! `rsmount why`.

use crate::cli::args::look::WhyArgs;
use crate::cli::list::{self, mount_at};
use crate::cli::output::{self, Failure, size};
use crate::mount::control;
use crate::mount::why::{Avoidable, Wait, Why};

/// Of the table of waits; nothing is said of packs while a wait goes on.
const HEADINGS: [&str; 8] = [
    "WAITED", "AT", "COST", "LAYER", "SPAN", "BYTES", "FILE", "A PACK",
];

pub(crate) fn why(args: &WhyArgs) -> Result<(), Failure> {
    let record = mount_at(&args.mountpoint)?;
    let asked = list::ask_whoever_serves(&record, control::ask_why);
    let why = asked.map_err(|e| {
        let at = record.mountpoint.display();
        Failure::new(format!("{at}: its process does not answer: {e}"))
    })?;
    if args.json {
        return output::json(&why);
    }
    print(&why, args.lines);
    Ok(())
}

fn print(why: &Why, lines: usize) {
    print_waiting(why, lines);
    match (why.stalled_reads, why.waiting.is_empty()) {
        (0, true) => return output::line("no reader has waited for the network"),
        (0, false) => return,
        (_, true) => {}
        (_, false) => output::line(""),
    }
    let mut longest: Vec<&Wait> = why.stalls.iter().collect();
    longest.sort_by_key(|wait| std::cmp::Reverse(wait.waited_us));
    output::line(&format!(
        "{} reads waited for the network, {:.2} s together; the longest {}:",
        why.stalled_reads,
        why.stalled_total_ms as f64 / 1e3,
        lines.min(longest.len()),
    ));
    output::line("");
    let rows: Vec<Vec<String>> = longest.iter().take(lines).map(|wait| row(wait)).collect();
    output::table(&HEADINGS, &rows);
    output::line("");
    for line in advice(why) {
        output::line(&line);
    }
}

/// Who waits now. The longest waits come first: they began first.
fn print_waiting(why: &Why, lines: usize) {
    if why.waiting.is_empty() {
        return;
    }
    let trouble = why.trouble.as_ref();
    let trouble = trouble.map_or_else(String::new, |trouble| format!(" ({trouble})"));
    output::line(&match why.waiting.len() {
        1 => format!("1 read waits for the network now{trouble}:"),
        n => format!(
            "{n} reads wait for the network now{trouble}; the longest {}:",
            lines.min(n)
        ),
    });
    output::line("");
    let row = |wait: &Wait| {
        let mut row = row(wait);
        row.truncate(HEADINGS.len() - 1);
        row
    };
    let rows: Vec<Vec<String>> = why.waiting.iter().take(lines).map(row).collect();
    output::table(&HEADINGS[..HEADINGS.len() - 1], &rows);
}

fn row(wait: &Wait) -> Vec<String> {
    let ms = |us: u64| us as f64 / 1e3;
    let spans = match wait.spans {
        0 | 1 => wait.span_first.to_string(),
        n => format!("{}-{}", wait.span_first, wait.span_first + n - 1),
    };
    let cost = match (&*wait.cause, wait.failed) {
        (_, true) => "failed".to_owned(),
        ("pack", _) => "with the pack".to_owned(),
        ("joined", _) => "asked by another".to_owned(),
        _ => format!("{} in {}", size(wait.bytes), wait.requests),
    };
    let hex = wait.layer.split(':').nth(1).unwrap_or(&wait.layer);
    vec![
        format!("{:.1} ms", ms(wait.waited_us)),
        format!("{:.3} s", ms(wait.at_us) / 1e3),
        cost,
        hex.get(..12).unwrap_or(hex).to_owned(),
        spans,
        format!("{}+{}", wait.offset, wait.len),
        wait.path.clone().unwrap_or_else(|| "-".to_owned()),
        verdict(wait.avoidable).to_owned(),
    ]
}

fn verdict(avoidable: Avoidable) -> &'static str {
    match avoidable {
        Avoidable::Publish => "would avoid it",
        Avoidable::PackOnItsWay => "was bringing it",
        Avoidable::ProfileOnItsWay => "would be sooner",
        Avoidable::TooLate => "would not help",
    }
}

/// What can be done about it, one line a kind of wait.
fn advice(why: &Why) -> Vec<String> {
    let of = |kind| {
        let waits = why.stalls.iter().filter(|w| w.avoidable == kind);
        let (count, us) = waits.fold((0, 0), |(n, us), w| (n + 1, us + w.waited_us));
        (count, format!("{count} waits, {:.2} s", us as f64 / 1e6))
    };
    let name = &why.image;
    let publish = match &why.pack {
        None => format!("a pack would have avoided them: rsmount publish {name}"),
        Some(_) => format!("the pack that is used lacks these pages: rsmount publish {name}"),
    };
    let kinds = [
        (Avoidable::Publish, publish),
        (
            Avoidable::PackOnItsWay,
            "the pack was bringing the pages when the reader came".to_owned(),
        ),
        (
            Avoidable::ProfileOnItsWay,
            format!(
                "an earlier start's profile was fetching them; a pack is faster: rsmount publish {name}"
            ),
        ),
        (
            Avoidable::TooLate,
            "after the first minute, which no profile covers: --fill now fetches the rest"
                .to_owned(),
        ),
    ];
    let said = kinds.into_iter().filter_map(|(kind, text)| {
        let (count, sum) = of(kind);
        (count > 0).then(|| format!("{sum}: {text}"))
    });
    said.collect()
}
