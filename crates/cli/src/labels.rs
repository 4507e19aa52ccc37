//! Label files: what `holdout add` reads.
//!
//! Either one label a line, or CSV with a header that names the columns `item`, `label` and, if items belong together,
//! `unit`. Labels are 0 or 1. The order of the lines is the order of the holdout, for ever.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use crate::error::CliError;

/// A parsed label file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// One byte an item.
    pub labels: Vec<u8>,
    /// Item ids, where the file has them.
    pub items: Option<Vec<String>>,
    /// The unit of each item, where the file has them. Names are numbered in order of appearance.
    pub units: Option<Vec<u64>>,
}

impl Labels {
    /// Reads a file's content; `name` is for messages.
    ///
    /// # Errors
    /// [`CliError::Usage`] with the line.
    pub fn parse(content: &str, name: &str) -> Result<Self, CliError> {
        let rows = rows(content, name)?;
        let Some((_, first)) = rows.first() else {
            return Err(CliError::Usage(format!(
                "{name} is empty; it needs a label a line"
            )));
        };
        let parsed = if first.len() == 1 {
            Self::bare(&rows, name)
        } else {
            Self::with_columns(&rows, name)
        }?;
        if parsed.labels.is_empty() {
            return Err(CliError::Usage(format!(
                "{name} has a header but no labels"
            )));
        }
        Ok(parsed)
    }

    fn bare(rows: &[Row], name: &str) -> Result<Self, CliError> {
        // A label is 0 or 1, so that this word can only be a header.
        let has_header = rows[0].1[0] == "label";
        let labels = rows[usize::from(has_header)..]
            .iter()
            .map(|(line, row)| bit(&row[0], "label", name, *line))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            labels,
            items: None,
            units: None,
        })
    }

    fn with_columns(rows: &[Row], name: &str) -> Result<Self, CliError> {
        let header = &rows[0].1;
        let column = |wanted: &str| header.iter().position(|cell| cell == wanted);
        let (Some(item), Some(label)) = (column("item"), column("label")) else {
            return Err(CliError::Usage(format!(
                "{name}: the first line must name the columns `item`, `label` and, if items belong together, `unit`; it says {:?}",
                header.join(",")
            )));
        };
        let (mut labels, mut items) = (Vec::new(), Vec::new());
        let mut seen = HashMap::new();
        for (line, row) in &rows[1..] {
            labels.push(bit(&row[label], "label", name, *line)?);
            if let Some(earlier) = seen.insert(row[item].clone(), line) {
                return Err(CliError::Usage(format!(
                    "{name} line {line}: item {:?} stands on line {earlier} already; each item is registered once",
                    row[item]
                )));
            }
            items.push(row[item].clone());
        }
        let units = column("unit")
            .map(|unit| numbered(rows[1..].iter().map(|(_, row)| row[unit].as_str())));
        Ok(Self {
            labels,
            items: Some(items),
            units,
        })
    }

    /// SHA-256 of the ids, LF after each.
    pub fn item_order_hash(&self) -> Option<[u8; 32]> {
        self.items.as_deref().map(order_hash)
    }
}

/// SHA-256 of item ids in their order, LF after each.
pub fn order_hash(items: &[String]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for item in items {
        hash.update(item.as_bytes());
        hash.update(b"\n");
    }
    hash.finalize().into()
}

/// The first 16 bytes of an item id's SHA-256: what is kept to recognise items that are registered elsewhere.
pub fn item_digest(item: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(item.as_bytes())[..16]);
    short
}

/// A line number and its cells.
pub type Row = (u64, Vec<String>);

/// The rows of a CSV text, all of one width, cells trimmed, blank lines left out.
pub fn rows(content: &str, name: &str) -> Result<Vec<Row>, CliError> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .from_reader(content.as_bytes());
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| CliError::Usage(format!("{name}: {error}")))?;
        let line = record.position().map_or(0, csv::Position::line);
        rows.push((line, record.iter().map(str::to_owned).collect()));
    }
    Ok(rows)
}

/// Reads a cell that is 0 or 1.
pub fn bit(cell: &str, what: &str, name: &str, line: u64) -> Result<u8, CliError> {
    match cell {
        "0" => Ok(0),
        "1" => Ok(1),
        other => Err(CliError::Usage(format!(
            "{name} line {line}: the {what} is {other:?}; it must be 0 or 1"
        ))),
    }
}

/// Numbers names in order of appearance, unless they are numbers already.
fn numbered<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<u64> {
    if let Ok(numbers) = names.clone().map(str::parse).collect() {
        return numbers;
    }
    let mut known = HashMap::new();
    names
        .map(|name| {
            let next = known.len() as u64;
            *known.entry(name).or_insert(next)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(content: &str) -> Result<Labels, String> {
        Labels::parse(content, "labels.csv").map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_are_read() {
        let bare = parse("1\n0\n1\n").expect("bare");
        assert_eq!(bare.labels, [1, 0, 1]);
        assert_eq!(parse("label\n1\n0\n1\n"), Ok(bare));
        let named = parse("item,label,unit\na,1,p\nb,0,q\nc,1,p\n").expect("named");
        assert_eq!(named.items.as_deref().map(<[String]>::len), Some(3));
        assert_eq!(named.units, Some(vec![0, 1, 0]));
        let numbers = parse("unit,label,item\n7,1,a\n9,0,b\n").expect("any order");
        assert_eq!(numbers.units, Some(vec![7, 9]));
        assert_eq!(
            hex::encode(numbers.item_order_hash().expect("has ids")),
            hex::encode(Sha256::digest(b"a\nb\n"))
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let check = |content: &str, part: &str| {
            let error = parse(content).expect_err(part);
            assert!(error.contains(part), "{error}");
        };
        check("", "is empty");
        check("item,label\n", "no labels");
        check("1\n2\n", "line 2");
        check("name,label\na,1\n", "must name the columns");
        check("item,label\na,1\na,0\n", "line 3");
        check("item,label\na,1,1\n", "labels.csv");
    }
}
