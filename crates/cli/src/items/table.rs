//! Text as rows of cells: delimiter, header, lines.

use std::{borrow::Cow, collections::HashMap};

use icu_normalizer::{ComposingNormalizerBorrowed, DecomposingNormalizerBorrowed};

use crate::error::CliError;

/// The possible delimiters, in the order in which a tie is decided.
const DELIMITERS: [(u8, &str); 3] = [(b',', "commas"), (b';', "semicolons"), (b'\t', "tabs")];
/// The rows that are examined to find the delimiter.
const LOOKED_AT: usize = 100;

/// A column by its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column(pub usize);

/// A text with each accented letter as one character, if there is such a character (NFC).
pub fn composed(text: &str) -> Cow<'_, str> {
    const { ComposingNormalizerBorrowed::new_nfc() }.normalize(text)
}

/// A text with each accented letter as its letter and a mark (NFD).
pub fn decomposed(text: &str) -> Cow<'_, str> {
    const { DecomposingNormalizerBorrowed::new_nfd() }.normalize(text)
}

#[derive(Debug)]
struct Row {
    line: u64,
    cells: Vec<String>,
}

/// Rows of one width, with a header or without.
#[derive(Debug)]
pub struct Table {
    name: String,
    header: Option<Vec<String>>,
    rows: Vec<Row>,
    /// Notes for the user about choices that the reader made.
    pub notes: Vec<String>,
}

impl Table {
    /// Reads a text whose lines end with LF. `is_name` distinguishes the name of a column from a
    /// value.
    pub fn parse(text: &str, name: &str, is_name: impl Fn(&str) -> bool) -> Result<Self, CliError> {
        let mut notes = Vec::new();
        // Excel states the delimiter in a first line like this. The line counts for line numbers.
        let first = text.lines().next().unwrap_or_default().trim_matches('"');
        let stated = first
            .strip_prefix("sep=")
            .or_else(|| first.strip_prefix("SEP="));
        let (skipped, body) = match stated {
            Some(_) => (1, text.split_once('\n').map_or("", |(_, body)| body)),
            None => (0, text),
        };
        let delimiter = match stated {
            Some(stated) => match stated.as_bytes() {
                [delimiter] => *delimiter,
                _ => {
                    return Err(CliError::Usage(format!(
                        "{name} line 1: sep={stated} names no delimiter of one character"
                    )));
                }
            },
            None => sniffed(body, &is_name, &mut notes),
        };
        let mut rows = rows(body, delimiter, skipped, name)?;
        let is_header = rows
            .first()
            .is_some_and(|row| row.cells.iter().any(|cell| is_name(cell)));
        let header = is_header.then(|| rows.remove(0).cells);
        let mut table = Self {
            name: name.to_owned(),
            header,
            rows,
            notes,
        };
        table.drop_index();
        if table.rows.is_empty() {
            return Err(table.problem(match table.header {
                Some(_) => "has a header and nothing below it",
                None => "is empty",
            }));
        }
        Ok(table)
    }

    /// Removes the nameless column of row numbers that pandas writes first.
    fn drop_index(&mut self) {
        let Some(header) = &mut self.header else {
            return;
        };
        let is_nameless = header[0].is_empty() || header[0].starts_with("Unnamed:");
        let counts = |row: (usize, &Row)| row.1.cells[0] == row.0.to_string();
        if header.len() > 1 && is_nameless && self.rows.iter().enumerate().all(counts) {
            header.remove(0);
            for row in &mut self.rows {
                row.cells.remove(0);
            }
            let note = "the first column has no name and counts the rows: it is left out";
            self.notes.push(note.to_owned());
        }
    }

    /// The number of columns in every row.
    pub fn width(&self) -> usize {
        self.rows.first().map_or(0, |row| row.cells.len())
    }

    /// Whether the first line names the columns.
    pub fn has_header(&self) -> bool {
        self.header.is_some()
    }

    /// The columns of the header and their names.
    pub fn names(&self) -> impl Iterator<Item = (Column, &str)> {
        let names = self.header.iter().flatten().enumerate();
        names.map(|(place, name)| (Column(place), name.as_str()))
    }

    /// Whether the header has a column of this name.
    pub fn has(&self, name: &str) -> bool {
        let mut names = self.header.iter().flatten();
        names.any(|column| column.to_lowercase() == name.to_lowercase())
    }

    /// A column of the header: the named one, otherwise one with a usual name. Case counts only if
    /// two names differ in nothing else.
    pub fn column(
        &self,
        named: Option<&str>,
        usual: &[&str],
        flag: &str,
    ) -> Result<Option<Column>, CliError> {
        let Some(header) = &self.header else {
            return match named {
                Some(named) => Err(self.problem(&format!(
                    "has no column {named:?} in its first line{}",
                    self.first_line()
                ))),
                None => Ok(None),
            };
        };
        let places = |is: &dyn Fn(&str) -> bool| -> Vec<usize> {
            let names = header.iter().enumerate();
            names
                .filter(|(_, name)| is(name))
                .map(|(place, _)| place)
                .collect()
        };
        let found = match named {
            Some(named) => {
                let exact = places(&|name| name == named);
                match exact.is_empty() {
                    true => places(&|name| name.to_lowercase() == named.to_lowercase()),
                    false => exact,
                }
            }
            None => places(&|name| usual.contains(&&*name.to_lowercase())),
        };
        match (&found[..], named) {
            (&[place], _) => Ok(Some(Column(place))),
            ([], None) => Ok(None),
            ([], Some(named)) => Err(self.problem(&format!(
                "has no column {named:?}; it has {}",
                listed(header)
            ))),
            (several, _) => {
                let names: Vec<_> = several.iter().map(|place| &header[*place]).collect();
                Err(self.problem(&format!(
                    "has the columns {}; say which one counts with {flag}",
                    listed(&names)
                )))
            }
        }
    }

    /// The error for a required column that is missing.
    pub fn lacks(&self, what: &str, flag: &str) -> CliError {
        match &self.header {
            Some(header) => self.problem(&format!(
                "has no column of {what} that is known by its name; its columns are {}: name one with {flag}",
                listed(header)
            )),
            None => self.problem(&format!(
                "has {} columns and no header that is known{}; name the columns with --id-column and --label-column, \
                 or write a first line like id,label",
                self.width(),
                self.first_line()
            )),
        }
    }

    fn first_line(&self) -> String {
        self.rows.first().map_or_else(String::new, |row| {
            format!("; its first line is {}", listed(&row.cells))
        })
    }

    /// A hint for a first line that has no value where one is expected, and no usual name.
    pub fn first_line_may_name(&self, line: u64) -> Option<String> {
        let first = self.rows.first().filter(|row| row.line == line)?;
        let is_name = |cell: &String| cell.chars().any(char::is_alphabetic);
        let is_header = self.header.is_none() && first.cells.iter().all(is_name);
        is_header.then(|| {
            format!(
                "{} may be the names of columns; say which one counts with --label-column, and which one has the item \
                 ids with --id-column",
                listed(&first.cells)
            )
        })
    }

    /// The cells of a column with their lines.
    pub fn cells(&self, column: Column) -> impl Iterator<Item = (u64, &str)> {
        self.rows
            .iter()
            .map(move |row| (row.line, &*row.cells[column.0]))
    }

    /// The cells of a column of ids: none is empty, and none appears twice.
    pub fn unique(&self, column: Column) -> Result<Vec<String>, CliError> {
        let mut seen = HashMap::new();
        let cells = self.cells(column).map(|(line, cell)| {
            self.must(!cell.is_empty(), line, || "the item id is empty".to_owned())?;
            // An accented letter can be one character or two, and looks the same.
            let earlier = seen.insert(composed(cell), (line, cell));
            self.must(earlier.is_none(), line, || match earlier {
                Some((earlier, other)) if other != cell => format!(
                    "item {cell:?} differs from that on line {earlier} in its Unicode form alone (an accented letter as one character or two); write both in one form (NFC)"
                ),
                earlier => {
                    let earlier = earlier.map_or(0, |(line, _)| line);
                    format!("item {cell:?} stands on line {earlier} already; each item has one line")
                }
            })?;
            Ok(cell.to_owned())
        });
        cells.collect()
    }

    /// Refuses a file of ordered values with empty lines between them: a missing value would move
    /// all that follow.
    pub fn must_be_gapless(&self) -> Result<(), CliError> {
        let first = self.rows.first().map_or(0, |row| row.line);
        for (row, line) in self.rows.iter().zip(first..) {
            self.must(row.line == line, line, || {
                "the line is empty; values in order need one on every line".to_owned()
            })?;
        }
        Ok(())
    }

    /// Reports a problem with a line unless `holds`.
    pub fn must(
        &self,
        holds: bool,
        line: u64,
        problem: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        if holds {
            return Ok(());
        }
        Err(CliError::Usage(format!(
            "{} line {line}: {}",
            self.name,
            problem()
        )))
    }

    /// The error for a problem with the file.
    pub fn problem(&self, what: &str) -> CliError {
        CliError::Usage(format!("{} {what}", self.name))
    }
}

/// The rows of a text without the empty ones.
fn rows(text: &str, delimiter: u8, skipped: u64, name: &str) -> Result<Vec<Row>, CliError> {
    let mut rows: Vec<Row> = Vec::new();
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .delimiter(delimiter)
        .from_reader(text.as_bytes());
    let (mut line, mut counted) = (skipped + 1, 0);
    for record in reader.records() {
        let record = record.map_err(|error| CliError::Usage(format!("{name}: {error}")))?;
        // The parser reports the position of the empty lines before a record, not that of the
        // record itself.
        let place = record.position().map_or(0, |place| place.byte() as usize);
        let begin = text.len() - text[place..].trim_start_matches('\n').len();
        line += text[counted..begin].matches('\n').count() as u64;
        counted = begin;
        let cells: Vec<String> = record.iter().map(str::to_owned).collect();
        let wrong = |what: String| Err(CliError::Usage(format!("{name} line {line}: {what}")));
        // Spreadsheets keep rows whose cells were all deleted.
        if cells.iter().all(String::is_empty) {
            continue;
        }
        if let Some(cell) = cells.iter().find(|cell| cell.chars().any(char::is_control)) {
            return wrong(format!(
                "the cell {cell:?} has a line break or another control character; is a quote missing?"
            ));
        }
        let width = rows.first().map_or(cells.len(), |row| row.cells.len());
        if cells.len() != width {
            return wrong(format!(
                "{} cells, but the lines before have {width}; a cell that has the delimiter in it needs quotes",
                cells.len()
            ));
        }
        rows.push(Row { line, cells });
    }
    Ok(rows)
}

/// The delimiter that cuts every row into equally many cells; noted if it is not the comma.
fn sniffed(text: &str, is_name: &impl Fn(&str) -> bool, notes: &mut Vec<String>) -> u8 {
    let fits = |&&(delimiter, _): &&(u8, &str)| {
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(delimiter)
            .from_reader(text.as_bytes());
        let mut widths = reader
            .records()
            .take(LOOKED_AT)
            .flatten()
            .map(|record| record.len());
        let first = widths.next().unwrap_or(1);
        first > 1 && widths.all(|width| width == first)
    };
    let names_columns = |&&(delimiter, _): &&(u8, &str)| {
        let line = text.lines().next().unwrap_or_default();
        let mut cells = line.split(char::from(delimiter));
        cells.any(|cell| is_name(cell.trim().trim_matches('"')))
    };
    let fitting: Vec<_> = DELIMITERS.iter().filter(fits).collect();
    let found = match &fitting[..] {
        [one] => one,
        // If none fits, or several do, the header decides; rows that do not fit are reported by
        // their line.
        [] => DELIMITERS
            .iter()
            .find(names_columns)
            .unwrap_or(&DELIMITERS[0]),
        several => several
            .iter()
            .copied()
            .find(|one| names_columns(one))
            .unwrap_or(several[0]),
    };
    if found.0 != b',' {
        notes.push(format!("{} separate its cells", found.1));
    }
    found.0
}

fn listed<T: AsRef<str>>(names: &[T]) -> String {
    let quoted: Vec<String> = names
        .iter()
        .map(|name| format!("{:?}", name.as_ref()))
        .collect();
    quoted.join(", ")
}
