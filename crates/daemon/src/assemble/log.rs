//! The log of a data directory at a start: begun or found, compared with its anchors, and then free
//! to be signed, or held.
//!
//! An empty directory begins a log only if its key cannot have signed one. An existing log is not
//! signed before an anchor agrees. A key that takes over the log is linked here, before anything
//! else is signed.

use std::{path::Path, sync::Arc};

use evidenceos_access::Owners;
use evidenceos_driver::{Alone, OwnWork};
use evidenceos_kernel::{
    command::{BeginLog, LogCommand},
    log_key::{KeyLink, LogKey, SignedKeyLink},
    state::Resident,
};
use evidenceos_notary::{
    anchors::{self, AnchorError, Anchoring, Anchors, Beginner, Tip},
    keys::{LogKeyError, LogKeys, LogSigner},
    release::Anchored,
};
use evidenceos_store::{
    AccountsFile, AccountsFiles, Done, Found, Head, OpenedStore, Rows, StoreEngine,
    facts::{Fact, Facts},
    log::{Integrator, Tiles, append_leaves},
};
use evidenceos_tlog::Tree;
use tokio::runtime::Handle;

use super::{
    StartError,
    held::{self, CANNOT_WRITE, Hold, OwnLog},
    keyring::Keyring,
    own::{self, Signing},
};
use crate::{
    accounts::{self, AtStart, Import},
    config::Config,
    guarded,
    metrics::Metrics,
};

/// The log of an opened directory.
pub struct Log {
    /// The store with its state and the tree of all entries.
    pub alone: Alone<Box<dyn StoreEngine>>,
    /// Connections that read committed rows.
    pub readers: Arc<dyn Rows>,
    /// The places outside the data directory that remember the newest head.
    pub anchors: Arc<Anchors>,
    /// The anchors' last known state.
    pub state: Arc<anchors::State>,
    /// Whether the log may be signed.
    pub free: bool,
    /// The newest signed head.
    pub head: Head,
    /// The newest head that may be shown.
    pub shown: Head,
    /// Writes the log's files.
    pub integrator: Integrator,
    /// The log's keys, the first one first.
    pub history: Vec<LogKey>,
    own: OwnLog,
    facts: Facts,
}

impl Log {
    /// Opens the log of a directory, or begins one. Blocks.
    ///
    /// # Errors
    /// If the log may not begin, contradicts an anchor or itself, or would have to be signed while it
    /// is held.
    pub fn open(
        config: &Config,
        opened: OpenedStore,
        accounts_json: &AtStart,
        keyring: &Keyring,
        engine: &str,
        metrics: &Metrics,
        runtime: &Handle,
    ) -> Result<Self, StartError> {
        let directory = config.data_dir.as_path();
        let keys = &keyring.log;
        let (store, readers, found) = (opened.store, opened.rows, opened.found);
        let resident = found.resident(config.accounting.clone(), engine.to_owned());
        let Found {
            head,
            log_keys,
            facts,
            ..
        } = found;
        let first_start = head.is_none();
        let (anchors, state) = anchors_of(config, &facts, metrics, runtime)?;
        let opened = (store, resident);
        let ((mut store, resident), head, history) = if let Some(head) = head {
            must_be_named(config, &head)?;
            (opened, head, log_keys)
        } else {
            let (opened, head) = begin(config, opened, &anchors, keyring, runtime)?;
            (opened, head, vec![LogKey::new(keys.signer.public_key(), 0)])
        };
        store.release_through(readers.blobs().clone());
        let size = resident.counters().next_index;
        // This comes before the daemon signs anything, or shows anything that was not shown before.
        let own = OwnLog::read(directory, &readers, &head, &facts, keys, size)?;
        if !first_start {
            make_default_anchor(&anchors, &facts);
        }
        let free = is_free(&own, &head, &anchors, &state, &keys.signer)?;
        must_need_no_signature(free, &state, accounts_json, keys)?;
        let shown = if free {
            head.clone()
        } else {
            own.shown_head(config, keys, &history, runtime)?
        };
        let (integrator, tree) = files_and_tree(directory, &readers, &shown, size)?;
        Ok(Self {
            alone: Alone::new(store, resident, tree),
            readers,
            anchors: Arc::new(anchors),
            state,
            free,
            head,
            shown,
            integrator,
            history,
            own,
            facts,
        })
    }

    /// Brings the history of keys up to date, and links the key that signs now to the one before.
    ///
    /// # Errors
    /// If a KMS does not sign, or the store fails.
    pub fn follow_key(&mut self, keys: &LogKeys, runtime: &Handle) -> Result<(), StartError> {
        let before = keys.predecessor.as_ref().unwrap_or(&keys.signer);
        if self.history.is_empty() {
            let first = before.public_key();
            let command = LogCommand::KnowFirstKey(first).into();
            own::note(&mut self.alone, command, "the log's first key")?;
            self.history.push(LogKey::new(first, 0));
        }
        let Some(old) = &keys.predecessor else {
            return Ok(());
        };
        // The new key signs the tree that contains the link, so it begins with that size.
        let since = self.alone.tree().size() + 1;
        let link = link(self.alone.tree(), old, &keys.signer, runtime)?;
        let work = OwnWork::command(LogCommand::RotateKey(Box::new(link)));
        let signing = Signing {
            signer: &keys.signer,
            runtime,
        };
        let what = "the link to the log's new key";
        self.head = own::enact(&mut self.alone, work, signing, what)?.0;
        tracing::info!(old = %old.key_id(), new = %keys.signer.key_id(), "another key signs the log");
        let new = keys.signer.public_key();
        self.history.push(LogKey::new(new, since));
        Ok(())
    }

    /// Brings `accounts.json` and the accounts together; returns the file that is then in place.
    ///
    /// # Errors
    /// If the file cannot be written, or its import is refused.
    pub fn bring_accounts(
        &mut self,
        directory: &Path,
        at_start: AtStart,
        owners: &Owners,
        signing: (&LogSigner, &Handle),
    ) -> Result<AccountsFile, StartError> {
        let before = match at_start {
            AtStart::Current(file) => return Ok(file),
            AtStart::Behind(file) => file,
            AtStart::Import(import) => Some(self.import(directory, &import, owners, signing)?),
        };
        let store = self.alone.store_mut();
        Ok(accounts::write_now(
            &mut **store,
            directory,
            &*self.readers,
            before,
        )?)
    }

    fn import(
        &mut self,
        directory: &Path,
        import: &Import,
        owners: &Owners,
        (signer, runtime): (&LogSigner, &Handle),
    ) -> Result<AccountsFile, StartError> {
        let file = import.file();
        // One commit imports the accounts and makes the file a known one: after a crash both hold,
        // or neither.
        let work = OwnWork {
            files: Some(AccountsFiles {
                announced: Some(file),
                before: None,
            }),
            ..OwnWork::command(import.command(owners))
        };
        let signing = Signing { signer, runtime };
        let what = "the import of accounts.json";
        self.head = own::enact(&mut self.alone, work, signing, what)?.0;
        // A crash before this leaves an approval without effect: the next start knows the file.
        import.done(directory)?;
        Ok(file)
    }

    /// Has the anchors remember what the start itself has signed, then writes it to the log's
    /// files.
    ///
    /// # Errors
    /// If an anchor knows other entries, or if the files cannot be written.
    pub fn publish(&mut self, signer: &LogSigner, done: &Done) -> Result<(), StartError> {
        if self.free {
            // Anchors come first: what this start has signed is shown only if one of them remembers
            // it.
            self.free = self.anchors.remember(&self.tip(signer))?;
            self.own.head = self.head.clone();
            let tree = self.alone.tree();
            self.own.tip = (tree.size(), tree.root());
            self.shown = self.head.clone();
        }
        self.integrator.integrate(&self.shown)?;
        if self.free {
            held::settle(&mut **self.alone.store_mut(), &self.anchors, &self.facts)?;
        } else if self.state.held_because().is_none() {
            self.state.hold(CANNOT_WRITE);
        }
        let integrated = self.integrator.tree().size();
        done.integrated
            .store(integrated, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    /// How far anchors remember the log, for the parts that wait for them.
    #[must_use]
    pub fn anchored(&self, done: &Arc<Done>, metrics: &Metrics) -> Anchored {
        let done = Arc::clone(done);
        if !self.anchors.are_written() && self.free {
            return Anchored::off(done);
        }
        let covered = if self.free {
            self.alone.tree().size()
        } else {
            self.integrator.tree().size()
        };
        metrics.wait_for_anchors(covered);
        Anchored::from(done, covered, self.free)
    }

    /// The newest head and the whole tree, in the form in which anchors remember them.
    #[must_use]
    pub fn tip(&self, signer: &LogSigner) -> Tip {
        let tree = self.alone.tree();
        let tip = (tree.size(), tree.root());
        self.anchors.tip_of(&self.head, tip, signer)
    }

    /// The wait for an anchor, if the log is held.
    #[must_use]
    pub fn hold(&self, anchored: &Anchored, signer: &LogSigner) -> Option<Hold> {
        (!self.free).then(|| Hold {
            own: self.own.clone(),
            tip: self.tip(signer),
            tree: self.alone.tree().clone(),
            anchors: Arc::clone(&self.anchors),
            anchored: anchored.clone(),
            state: Arc::clone(&self.state),
            facts: self.facts.clone(),
        })
    }
}

/// The writer of the log's files, which reach as far as the head that may be shown, and the tree of
/// all `size` entries.
fn files_and_tree(
    directory: &Path,
    readers: &Arc<dyn Rows>,
    shown: &Head,
    size: u64,
) -> Result<(Integrator, Tree), StartError> {
    let integrator = Integrator::recover(directory, Arc::clone(readers), Some(shown))?;
    let mut tree = integrator.tree().clone();
    append_leaves(&mut tree, &**readers, size, Tiles::Keep)?;
    Ok((integrator, tree))
}

fn anchors_of(
    config: &Config,
    facts: &Facts,
    metrics: &Metrics,
    runtime: &Handle,
) -> Result<(Anchors, Arc<anchors::State>), StartError> {
    let state = Arc::new(anchors::State::default());
    metrics
        .registry()
        .collect(anchors::StateCollector(Arc::clone(&state)));
    let remembered = facts.anchors.as_deref().unwrap_or_default();
    for warning in guarded::anchors_must_be_closed(remembered)? {
        tracing::warn!("{warning}");
    }
    let anchors = Anchors::new(&config.anchoring(), facts, runtime, Arc::clone(&state))?;
    if config.anchors == Anchoring::Off {
        tracing::warn!(
            "--anchor none: a data directory restored from an older state will not be noticed"
        );
    }
    Ok((anchors, state))
}

/// Makes the default anchor of a log that has none. A first start has made it by now. A restored
/// directory does not get one automatically: a new anchor knows nothing of what was signed after
/// the backup.
fn make_default_anchor(anchors: &Anchors, facts: &Facts) {
    if facts.restored.is_none()
        && let Err(error) = anchors.make_default()
    {
        tracing::error!(%error, "the log has no anchor");
    }
}

/// Whether signing may begin: the anchors agree with this log, and one remembers all of it.
fn is_free(
    own: &OwnLog,
    head: &Head,
    anchors: &Anchors,
    state: &anchors::State,
    signer: &LogSigner,
) -> Result<bool, AnchorError> {
    let tip = anchors.tip_of(head, own.tip, signer);
    if !own.is_free(anchors)? {
        return Ok(false);
    }
    let remembered = anchors.remember(&tip)?;
    if !remembered {
        state.hold(CANNOT_WRITE);
    }
    Ok(remembered)
}

type StoreAndState = (Box<dyn StoreEngine>, Resident);

/// Commits entry 0 of a new log before anything else.
fn begin(
    config: &Config,
    (store, resident): StoreAndState,
    anchors: &Anchors,
    keyring: &Keyring,
    runtime: &Handle,
) -> Result<(StoreAndState, Head), StartError> {
    let signer = &keyring.log.signer;
    let begun = anchors.begin(&Beginner {
        origin: signer.origin(),
        keys: keyring.log.public_keys(),
        made_key: keyring.made_key,
        stated: config.begin_log.as_deref(),
    })?;
    let command = LogCommand::Begin(Box::new(BeginLog {
        origin: signer.origin().to_owned(),
        public_key: signer.public_key(),
        software: concat!("evidenceosd/", env!("CARGO_PKG_VERSION")).to_owned(),
        begun_by: begun.by,
    }));
    let work = OwnWork {
        // The commit that begins the log also clears the record that a key was being made: from
        // here on the key has signed.
        facts: vec![Fact::Beginning(None)],
        ..OwnWork::command(command)
    };
    let mut alone = Alone::new(store, resident, Tree::new());
    let signing = Signing { signer, runtime };
    let (head, _) = own::enact(&mut alone, work, signing, "the first entry of the log")?;
    // Until an anchor remembers the head, another start that uses the anchor could begin a log as
    // well.
    anchors.remember(&Tip::from(&head))?;
    let (store, resident, _) = alone.into_parts();
    Ok(((store, resident), head))
}

/// The link from one key to the next, over the present tree; either key may be in a KMS.
fn link(
    tree: &Tree,
    old: &LogSigner,
    new: &LogSigner,
    runtime: &Handle,
) -> Result<SignedKeyLink, LogKeyError> {
    let link = KeyLink {
        origin: new.origin().to_owned(),
        old_public_key: old.public_key(),
        new_public_key: new.public_key(),
        tree_size: tree.size(),
        root: tree.root().0,
    };
    let digest = link.digest();
    let signed = runtime.block_on(async {
        let old = old.sign_bytes(digest.as_bytes()).await?;
        Ok((old, new.sign_bytes(digest.as_bytes()).await?))
    });
    let (old_signature, new_signature) = signed.map_err(LogKeyError::Kms)?;
    Ok(SignedKeyLink {
        link,
        old_signature,
        new_signature,
    })
}

/// If `--begin-log` is given for an existing log, it must name that log.
fn must_be_named(config: &Config, head: &Head) -> Result<(), StartError> {
    let origin = head.checkpoint.lines().next().unwrap_or_default();
    match config.begin_log.as_deref() {
        Some(stated) if stated != origin => Err(StartError::refused(
            format!("--begin-log {stated:?}: the data directory has the log {origin:?}"),
            "leave the flag out, or give another --data-dir",
        )),
        _ => Ok(()),
    }
}

/// Refuses a start that would have to sign something first while nothing may be signed.
fn must_need_no_signature(
    free: bool,
    state: &anchors::State,
    accounts: &AtStart,
    keys: &LogKeys,
) -> Result<(), StartError> {
    if free {
        return Ok(());
    }
    let what = if matches!(accounts, AtStart::Import(_)) {
        "accounts.json must be imported"
    } else if keys.predecessor.is_some() {
        "another key must take over the log (start with the key that signed before)"
    } else {
        return Ok(());
    };
    let why = state.held_because().unwrap_or_default();
    Err(StartError::NotSigned { what, why })
}
