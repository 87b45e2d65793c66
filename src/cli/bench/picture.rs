//! The picture of a measurement: one bar a mode, cut into stages, as an SVG or a page around it. Both
//! stand alone: no script, no font, nothing from outside.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::cli::bench::numbers::{Measured, Row, seconds};
use crate::cli::output::{Failure, size};

const WIDTH: f64 = 900.0;
/// Where bars begin: names stand before.
const LEFT: f64 = 130.0;
/// Behind the longest bar: its number.
const RIGHT: f64 = 210.0;
const TOP: f64 = 64.0;
const ROW: f64 = 46.0;
const BAR: f64 = 22.0;

/// What a start goes through: name, class, explanation. The last one is that of other tools, which
/// say only when they have pulled.
const STAGES: [(&str, &str, &str); 5] = [
    ("resolve", "a", "from the name to the manifest"),
    ("index", "b", "until the image can be used"),
    (
        "first byte",
        "c",
        "until a reader has the first bytes of a file",
    ),
    ("run", "d", "until the command has ended"),
    ("pull", "e", "until the image was pulled and unpacked"),
];

const INDEX: usize = 1;
const PULL: usize = 4;

/// Colours that people with any kind of colour vision can tell apart, in light and in dark.
const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}\
.n{font-weight:600}.q{fill:#59636e;font-size:12px}.t{fill:#59636e;font-size:11px}\
.g{stroke:#d1d9e0;stroke-width:1}.w{stroke:#1f2328;stroke-width:1.5;fill:none}\
.a{fill:#8a63d2}.b{fill:#e08a1e}.c{fill:#d6457a}.d{fill:#2f81c7}.e{fill:#8c959f}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.q,.t{fill:#9198a1}.g{stroke:#3d444d}\
.w{stroke:#e6edf3}.a{fill:#a98be6}.b{fill:#eea94f}.c{fill:#ee7aa3}.d{fill:#58a6e8}.e{fill:#767e87}}";

/// Refuses a name that says neither of the two kinds, before anything is measured.
pub(super) fn check_name(path: &Path) -> Result<(), Failure> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("html" | "svg") => Ok(()),
        _ => Err(Failure::new(format!(
            "{}: a report is a .html or a .svg",
            path.display()
        ))),
    }
}

/// Writes the picture.
pub(super) fn write(path: &Path, measured: &Measured) -> Result<(), Failure> {
    let svg = svg(measured);
    let text = match path.extension().and_then(|e| e.to_str()) {
        Some("html") => page(measured, &svg),
        _ => format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{svg}"),
    };
    std::fs::write(path, text).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A round number of seconds so that at most eight of them make up `longest`.
fn tick(longest: f64) -> f64 {
    let rough = (longest / 8.0).max(1e-6);
    let power = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps.into_iter().find(|step| step * power >= rough);
    step.unwrap_or(10.0) * power
}

/// The stages of a row: class, name, and from when to when. What is not known belongs to the next.
fn stages(row: &Row) -> Vec<(usize, f64, f64)> {
    let median = &row.median;
    // Medians of single numbers need not be in order.
    let ready = median.ready.as_secs_f64();
    let ends: [Option<Duration>; 4] = [
        median.resolved,
        Some(median.usable),
        median.first_byte,
        Some(median.ready),
    ];
    let (mut from, mut out) = (0.0, Vec::new());
    for (stage, end) in ends.into_iter().enumerate() {
        let Some(end) = end else { continue };
        let end = end.as_secs_f64().clamp(from, ready.max(from));
        let stage = match (stage, median.resolved) {
            (INDEX, None) => PULL,
            _ => stage,
        };
        out.push((stage, from, end));
        from = end;
    }
    out
}

fn svg(measured: &Measured) -> String {
    let rows = &measured.modes;
    let longest = rows.iter().map(|r| r.spread.max.as_secs_f64());
    let longest = longest.fold(0.001, f64::max);
    let x = |seconds: f64| LEFT + seconds / longest * (WIDTH - LEFT - RIGHT);
    let bottom = TOP + ROW * rows.len() as f64;
    let height = bottom + 34.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n",
        escape(&format!("Cold starts of {}", measured.image))
    );
    let mut at = LEFT;
    let shown = |stage: usize| {
        rows.iter()
            .any(|row| stages(row).iter().any(|s| s.0 == stage))
    };
    for (_, (name, class, what)) in (0..).zip(STAGES).filter(|(stage, _)| shown(*stage)) {
        let _infallible = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{at}\" y=\"14\" width=\"12\" height=\"12\" rx=\"2\"/>\
             <text x=\"{}\" y=\"25\"><title>{what}</title>{name}</text>",
            at + 18.0
        );
        at += 46.0 + 7.5 * name.len() as f64;
    }
    let _infallible = writeln!(
        out,
        "<path class=\"w\" d=\"M{at} 15v10M{at} 20h26M{} 15v10\"/>\
         <text x=\"{}\" y=\"25\">quickest to slowest</text>",
        at + 26.0,
        at + 34.0
    );
    let step = tick(longest);
    let decimals = if step < 0.1 {
        2
    } else {
        usize::from(step < 1.0)
    };
    for n in 0..=(longest / step) as u32 {
        let (value, at) = (f64::from(n) * step, x(f64::from(n) * step));
        let _infallible = writeln!(
            out,
            "<path class=\"g\" d=\"M{at:.1} {}V{bottom}\"/>\
             <text class=\"t\" x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{value:.decimals$} s</text>",
            TOP - 14.0,
            bottom + 18.0
        );
    }
    for (n, row) in rows.iter().enumerate() {
        bar(&mut out, measured, row, TOP + ROW * n as f64, &x);
    }
    out + "</svg>\n"
}

fn bar(out: &mut String, measured: &Measured, row: &Row, top: f64, x: &dyn Fn(f64) -> f64) {
    let middle = top + BAR / 2.0;
    let _infallible = writeln!(
        out,
        "<text class=\"n\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        LEFT - 12.0,
        middle + 4.5,
        escape(&row.mode)
    );
    for (stage, from, end) in stages(row) {
        let (name, class, _) = STAGES[stage];
        let _infallible = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{BAR}\">\
             <title>{name}: {:.3} s</title></rect>",
            x(from),
            (x(end) - x(from)).max(0.0),
            end - from
        );
    }
    let (min, max) = (row.spread.min.as_secs_f64(), row.spread.max.as_secs_f64());
    if row.starts.len() > 1 {
        let _infallible = writeln!(
            out,
            "<path class=\"w\" d=\"M{0:.1} {1}v10M{0:.1} {2}H{3:.1}M{3:.1} {1}v10\"/>",
            x(min),
            middle - 5.0,
            middle,
            x(max)
        );
    }
    let mut notes = String::new();
    if let Some(base) = measured.base().filter(|base| base.mode != row.mode) {
        let times = base.median.ready.as_secs_f64() / row.median.ready.as_secs_f64().max(1e-9);
        notes = format!("{times:.1} × as fast as {}", base.mode);
    }
    if let Some(bytes) = row.median.fetched_bytes.filter(|bytes| *bytes > 0) {
        let separator = if notes.is_empty() { "" } else { " · " };
        notes += &format!("{separator}{}", size(bytes));
    }
    let end = x(max.max(row.median.ready.as_secs_f64())) + 8.0;
    let _infallible = writeln!(
        out,
        "<text class=\"n\" x=\"{end:.1}\" y=\"{}\">{}</text>\
         <text class=\"q\" x=\"{end:.1}\" y=\"{}\">{}</text>",
        middle - 0.5,
        seconds(row.median.ready),
        middle + 14.5,
        escape(&notes)
    );
}

fn page(measured: &Measured, svg: &str) -> String {
    let mut rows = String::new();
    for row in &measured.modes {
        let shown = |time: Option<Duration>| time.map_or_else(|| "–".to_owned(), seconds);
        let (median, spread) = (&row.median, &row.spread);
        let cells = [
            shown(median.resolved),
            seconds(median.usable),
            shown(median.first_byte),
            seconds(median.ready),
            format!("{} – {}", seconds(spread.min), seconds(spread.max)),
            median.fetched_bytes.map_or_else(|| "–".to_owned(), size),
            median
                .requests
                .map_or_else(|| "–".to_owned(), |n| n.to_string()),
        ];
        let cells: String = cells.iter().map(|c| format!("<td>{c}</td>")).collect();
        rows += &format!("<tr><th>{}</th>{cells}</tr>\n", escape(&row.mode));
    }
    let mut notes = vec![format!(
        "medians of {} starts each, interleaved",
        measured.runs
    )];
    notes.push(match measured.page_cache_dropped {
        true => "page cache dropped before each start but the warm ones".to_owned(),
        false => "page cache not dropped".to_owned(),
    });
    for left in &measured.left_out {
        notes.push(format!("{} left out: {}", left.mode, left.why));
    }
    let notes: String = notes
        .iter()
        .map(|n| format!("<li>{}</li>", escape(n)))
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>Cold starts of {image}</title>\n<style>{PAGE_STYLE}</style></head><body>\n\
         <h1>Cold starts of {image}</h1>\n\
         <p><code>{command}</code><br>{digest}, {platform}, {bytes} of layers</p>\n{svg}\
         <table><thead><tr><th></th><th>resolved</th><th>usable</th><th>first byte</th>\
         <th>ready</th><th>quickest – slowest</th><th>fetched</th><th>requests</th></tr></thead>\n\
         <tbody>\n{rows}</tbody></table>\n<ul>{notes}</ul>\n</body></html>\n",
        image = escape(&measured.image),
        command = escape(&measured.shown_command()),
        digest = escape(&measured.digest),
        platform = escape(&measured.platform),
        bytes = size(measured.compressed_bytes),
    )
}

const PAGE_STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:940px;margin:32px auto;padding:0 20px;\
color:#1f2328;background:#fff}h1{font-size:22px;margin:0 0 4px}p{margin:0 0 20px;color:#59636e;\
overflow-wrap:anywhere}code{font:13px ui-monospace,monospace;color:#1f2328}\
svg{width:100%;height:auto;display:block;margin-bottom:20px}\
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%}\
th,td{padding:5px 10px;border-bottom:1px solid #d1d9e0;text-align:right;white-space:nowrap}\
th:first-child{text-align:left}thead th{color:#59636e;font-weight:400}\
ul{font-size:13px;color:#59636e;padding-left:18px}\
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}code{color:#e6edf3}\
p,thead th,ul{color:#9198a1}th,td{border-color:#3d444d}}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::numbers::{LeftOut, Start};

    fn measured() -> Measured {
        let start = |resolved, first_byte, ready| Start {
            resolved,
            usable: Duration::from_millis(300),
            first_byte,
            ready: Duration::from_millis(ready),
            fetched_bytes: resolved.map(|_| 4_000_000),
            requests: resolved.map(|_| 3),
        };
        let ms = |n| Some(Duration::from_millis(n));
        Measured {
            image: "host/<name>:1".to_owned(),
            digest: "sha256:1".to_owned(),
            platform: "linux/amd64".to_owned(),
            compressed_bytes: 96_000_000,
            command: vec!["a".to_owned(), "b & c".to_owned()],
            runs: 2,
            page_cache_dropped: true,
            modes: vec![
                Row::new(
                    "podman",
                    vec![start(None, None, 4000), start(None, None, 5000)],
                ),
                Row::new("packed", vec![start(ms(20), ms(310), 600); 2]),
            ],
            left_out: vec![LeftOut {
                mode: "warm".to_owned(),
                why: "no".to_owned(),
            }],
        }
    }

    #[test]
    fn the_picture_is_whole_and_takes_nothing_from_outside() {
        let measured = measured();
        let svg = svg(&measured);
        let page = page(&measured, &svg);
        for text in [&svg, &page] {
            assert!(text.contains("host/&lt;name&gt;:1"), "{text}");
            assert!(!text.contains("<name>") && !text.contains("<script"));
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !outside.contains("http") && !outside.contains("NaN"),
                "{text}"
            );
        }
        // pull and run; resolve, index, first byte and run.
        let bars = svg.matches("height=\"22\"").count();
        assert_eq!(bars, 2 + 4, "{svg}");
        assert!(svg.contains("8.3 × as fast as podman"), "{svg}");
        assert!(page.contains("a 'b &amp; c'") && page.contains("warm left out: no"));
    }

    #[test]
    fn ticks_are_round() {
        for (longest, expected) in [(4.4, 1.0), (0.9, 0.2), (17.0, 5.0), (0.05, 0.01)] {
            assert!((tick(longest) - expected).abs() < 1e-9, "{longest}");
        }
    }

    #[test]
    fn other_kinds_of_report_are_refused() {
        assert!(check_name(Path::new("a.html")).is_ok());
        assert!(check_name(Path::new("a.png")).is_err());
    }
}
