//! A peer's words, for people.

/// A peer's text as it may stand in a log, or on a terminal: in one line, and with nothing that steers a terminal. What
/// can't be printed is written as Rust writes it.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '"' | '\'' | '\\' => plain.push(char),
            char => plain.extend(char.escape_debug()),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_and_what_ends_a_line_or_steers_a_terminal_is_written_out() {
        for text in ["", "the \"table\" is gone: it's C:\\x", "größer, 表"] {
            assert_eq!(plain(text), text);
        }
        assert_eq!(plain("a\nINFO b\r\t\u{1b}[31m"), r"a\nINFO b\r\t\u{1b}[31m");
        assert_eq!(plain("\u{202e}\u{2028}\u{7f}\u{9b}"), r"\u{202e}\u{2028}\u{7f}\u{9b}");
    }
}
