//! `accounts.json` beside the daemon: a start accepts or refuses it, a thread keeps it up to date,
//! and a stop flushes it.
//!
//! Only calls that ask for the file wait for it. The thread rewrites it after accounts have changed
//! and rests in proportion to the time that a rewrite takes. The writer commits the file's digest
//! before the file is put in place. A start accepts the files that a crash can leave, and no
//! others.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use evidenceos_access::Owners;
use evidenceos_driver::{Announced, mailbox::Mailbox, priority::yield_to_serving};
use evidenceos_kernel::{
    command::{Command, CreditCommand, ImportedAccount},
    id::Digest,
};
use evidenceos_store::{
    AccountsFile, AccountsFiles, Done, Found, Rows, StoreEngine, StoreError,
    accounts::{AccountsJson, Lines, Listed, digest, parse},
};
mod approval;
mod error;

pub use self::{approval::Approval, error::AccountsError};
use tokio::sync::watch;

/// A rest between two rewrites of a small file: each costs a commit.
const SMALL_REST: Duration = Duration::from_millis(400);
/// The least rest between two rewrites, however long they take.
const LEAST_REST: Duration = Duration::from_millis(50);
/// The longest time after which a change is in the file.
const BEHIND_AT_MOST: Duration = Duration::from_millis(750);
/// The pause before a failed rewrite is tried again.
const PAUSE: Duration = Duration::from_millis(250);

/// The state in which a start finds the file.
pub enum AtStart {
    /// It shows all changes.
    Current(AccountsFile),
    /// It is missing, or older than the accounts.
    Behind(Option<AccountsFile>),
    /// An operator approved it, or this is the first start: it becomes the accounts.
    Import(Import),
}

/// A file that becomes the accounts.
pub struct Import {
    accounts: Vec<(String, Listed)>,
    sha256: [u8; 32],
    reason: String,
}

/// Looks at the file that a start finds. If the daemon wrote it, this only hashes it.
///
/// # Errors
/// [`AccountsError::Foreign`] if the file was edited or restored from elsewhere: an operator must
/// approve the import. [`AccountsError::NotAccounts`] if an approved file does not list accounts,
/// and [`AccountsError::Store`] if the file cannot be read.
pub fn look(directory: &Path, found: &Found) -> Result<AtStart, AccountsError> {
    let file = AccountsJson::of(directory);
    let path = file.path();
    let Some(bytes) = file.read()? else {
        if found.totals.accounts > 0 {
            tracing::warn!(path = %path.display(), "accounts.json is missing; the daemon writes it again from the database");
        }
        return Ok(AtStart::Behind(None));
    };
    let sha256 = digest(&bytes);
    // A crash between the commit of a digest and the rename leaves the older file, so the daemon
    // may have written either of two files.
    if let Some(known) = found.accounts_files.find(&sha256) {
        let newest = found.accounts_files.announced == Some(known);
        return Ok(if newest && known.seq == found.accounts_seq {
            AtStart::Current(known)
        } else {
            AtStart::Behind(Some(known))
        });
    }
    // The operator approved the bytes that they saw: a file that changed since needs another
    // approval.
    let approval = Approval::waiting(directory)?.filter(|approval| approval.sha256 == sha256);
    // At a first start there are no accounts that the file could overwrite, so it needs no
    // approval.
    let is_first = found.totals.accounts == 0 && found.accounts_files.announced.is_none();
    let reason = match approval {
        Some(approval) => approval.reason,
        None if is_first => "found at the first start".to_owned(),
        None => {
            return Err(AccountsError::Foreign {
                path,
                directory: directory.to_owned(),
            });
        }
    };
    let accounts = parse(&bytes).map_err(|source| AccountsError::NotAccounts { path, source })?;
    Ok(AtStart::Import(Import {
        accounts: accounts.into_iter().collect(),
        sha256,
        reason,
    }))
}

impl Import {
    /// The command that imports the accounts.
    #[must_use]
    pub fn command(&self, owners: &Owners) -> Command {
        let accounts = self
            .accounts
            .iter()
            .map(|(principal, listed)| ImportedAccount {
                owner: owners.tag(principal),
                principal: principal.clone(),
                unburned: listed.credit_balance,
                daily_mint_remaining: listed.daily_mint_remaining,
                last_mint_day: listed.last_mint_day,
                credit_limit: listed.limits.credit_limit,
                daily_mint_limit: listed.limits.daily_mint_limit,
                burned_total: listed.burned_total,
                denied_total: listed.denied_total,
            })
            .collect();
        CreditCommand::Import {
            accounts,
            file: Digest(self.sha256),
            reason: self.reason.clone(),
        }
        .into()
    }

    /// The imported file. It is known once the command is committed, and shows no change that the
    /// daemon made.
    #[must_use]
    pub fn file(&self) -> AccountsFile {
        AccountsFile {
            sha256: self.sha256,
            seq: 0,
        }
    }

    /// Logs what was imported, and removes the approval.
    ///
    /// # Errors
    /// [`AccountsError::Io`] if the approval cannot be removed.
    pub fn done(&self, directory: &Path) -> Result<(), AccountsError> {
        tracing::info!(
            accounts = self.accounts.len(),
            reason = self.reason,
            "accounts.json was imported"
        );
        Approval::withdraw(directory)
    }
}

/// Writes the file and puts it in place with direct access to the store: before the writer starts,
/// or after it has ended. `before` is the file that is in place.
///
/// # Errors
/// If the file cannot be written or its digest cannot be committed.
pub fn write_now(
    store: &mut dyn StoreEngine,
    directory: &Path,
    readers: &dyn Rows,
    before: Option<AccountsFile>,
) -> Result<AccountsFile, StoreError> {
    let file = AccountsJson::of(directory);
    let written = file.write_temporary(readers, &mut Lines::default())?;
    let files = AccountsFiles {
        announced: Some(written),
        before,
    };
    // The digest is durable before the file has its name: a crash in between leaves the old file,
    // which is known too.
    let announced = store.announce(files);
    announced.must_be_durable("the digest of accounts.json")?;
    file.put_in_place()?;
    Ok(written)
}

/// The thread that follows the changes.
pub struct Following {
    wake: Option<mpsc::Sender<()>>,
    shown: watch::Receiver<u64>,
    thread: Option<JoinHandle<AccountsFile>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        // The next start finds out which file is in place.
        let _ = self.end();
    }
}

impl Following {
    /// Starts the thread. `in_place` is the file that is in place.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        directory: &Path,
        readers: Arc<dyn Rows>,
        done: Arc<Done>,
        mailbox: Mailbox,
        in_place: AccountsFile,
    ) -> std::io::Result<Self> {
        let (wake, woken) = mpsc::channel();
        let (show, shown) = watch::channel(in_place.seq);
        let mut follower = Follower {
            file: AccountsJson::of(directory),
            lines: Lines::default(),
            readers,
            done,
            mailbox,
            in_place,
            show,
        };
        let thread = thread::Builder::new()
            .name("accounts".to_owned())
            .spawn(move || {
                follower.follow(&woken);
                follower.in_place
            })?;
        Ok(Self {
            wake: Some(wake),
            shown,
            thread: Some(thread),
        })
    }

    /// A sender that tells the thread that accounts have changed.
    #[must_use]
    pub fn waker(&self) -> mpsc::Sender<()> {
        match &self.wake {
            Some(wake) => wake.clone(),
            None => unreachable!("it goes with the thread"),
        }
    }

    /// The number of the last change that the file shows.
    #[must_use]
    pub fn shown(&self) -> watch::Receiver<u64> {
        self.shown.clone()
    }

    /// Ends the thread and returns the file that is in place, or `None` if the thread panicked. The
    /// writer must have ended before. Blocks.
    #[must_use]
    pub fn end(&mut self) -> Option<AccountsFile> {
        self.wake = None;
        // A panic there has been reported.
        self.thread.take()?.join().ok()
    }
}

/// The result of a rewrite.
enum Written {
    /// It is in place.
    InPlace,
    /// Its digest could not be committed; it is tried again.
    NotAnnounced,
}

struct Follower {
    file: AccountsJson,
    lines: Lines,
    readers: Arc<dyn Rows>,
    done: Arc<Done>,
    mailbox: Mailbox,
    in_place: AccountsFile,
    show: watch::Sender<u64>,
}

impl Follower {
    fn follow(&mut self, woken: &mpsc::Receiver<()>) {
        yield_to_serving();
        while woken.recv().is_ok() {
            loop {
                // One rewrite shows all changes that were told of so far.
                while woken.try_recv().is_ok() {}
                let began = Instant::now();
                let rest = match self.rewrite() {
                    Ok(Written::InPlace) => {
                        let took = began.elapsed();
                        tracing::debug!(?took, "accounts.json was written");
                        rest_after(took)
                    }
                    Ok(Written::NotAnnounced) => PAUSE,
                    Err(error) => {
                        tracing::error!(%error, "accounts.json cannot be written; the accounts are safe in the database");
                        PAUSE
                    }
                };
                if !wait(woken, rest) {
                    return;
                }
                // The pause swallowed notices of later changes, so the numbers are compared:
                // otherwise a change could stay out of the file.
                if self.done.accounts_seq.load(Ordering::Acquire) <= *self.show.borrow() {
                    break;
                }
            }
        }
    }

    fn rewrite(&mut self) -> Result<Written, StoreError> {
        let written = self.file.write_temporary(&*self.readers, &mut self.lines)?;
        let (committed, answer) = mpsc::channel();
        self.mailbox.announce(Announced {
            files: AccountsFiles {
                announced: Some(written),
                before: Some(self.in_place),
            },
            committed,
        });
        // The disk is full, or the daemon ends and flushes the file itself.
        if answer.recv().is_err() {
            return Ok(Written::NotAnnounced);
        }
        self.file.put_in_place()?;
        self.in_place = written;
        self.show.send_replace(written.seq);
        Ok(Written::InPlace)
    }
}

/// The rest after a rewrite: four times as long as it took, but short enough that changes reach the
/// file in time.
fn rest_after(took: Duration) -> Duration {
    // A change that just missed one rewrite waits for its end, the rest, and the next one.
    let in_time = BEHIND_AT_MOST.saturating_sub(took * 2);
    (took * 4).max(SMALL_REST).min(in_time).max(LEAST_REST)
}

/// Waits; returns false if the daemon ends.
fn wait(woken: &mpsc::Receiver<()>, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        match woken.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}

/// Waits until the file shows every change that was acknowledged before the call.
///
/// # Errors
/// If the daemon ends first.
pub async fn shows_all(
    done: &Done,
    mut shown: watch::Receiver<u64>,
) -> Result<u64, watch::error::RecvError> {
    let wanted = seq(&done.accounts_seq);
    let reached = shown.wait_for(|shown| *shown >= wanted).await?;
    Ok(*reached)
}

fn seq(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Acquire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewrites_rest_and_are_in_time() {
        let ms = Duration::from_millis;
        for (took, rest) in [
            (1, 400),
            (110, 440),
            (150, 450),
            (200, 350),
            (320, 110),
            (500, 50),
        ] {
            assert_eq!(rest_after(ms(took)), ms(rest), "{took} ms");
        }
    }
}
