//! Label files: what `holdout add` reads.
//!
//! Either one label a line, or columns whose first line names them: item ids, labels and, if items
//! belong together, units. The holdout keeps its items in the order of the lines.

use std::{collections::HashMap, path::Path};

use sha2::{Digest as _, Sha256};

use crate::{
    error::CliError,
    items::{Columns, Table},
};

/// A parsed label file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// One byte an item.
    pub labels: Vec<u8>,
    /// Item ids, if the file has them.
    pub items: Option<Vec<String>>,
    /// The unit of each item, if the file has units. Names are numbered in order of appearance.
    pub units: Option<Vec<u64>>,
}

impl Labels {
    /// Reads a file; also returns notes about choices that the reader made.
    ///
    /// # Errors
    /// [`CliError::File`] if it cannot be read; [`CliError::Usage`] with the line.
    pub fn read(
        path: &Path,
        columns: &Columns,
        unit_column: Option<&str>,
    ) -> Result<(Self, Vec<String>), CliError> {
        let table = columns.read(path)?;
        let labels = Self::of(&table, columns, unit_column)?;
        let mut notes = labels.advice(&table, columns)?;
        notes.extend(table.notes);
        Ok((labels, notes))
    }

    /// Items that belong together and are registered one by one make evidence look stronger than it is, and the
    /// registration cannot be changed: so a column that may name their units is pointed out.
    fn advice(&self, table: &Table, columns: &Columns) -> Result<Vec<String>, CliError> {
        let unused = columns.unused(table)?;
        if self.units.is_some() || unused.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<String> = unused.iter().map(|name| format!("{name:?}")).collect();
        Ok(vec![format!(
            "not used: {}. If rows belong together, such as several of one patient or document, name the column that says so with --unit-column",
            names.join(", ")
        )])
    }

    fn of(table: &Table, columns: &Columns, unit_column: Option<&str>) -> Result<Self, CliError> {
        let items = columns.ids(table)?;
        let units = columns.units(table, unit_column)?;
        let used = 1 + usize::from(items.is_some()) + usize::from(units.is_some());
        // An unnamed column may contain the ids: without them the order could not be checked.
        if items.is_none() && table.width() > used {
            return Err(table.lacks("item ids", "--id-column"));
        }
        if items.is_none() {
            table.must_be_gapless()?;
        }
        Ok(Self {
            labels: columns.bits(table, "label")?,
            items,
            units: units.map(|units| numbered(&units)),
        })
    }

    /// The number of units: the number of items if the file has no units.
    pub fn distinct_units(&self) -> u64 {
        match &self.units {
            // Units are numbered in order of appearance, so the last new one has the highest
            // number.
            Some(units) => units.iter().max().map_or(0, |last| last + 1),
            None => self.labels.len() as u64,
        }
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

/// The first 16 bytes of an item id's SHA-256, by which a server recognises items of other holdouts.
pub fn item_digest(item: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(item.as_bytes())[..16]);
    short
}

/// Numbers names in order of appearance. Names are text: `007` and `7` are two.
fn numbered(names: &[String]) -> Vec<u64> {
    let mut known = HashMap::new();
    names
        .iter()
        .map(|name| {
            let next = known.len() as u64;
            *known.entry(name).or_insert(next)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_that_may_group_the_rows_is_pointed_out() {
        let notes = |content: &str, unit: Option<&str>| {
            let directory = tempfile::tempdir().expect("a directory");
            let path = directory.path().join("labels.csv");
            std::fs::write(&path, content).expect("written");
            let read = Labels::read(&path, &Columns::default(), unit).expect("labels");
            read.1.join("; ")
        };
        let grouped = "id,patient,label\na,p,1\nb,p,0\n";
        let said = notes(grouped, None);
        assert!(
            said.contains("not used: \"patient\"") && said.contains("--unit-column"),
            "{said}"
        );
        assert_eq!(notes(grouped, Some("patient")), "");
        assert_eq!(notes("id,unit,label\na,p,1\nb,p,0\n", None), "");
        assert_eq!(notes("id,label\na,1\nb,0\n", None), "");
        assert_eq!(notes("1\n0\n", None), "");
    }

    fn parse(content: &str) -> Result<Labels, String> {
        let columns = Columns::default();
        let labels = columns
            .parse(content.as_bytes(), "labels.csv")
            .and_then(|table| Labels::of(&table, &columns, None));
        labels.map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_are_read() {
        let bare = parse("1\n0\n1\n").expect("bare");
        assert_eq!(bare.labels, [1, 0, 1]);
        assert_eq!(parse("label\n1\n0\n1\n"), Ok(bare));
        let named = parse("item,label,unit\na,1,p\nb,0,q\nc,1,p\n").expect("named");
        assert_eq!(named.items.as_deref().map(<[String]>::len), Some(3));
        assert_eq!(named.units, Some(vec![0, 1, 0]));
        let any_order = parse("unit,label,item\np,1,a\nq,0,b\n").expect("any order");
        assert_eq!(any_order.units, Some(vec![0, 1]));
        assert_eq!(
            hex::encode(any_order.item_order_hash().expect("has ids")),
            hex::encode(Sha256::digest(b"a\nb\n"))
        );
        let without_ids = parse("label,unit\n1,p\n0,p\n").expect("units alone");
        assert_eq!(
            (without_ids.items, without_ids.units),
            (None, Some(vec![0, 0]))
        );
    }

    #[test]
    fn units_are_text() {
        let units = |cells: [&str; 4]| {
            let rows = cells.iter().zip(["a", "b", "c", "d"]);
            let lines = rows.map(|(unit, item)| format!("{item},1,{unit}\n"));
            let content = format!("item,label,unit\n{}", lines.collect::<String>());
            parse(&content).map(|labels| labels.units.expect("units"))
        };
        assert_eq!(units(["007", "7", "+7", "7"]), Ok(vec![0, 1, 2, 1]));
        assert_eq!(units(["1", "1.0", "01", "1"]), Ok(vec![0, 1, 2, 0]));
        let error = units(["p", "", "q", "q"]).expect_err("an empty unit");
        assert!(
            error.contains("line 3") && error.contains("unit is empty"),
            "{error}"
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let check = |content: &str, parts: &[&str]| {
            let error = parse(content).expect_err(content);
            for part in parts {
                assert!(error.contains(part), "{part:?} is not in {error:?}");
            }
        };
        check("", &["is empty"]);
        check("item,label\n", &["nothing below"]);
        check("1\n2\n", &["line 2", "\"2\""]);
        check(
            "name,label\na,1\n",
            &["item ids", "\"name\"", "--id-column"],
        );
        check("item,label\na,1\na,0\n", &["line 3", "line 2"]);
        check("item,label\na,1\n,0\n", &["line 3", "id is empty"]);
        check("item,label\na,1\nb,\n", &["line 3", "label is empty"]);
        check("item,label\na,1,1\n", &["labels.csv", "line 2", "3 cells"]);
        check("1\n\n0\n", &["line 2", "empty"]);
    }
}
