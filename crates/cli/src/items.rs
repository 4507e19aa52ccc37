//! Item files: labels, predictions and item lists, as other programs export them. One reader for
//! all.
//!
//! A file is UTF-8 text, with or without a byte order mark: one value a line, or columns that
//! commas, semicolons or tabs separate. A header names the columns. The reader reports each choice
//! that it makes (see [`Table::notes`]), and refuses a file, with the line, if it would have to
//! guess.
//!
//! Owns how bytes become rows, columns and bits. Does not own the use of a file.

mod table;
mod text;
mod values;

use std::{fs::File, io::Read as _, path::Path};

use clap::Args;

pub use self::table::{Column, Table};
pub use self::table::{composed, decomposed};
use self::values::Rule;
use crate::error::CliError;

/// The most bytes of an item file: a million items with ids of a thousand bytes.
const MOST_BYTES: u64 = 1 << 30;

/// The relevant columns of an item file, and what their cells mean.
#[derive(Debug, Clone, Default, Args)]
pub struct Columns {
    /// The column of item ids [default: `id` or `item`].
    #[arg(long, value_name = "NAME")]
    pub id_column: Option<String>,
    /// The column of labels or predictions [default: `label`, `prediction`, `target` or `y`].
    #[arg(long, value_name = "NAME")]
    pub label_column: Option<String>,
    /// Cells that mean 1 and cells that mean 0, like malignant=1,benign=0.
    #[arg(
        long,
        value_name = "CELL=BIT",
        value_delimiter = ',',
        value_parser = values::pair,
        conflicts_with = "threshold"
    )]
    pub map: Vec<(String, u8)>,
    /// Read cells as numbers: 1 from this value up, 0 below.
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true, value_parser = values::number)]
    pub threshold: Option<f64>,
}

/// Usual names of columns, in lower case: of ids, of values, of units.
const IDS: [&str; 2] = ["id", "item"];
const VALUES: [&str; 4] = ["label", "prediction", "target", "y"];
const UNITS: [&str; 1] = ["unit"];

impl Columns {
    /// Reads a file into rows and, if it has one, a header.
    ///
    /// # Errors
    /// [`CliError::File`] if it cannot be read; [`CliError::Usage`] names the line that is wrong.
    pub fn read(&self, path: &Path) -> Result<Table, CliError> {
        let file = File::open(path).map_err(CliError::file(path))?;
        let mut bytes = Vec::new();
        file.take(MOST_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(CliError::file(path))?;
        let name = path.display().to_string();
        // A compressed file may be within the limit while its content exceeds it.
        let bytes = text::unpacked(bytes, MOST_BYTES, &name)?;
        self.parse(&bytes, &name)
    }

    /// Reads a file's bytes; `name` is for messages.
    ///
    /// # Errors
    /// [`CliError::Usage`] names the line that is wrong.
    pub fn parse(&self, bytes: &[u8], name: &str) -> Result<Table, CliError> {
        if bytes.len() as u64 > MOST_BYTES {
            return Err(CliError::Usage(format!(
                "{name} has more than {MOST_BYTES} bytes"
            )));
        }
        let text = text::decoded(bytes, name)?;
        Table::parse(&text, name, |cell| self.is_known(cell))
    }

    /// Whether a cell of the first line can only be the name of a column.
    fn is_known(&self, cell: &str) -> bool {
        let named = [&self.id_column, &self.label_column];
        let is_named = named.into_iter().flatten().any(|name| name == cell);
        let lower = cell.to_lowercase();
        let is_usual = [&IDS[..], &VALUES, &UNITS].concat().contains(&&*lower);
        // If `--map` names the cell `y` as a label, it is a label and not a column's name.
        is_named || is_usual && !self.map.iter().any(|(mapped, _)| mapped == cell)
    }

    /// The ids of a table's items, if it has any: each once, none empty.
    ///
    /// # Errors
    /// [`CliError::Usage`] names the line of an id that is empty or appears twice.
    pub fn ids(&self, table: &Table) -> Result<Option<Vec<String>>, CliError> {
        let Some(column) = table.column(self.id_column.as_deref(), &IDS, "--id-column")? else {
            return Ok(None);
        };
        table.unique(column).map(Some)
    }

    /// The ids of an item list: its id column, or its only one.
    ///
    /// # Errors
    /// [`CliError::Usage`] if there is no such column, or names the line of an id that is empty or
    /// appears twice.
    pub fn item_list(&self, table: &Table) -> Result<Vec<String>, CliError> {
        // The flag may name the column of the predictions, which are in another file than the list.
        let is_named = self
            .id_column
            .as_deref()
            .is_some_and(|name| table.has(name));
        let ids = if is_named {
            self.ids(table)?
        } else {
            Self::default().ids(table)?
        };
        match (ids, table.width()) {
            (Some(ids), _) => Ok(ids),
            (None, 1) => table.unique(Column(0)),
            (None, _) => Err(table.lacks("item ids", "--id-column")),
        }
    }

    /// The bits of a table's labels or predictions, in the order of its rows.
    ///
    /// # Errors
    /// [`CliError::Usage`] if there is no such column, or names the line of a cell that is not a
    /// bit.
    pub fn bits(&self, table: &Table, what: &str) -> Result<Vec<u8>, CliError> {
        match self.values(table)? {
            Some(column) => Rule::of(self).bits(table, column, what),
            None => Err(table.lacks(&format!("{what}s"), "--label-column")),
        }
    }

    fn values(&self, table: &Table) -> Result<Option<Column>, CliError> {
        let named = table.column(self.label_column.as_deref(), &VALUES, "--label-column")?;
        Ok(match (named, table.width()) {
            (Some(column), _) => Some(column),
            (None, 1) if !table.has_header() => Some(Column(0)),
            // Ids and predictions without a header, as `claim pack` has always read them.
            (None, 2) if !table.has_header() => Some(Column(1)),
            (None, _) => None,
        })
    }

    /// The other of two columns, the one without the values.
    ///
    /// # Errors
    /// As [`Self::bits`].
    pub fn other_than_values(&self, table: &Table) -> Result<Column, CliError> {
        let is_first = self.values(table)? == Some(Column(0));
        Ok(Column(usize::from(is_first)))
    }

    /// The named columns that are neither ids nor values.
    ///
    /// # Errors
    /// As [`Self::ids`] and [`Self::bits`].
    pub fn unused<'t>(&self, table: &'t Table) -> Result<Vec<&'t str>, CliError> {
        let ids = table.column(self.id_column.as_deref(), &IDS, "--id-column")?;
        let used = [ids, self.values(table)?];
        let names = table.names();
        Ok(names
            .filter(|(column, _)| !used.contains(&Some(*column)))
            .map(|(_, name)| name)
            .collect())
    }

    /// The name of the unit of each row, if the table has units; none is empty.
    ///
    /// # Errors
    /// [`CliError::Usage`] names the line of an empty cell.
    pub fn units(
        &self,
        table: &Table,
        named: Option<&str>,
    ) -> Result<Option<Vec<String>>, CliError> {
        let Some(column) = table.column(named, &UNITS, "--unit-column")? else {
            return Ok(None);
        };
        let cells = table.cells(column).map(|(line, cell)| {
            table.must(!cell.is_empty(), line, || {
                "the unit is empty; if an item belongs with no other, give it a unit that no other item has"
                    .to_owned()
            })?;
            Ok(cell.to_owned())
        });
        cells.collect::<Result<_, _>>().map(Some)
    }
}

#[cfg(test)]
mod tests;
