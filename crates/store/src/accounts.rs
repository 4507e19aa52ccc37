//! `<data-dir>/accounts.json`: the accounts as a JSON object, for people and other programs.
//!
//! The rows are the truth and the file follows them. The store writes it whole: `accounts.tmp`,
//! fsync, rename over `accounts.json`, fsync of the directory. Before the rename it commits the new
//! file's digest, so a start recognises every file that a crash can leave: the one last announced,
//! or the one before it. Any other file was edited, or brought back from elsewhere.
//!
//! Between two rewrites most accounts stay as they are, so their lines are kept ([`Lines`]).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Read as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::account::Account;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{AccountsFile, Rows, StoreError, blobs::sync_directory, row};

/// The largest file that is read: about four million accounts.
const MAX_BYTES: u64 = 1 << 30;
/// The most lines that are kept: about 70 MB. The lines of later accounts are made anew each time.
const LINES_KEPT: usize = 1 << 18;
/// Bytes written at once.
const BUFFER: usize = 1 << 20;

/// An account as the file states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Credit that is not burned, including reservations of runs under way.
    pub credit_balance: u64,
    /// The most that may still be minted on `last_mint_day`.
    pub daily_mint_remaining: u64,
    /// Days since 1970-01-01, UTC.
    pub last_mint_day: u64,
    pub limits: Limits,
    /// Burned by runs, ever.
    pub burned_total: u64,
    /// Runs refused for want of credit, ever.
    pub denied_total: u64,
}

/// The limits of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Mints and grants raise the balance to at most this.
    pub credit_limit: u64,
    /// The most that a day mints.
    pub daily_mint_limit: u64,
}

impl From<&Account> for Listed {
    fn from(account: &Account) -> Self {
        Self {
            credit_balance: account.unburned(),
            daily_mint_remaining: account.daily_mint_remaining,
            last_mint_day: account.last_mint_day,
            limits: Limits {
                credit_limit: account.credit_limit,
                daily_mint_limit: account.daily_mint_limit,
            },
            burned_total: account.burned_total,
            denied_total: account.denied_total,
        }
    }
}

#[derive(Deserialize)]
struct Document {
    accounts: BTreeMap<String, Listed>,
}

/// Reads a file's content; unknown members are skipped.
///
/// # Errors
/// If it is not the documented object; the error has the line.
pub fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Listed>, serde_json::Error> {
    let document: Document = serde_json::from_slice(evidenceos_files::without_mark(bytes))?;
    Ok(document.accounts)
}

/// The lines of the last rewrite, by the rows that they were made from.
///
/// A row's checksum stands for its bytes: if it is unchanged, so is the line, since the row was
/// read and verified when the line was made.
#[derive(Debug, Default)]
pub struct Lines(Vec<Line>);

#[derive(Debug)]
struct Line {
    seq: u64,
    check: Option<[u8; row::CHECK_LEN]>,
    text: Box<[u8]>,
}

impl Lines {
    /// The line of the nth account, without its separator. The caller asks for the lines in order.
    fn of(&mut self, nth: usize, seq: u64, bytes: &[u8]) -> Result<&[u8], StoreError> {
        // Accounts are never removed, so each keeps its place. Those beyond the last place share
        // it.
        let place = nth.min(LINES_KEPT);
        let check = row::check_of(bytes);
        let known = self.0.get(place);
        if !known.is_some_and(|line| line.seq == seq && line.check == check) {
            let text = listed(&row::decode("accounts", seq, bytes)?);
            let line = Line { seq, check, text };
            if place == self.0.len() {
                self.0.push(line);
            } else {
                self.0[place] = line;
            }
        }
        Ok(&self.0[place].text)
    }
}

/// The file of a data directory.
#[derive(Debug, Clone)]
pub struct AccountsJson {
    directory: PathBuf,
}

impl AccountsJson {
    /// The file of a data directory.
    #[must_use]
    pub fn of(data_directory: &Path) -> Self {
        Self {
            directory: data_directory.to_owned(),
        }
    }

    /// The path of `accounts.json` in the data directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join("accounts.json")
    }

    fn temporary(&self) -> PathBuf {
        self.directory.join("accounts.tmp")
    }

    /// The file's bytes; `None` if there is no file.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be read; [`StoreError::Refused`] if it is too large to be one.
    pub fn read(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        let mut bytes = Vec::new();
        // Read one byte more than is allowed, to tell a file that is too large from one that just
        // fits.
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(StoreError::io("read", &path))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(StoreError::refused(
                format!(
                    "{} is larger than {MAX_BYTES} bytes; no daemon wrote it",
                    path.display()
                ),
                "move it away",
            ));
        }
        Ok(Some(bytes))
    }

    /// Writes all accounts to `accounts.tmp` and syncs it. The caller must commit the result before
    /// [`AccountsJson::put_in_place`]. `lines` are those of the previous rewrite, or empty.
    ///
    /// # Errors
    /// [`StoreError`] if the accounts cannot be read or the file cannot be written.
    pub fn write_temporary(
        &self,
        rows: &dyn Rows,
        lines: &mut Lines,
    ) -> Result<AccountsFile, StoreError> {
        let path = self.temporary();
        let failed = |source| StoreError::io("write", &path)(source);
        // The leftover of an interrupted write is overwritten: nothing reads it.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        failpoint::pass(Point::AccountsTmpCreated);
        let mut out = BufWriter::with_capacity(
            BUFFER,
            Hashing {
                file,
                hash: Sha256::new(),
            },
        );
        out.write_all(b"{\"accounts\":{").map_err(failed)?;
        let mut nth = 0;
        let seq = rows.all_account_rows(&mut |seq, bytes| {
            let separator: &[u8] = if nth == 0 { b"\n" } else { b",\n" };
            let line = lines.of(nth, seq, bytes)?;
            nth += 1;
            out.write_all(separator)
                .and_then(|()| out.write_all(line))
                .map_err(failed)
        })?;
        out.write_all(b"\n}}\n").map_err(failed)?;
        let Hashing { file, hash } = out
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        // Without this sync a crash after the rename could leave the name without its content.
        file.sync_all().map_err(StoreError::io("sync", &path))?;
        failpoint::pass(Point::AccountsTmpSynced);
        Ok(AccountsFile {
            sha256: hash.finalize().into(),
            seq,
        })
    }

    /// Puts the file that was written last in place.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be renamed, or the directory cannot be synced.
    pub fn put_in_place(&self) -> Result<(), StoreError> {
        failpoint::pass(Point::AccountsIntentCommitted);
        let (from, to) = (self.temporary(), self.path());
        fs::rename(&from, &to).map_err(StoreError::io("rename", from))?;
        failpoint::pass(Point::AccountsRenamed);
        // Until the directory is synced a crash may bring the previous file back; therefore the
        // state row knows both.
        sync_directory(&self.directory)?;
        failpoint::pass(Point::AccountsDirsynced);
        Ok(())
    }
}

/// The digest of a file's content.
#[must_use]
pub fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// An account's name and value, as the file states them.
fn listed(account: &Account) -> Box<[u8]> {
    let text = serde_json::to_vec(&account.principal).and_then(|mut text| {
        text.push(b':');
        serde_json::to_writer(&mut text, &Listed::from(account))?;
        Ok(text)
    });
    text.unwrap_or_else(|error| unreachable!("a name and numbers are JSON: {error}"))
        .into_boxed_slice()
}

struct Hashing {
    file: File,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        // The writer may take fewer bytes than offered, and the digest must be that of the file.
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
