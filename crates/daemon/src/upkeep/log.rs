//! `log recover` and `log restart`: the two ways out where an anchor is ahead of the database.
//!
//! Either brings back what was signed, byte for byte, or goes on under another name. Nothing is
//! ever signed under the old name below a size that it had.

use std::{fs, io, path::PathBuf, sync::Arc};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    bits::MicroBits,
    command::{Caller, Command, Request, RestartLog},
    continuity::KnownTree,
    decide::decide,
    holdout::Holdout,
    id::HoldoutId,
    log_key::LogKey,
    record,
    state::{Resident, Stage},
};
use evidenceos_store::{
    Batch, Entry, Head, Recorded, StoreError,
    lock::DirectoryLock,
    reader::Readers,
    sqlite::{Found, SqliteStore},
};
use evidenceos_tlog::{
    BundleId, Checkpoint, Hash, Note, SignedCheckpoint, Tree, leaf_hash, tile::decode_entries,
};
use tokio::runtime::Handle;

use crate::{
    anchors::{self, Anchors},
    config::Config,
    fetch::{self, Trust},
    keys::{LogKeyError, LogKeys, verifier},
    opening::append_unsigned,
    own_work::{self, OwnWork},
    server::{StartError, unix_ms},
};

/// Entries in a bundle.
const WIDTH: u64 = 256;
/// The largest bundle: 256 entries with their lengths.
const MAX_BUNDLE: usize = 256 * (65_535 + 2);
/// The largest checkpoint.
const MAX_CHECKPOINT: usize = 64 << 10;

/// What was brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Entries that were missing.
    pub entries: u64,
    /// The log's size now.
    pub size: u64,
    /// Its root.
    pub root: Hash,
    /// Claims whose capsule came back and whose own rows are lost.
    pub unknown_claims: u64,
    /// Holdouts that were registered in what was lost: their items are gone.
    pub lost_holdouts: Vec<String>,
}

/// A log that somebody else keeps.
enum Source {
    Directory(PathBuf),
    Url(String),
}

impl Source {
    fn new(text: &str) -> Self {
        if text.starts_with("http://") || text.starts_with("https://") {
            let base = text.trim_end_matches('/');
            let base = base.strip_suffix("/checkpoint").unwrap_or(base);
            return Self::Url(base.to_owned());
        }
        // A data directory or a backup has its log below it.
        let directory = PathBuf::from(text);
        let below = directory.join("log");
        Self::Directory(if below.join("checkpoint").exists() {
            below
        } else {
            directory
        })
    }

    fn read(
        &self,
        name: &str,
        limit: usize,
        runtime: &Handle,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                match fs::read(&path) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(StoreError::io("read", path)(error)),
                }
            }
            Self::Url(base) => {
                let url = format!("{base}/{name}");
                runtime
                    .block_on(fetch::get(&url, limit, Trust::System))
                    .map_err(|error| StoreError::Unusable(format!("{url}: {error}")))
            }
        }
    }

    fn checkpoint(&self, runtime: &Handle) -> Result<Vec<u8>, StoreError> {
        self.read("checkpoint", MAX_CHECKPOINT, runtime)?
            .ok_or_else(|| self.lacks("checkpoint"))
    }

    /// The entries of a bundle, as a log of `size` entries has it.
    fn bundle(&self, index: u64, size: u64, runtime: &Handle) -> Result<Vec<Vec<u8>>, StoreError> {
        let width = (size - index * WIDTH).min(WIDTH);
        let id = u16::try_from(width)
            .ok()
            .and_then(|width| BundleId::new(index, width).ok())
            .ok_or_else(|| self.lacks("a bundle of that index"))?;
        // Of a log that grew since, the bundle may be there in full only.
        let full = BundleId::new(index, WIDTH as u16).map(|id| id.to_string());
        let mut bytes = self.read(&id.to_string(), MAX_BUNDLE, runtime)?;
        if let (None, Ok(full)) = (&bytes, full) {
            bytes = self.read(&full, MAX_BUNDLE, runtime)?;
        }
        let bytes = bytes.ok_or_else(|| self.lacks(&id.to_string()))?;
        let entries = decode_entries(&bytes)
            .map_err(|error| StoreError::Unusable(format!("{self} has a bad {id}: {error}")))?;
        if (entries.len() as u64) < width {
            return Err(self.lacks(&id.to_string()));
        }
        Ok(entries[..width as usize]
            .iter()
            .map(|entry| entry.to_vec())
            .collect())
    }

    fn lacks(&self, what: &str) -> StoreError {
        StoreError::Unusable(format!(
            "{self} has no {what}; name the log of a mirror, a backup or the published one"
        ))
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// A stopped data directory, opened to work on its log.
struct Opened {
    store: SqliteStore,
    resident: Resident,
    tree: Tree,
    head: Head,
    log_keys: Vec<LogKey>,
    _lock: DirectoryLock,
}

impl Opened {
    fn open(config: &Config) -> Result<Self, StartError> {
        let lock = DirectoryLock::take(&config.data_dir)?;
        let (mut store, found) = SqliteStore::open(&config.data_dir)?;
        store.keep_free(0);
        let Found {
            holdouts,
            counters,
            head,
            log_keys,
            totals,
            ..
        } = found;
        let head = head.ok_or_else(|| {
            StoreError::Unusable(
                "the database has no log yet; restore a backup, or start the daemon".to_owned(),
            )
        })?;
        let readers = Arc::new(Readers::open(&config.data_dir)?);
        let mut tree = Tree::new();
        append_unsigned(&mut tree, &readers, counters.next_index)?;
        drop(tree.take_full_tiles());
        let resident = Resident::new(holdouts, counters, String::new())
            .with_accounts(config.accounting.clone(), totals);
        Ok(Self {
            store,
            resident,
            tree,
            head,
            log_keys,
            _lock: lock,
        })
    }

    fn origin(&self) -> &str {
        self.head.checkpoint.lines().next().unwrap_or_default()
    }
}

/// Appends the entries that a log of this name has elsewhere and this database has not, and
/// charges what they charged.
///
/// # Errors
/// Where the other log is none of this name and key, does not continue this one, or holds nothing
/// more. Nothing is changed before all of it was checked.
pub fn recover(config: &Config, from: &str, runtime: &Handle) -> Result<Recovered, StartError> {
    let mut opened = Opened::open(config)?;
    let source = Source::new(from);
    let note = source.checkpoint(runtime)?;
    let checkpoint = parse(&note).ok_or_else(|| source.lacks("readable checkpoint"))?;
    if checkpoint.origin() != opened.origin() {
        return Err(StoreError::Unusable(format!(
            "{source} is the log {:?}, this one is {:?}; name a copy of this very log",
            checkpoint.origin(),
            opened.origin()
        ))
        .into());
    }
    let (own, size) = (opened.tree.size(), checkpoint.size());
    if size <= own {
        return Err(StoreError::Unusable(format!(
            "{source} has {size} entries, this log {own}: there is nothing to bring back"
        ))
        .into());
    }
    let missing = checked(&opened, &source, &checkpoint, &note, runtime)?;
    let keys = signer(config, &opened, &missing, runtime)?;
    let head = runtime
        .block_on(keys.signer.sign_head(size, checkpoint.root()))
        .map_err(LogKeyError::Kms)?;
    let mut recovered = Recovered {
        entries: missing.leaves.len() as u64,
        size,
        root: checkpoint.root(),
        unknown_claims: 0,
        lost_holdouts: Vec::new(),
    };
    let mut next = own;
    while next < size {
        let entries = source.bundle(next / WIDTH, size, runtime)?;
        let entries = &entries[(next % WIDTH) as usize..];
        let last = next + entries.len() as u64 == size;
        failpoint::pass(Point::LogRecoverMid);
        append(
            &mut opened,
            entries,
            &missing.leaves[(next - own) as usize..],
            last.then(|| head.clone()),
            &mut recovered,
        )?;
        next += entries.len() as u64;
    }
    Ok(recovered)
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

/// Reads all that is missing once: it must lead from this log to the other's root, and the other's
/// head must be signed by this log's key, or one that it passed the log on to.
fn checked(
    opened: &Opened,
    source: &Source,
    checkpoint: &Checkpoint,
    note: &[u8],
    runtime: &Handle,
) -> Result<Missing, StoreError> {
    let mut tree = opened.tree.clone();
    let mut key = *opened.log_keys.last().ok_or_else(|| {
        StoreError::Unusable("the database knows no key of its log; run fsck".to_owned())
    })?;
    let mut leaves = Vec::new();
    while tree.size() < checkpoint.size() {
        let entries = source.bundle(tree.size() / WIDTH, checkpoint.size(), runtime)?;
        for entry in &entries[(tree.size() % WIDTH) as usize..] {
            if let Ok(signed) = record::parse_key_rotated(entry) {
                let link = &signed.link;
                let follows = link.old_public_key == key.public_key
                    && link.tree_size == tree.size()
                    && link.root == tree.root().0
                    && verifier(&link.origin, &link.old_public_key)
                        .verify_bytes(link.digest().as_bytes(), &signed.old_signature);
                if !follows {
                    return Err(StoreError::Unusable(format!(
                        "{source} passes the log on to another key at entry {} without the signature of the one before; it is not this log",
                        tree.size()
                    )));
                }
                key = LogKey::new(link.new_public_key, tree.size() + 1);
            }
            let leaf = leaf_hash(entry);
            leaves.push(leaf);
            tree.append(leaf);
        }
        drop(tree.take_full_tiles());
    }
    if tree.root() != checkpoint.root() {
        return Err(StoreError::Unusable(format!(
            "this log's {} entries with those of {source} do not lead to its root {}: one of the two was changed or forked, and nothing was appended. Compare with another mirror",
            opened.tree.size(),
            checkpoint.root()
        )));
    }
    let verifier = verifier(checkpoint.origin(), &key.public_key);
    SignedCheckpoint::open(note, &verifier, &[]).map_err(|error| {
        StoreError::Unusable(format!(
            "the checkpoint of {source} is not signed by this log's key {}: {error}",
            key.id
        ))
    })?;
    Ok(Missing { leaves, key })
}

fn signer(
    config: &Config,
    opened: &Opened,
    missing: &Missing,
    runtime: &Handle,
) -> Result<LogKeys, StartError> {
    let newest = Head {
        key_id: missing.key.id,
        ..opened.head.clone()
    };
    let keys = LogKeys::find(config, Some(&newest), runtime)?;
    if keys.signer.public_key() == missing.key.public_key {
        return Ok(keys);
    }
    Err(StoreError::Unusable(format!(
        "the newest head was signed by key {}, and another is chosen now; bring that key back, recover, and let the other take over at the next start",
        missing.key.id
    ))
    .into())
}

/// One durable step: a crash after it leaves a log that can be recovered further.
fn append(
    opened: &mut Opened,
    entries: &[Vec<u8>],
    leaves: &[Hash],
    head: Option<Head>,
    recovered: &mut Recovered,
) -> Result<(), StoreError> {
    let mut stage = Stage::new(&opened.resident);
    stage.advance_to(unix_ms());
    let mut batch = Batch {
        head,
        ..Batch::default()
    };
    let mut tree = opened.tree.clone();
    for (bytes, expected) in entries.iter().zip(leaves) {
        let leaf = leaf_hash(bytes);
        if leaf != *expected {
            return Err(StoreError::Unusable(
                "the source changed while it was read; begin again".to_owned(),
            ));
        }
        let request = Request {
            caller: Caller::DRIVER,
            stamp: None,
            command: Command::RecoverEntry(bytes.clone()),
        };
        own_work::load(&mut opened.store, &mut stage, &request)?;
        let index = stage.next_index();
        let decision = decide(&stage, &request)
            .map_err(|refusal| StoreError::Unusable(format!("entry {index}: {refusal}")))?;
        note_losses(&stage, bytes, recovered);
        stage.enact(&decision);
        tree.append(leaf);
        batch.entries.push(Entry {
            leaf,
            bytes: bytes.clone(),
        });
        if !decision.events.is_empty() {
            batch.recorded.push(Recorded {
                at_unix_ms: stage.now_unix_ms(),
                caller: request.caller.tag,
                events: decision.events,
            });
        }
    }
    drop(tree.take_full_tiles());
    batch.changes = stage.into_changes();
    own_work::must_commit(&mut opened.store, &batch, "what was recovered")?;
    opened.resident.merge(batch.changes);
    opened.tree = tree;
    Ok(())
}

fn note_losses(stage: &Stage<'_>, entry: &[u8], recovered: &mut Recovered) {
    if let Ok(capsule) = record::Capsule::parse(entry) {
        recovered.unknown_claims += u64::from(stage.claim(&capsule.claim_id).is_none());
    }
    if let Ok(registered) = record::Registered::parse(entry) {
        recovered.lost_holdouts.push(registered.reference);
    }
}

/// What a new beginning did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restarted {
    /// The log's new name.
    pub origin: String,
    /// Its size now.
    pub size: u64,
    /// Runs that were under way, and are aborted.
    pub aborted: usize,
    /// What verifiers need from here on.
    pub vkey: String,
}

/// Goes on under another name. Every holdout is exhausted, but for those whose charge is stated,
/// as `HOLDOUT=BITS`; runs under way are aborted.
///
/// # Errors
/// Where the name is not another, a holdout is not known, or the log cannot be signed.
pub fn restart(
    config: &Config,
    origin: &str,
    because: &str,
    stated: &[String],
    runtime: &Handle,
) -> Result<Restarted, StartError> {
    let mut opened = Opened::open(config)?;
    let old_origin = opened.origin().to_owned();
    if origin == old_origin {
        return Err(StoreError::Unusable(format!(
            "the log is named {origin:?} already; under that name it must not be signed again, so give it another"
        ))
        .into());
    }
    let charged = stated
        .iter()
        .map(|text| charge(&opened.resident, text))
        .collect::<Result<_, _>>()
        .map_err(StoreError::Unusable)?;
    let keys = LogKeys::find(config, Some(&opened.head), runtime)?;
    if keys.predecessor.is_some() {
        return Err(StoreError::Unusable(
            "another key is chosen than the one that signed so far; restart the log with the old one, and let the other take over at the next start".to_owned(),
        )
        .into());
    }
    let signer = keys.signer.under(origin)?;
    let state = Arc::new(anchors::State::default());
    let anchors = Anchors::new(&config.anchors, true, runtime, state);
    let known = anchors
        .largest()
        .filter(|(_, known)| known.origin() == old_origin)
        .map(|(_, known)| KnownTree {
            size: known.size(),
            root: known.root().0,
        });
    let command = Command::RestartLog(Box::new(RestartLog {
        origin: origin.to_owned(),
        old_origin,
        old: KnownTree {
            size: opened.tree.size(),
            root: opened.tree.root().0,
        },
        known,
        because: because.to_owned(),
        charged,
    }));
    let mut work = OwnWork {
        store: &mut opened.store,
        resident: &mut opened.resident,
        tree: &mut opened.tree,
        runtime,
    };
    let mut head = work.enact(command, &signer, "the log's new beginning", None)?;
    // They may have ended in what was lost. What they had reserved is charged.
    let runs: Vec<(HoldoutId, u64)> = {
        let mut holdouts: Vec<&Holdout> = work.resident.holdouts().collect();
        holdouts.sort_unstable_by_key(|holdout| holdout.seq);
        let runs = holdouts.iter().flat_map(|holdout| {
            let id = holdout.id;
            holdout.in_flight.iter().map(move |run| (id, run.number))
        });
        runs.collect()
    };
    for &(holdout, number) in &runs {
        let abort = Command::Abort { holdout, number };
        head = work.enact(abort, &signer, "the end of a run under way", None)?;
    }
    anchors.overwrite(&head)?;
    Ok(Restarted {
        origin: origin.to_owned(),
        size: head.size,
        aborted: runs.len(),
        vkey: signer.verifier().to_string(),
    })
}

/// `HOLDOUT=BITS`.
fn charge(resident: &Resident, text: &str) -> Result<(HoldoutId, MicroBits), String> {
    let (name, bits) = text
        .rsplit_once('=')
        .ok_or_else(|| format!("--charged {text}: write HOLDOUT=BITS"))?;
    let holdout = resident
        .holdouts()
        .find(|holdout| holdout.reference == name || holdout.id.to_hex() == name)
        .ok_or_else(|| format!("--charged {text}: no holdout is named {name:?}"))?;
    let bits = micros(bits).ok_or_else(|| {
        format!(
            "--charged {text}: bits are a decimal number with at most six digits after the point"
        )
    })?;
    Ok((holdout.id, bits))
}

/// An exact decimal, in millionths.
fn micros(text: &str) -> Option<MicroBits> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > 6 || !digits(whole) || !digits(part) {
        return None;
    }
    let part: u64 = format!("{part:0<6}").parse().ok()?;
    let whole: u64 = whole.parse().ok()?;
    whole
        .checked_mul(1_000_000)?
        .checked_add(part)
        .map(MicroBits)
}

/// A runtime for a command of its own.
fn with_runtime<T>(work: impl FnOnce(&Handle) -> Result<T, StartError>) -> Result<T, StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(StartError::Thread)?;
    work(runtime.handle())
}

/// `evidenceos-daemon log recover`.
#[must_use]
pub fn run_recover(config: &Config, from: &str) -> std::process::ExitCode {
    match with_runtime(|runtime| recover(config, from, runtime)) {
        Ok(recovered) => {
            println!(
                "recovered {} entries: the log has {} with root {}, as {from}. What they charged to holdouts is charged.",
                recovered.entries, recovered.size, recovered.root
            );
            println!(
                "Not in a log, and so not recovered: accounts (grants and burned credit since), traces, and {} claims whose capsules came back and whose owners find them by entry only.",
                recovered.unknown_claims
            );
            if !recovered.lost_holdouts.is_empty() {
                println!(
                    "Lost with their items: {}. Do not register the same labels again: what leaked about them is not known here.",
                    recovered.lost_holdouts.join(", ")
                );
            }
            std::process::ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

/// `evidenceos-daemon log restart`.
#[must_use]
pub fn run_restart(
    config: &Config,
    origin: &str,
    because: &str,
    charged: &[String],
) -> std::process::ExitCode {
    match with_runtime(|runtime| restart(config, origin, because, charged, runtime)) {
        Ok(restarted) => {
            println!(
                "the log is {} from here on, with {} entries; {} runs under way were aborted. Give verifiers its key: {}\n\
                 Every holdout whose charge was not stated takes no more claims: register fresh items. The published copy under the old name stays as it is.",
                restarted.origin, restarted.size, restarted.aborted, restarted.vkey
            );
            std::process::ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &StartError) -> std::process::ExitCode {
    eprintln!("evidenceos-daemon: {error}");
    std::process::ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_exact_decimals() {
        for (text, micros_of) in [
            ("0", Some(0)),
            ("12.5", Some(12_500_000)),
            ("0.000001", Some(1)),
            ("1.", Some(1_000_000)),
            (".5", None),
            ("1.0000001", None),
            ("-1", None),
            ("1e3", None),
            ("", None),
        ] {
            assert_eq!(micros(text).map(|bits| bits.0), micros_of, "{text}");
        }
    }
}
