//! `log recover`: appends the missing signed entries, byte for byte.

use evidenceos_driver::{OwnWork, clock::unix_ms};
use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    command::LogCommand,
    decision::BatchRecorded,
    log_key::{KeyRotated, LogKey},
    record,
};
use evidenceos_notary::{
    anchors::Tip,
    keys::{LogKeyError, LogKeys, verifier},
};
use evidenceos_store::{Head, Rows, StoreError, facts::Fact};
use evidenceos_tlog::{Checkpoint, Hash, Note, SignedCheckpoint, Tree, leaf_hash};
use tokio::runtime::Handle;

use super::{
    failed,
    opened::Opened,
    source::{Source, WIDTH},
    warn, with_runtime,
};
use crate::{
    assemble::{StartError, own},
    config::Config,
    terminal,
};

/// The result of a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The number of entries that were missing.
    pub entries: u64,
    /// The log's size now.
    pub size: u64,
    /// The log's root now.
    pub root: Hash,
    /// Claims whose capsule was recovered and whose own rows are lost.
    pub unknown_claims: u64,
    /// Holdouts that were registered in the lost entries: their items are gone.
    pub lost_holdouts: Vec<String>,
    /// Warnings about the next start.
    pub warnings: Vec<String>,
}

/// Appends the entries that another copy of this log has and this database lacks, and charges what
/// they charged.
///
/// # Errors
/// [`StartError::Source`] if the other log cannot be read; [`StartError::Refused`] if it has
/// another name or key, does not continue this log, or has no more entries. Nothing is changed
/// before everything was checked.
pub fn recover(config: &Config, from: &str, runtime: &Handle) -> Result<Recovered, StartError> {
    let mut opened = Opened::open(config)?;
    let source = Source::new(from);
    let note = source.checkpoint(runtime)?;
    let checkpoint = parse(&note).ok_or_else(|| source.lacks("readable checkpoint"))?;
    if checkpoint.origin() != opened.origin() {
        return Err(StartError::refused(
            format!(
                "{source} is the log {:?}, this one is {:?}",
                checkpoint.origin(),
                opened.origin()
            ),
            "name a copy of this very log",
        ));
    }
    let (own, size) = (opened.alone.tree().size(), checkpoint.size());
    if size <= own {
        return Err(StartError::refused(
            format!("{source} has {size} entries, this log {own}: there is nothing to recover"),
            "name a copy that has more, if there is one",
        ));
    }
    let missing = checked(&opened, &source, &checkpoint, &note, runtime)?;
    let keys = signer(config, &opened, &missing, runtime)?;
    // The head is signed before anything is appended: if the KMS fails, the directory is unchanged.
    let head = runtime
        .block_on(keys.signer.sign_head(size, checkpoint.root()))
        .map_err(LogKeyError::Kms)?;
    let mut recovered = Recovered {
        entries: missing.leaves.len() as u64,
        size,
        root: checkpoint.root(),
        unknown_claims: 0,
        lost_holdouts: Vec::new(),
        warnings: Vec::new(),
    };
    append_all(
        &mut opened,
        &source,
        &missing,
        &head,
        &mut recovered,
        runtime,
    )?;
    let anchors = opened.anchors(config, runtime)?;
    anchors.make_written();
    match anchors.remember(&Tip::from(&head)) {
        Ok(true) => opened.remember(&anchors)?,
        Ok(false) => recovered.warnings.push(
            "no anchor could be written; the next start is read-only until one can be".to_owned(),
        ),
        Err(error) => recovered.warnings.push(error.to_string()),
    }
    Ok(recovered)
}

/// Appends the missing entries, a bundle at a time. The source is read a second time, since the
/// entries may not fit into memory.
fn append_all(
    opened: &mut Opened,
    source: &Source,
    missing: &Missing,
    head: &Head,
    recovered: &mut Recovered,
    runtime: &Handle,
) -> Result<(), StartError> {
    let (own, size) = (opened.alone.tree().size(), head.size);
    let mut next = own;
    while next < size {
        let entries = source.bundle(next / WIDTH, size, runtime)?;
        let entries = entries[(next % WIDTH) as usize..].to_vec();
        let count = entries.len() as u64;
        let last = next + count == size;
        failpoint::pass(Point::LogRecoverMid);
        append(
            opened,
            entries,
            &missing.leaves[(next - own) as usize..],
            // Only the last part has a head: a head over an earlier part would be one that the log
            // never had.
            last.then(|| head.clone()),
            recovered,
        )?;
        next += count;
    }
    Ok(())
}

fn parse(note: &[u8]) -> Option<Checkpoint> {
    Note::parse(note).ok()?.text().parse().ok()
}

/// What was checked before anything is written.
struct Missing {
    leaves: Vec<Hash>,
    /// The key that signed the newest head.
    key: LogKey,
}

/// Reads all missing entries once: they must lead from this log to the other's root, and the
/// other's head must be signed by this log's key or by a key that this log's entries hand it on to.
fn checked(
    opened: &Opened,
    source: &Source,
    checkpoint: &Checkpoint,
    note: &[u8],
    runtime: &Handle,
) -> Result<Missing, StartError> {
    let mut tree = opened.alone.tree().clone();
    let mut key = *opened
        .log_keys
        .last()
        .ok_or_else(|| StartError::refused("the database knows no key of its log", "run fsck"))?;
    let mut leaves = Vec::new();
    while tree.size() < checkpoint.size() {
        let entries = source.bundle(tree.size() / WIDTH, checkpoint.size(), runtime)?;
        for entry in &entries[(tree.size() % WIDTH) as usize..] {
            if let Ok(rotated) = KeyRotated::parse(entry) {
                key = next_key(&rotated, &key, &tree).ok_or_else(|| {
                    StartError::refused(
                        format!(
                            "{source} passes the log on to another key at entry {} without the signature of the one before; it is not this log",
                            tree.size()
                        ),
                        "name a copy of this very log",
                    )
                })?;
            }
            let leaf = leaf_hash(entry);
            leaves.push(leaf);
            tree.append(leaf);
        }
        drop(tree.take_full_tiles());
    }
    if tree.root() != checkpoint.root() {
        return Err(StartError::refused(
            format!(
                "this log's {} entries with those of {source} do not lead to its root {}: one of the two was changed or forked, and nothing was appended",
                opened.alone.tree().size(),
                checkpoint.root()
            ),
            "Compare with another mirror",
        ));
    }
    let verifier = verifier(checkpoint.origin(), &key.public_key);
    SignedCheckpoint::open(note, &verifier, &[]).map_err(|error| {
        StartError::refused(
            format!(
                "the checkpoint of {source} is not signed by this log's key {}: {error}",
                key.id
            ),
            "name a copy of this very log",
        )
    })?;
    Ok(Missing { leaves, key })
}

/// The key to which an entry hands the log on, if the old key signed that over this very tree.
fn next_key(rotated: &KeyRotated, before: &LogKey, tree: &Tree) -> Option<LogKey> {
    let link = &rotated.signed.link;
    let follows = link.old_public_key == before.public_key
        && link.tree_size == tree.size()
        && link.root == tree.root().0
        && verifier(&link.origin, &link.old_public_key)
            .verify_bytes(link.digest().as_bytes(), &rotated.signed.old_signature);
    follows.then(|| LogKey::new(link.new_public_key, tree.size() + 1))
}

fn signer(
    config: &Config,
    opened: &Opened,
    missing: &Missing,
    runtime: &Handle,
) -> Result<LogKeys, StartError> {
    // The key is chosen as if the newest head were already here: the key that signed it continues.
    let newest = Head {
        key_id: missing.key.id,
        ..opened.head.clone()
    };
    let keys = LogKeys::find(&config.log_keys(), Some(&newest), runtime)?;
    if keys.signer.public_key() == missing.key.public_key {
        return Ok(keys);
    }
    Err(StartError::refused(
        format!(
            "the newest head was signed by key {}, but another key is active now",
            missing.key.id
        ),
        "bring that key back, recover, and let the other key take over at the next start",
    ))
}

/// One durable step: after a crash the next recovery continues from here.
fn append(
    opened: &mut Opened,
    entries: Vec<Vec<u8>>,
    leaves: &[Hash],
    head: Option<Head>,
    recovered: &mut Recovered,
) -> Result<(), StartError> {
    let mut epoch = 0;
    for (bytes, expected) in entries.iter().zip(leaves) {
        if leaf_hash(bytes) != *expected {
            return Err(StartError::refused(
                "the source changed while it was read",
                "begin again",
            ));
        }
        if let Ok(recorded) = BatchRecorded::parse(bytes) {
            epoch = epoch.max(recorded.batch.first.epoch());
        }
        note_losses(&*opened.readers, bytes, recovered)?;
    }
    let first = opened.alone.tree().size();
    // The last part clears the doubt about the directory: nothing that the source has is missing
    // any more.
    let fact = head.is_some().then_some(Fact::Restored(None));
    let work = OwnWork {
        commands: entries
            .into_iter()
            .map(|entry| LogCommand::Recover(entry).into())
            .collect(),
        facts: fact.into_iter().collect(),
        files: None,
    };
    let what = "the recovered entries";
    let enacted = opened.alone.enact(unix_ms(), work, |_, _| Ok(head));
    enacted.map_err(|error| {
        own::not_enacted(error, what, |nth| format!("entry {}", first + nth as u64))
    })?;
    // The recovered decisions have numbers of their epoch. This database must get a later epoch, or
    // it would assign them again.
    opened.alone.store_mut().be_later_than(epoch)?;
    Ok(())
}

fn note_losses(
    readers: &dyn Rows,
    entry: &[u8],
    recovered: &mut Recovered,
) -> Result<(), StoreError> {
    if let Ok(capsule) = record::Capsule::parse(entry) {
        let known = readers.has_claim(&capsule.claim_id, None)?;
        recovered.unknown_claims += u64::from(!known);
    }
    if let Ok(registered) = record::Registered::parse(entry) {
        recovered.lost_holdouts.push(registered.reference);
    }
    Ok(())
}

/// Runs `evidenceos-daemon log recover` and prints what came back.
#[must_use]
pub fn run_recover(config: &Config, from: &str) -> std::process::ExitCode {
    match with_runtime(|runtime| recover(config, from, runtime)) {
        Ok(recovered) => {
            terminal::say(&format!(
                "recovered {} entries: the log has {} with root {}, as {from}. Holdouts are charged what these entries charged.",
                recovered.entries, recovered.size, recovered.root
            ));
            terminal::say(&format!(
                "Not recovered, because a log does not have them: accounts (grants and burned credit since), traces, and {} claims; their capsules are back, but their owners find them by entry only.",
                recovered.unknown_claims
            ));
            if !recovered.lost_holdouts.is_empty() {
                terminal::say(&format!(
                    "Lost with their items: {}. Do not register the same labels again: this server does not know how much leaked about them.",
                    recovered.lost_holdouts.join(", ")
                ));
            }
            warn(&recovered.warnings);
            std::process::ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}
