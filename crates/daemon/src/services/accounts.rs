//! Credit: accounts, grants and limits.

use std::sync::Arc;

use evidenceos_access::{Owners, Principal, principal::is_principal};
use evidenceos_driver::clock::Clock;
use evidenceos_kernel::{
    account::{Account, Accounting, Totals},
    command::{Command, CreditCommand, Reply, Stamp},
    id::OwnerTag,
    refusal::{Refusal, Role},
};
use evidenceos_store::Done;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc, watch,
};

use super::{Error, Names, ShownRows, Writer, writer::unexpected};
use crate::accounts::shows_all;

/// Accounts in one message of a watch.
const PAGE: usize = 256;
/// Messages that wait for a slow watcher.
const WATCH_DEPTH: usize = 4;

/// The use cases of accounts.
pub struct Accounts {
    /// Hands commands to the writer.
    pub writer: Arc<Writer>,
    /// The committed rows from which replies are made.
    pub rows: ShownRows,
    /// Makes the owner tags of principals.
    pub owners: Arc<Owners>,
    /// The role policy's names for principals.
    pub names: Arc<Names>,
    /// The clock that decisions use.
    pub clock: Arc<Clock>,
    /// The prices, and the credit of new accounts.
    pub accounting: Accounting,
    /// What the store has done since the start.
    pub done: Arc<Done>,
    /// The last change that `accounts.json` shows.
    pub in_file: watch::Receiver<u64>,
    /// Accounts as they change.
    pub changed: broadcast::Sender<Arc<[Account]>>,
}

/// The accounts that a caller asks for.
#[derive(Clone, Copy)]
pub enum Whose<'a> {
    /// The account of a principal; an empty name is the caller's own.
    Of(&'a str),
    /// Every account, for operators alone.
    All,
}

/// One account, by tag and name.
type Named = (OwnerTag, String);
/// The sender to a watcher.
type Told = mpsc::Sender<Result<Vec<Account>, Error>>;

impl Accounts {
    /// Grants credit to a principal; returns its credit afterwards, reservations included.
    ///
    /// # Errors
    /// If the caller is not an operator, or the kernel refuses.
    pub async fn grant(
        self: &Arc<Self>,
        principal: &Principal,
        stamp: Option<Stamp>,
        to: String,
        amount: u64,
        reason: String,
    ) -> Result<u64, Error> {
        let command = CreditCommand::Grant {
            owner: self.owner_of(&to).await?,
            principal: to,
            amount,
            reason,
        }
        .into();
        self.change_credit(principal, stamp, command).await
    }

    /// Sets the credit limit of a principal; returns the limit.
    ///
    /// # Errors
    /// As [`Accounts::grant`].
    pub async fn set_limit(
        self: &Arc<Self>,
        principal: &Principal,
        stamp: Option<Stamp>,
        of: String,
        limit: u64,
    ) -> Result<u64, Error> {
        let command = CreditCommand::SetLimit {
            owner: self.owner_of(&of).await?,
            principal: of,
            limit,
        }
        .into();
        self.change_credit(principal, stamp, command).await
    }

    async fn change_credit(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        command: Command,
    ) -> Result<u64, Error> {
        match self.writer.call(principal, stamp, command, None).await? {
            Reply::Credit(credit) => Ok(credit),
            other => Err(unexpected(&other)),
        }
    }

    /// An account as it is, or as it would be opened.
    ///
    /// # Errors
    /// If it is another principal's and the caller is not an operator.
    pub async fn get(self: &Arc<Self>, principal: &Principal, of: &str) -> Result<Account, Error> {
        let (owner, name) = self.asked_for(principal, of).await?;
        let accounts = Arc::clone(self);
        self.rows.read(move || accounts.read(owner, &name)).await
    }

    /// At most `most` accounts from a number on, and the sums over all.
    ///
    /// # Errors
    /// If rows cannot be read.
    pub async fn list(&self, from: u64, most: usize) -> Result<(Vec<Account>, Totals), Error> {
        let readers = Arc::clone(&self.rows.readers);
        let read = move || Ok(readers.accounts_and_totals(from, most)?);
        self.rows.read(read).await
    }

    /// Sends the present accounts, then their changes. A watcher that falls behind gets all
    /// accounts again, so that it costs no memory and misses no last change. The watch ends when
    /// the receiver is dropped.
    ///
    /// # Errors
    /// If it is another principal's account, or all accounts, and the caller is not an operator.
    pub async fn watch(
        self: &Arc<Self>,
        principal: &Principal,
        whose: Whose<'_>,
    ) -> Result<mpsc::Receiver<Result<Vec<Account>, Error>>, Error> {
        let whose = match whose {
            Whose::All => {
                principal.caller.must_operate()?;
                None
            }
            Whose::Of(name) => Some(self.asked_for(principal, name).await?),
        };
        let (sender, receiver) = mpsc::channel(WATCH_DEPTH);
        tokio::spawn(Arc::clone(self).tell(whose, sender));
        Ok(receiver)
    }

    async fn tell(self: Arc<Self>, whose: Option<Named>, sender: Told) {
        // The subscription comes before the first look: a change in between is told twice rather
        // than never.
        let mut changes = self.changed.subscribe();
        'all: loop {
            if self.tell_all(&whose, &sender).await.is_none() {
                return;
            }
            loop {
                let changed = tokio::select! {
                    // Accounts may stay as they are for days: a watcher that has left must not be
                    // kept for so long.
                    () = sender.closed() => return,
                    changed = changes.recv() => changed,
                };
                let changed = match changed {
                    Ok(changed) => changed,
                    Err(RecvError::Lagged(_)) => continue 'all,
                    Err(RecvError::Closed) => return,
                };
                let is_asked_for = |account: &&Account| {
                    let owner = whose.as_ref().map(|(owner, _)| owner);
                    owner.is_none_or(|owner| *owner == account.owner)
                };
                let accounts: Vec<Account> = changed.iter().filter(is_asked_for).cloned().collect();
                if !accounts.is_empty() && sender.send(Ok(accounts)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Sends the accounts as they are; `None` if the watch has ended.
    async fn tell_all(self: &Arc<Self>, whose: &Option<Named>, sender: &Told) -> Option<()> {
        let mut from = 0;
        loop {
            let (one, accounts) = (whose.clone(), Arc::clone(self));
            let read = self.rows.read(move || match one {
                Some((owner, name)) => Ok((vec![accounts.read(owner, &name)?], None)),
                None => {
                    let page = accounts.rows.readers.accounts(from, PAGE)?;
                    let full = page.len() == PAGE;
                    let next = page.last().filter(|_| full).map(|last| last.seq + 1);
                    Ok((page, next))
                }
            });
            let (page, next) = match read.await {
                Ok(read) => read,
                Err(error) => {
                    // A watcher that has gone needs no reason.
                    let _ = sender.send(Err(error)).await;
                    return None;
                }
            };
            sender.send(Ok(page)).await.ok()?;
            from = match next {
                Some(next) => next,
                None => return Some(()),
            };
        }
    }

    /// Waits until `accounts.json` shows all that was acknowledged; returns the number of the last
    /// change in it.
    ///
    /// # Errors
    /// If the server stops first.
    pub async fn export(&self) -> Result<u64, Error> {
        let shown = shows_all(&self.done, self.in_file.clone()).await;
        shown.map_err(|_| {
            Error::Unavailable(
                "the server is stopping; accounts.json is brought up to date as it ends".to_owned(),
            )
        })
    }

    /// The bytes that a principal's claims may occupy in the store.
    #[must_use]
    pub fn storage_limit(&self) -> u64 {
        self.accounting.storage_limit
    }

    /// The tag of an owner, given as a principal or as the tag in hex.
    #[must_use]
    pub fn tag_of(&self, owner: &str) -> OwnerTag {
        OwnerTag::from_typed_hex(owner).unwrap_or_else(|| self.owners.tag(owner))
    }

    /// The tag of a name that an operator gave. The name must have a principal's form or an existing account, such as
    /// an imported one. Credit under any other name would belong to no principal.
    async fn owner_of(self: &Arc<Self>, name: &str) -> Result<OwnerTag, Error> {
        if !(1..=256).contains(&name.len()) || name.chars().any(char::is_control) {
            return Err(Error::field(
                "principal_id",
                "must be 1 to 256 bytes of text without control characters",
            ));
        }
        let owner = self.owners.tag(name);
        if is_principal(name) {
            return Ok(owner);
        }
        let readers = Arc::clone(&self.rows.readers);
        let found = self.rows.read(move || Ok(readers.account(&owner)?)).await?;
        if found.is_none() {
            return Err(Refusal::field(
                "principal_id",
                format!(
                    "{name:?} is not a principal and has no account: a principal is mtls:, bearer: or hmac: and 64 lowercase hex digits. `evidenceos principal` computes it from a URI, a certificate or a token; `evidenceos account list` shows those that have accounts"
                ),
            )
            .into());
        }
        Ok(owner)
    }

    /// The account that a caller asks for; an empty name means the caller's own.
    async fn asked_for(
        self: &Arc<Self>,
        principal: &Principal,
        name: &str,
    ) -> Result<Named, Error> {
        if name.is_empty() || name == principal.name {
            return Ok((principal.caller.tag, principal.name.clone()));
        }
        if !principal.caller.operator {
            return Err(Refusal::RoleRequired(Role::Operator).into());
        }
        Ok((self.owner_of(name).await?, name.to_owned()))
    }

    fn read(&self, owner: OwnerTag, name: &str) -> Result<Account, Error> {
        let found = self.rows.readers.account(&owner)?;
        let now = self.clock.now_unix_ms();
        Ok(found.unwrap_or_else(|| self.accounting.open(0, owner, name, now)))
    }
}
