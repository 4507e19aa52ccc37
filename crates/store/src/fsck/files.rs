//! Checks the files: the projections of the rows, and the blobs that rows name.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use evidenceos_kernel::{claim::Claim, holdout::HoldoutStatus, id::Digest};
use evidenceos_tlog::{
    Checkpoint, Note, SignedCheckpoint, Tile, Tree,
    tile::{encode_entries, encode_hashes},
};

use super::{BRING_BLOB, Examination, NO_KEY, REMAKE_LOG, RESTORE, each, history};
use crate::{
    StoreError,
    blobs::Blobs,
    row,
    tables::{Table, Value},
};

/// Entries in a tile or a bundle.
const WIDTH: u64 = 256;

/// Every regular file below a directory, by its path there. Empty if there is no directory.
fn names_below(directory: &Path) -> Result<BTreeSet<String>, StoreError> {
    let mut found = BTreeSet::new();
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        let path = directory.join(&relative);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(StoreError::io("list", path)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", &path))?;
            let below = relative.join(entry.file_name());
            if entry.path().is_dir() {
                open.push(below);
            } else {
                found.insert(below.to_string_lossy().into_owned());
            }
        }
    }
    Ok(found)
}

/// The files of the log, compared with the entries.
struct LogFiles {
    directory: PathBuf,
    /// Files that were not compared yet.
    left: BTreeSet<String>,
    /// Up to this size every file must exist.
    published: u64,
    looked_at: u64,
}

impl LogFiles {
    /// Compares a tile or bundle of full or partial width: its own file, and partial ones of
    /// earlier sizes beside it, whose content is a prefix of this one's.
    fn compare(
        &mut self,
        on: &mut Examination<'_>,
        base: &str,
        width: u64,
        end_of: impl Fn(u64) -> Option<u64>,
        bytes_of: impl Fn(u64) -> Vec<u8>,
    ) -> Result<(), StoreError> {
        let own = if width == WIDTH {
            base.to_owned()
        } else {
            format!("{base}.p/{width}")
        };
        let published = self.published;
        let is_published = |width| end_of(width).is_some_and(|end| end <= published);
        if !self.left.contains(&own) {
            on.must(
                !is_published(width),
                ("log", &own),
                || "it is missing".to_owned(),
                REMAKE_LOG,
            );
        }
        let partials = format!("{base}.p/");
        let beside: Vec<String> = self
            .left
            .range(partials.clone()..)
            .take_while(|name| name.starts_with(&partials))
            .cloned()
            .chain((width == WIDTH && self.left.contains(&own)).then(|| own.clone()))
            .collect();
        for name in beside {
            let of = match name.strip_prefix(&partials) {
                Some(of) => of.parse().unwrap_or(0),
                None => width,
            };
            if of == 0 || of > width {
                continue;
            }
            let path = self.directory.join(&name);
            let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
            let expected = bytes_of(of);
            // A crash may leave a prefix of a file that no checkpoint covers yet; the next start
            // writes it again.
            let unfinished = !is_published(of) && expected.starts_with(&bytes);
            self.left.remove(&name);
            self.looked_at += 1;
            on.must(
                bytes == expected || unfinished,
                ("log", &name),
                || "it is not what the entries give".to_owned(),
                REMAKE_LOG,
            );
        }
        Ok(())
    }

    fn tile(&mut self, on: &mut Examination<'_>, tile: &Tile) -> Result<(), StoreError> {
        let id = tile.id();
        let full = id.to_string();
        let base = full.split(".p/").next().unwrap_or(&full);
        // Entries below the last hash of this tile.
        let spanned =
            |hashes: u64| (id.index() * WIDTH + hashes).checked_shl(u32::from(id.level()) * 8);
        let width = u64::from(id.width());
        self.compare(on, base, width, spanned, |of| {
            encode_hashes(&tile.hashes()[..of as usize])
        })
    }

    fn bundle(
        &mut self,
        on: &mut Examination<'_>,
        index: u64,
        entries: &[Vec<u8>],
    ) -> Result<(), StoreError> {
        let full = evidenceos_tlog::BundleId::new(index, WIDTH as u16)
            .map(|id| id.to_string())
            .unwrap_or_default();
        let width = entries.len() as u64;
        let end_of = |width| Some(index * WIDTH + width);
        self.compare(on, &full, width, end_of, |of| {
            encode_entries(&entries[..of as usize]).unwrap_or_default()
        })
    }
}

/// Tiles, bundles and the checkpoint match the entries.
pub(super) fn log_files(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let directory = on.data_directory.join("log");
    let mut files = LogFiles {
        left: names_below(&directory)?,
        directory,
        published: 0,
        looked_at: 0,
    };
    let published = checkpoint(on, &mut files)?;
    files.published = published.as_ref().map_or(0, Checkpoint::size);
    let mut tree = Tree::new();
    let mut bundle: Vec<Vec<u8>> = Vec::new();
    let mut root = tree.root();
    history::each_entry(on, false, |on, _, leaf, bytes| {
        tree.append(leaf);
        bundle.push(bytes.to_vec());
        for tile in tree.take_full_tiles() {
            files.tile(on, &tile)?;
        }
        if tree.size().is_multiple_of(WIDTH) {
            files.bundle(on, tree.size() / WIDTH - 1, &bundle)?;
            bundle.clear();
        }
        if tree.size() == files.published {
            root = tree.root();
            // The published right edge must exist; later files may be missing.
            edge(on, &mut files, &tree, &bundle, true)?;
        }
        Ok(())
    })?;
    edge(on, &mut files, &tree, &bundle, false)?;
    if let Some(published) = published {
        on.must(
            published.size() <= tree.size() && root == published.root(),
            ("log", "checkpoint"),
            || {
                format!(
                    "it says {} entries with another root than the database, or more than the {} in it: the database is older than the log, or belongs to another log",
                    published.size(),
                    tree.size()
                )
            },
            RESTORE,
        );
    }
    for name in std::mem::take(&mut files.left) {
        // A write that a crash interrupted leaves its temporary file.
        let ours = name.ends_with(".tmp");
        on.must(
            ours,
            ("log", &name),
            || "no entry of this log gives such a file".to_owned(),
            REMAKE_LOG,
        );
    }
    Ok(files.looked_at)
}

fn edge(
    on: &mut Examination<'_>,
    files: &mut LogFiles,
    tree: &Tree,
    bundle: &[Vec<u8>],
    must_be_there: bool,
) -> Result<(), StoreError> {
    let published = files.published;
    if !must_be_there {
        // At the very end the files of the published size are already compared.
        files.published = 0;
    }
    for tile in tree.partial_tiles() {
        files.tile(on, &tile)?;
    }
    if !bundle.is_empty() {
        files.bundle(on, tree.size() / WIDTH, bundle)?;
    }
    files.published = published;
    Ok(())
}

fn checkpoint(
    on: &mut Examination<'_>,
    files: &mut LogFiles,
) -> Result<Option<Checkpoint>, StoreError> {
    if !files.left.remove("checkpoint") {
        on.must(
            on.state.head.is_none(),
            ("log", "checkpoint"),
            || "it is missing".to_owned(),
            "start the daemon: it publishes the log again",
        );
        return Ok(None);
    }
    files.looked_at += 1;
    let path = files.directory.join("checkpoint");
    let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
    let parsed: Option<Checkpoint> = Note::parse(&bytes)
        .ok()
        .and_then(|note| note.text().parse().ok());
    let Some(parsed) = parsed else {
        on.note("log", "checkpoint", "it is no checkpoint", REMAKE_LOG);
        return Ok(None);
    };
    let keys = history::all_keys(on)?;
    let signed = history::key_at(&keys, parsed.size())
        .and_then(|key| history::verifier(parsed.origin(), key))
        .is_some_and(|key| SignedCheckpoint::open(&bytes, &key, &[]).is_ok());
    on.must(
        signed,
        ("log", "checkpoint"),
        || "it is not signed by the log's key".to_owned(),
        REMAKE_LOG,
    );
    Ok(Some(parsed))
}

/// Modules and traces in rows match their digests; those in blobs are recorded as blobs.
pub(super) fn modules_and_traces(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let mut looked_at = 0;
    for (table, name) in [(Table::Modules, "modules"), (Table::Traces, "traces")] {
        let total = on.tables.count(table)?;
        looked_at += each(on, table, total, |on, row| {
            let hash = row.bytes(0);
            let fits = if row.is_null(1) {
                let blob = [Value::Bytes(hash.to_vec())];
                on.tables.row(Table::Blobs, &blob)?.is_some()
            } else {
                Digest::of(row.bytes(1)).0[..] == *hash
            };
            on.must(
                fits,
                (name, row.number()),
                || "its content has another digest, or no row names it".to_owned(),
                RESTORE,
            );
            Ok(())
        })?;
    }
    for claim in claims_without_module(on)? {
        on.note("claims", claim, "its module is missing", RESTORE);
    }
    Ok(looked_at)
}

/// Claims whose module is not stored.
fn claims_without_module(on: &mut Examination<'_>) -> Result<Vec<String>, StoreError> {
    let mut without = Vec::new();
    let total = on.tables.count(Table::Claims)?;
    each(on, Table::Claims, total, |on, row| {
        // The check of claims notes a damaged row.
        let claim = row::decode::<Claim>("claims", row.number(), row.bytes(2));
        if let Ok(claim) = claim
            && let Some(commitment) = &claim.commitment
            && !on.tables.has_module(&commitment.module.hash)?
        {
            without.push(claim.id.to_string());
        }
        Ok(())
    })?;
    Ok(without)
}

/// Every blob that a row names exists, and every blob that exists matches its name.
pub(super) fn blobs(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let blobs = Blobs::at(&on.data_directory);
    let mut names: BTreeSet<[u8; 32]> = BTreeSet::new();
    each(on, Table::Blobs, 0, |on, row| {
        match row.key_bytes(0).try_into() {
            Ok(name) => drop(names.insert(name)),
            Err(_) => on.note("blobs", hex::encode(row.key_bytes(0)), NO_KEY, RESTORE),
        }
        Ok(())
    })?;
    for holdout in super::rows::all_holdouts(on)?.values() {
        on.must(
            names.contains(&holdout.blob.0) || holdout.status == HoldoutStatus::Withdrawn,
            ("holdouts", &holdout.reference),
            || "the blob of its items is missing".to_owned(),
            RESTORE,
        );
    }
    let total = names.len() as u64;
    let mut looked_at = 0;
    for name in names {
        let name = Digest(name);
        match blobs.get(&name) {
            Ok(_) => {}
            Err(StoreError::Damaged { what, .. }) => {
                on.note("blobs", name.to_hex(), what, BRING_BLOB);
            }
            Err(error) => on.note("blobs", name.to_hex(), error.to_string(), BRING_BLOB),
        }
        looked_at += 1;
        on.progress(looked_at, total);
    }
    Ok(looked_at)
}
