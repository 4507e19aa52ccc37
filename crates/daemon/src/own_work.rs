//! Commands of the daemon's own before the writer starts: decided by the kernel, signed, committed.

use evidenceos_kernel::{
    command::{Caller, Command, Request},
    decide::decide,
    state::{Key, Resident, Stage},
};
use evidenceos_store::{
    AccountsFiles, Batch, Entry, Head, Recorded, Store, StoreError, facts::Fact,
};
use evidenceos_tlog::{Tree, leaf_hash};
use tokio::runtime::Handle;

use crate::{
    clock::unix_ms,
    keys::{LogKeyError, LogSigner},
    start_error::StartError,
};

/// The state that a start works on.
pub struct OwnWork<'s, S> {
    /// The store.
    pub store: &'s mut S,
    /// Its state in memory.
    pub resident: &'s mut Resident,
    /// The tree of its entries.
    pub tree: &'s mut Tree,
    /// Where a KMS is asked.
    pub runtime: &'s Handle,
}

/// What the store notes in the commit of a command.
#[derive(Debug, Default)]
pub struct Told {
    /// What may lie there as `accounts.json` from then on.
    pub files: Option<AccountsFiles>,
    /// What the database remembers about itself from then on.
    pub facts: Vec<Fact>,
}

/// What a command left.
#[derive(Debug)]
pub struct Enacted {
    /// The head over it.
    pub head: Head,
    /// Its entries.
    pub entries: Vec<Vec<u8>>,
}

impl<S: Store> OwnWork<'_, S> {
    /// Enacts a command that appends entries, and commits it with the head that `signer` signs
    /// over them. `what` says what it is, for errors; `told` is what the store notes with it.
    ///
    /// # Errors
    /// Where the kernel refuses, the signer fails, or the store.
    pub fn enact(
        &mut self,
        command: Command,
        signer: &LogSigner,
        what: &str,
        told: Told,
    ) -> Result<Enacted, StartError> {
        let request = Request {
            caller: Caller::DRIVER,
            stamp: None,
            command,
        };
        let mut stage = Stage::new(self.resident);
        stage.advance_to(unix_ms());
        load(self.store, &mut stage, &request)?;
        let decision = decide(&stage, &request)
            .map_err(|refusal| StoreError::Unusable(format!("{what}: {refusal}")))?;
        stage.enact(&decision);
        let mut grown = self.tree.clone();
        let entries: Vec<Entry> = decision
            .entries
            .into_iter()
            .map(|bytes| Entry {
                leaf: leaf_hash(&bytes),
                bytes,
            })
            .collect();
        for entry in &entries {
            grown.append(entry.leaf);
        }
        let head = self
            .runtime
            .block_on(signer.sign_head(grown.size(), grown.root()))
            .map_err(LogKeyError::Kms)?;
        let batch = Batch {
            recorded: vec![Recorded {
                at_unix_ms: stage.now_unix_ms(),
                caller: request.caller.tag,
                events: decision.events,
            }],
            changes: stage.into_changes(),
            entries,
            head: Some(head.clone()),
            accounts_files: told.files,
            facts: told.facts,
            ..Batch::default()
        };
        self.store.commit(&batch).must_be_durable(what)?;
        self.resident.merge(batch.changes);
        *self.tree = grown;
        let entries = batch.entries.into_iter().map(|entry| entry.bytes);
        Ok(Enacted {
            head,
            entries: entries.collect(),
        })
    }
}

/// Gives the stage all that a request needs.
///
/// # Errors
/// Where a row cannot be read.
pub fn load(
    store: &mut impl Store,
    stage: &mut Stage<'_>,
    request: &Request,
) -> Result<(), StoreError> {
    loop {
        let missing = stage.missing(request);
        if missing.is_empty() {
            return Ok(());
        }
        for key in missing {
            match key {
                Key::Account(owner) => stage.supply_account(owner, store.account(&owner)?),
                Key::Claim(id) => stage.supply_claim(id, store.claim(&id)?),
                Key::Pool(holdout, owner) => {
                    stage.supply_pool(holdout, owner, store.pool(holdout, owner)?);
                }
                Key::Remembered(key) => stage.supply_remembered(key, store.remembered(&key)?),
                Key::Question(question) => {
                    stage.supply_question(question, store.question(&question)?);
                }
            }
        }
    }
}
