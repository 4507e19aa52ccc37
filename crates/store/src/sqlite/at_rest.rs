//! A database that no daemon has open: reading it as it is, copying it, marking it.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use evidenceos_kernel::{
    id::{ClaimId, Digest},
    in_force::InForce,
};
use rusqlite::{
    Connection, OptionalExtension as _, params_from_iter,
    types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef},
};

use super::{copy, facts, read, schema};
use crate::{
    Pages, StoreError,
    facts::Facts,
    state::StateRow,
    tables::{Half, StoredRow, Table, Tables, Value},
};

/// The path of the database in a data directory.
#[must_use]
pub fn path_in(data_directory: &Path) -> PathBuf {
    schema::path_in(data_directory)
}

/// Whether a data directory has a database.
#[must_use]
pub fn exists(data_directory: &Path) -> bool {
    schema::path_in(data_directory).exists()
}

/// A database that no daemon has open.
#[derive(Debug)]
pub struct AtRest {
    connection: Connection,
    path: PathBuf,
}

impl AtRest {
    /// Opens the database of a data directory to read it; creates and changes no table.
    ///
    /// # Errors
    /// [`StoreError`] if there is none, or it belongs to another program or a later release.
    pub fn open(data_directory: &Path) -> Result<Self, StoreError> {
        let path = schema::path_in(data_directory);
        let connection = schema::open_at_rest(&path)?;
        Ok(Self { connection, path })
    }

    /// As [`AtRest::open`], for callers that need every table of this release.
    ///
    /// # Errors
    /// Also if the database is missing or empty, or of an earlier release.
    pub fn open_current(data_directory: &Path) -> Result<Self, StoreError> {
        schema::must_be_there(data_directory)?;
        let at_rest = Self::open(data_directory)?;
        schema::must_be_current(&at_rest.connection, &at_rest.path)?;
        Ok(at_rest)
    }

    /// The path of the database.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies it into the directory `to`; see [`crate::Copier::copy`].
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read, or the copy cannot be written.
    pub fn copy(
        &self,
        to: &Path,
        between: &mut dyn FnMut(Pages) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, StoreError> {
        copy::copy_pages(&self.connection, to, between)
    }

    fn rows(
        &self,
        sql: &str,
        keys: usize,
        given: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<StoredRow>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let columns = statement.column_count();
        let rows = statement
            .query_map(params_from_iter(given), |row| {
                let mut values = (0..columns).map(|column| row.get(column));
                Ok(StoredRow {
                    key: values.by_ref().take(keys).collect::<Result<_, _>>()?,
                    fields: values.collect::<Result<_, _>>()?,
                })
            })?
            .collect::<Result<_, _>>()?;
        Ok(rows)
    }
}

impl Tables for AtRest {
    fn state(&self) -> Result<Option<StateRow>, StoreError> {
        Ok(read::read_state(&self.connection)?.map(|(_, state)| state))
    }

    fn facts(&self) -> Result<Facts, StoreError> {
        facts::read(&self.connection)
    }

    fn in_force(&self) -> Result<InForce, StoreError> {
        facts::read_in_force(&self.connection)
    }

    fn look_over(&self) -> Result<(u64, Vec<String>), StoreError> {
        // A hundred lines show the damage; more would only repeat it.
        let said: Vec<String> = self
            .connection
            .prepare("PRAGMA integrity_check(100)")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let pages: i64 = self
            .connection
            .query_row("PRAGMA page_count", [], |row| row.get(0))?;
        let wrong = said.into_iter().filter(|line| line != "ok").collect();
        Ok((pages as u64, wrong))
    }

    fn count(&self, table: Table) -> Result<u64, StoreError> {
        let name = Shape::of(table).name;
        let sql = format!("SELECT count(*) FROM {name}");
        let rows: i64 = self.connection.query_row(&sql, [], |row| row.get(0))?;
        Ok(rows as u64)
    }

    fn last(&self, table: Table) -> Result<Option<u64>, StoreError> {
        let Shape { name, keys, .. } = Shape::of(table);
        let sql = format!("SELECT max({}) FROM {name}", keys[0]);
        let last: Option<i64> = self.connection.query_row(&sql, [], |row| row.get(0))?;
        Ok(last.map(|last| last as u64))
    }

    fn page(
        &self,
        table: Table,
        after: Option<&[Value]>,
        limit: usize,
    ) -> Result<Vec<StoredRow>, StoreError> {
        let shape = Shape::of(table);
        let (name, keys) = (shape.name, shape.keys.join(", "));
        let columns = shape.columns();
        let (behind, limit_at) = match after {
            // A row value, since a key may have two columns.
            Some(after) => (
                format!("WHERE ({keys}) > ({})", places(after.len())),
                after.len() + 1,
            ),
            None => (String::new(), 1),
        };
        let sql =
            format!("SELECT {columns} FROM {name} {behind} ORDER BY {keys} LIMIT ?{limit_at}");
        let given = after.unwrap_or_default().iter().cloned();
        self.rows(
            &sql,
            shape.keys.len(),
            given.chain([Value::from(limit as u64)]),
        )
    }

    fn row(&self, table: Table, key: &[Value]) -> Result<Option<StoredRow>, StoreError> {
        let shape = Shape::of(table);
        let sql = format!(
            "SELECT {} FROM {} WHERE ({}) = ({})",
            shape.columns(),
            shape.name,
            shape.keys.join(", "),
            places(key.len())
        );
        // A key is unique: there is one row, or none.
        let found = self.rows(&sql, shape.keys.len(), key.iter().cloned())?;
        Ok(found.into_iter().next())
    }

    fn claim_row(&self, id: &ClaimId) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT row FROM claims WHERE claim_id = ?1")?
            .query_row([id.as_bytes()], |row| row.get(0))
            .optional()?)
    }

    fn has_module(&self, hash: &Digest) -> Result<bool, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT 1 FROM modules WHERE hash = ?1")?
            .exists([hash.as_bytes()])?)
    }
}

/// `?1, ?2, …`
fn places(count: usize) -> String {
    let places: Vec<String> = (1..=count).map(|nth| format!("?{nth}")).collect();
    places.join(", ")
}

/// A table in SQL.
struct Shape {
    name: &'static str,
    /// The columns of its key.
    keys: &'static [&'static str],
    /// Its other columns, as far as [`Table`] lists them.
    fields: &'static [&'static str],
}

impl Shape {
    const fn of(table: Table) -> Self {
        let (name, keys, fields): (_, &[_], &[_]) = match table {
            Table::Holdouts => ("holdouts", &["seq"], &["row"]),
            Table::Claims => ("claims", &["seq"], &["claim_id", "owner", "row"]),
            Table::Pools => ("pools", &["holdout", "owner"], &["row"]),
            Table::Remembered(Half::First) => ("remembered_0", &["key"], &["row"]),
            Table::Remembered(Half::Second) => ("remembered_1", &["key"], &["row"]),
            Table::Questions => ("questions", &["question"], &["claim_id"]),
            Table::Entries => ("entries", &["idx"], &["leaf", "bytes"]),
            Table::Revocations => ("revocations", &["idx"], &["claim_seq"]),
            Table::Journal => ("journal", &["seq"], &["bytes", "chain"]),
            Table::Modules => ("modules", &["seq"], &["hash", "bytes"]),
            Table::Traces => ("traces", &["claim_seq"], &["hash", "bytes"]),
            Table::Blobs => ("blobs", &["hash"], &[]),
            Table::LogKeys => ("log_keys", &["since_size"], &["row"]),
            Table::Accounts => ("accounts", &["seq"], &["owner", "row"]),
            Table::Decisions => ("decisions", &["first"], &["idx", "records"]),
            Table::Facts => ("facts", &["name"], &["value"]),
        };
        Self { name, keys, fields }
    }

    fn columns(&self) -> String {
        [self.keys, self.fields].concat().join(", ")
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Number(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl FromSql for Value {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Number(number),
            // No table of ours stores a float: read as its bytes, it matches no row.
            ValueRef::Real(real) => Self::Bytes(real.to_be_bytes().to_vec()),
            ValueRef::Text(text) => Self::Text(String::from_utf8_lossy(text).into_owned()),
            ValueRef::Blob(bytes) => Self::Bytes(bytes.to_vec()),
        })
    }
}
