//! Text of others (ids, answers, file names, servers' messages) on a terminal or in a log.
//!
//! Nothing of it steers a terminal, changes the order in which a line is read, or begins a line: what could is shown as
//! an escape. So a line that looks like ours is ours.

use std::fmt::Write as _;

/// Text that stays on its line.
pub(crate) fn line(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for char in text.chars() {
        if steers(char) {
            all.extend(char.escape_debug());
        } else {
            all.push(char);
        }
    }
    all
}

/// Text of several lines; each one after the first is indented, so that none of them passes for a line of ours.
pub(crate) fn lines(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for (number, one) in text.split('\n').enumerate() {
        if number > 0 {
            all.push('\n');
            if !one.starts_with("  ") {
                all.push_str("  ");
            }
        }
        all += &line(one);
    }
    all
}

/// A line of JSON, which stays the same JSON: control characters below U+0020 are escaped in it already.
pub(crate) fn json(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for char in text.chars() {
        if steers(char) && char != '\n' {
            // All of them have a code of four digits.
            let _ = write!(all, "\\u{:04x}", u32::from(char));
        } else {
            all.push(char);
        }
    }
    all
}

/// Control characters (escape sequences begin with one), line and paragraph separators, and what turns the direction
/// of writing (Unicode Annex 9; "Trojan Source", Boucher and Anderson, 2021).
fn steers(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{206f}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_and_nothing_begins_a_line() {
        assert_eq!(line("a\u{1b}[31m\r\nb\u{9b}\u{202e}\0é👩‍🔬"), "a\\u{1b}[31m\\r\\nb\\u{9b}\\u{202e}\\0é👩‍🔬");
        assert_eq!(lines("a\nb\r\n  c\n\n"), "a\n  b\\r\n  c\n  \n  ");
        let value = "\u{1b}\u{7f}\u{9b}\u{2066}\n\"ü";
        let logged = json(&serde_json::to_string(value).unwrap());
        assert!(logged.chars().all(|char| !steers(char)), "{logged:?}");
        assert_eq!(serde_json::from_str::<String>(&logged).unwrap(), value);
    }
}
