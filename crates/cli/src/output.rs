//! The output of a command: a value for machines, a text for users, and progress while it works.
//!
//! Owns tables, and the only code that writes to a terminal. It makes text from files and servers harmless: control
//! characters are shown, not obeyed. Results go to stdout, progress and errors to stderr, so that `--json` output
//! can be piped while progress is still seen. Integers in JSON are exact; bytes are lower-case hex.

use std::io::{IsTerminal as _, Write as _};

use evidenceos_daemon::terminal;
use serde_json::{Value, json};

use crate::error::CliError;

/// The result of a command.
#[derive(Debug)]
pub struct Output {
    /// The value that the command prints with `--json`.
    pub json: Value,
    /// The text for users, without the last line feed.
    pub text: String,
    /// The exit code; 0 except for `--require-certified` and failed demos.
    pub exit_code: u8,
    /// Whether the text is data that a file or a pipe gets byte for byte.
    pub is_data: bool,
}

impl Output {
    /// A success with exit code 0.
    pub fn new(json: Value, text: impl Into<String>) -> Self {
        Self {
            json,
            text: text.into(),
            exit_code: 0,
            is_data: false,
        }
    }

    /// Prints it. If the reader goes away (`| head`), that is no error.
    pub fn print(&self, as_json: bool) {
        if as_json {
            print_line(&self.json.to_string());
        } else if self.is_data && !std::io::stdout().is_terminal() {
            // A file or a pipe gets the bytes unchanged: only a terminal obeys control characters.
            write_line(&self.text);
        } else {
            print_line(&self.text);
        }
    }
}

/// Writes lines to stdout, harmless for a terminal. JSON keeps its meaning.
pub fn print_line(text: &str) {
    write_line(&terminal::text(text));
}

fn write_line(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints an error: a sentence on stderr, or with `--json` an object on stdout as well.
pub fn print_error(error: &CliError, as_json: bool) {
    if as_json {
        print_line(
            &json!({"error": {"code": error.code(), "message": error.to_string()}}).to_string(),
        );
    }
    eprintln!("error: {}", terminal::text(&error.to_string()));
}

/// Reports progress on stderr.
pub fn progress(line: &str) {
    eprintln!("  {}", terminal::line(line));
}

/// A value from another source within this program's text: it stays on its line.
pub fn value(text: &str) -> String {
    terminal::line(text).into_owned()
}

/// A list of values, a line each, indented.
pub fn listed<V: std::fmt::Display>(values: impl IntoIterator<Item = V>) -> String {
    let lines = values
        .into_iter()
        .map(|one| format!("  {}", value(&one.to_string())));
    lines.collect::<Vec<_>>().join("\n")
}

/// Columns of text, aligned. A header that ends in `>`, which is not printed, aligns its column right, as
/// for numbers.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    // Cells are made harmless first, so that widths are those of the printed text.
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| value(cell)).collect())
        .collect();
    let is_right: Vec<bool> = headers.iter().map(|h| h.ends_with('>')).collect();
    let headers: Vec<String> = headers
        .iter()
        .map(|header| header.trim_end_matches('>').to_owned())
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        // Widths are in characters, as for the padding.
        let widths = cells.map(|cell| cell.chars().count());
        widths.fold(headers[column].chars().count(), usize::max)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells
            .iter()
            .zip(widths.iter().zip(&is_right))
            .map(|(cell, (&width, &right))| {
                if right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    let rule: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
    let mut lines = vec![line(&headers), rule.join("  ")];
    lines.extend(rows.iter().map(|row| line(row)));
    lines.join("\n")
}

/// `name: value` lines with the values aligned.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = facts
        .iter()
        .map(|(name, fact)| format!("{:<1$}  {2}", format!("{name}:"), width + 1, value(fact)))
        .collect();
    lines.join("\n")
}

/// Microbits as bits with three decimals: `12.712`.
pub fn bits(microbits: u64) -> String {
    // Rounded to the nearest, since it is only for reading. In 128 bits the sum cannot overflow.
    let thousandths = (u128::from(microbits) + 500) / 1_000;
    format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000)
}

/// Digits in groups of three: `1,000`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The first twelve digits of a hex id: enough to distinguish claims on a screen.
pub fn short(bytes: &[u8]) -> String {
    hex::encode(&bytes[..bytes.len().min(6)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["long".to_owned(), "10".to_owned()],
        ];
        assert_eq!(
            table(&["name", "n>"], &rows),
            "name   n\n────  ──\na      1\nlong  10"
        );
    }

    #[test]
    fn a_value_cannot_leave_its_line() {
        let rows = [vec!["a\nb".to_owned(), "\u{1b}[31m".to_owned()]];
        let shown = table(&["x", "y"], &rows);
        assert!(shown.ends_with("a\\u000ab  \\u001b[31m"), "{shown}");
        assert_eq!(
            facts(&[("name", "x\nid: y".to_owned())]),
            "name:  x\\u000aid: y"
        );
        assert_eq!(listed(["a\nb", "c"]), "  a\\u000ab\n  c");
    }

    #[test]
    fn figures_are_rounded_and_grouped() {
        assert_eq!(bits(12_712_499), "12.712");
        assert_eq!(bits(640), "0.001");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
    }
}
