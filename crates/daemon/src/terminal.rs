//! Makes text from other sources harmless for a terminal.
//!
//! A file, a module, a log or a server may put control characters into a name or a message: a
//! terminal that gets them moves its cursor, hides lines or answers with input. This module escapes
//! them as `\u001b`, as JSON does, so that JSON stays JSON.

use std::borrow::Cow;

/// A text of several lines: line feeds and tabs stay, since the layout uses them.
#[must_use]
pub fn text(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_unsafe(c) && c != '\n' && c != '\t')
}

/// One line of a text, or a value in it: line feeds and tabs are escaped too, so that it cannot
/// look like several lines.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe)
}

/// Prints a command's result on stdout. JSON keeps its meaning.
pub(crate) fn say(what: &str) {
    println!("{}", text(what));
}

/// Prints an error or a warning on stderr.
pub(crate) fn complain(what: &dyn std::fmt::Display) {
    eprintln!("evidenceos-daemon: {}", text(&what.to_string()));
}

/// Control characters (C0, DEL, C1), and those that reorder or break a line without being seen.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}'
        )
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        for (given, shown) in [
            ("plain, é, 漢, 🙂 — ok", "plain, é, 漢, 🙂 — ok"),
            ("\u{1b}[2Jx", "\\u001b[2Jx"),
            ("\u{1b}]0;t\u{7}", "\\u001b]0;t\\u0007"),
            ("a\rb\u{8}", "a\\u000db\\u0008"),
            ("\u{0}\u{7f}", "\\u0000\\u007f"),
            ("\u{80}\u{9b}31m\u{9f}", "\\u0080\\u009b31m\\u009f"),
            ("\u{202a}\u{202e}", "\\u202a\\u202e"),
            ("\u{2066}\u{2069}", "\\u2066\\u2069"),
            ("\u{61c}\u{200e}\u{200f}", "\\u061c\\u200e\\u200f"),
            ("\u{2028}\u{2029}", "\\u2028\\u2029"),
        ] {
            assert_eq!(text(given), shown, "{given:?}");
            assert_eq!(line(given), shown, "{given:?}");
        }
        assert_eq!(text("a\n\tb"), "a\n\tb");
        assert_eq!(line("a\n\tb"), "a\\u000a\\u0009b");
    }

    #[test]
    fn json_means_the_same_afterwards() {
        let value = serde_json::json!({ "a\u{9b}": "\u{1b}\u{7f}\u{202e}\n\"\\" });
        let printed = value.to_string();
        let safe = text(&printed);
        assert!(!safe.contains(is_unsafe), "{safe}");
        let parsed: serde_json::Value = serde_json::from_str(&safe).expect("JSON");
        assert_eq!(parsed, value);
    }
}
