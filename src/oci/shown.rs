//! What messages show of texts that somebody else wrote.

/// Characters of such a text that are shown.
const CHARS_MAX: usize = 160;

/// The beginning of `text`, which may be long and hold anything, in one line: a message must neither move a
/// terminal's cursor nor look like two.
pub(super) fn shown(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(CHARS_MAX).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_short_and_in_one_line() {
        assert_eq!(
            shown("a\n\u{1b}[2Jb\u{9b}c"),
            "a\u{fffd}\u{fffd}[2Jb\u{fffd}c"
        );
        assert_eq!(shown(&"ä".repeat(1000)), "ä".repeat(CHARS_MAX));
    }
}
