//! `log recover`, `log restart` and `log continue`: what an operator does if a database may not be
//! the newest.
//!
//! The first brings back what was signed, byte for byte; the second goes on under another name; the
//! third states, in the log, that nothing was signed elsewhere. Nothing is ever signed under the
//! old name below a size that an anchor knows.

use std::{fs, io, path::PathBuf, sync::Arc};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_kernel::{
    bits::MicroBits,
    command::{Caller, Command, ContinueLog, Request, RestartLog},
    continuity::{HoldoutCharged, KnownTree},
    decide::decide,
    decision::BatchRecorded,
    id::HoldoutId,
    log_key::{KeyRotated, LogKey},
    record,
    state::{Resident, Stage},
};
use evidenceos_store::{
    Batch, Entry, Head, Recorded, Store as _, StoreError,
    facts::{Fact, Facts},
    lock::DirectoryLock,
    reader::Readers,
    sqlite::{Found, SqliteStore},
};
use evidenceos_tlog::{
    BundleId, Checkpoint, Hash, Note, SignedCheckpoint, Tree, leaf_hash, tile::decode_entries,
};
use tokio::runtime::Handle;

use crate::{
    anchors::{self, Anchors, Own, Tip, Verdict},
    clock::unix_ms,
    config::{Anchoring, Config},
    fetch::{self, Trust},
    keys::{LogKeyError, LogKeys, LogSigner, verifier},
    opening::{append_unsigned, former_origins, note_backup},
    own_work::{self, OwnWork, Told},
    start_error::StartError,
    terminal,
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
    /// What the next start will meet.
    pub warnings: Vec<String>,
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
    facts: Facts,
    readers: Arc<Readers>,
    _lock: DirectoryLock,
}

impl Opened {
    fn open(config: &Config) -> Result<Self, StartError> {
        let lock = DirectoryLock::take(&config.data_dir)?;
        let (mut store, mut found) = SqliteStore::open(&config.data_dir)?;
        store.keep_free(0);
        note_backup(&config.data_dir, &mut store, &mut found.facts)?;
        let Found {
            holdouts,
            counters,
            head,
            log_keys,
            totals,
            facts,
            in_force,
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
            .with_accounts(config.accounting.clone(), totals)
            .with_in_force(in_force);
        Ok(Self {
            store,
            resident,
            tree,
            head,
            log_keys,
            facts,
            readers,
            _lock: lock,
        })
    }

    /// The anchors to compare with and to write. Told of none, a command whose remembered anchors
    /// are gone, as on another machine, takes the directory beside the data directory.
    fn anchors(&self, config: &Config, runtime: &Handle) -> Result<Anchors, StoreError> {
        let state = || Arc::new(anchors::State::default());
        let anchors = Anchors::new(config, &self.facts, runtime, state())?;
        let origin = self.origin();
        if config.anchors != Anchoring::Default || anchors.any_answers(origin) {
            return Ok(anchors);
        }
        let nowhere = Facts {
            anchors: None,
            ..self.facts.clone()
        };
        Anchors::new(config, &nowhere, runtime, state())
    }

    /// Whether the anchors agree with what is here.
    ///
    /// # Errors
    /// If one knows another log, or other entries.
    fn compare(&self, anchors: &Anchors) -> Result<Verdict, StoreError> {
        let former = former_origins(&self.readers, &self.facts)?;
        anchors.compare(&Own {
            origin: self.origin(),
            former: &former,
            tip: (self.tree.size(), self.tree.root()),
            root_at: &|size| {
                let mut tree = Tree::new();
                append_unsigned(&mut tree, &self.readers, size)?;
                Ok(tree.root())
            },
        })
    }

    /// Has the database remember the anchors from now on, which have the newest head already.
    fn remember(&mut self, anchors: &Anchors) -> Result<(), StoreError> {
        let places = anchors.to_remember();
        if places.is_empty() || self.facts.anchors.as_ref() == Some(&places) {
            return Ok(());
        }
        let fact = Fact::Anchors(places);
        let remembered = self.store.remember(vec![fact]);
        remembered.must_be_durable("where the anchors are")
    }

    fn work<'o>(&'o mut self, runtime: &'o Handle) -> OwnWork<'o, SqliteStore> {
        OwnWork {
            store: &mut self.store,
            resident: &mut self.resident,
            tree: &mut self.tree,
            runtime,
        }
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
        warnings: Vec::new(),
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
            if let Ok(KeyRotated { signed, .. }) = KeyRotated::parse(entry) {
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
    // The last part ends what was open: nothing that the source has is missing any more.
    let is_last = head.is_some();
    let mut batch = Batch {
        head,
        facts: is_last
            .then_some(Fact::Restored(None))
            .into_iter()
            .collect(),
        ..Batch::default()
    };
    let mut tree = opened.tree.clone();
    let mut epoch = 0;
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
        // A clock that is behind must not let the next entry be older than this one.
        stage.advance_to(record::time_of(bytes).unwrap_or(0));
        if let Ok(recorded) = BatchRecorded::parse(bytes) {
            epoch = epoch.max(recorded.batch.first.epoch());
        }
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
    let committed = opened.store.commit(&batch);
    committed.must_be_durable("what was recovered")?;
    opened.store.be_later_than(epoch)?;
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
    /// Holdouts by name, in the order of registration, and what each was charged.
    pub charged: Vec<(String, HoldoutCharged)>,
    /// Runs that were under way, and are aborted.
    pub aborted: usize,
    /// What verifiers need from here on.
    pub vkey: String,
    /// What the next start will meet.
    pub warnings: Vec<String>,
}

/// Goes on under another name, in one commit. Every holdout is exhausted, but for those whose
/// charge is stated, as `HOLDOUT=BITS`; runs under way are aborted.
///
/// # Errors
/// If the name is not another, a holdout is not known, more is stated than its budget carries, or
/// the log cannot be signed.
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
    let signer = signer_so_far(config, &opened, "restart the log", runtime)?.under(origin)?;
    let anchors = opened.anchors(config, runtime)?;
    let known = anchors
        .largest(&old_origin)
        .filter(|(_, known)| known.origin() == old_origin)
        .map(|(_, known)| KnownTree {
            size: known.size(),
            root: known.root().0,
        });
    let command = Command::RestartLog(Box::new(RestartLog {
        origin: origin.to_owned(),
        old_origin: old_origin.clone(),
        old: KnownTree {
            size: opened.tree.size(),
            root: opened.tree.root().0,
        },
        known,
        because: because.to_owned(),
        charged,
    }));
    let mut former = opened.facts.former.clone();
    former.push(old_origin.clone());
    let told = Told {
        files: None,
        facts: vec![Fact::Restored(None), Fact::Former(former)],
    };
    let enacted = opened
        .work(runtime)
        .enact(command, &signer, "the log's new beginning", told)?;
    let mut restarted = Restarted {
        origin: origin.to_owned(),
        size: enacted.head.size,
        charged: Vec::new(),
        aborted: 0,
        vkey: signer.verifier().to_string(),
        warnings: Vec::new(),
    };
    for entry in &enacted.entries {
        if let Ok(charged) = HoldoutCharged::parse(entry) {
            let holdout = opened.resident.holdout(&charged.holdout);
            let name = holdout.map_or_else(String::new, |holdout| holdout.reference.clone());
            restarted.charged.push((name, charged));
        }
        restarted.aborted += usize::from(record::Capsule::parse(entry).is_ok());
    }
    anchors.make_written();
    match anchors.overwrite(&enacted.head, &old_origin) {
        Ok(()) => opened.remember(&anchors)?,
        Err(error) => restarted.warnings.push(format!(
            "the log is restarted, but an anchor does not know it yet ({error}); the next start writes it"
        )),
    }
    Ok(restarted)
}

/// Who signed the log so far: another key takes over at a start, and not in a command.
fn signer_so_far(
    config: &Config,
    opened: &Opened,
    what: &str,
    runtime: &Handle,
) -> Result<LogSigner, StartError> {
    let keys = LogKeys::find(config, Some(&opened.head), runtime)?;
    if keys.predecessor.is_some() {
        return Err(StoreError::Unusable(format!(
            "another key is chosen than the one that signed so far; {what} with the old one, and let the other take over at the next start"
        ))
        .into());
    }
    Ok(keys.signer)
}

/// A log that goes on by its operator's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continued {
    /// Its name.
    pub origin: String,
    /// Its size now.
    pub size: u64,
    /// What the next start will meet.
    pub warnings: Vec<String>,
}

/// States in the log that it was signed nowhere else since its newest entry.
///
/// # Errors
/// If an anchor knows more, nothing is open that needs the statement, or the log cannot be signed.
pub fn carry_on(config: &Config, because: &str, runtime: &Handle) -> Result<Continued, StartError> {
    let mut opened = Opened::open(config)?;
    // Those that are remembered too, and not only those that will be: whichever answers counts.
    let state = Arc::new(anchors::State::default());
    let remembered = Anchors::new(config, &opened.facts, runtime, state)?;
    if may_be_newest(opened.compare(&remembered)?)? == Verdict::Free {
        return Err(StoreError::Unusable(
            "nothing needs to be stated: the directory was not restored, and its anchors do not disagree; start the daemon".to_owned(),
        )
        .into());
    }
    let anchors = opened.anchors(config, runtime)?;
    may_be_newest(opened.compare(&anchors)?)?;
    let signer = signer_so_far(config, &opened, "state it", runtime)?;
    let command = Command::ContinueLog(Box::new(ContinueLog {
        origin: opened.origin().to_owned(),
        tree: KnownTree {
            size: opened.tree.size(),
            root: opened.tree.root().0,
        },
        because: because.to_owned(),
    }));
    let told = Told {
        files: None,
        facts: vec![Fact::Restored(None)],
    };
    let enacted = opened
        .work(runtime)
        .enact(command, &signer, "the statement", told)?;
    let mut continued = Continued {
        origin: opened.origin().to_owned(),
        size: enacted.head.size,
        warnings: Vec::new(),
    };
    anchors.make_written();
    if anchors.remember(&Tip::from(&enacted.head))? {
        opened.remember(&anchors)?;
    } else {
        continued.warnings.push(
            "no anchor could be written; the next start is read-only until one can be".to_owned(),
        );
    }
    Ok(continued)
}

/// What can be stated: no anchor knows that it is wrong.
fn may_be_newest(verdict: Verdict) -> Result<Verdict, StoreError> {
    match verdict {
        Verdict::Past(what) => Err(StoreError::Unusable(format!(
            "it cannot be stated that nothing was signed since: {what}"
        ))),
        Verdict::Free | Verdict::Held(_) => Ok(verdict),
    }
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
            terminal::say(&format!(
                "recovered {} entries: the log has {} with root {}, as {from}. What they charged to holdouts is charged.",
                recovered.entries, recovered.size, recovered.root
            ));
            terminal::say(&format!(
                "Not in a log, and so not recovered: accounts (grants and burned credit since), traces, and {} claims whose capsules came back and whose owners find them by entry only.",
                recovered.unknown_claims
            ));
            if !recovered.lost_holdouts.is_empty() {
                terminal::say(&format!(
                    "Lost with their items: {}. Do not register the same labels again: what leaked about them is not known here.",
                    recovered.lost_holdouts.join(", ")
                ));
            }
            warn(&recovered.warnings);
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
            terminal::say(&format!(
                "the log is {} from here on, with {} entries; {} runs under way were aborted at their worst case. Give verifiers its key: {}",
                restarted.origin, restarted.size, restarted.aborted, restarted.vkey
            ));
            for (name, charged) in &restarted.charged {
                terminal::say(&format!("  holdout {name}: {}", charge_text(charged)));
            }
            terminal::say(
                "Every holdout whose charge was not stated takes no more claims: register fresh items. The published copy under the old name stays as it is.",
            );
            warn(&restarted.warnings);
            std::process::ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn charge_text(charged: &HoldoutCharged) -> String {
    let HoldoutCharged {
        answers, sealed, ..
    } = charged;
    if charged.stated {
        format!("charged {answers} for its answer part and {sealed} for its sealed part, as stated")
    } else {
        format!(
            "exhausted: charged the {answers} that its answer part and the {sealed} that its sealed part had left"
        )
    }
}

/// `evidenceos-daemon log continue`.
#[must_use]
pub fn run_continue(config: &Config, because: &str) -> std::process::ExitCode {
    match with_runtime(|runtime| carry_on(config, because, runtime)) {
        Ok(continued) => {
            terminal::say(&format!(
                "the log {} states that nothing was signed elsewhere since its {} entries, and has {} now; start the daemon",
                continued.origin,
                continued.size - 1,
                continued.size
            ));
            warn(&continued.warnings);
            std::process::ExitCode::SUCCESS
        }
        Err(error) => failed(&error),
    }
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        terminal::complain(&warning);
    }
}

fn failed(error: &StartError) -> std::process::ExitCode {
    terminal::complain(&error);
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
