//! Cells as bits, by an explicit rule.

use std::collections::BTreeMap;

use super::{
    Columns,
    table::{Column, Table},
};
use crate::error::CliError;

/// The most different cells that an error lists.
const MOST_LISTED: usize = 8;

/// The meaning of cells.
pub enum Rule<'c> {
    /// `0` and `1`, with zeros after a point (`1.0`), and `true` and `false` in any case.
    Exact,
    /// These cells, and no others.
    Map(&'c [(String, u8)]),
    /// Numbers from this value up are 1, others 0.
    Threshold(f64),
}

impl<'c> Rule<'c> {
    /// The rule that the flags state, else [`Self::Exact`].
    pub fn of(columns: &'c Columns) -> Self {
        match (columns.threshold, &*columns.map) {
            (Some(least), _) => Self::Threshold(least),
            (None, []) => Self::Exact,
            (None, map) => Self::Map(map),
        }
    }

    /// The bits of a column.
    pub fn bits(&self, table: &Table, column: Column, what: &str) -> Result<Vec<u8>, CliError> {
        let mut bits = Vec::new();
        for (line, cell) in table.cells(column) {
            let bit = self.bit(cell);
            table.must(bit.is_some(), line, || {
                let names = table.first_line_may_name(line);
                names.unwrap_or_else(|| self.problem(table, column, what, cell))
            })?;
            bits.extend(bit);
        }
        Ok(bits)
    }

    fn bit(&self, cell: &str) -> Option<u8> {
        match self {
            Self::Exact => exact(cell),
            Self::Map(map) => map.iter().find(|(of, _)| of == cell).map(|(_, bit)| *bit),
            Self::Threshold(least) => number(cell).ok().map(|number| u8::from(number >= *least)),
        }
    }

    fn problem(&self, table: &Table, column: Column, what: &str, cell: &str) -> String {
        if cell.is_empty() {
            return format!("the {what} is empty; every item needs one");
        }
        match self {
            Self::Exact => format!(
                "the {what} is {cell:?}; it must be 0 or 1{}",
                advice(table, column)
            ),
            Self::Map(_) => format!(
                "the {what} is {cell:?}, which --map does not name; add {cell}=0 or {cell}=1"
            ),
            Self::Threshold(_) => {
                format!("the {what} is {cell:?}; --threshold needs a number like 0.5")
            }
        }
    }
}

/// `0`, `1`, `0.0`, `1.00`, `true`, `False`.
fn exact(cell: &str) -> Option<u8> {
    let (whole, fraction) = cell.split_once('.').unwrap_or((cell, "0"));
    let is_whole = !fraction.is_empty() && fraction.bytes().all(|byte| byte == b'0');
    match whole {
        "0" if is_whole => Some(0),
        "1" if is_whole => Some(1),
        _ if cell.eq_ignore_ascii_case("false") => Some(0),
        _ if cell.eq_ignore_ascii_case("true") => Some(1),
        _ => None,
    }
}

/// Advice about a column whose cells are not bits.
fn advice(table: &Table, column: Column) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, cell) in table.cells(column) {
        *counts.entry(cell).or_default() += 1;
    }
    // Two whole numbers are more likely to be classes, like 1 and 2.
    let is_score = |cell: &&str| number(cell).is_ok_and(|number| number.fract() != 0.0);
    let are_numbers = counts.keys().all(|cell| number(cell).is_ok());
    if are_numbers && (counts.len() > 2 || counts.keys().any(is_score)) {
        return "; if the cells are scores, give the lowest score that means 1: --threshold 0.5"
            .to_owned();
    }
    let listed: Vec<String> = counts
        .iter()
        .take(MOST_LISTED)
        .map(|(cell, count)| format!("{cell:?} ({count} times)"))
        .collect();
    let more = if counts.len() > MOST_LISTED {
        ", …"
    } else {
        ""
    };
    let map: Vec<String> = counts
        .keys()
        .take(2)
        .zip([1, 0])
        .map(|(cell, bit)| format!("{cell}={bit}"))
        .collect();
    format!(
        ". The column has {}{more}: say which mean 1 and which 0, for example --map {}",
        listed.join(", "),
        map.join(",")
    )
}

/// Parses `CELL=BIT` on the command line.
pub fn pair(text: &str) -> Result<(String, u8), String> {
    let wrong = || format!("{text:?} is not CELL=1 or CELL=0, like malignant=1");
    // The cell itself may contain an equals sign.
    let (cell, bit) = text.rsplit_once('=').ok_or_else(wrong)?;
    let bit = exact(bit).ok_or_else(wrong)?;
    Ok((cell.trim().to_owned(), bit))
}

/// Parses a finite number, on the command line and in cells.
pub fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(format!("{text:?} is not a number like 0.5")),
    }
}
