//! The log's projection: C2SP tiles, entry bundles and the checkpoint under `<data-dir>/log/`, and
//! proofs from them.
//!
//! The rows of the store are the truth; everything here can be rebuilt from them. [`Integrator`]
//! follows the commits and writes files: tiles and bundles are synced before the checkpoint that
//! covers them is put in place, so the published checkpoint states the size up to which the tiles
//! are durable. [`LogView`] serves proofs from the right edge in memory and the files, and verifies
//! each against the released root before it leaves.

mod leaves;
mod view;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_tlog::{
    BundleId, Checkpoint, Hash, Note, Tile, TileId, Tree,
    tile::{decode_hashes, encode_entries, encode_hashes, tiles_for_size},
};

pub use self::{
    leaves::{Tiles, append_leaves, root_of_entries},
    view::{LogError, LogView, Released},
};
use crate::{Entry, Head, Rows, StoreError, blobs};

/// Entries in a tile or a bundle.
const WIDTH: u64 = 256;

/// The files under `<data-dir>/log/`.
#[derive(Debug, Clone)]
struct LogFiles {
    directory: PathBuf,
}

impl LogFiles {
    fn of(data_directory: &Path) -> Result<Self, StoreError> {
        let directory = data_directory.join("log");
        fs::create_dir_all(&directory).map_err(StoreError::io("create", &directory))?;
        Ok(Self { directory })
    }

    fn path(&self, name: impl ToString) -> PathBuf {
        self.directory.join(name.to_string())
    }

    fn read_tile(&self, id: TileId) -> Result<Vec<Hash>, StoreError> {
        let path = self.path(id);
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let hashes = decode_hashes(&bytes)
            .ok()
            .filter(|hashes| hashes.len() == usize::from(id.width()));
        hashes.ok_or_else(|| StoreError::Damaged {
            table: "log tiles",
            key: id.to_string(),
            what: "it has a wrong length",
        })
    }

    /// Writes a file without syncing it.
    fn write(
        &self,
        name: impl ToString,
        bytes: &[u8],
        written: &mut Written,
    ) -> Result<(), StoreError> {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(StoreError::io("create", parent))?;
            // Directories on the path may be new, and their names must be durable too.
            written.directories.extend(
                parent
                    .ancestors()
                    .take_while(|up| up.starts_with(&self.directory))
                    .map(Path::to_owned),
            );
        }
        let file = File::create(&path)
            .and_then(|mut file| file.write_all(bytes).map(|()| file))
            .map_err(StoreError::io("write", &path))?;
        written.files.push((path, file));
        Ok(())
    }

    fn published(&self) -> Result<Option<Checkpoint>, StoreError> {
        let path = self.path("checkpoint");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        // The signature does not matter here: the checkpoint only states the size of the tiles, and
        // their root is compared with the head in the database.
        Ok(Note::parse(&bytes)
            .ok()
            .and_then(|note| note.text().parse().ok()))
    }
}

/// Files and directories still to be synced.
#[derive(Default)]
struct Written {
    files: Vec<(PathBuf, File)>,
    directories: BTreeSet<PathBuf>,
}

impl Written {
    fn sync(self) -> Result<(), StoreError> {
        for (path, file) in self.files {
            file.sync_data().map_err(StoreError::io("sync", path))?;
        }
        self.directories
            .iter()
            .try_for_each(|directory| blobs::sync_directory(directory))
    }
}

/// Writes the files; owns the tree up to the published size.
#[derive(Debug)]
pub struct Integrator {
    files: LogFiles,
    rows: Arc<dyn Rows>,
    tree: Tree,
    synced: u64,
    /// Whether this start rebuilds all files.
    recovering: bool,
}

impl Integrator {
    /// Determines the size that the files cover, and extends them to the head: files that a crash
    /// left incomplete are written again. Files that do not match the entries are all rebuilt.
    ///
    /// # Errors
    /// [`StoreError::Refused`] if the files are ahead of the database (a restored backup), or the
    /// entries do not lead to the signed head.
    pub fn recover(
        data_directory: &Path,
        rows: Arc<dyn Rows>,
        head: Option<&Head>,
    ) -> Result<Self, StoreError> {
        let files = LogFiles::of(data_directory)?;
        let published = published_under(&files, head)?;
        let size = head.map_or(0, |head| head.size);
        let tree = published
            .as_ref()
            .and_then(|checkpoint| tree_from_files(&files, checkpoint));
        let mut integrator = Self {
            files,
            rows,
            tree: tree.clone().unwrap_or_default(),
            synced: 0,
            recovering: false,
        };
        let Some(head) = head else {
            return Ok(integrator);
        };
        // Matching files are only extended. If that fails, all of them are rebuilt below.
        if tree.is_some() && integrator.integrate(head).is_ok() {
            return Ok(integrator);
        }
        // Without a checkpoint nothing was published: a new log, or a crash before its first one.
        if let Some(checkpoint) = &published {
            // Nothing is overwritten before this check: if the entries do not lead to the published
            // root, the files may be right and the database wrong.
            let ours = root_of_entries(&*integrator.rows, checkpoint.size())?;
            if ours != checkpoint.root() {
                return Err(other_root(&integrator.files, checkpoint, ours));
            }
            tracing::warn!(
                size,
                "log tiles do not match the entries; the daemon makes all of them again"
            );
        }
        integrator.tree = Tree::new();
        integrator.recovering = true;
        integrator.integrate(head)?;
        integrator.recovering = false;
        Ok(integrator)
    }

    /// The tree up to the published size.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Files synced since the start.
    #[must_use]
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Writes everything up to a head and publishes its checkpoint.
    ///
    /// # Errors
    /// [`StoreError::Io`] if files cannot be written; [`StoreError::Refused`] if the entries do not
    /// lead to the head's root. Nothing is published then.
    pub fn integrate(&mut self, head: &Head) -> Result<(), StoreError> {
        self.must_lead_to(head)?;
        let mut tree = self.tree.clone();
        let mut written = Written::default();
        let mut complete: Vec<PathBuf> = Vec::new();
        // A partial bundle is written again whole, so reading starts at its beginning.
        let mut start = tree.size() - tree.size() % WIDTH;
        while start < head.size && tree.size() < head.size {
            let count = WIDTH.min(head.size - start);
            let entries = self.rows.entries(start, count as usize)?;
            for (index, entry) in (start..).zip(&entries) {
                if index >= tree.size() {
                    tree.append(entry.leaf);
                }
            }
            complete.extend(self.write_bundle(start, &entries, &mut written)?);
            start += WIDTH;
        }
        for tile in tree.take_full_tiles() {
            self.files
                .write(tile.id(), &encode_hashes(tile.hashes()), &mut written)?;
            complete.push(self.files.path(format!("{}.p", tile.id())));
        }
        for tile in tree.partial_tiles() {
            self.files
                .write(tile.id(), &encode_hashes(tile.hashes()), &mut written)?;
        }
        failpoint::pass(Point::LogTileWritten);
        self.synced += written.files.len() as u64 + 1;
        // Without this sync a crash could leave a checkpoint over missing tiles.
        written.sync()?;
        failpoint::pass(Point::LogTilesSyncedBeforeWatermark);
        blobs::write_durably_past(
            &self.files.path("checkpoint"),
            head.checkpoint.as_bytes(),
            Some(Point::LogCheckpointTmp),
            Some(Point::LogCheckpointRenamed),
        )?;
        for partials in complete {
            // The full tile is durable only now; a missing directory had no partial tiles.
            let _ = fs::remove_dir_all(partials);
        }
        // Change the tree last: if a step before failed, the next attempt starts at the published
        // size.
        self.tree = tree;
        Ok(())
    }
}

impl Integrator {
    /// Writes the bundle of the entries from `start` on. If it is full, returns the directory of
    /// the partial ones that it replaces.
    fn write_bundle(
        &self,
        start: u64,
        entries: &[Entry],
        written: &mut Written,
    ) -> Result<Option<PathBuf>, StoreError> {
        let bytes: Vec<&[u8]> = entries.iter().map(|entry| entry.bytes.as_slice()).collect();
        must_fit_bundles(start, &bytes)?;
        let (bundle, encoded) = bundle(start / WIDTH, &bytes).ok_or(StoreError::Damaged {
            table: "entries",
            key: start.to_string(),
            what: "entries are missing",
        })?;
        self.files.write(bundle, &encoded, written)?;
        failpoint::pass(Point::LogBundleWritten);
        if self.recovering {
            failpoint::pass(Point::StartupTilesRebuildMid);
        }
        let is_full = bundle.width() == WIDTH as u16;
        Ok(is_full.then(|| self.files.path(format!("{bundle}.p"))))
    }

    /// The entries must lead to the signed root before any file is touched.
    fn must_lead_to(&self, head: &Head) -> Result<(), StoreError> {
        let mut tree = self.tree.clone();
        append_leaves(&mut tree, &*self.rows, head.size, Tiles::Drop)?;
        if tree.root() == head.root() {
            return Ok(());
        }
        Err(StoreError::refused(
            format!(
                "the {} entries of the log do not lead to its signed root",
                head.size
            ),
            "the database is damaged: keep a copy, run `evidenceos-daemon fsck`, restore a backup",
        ))
    }
}

/// The published checkpoint, which must match a head.
fn published_under(
    files: &LogFiles,
    head: Option<&Head>,
) -> Result<Option<Checkpoint>, StoreError> {
    let published = files.published()?;
    let size = head.map_or(0, |head| head.size);
    if let Some(checkpoint) = &published
        && checkpoint.size() > size
    {
        return Err(StoreError::refused(
            format!(
                "{} was published with {} entries, but the database has {size}: the database was restored from an older state. Continuing would fork the log and forget leakage",
                files.path("checkpoint").display(),
                checkpoint.size()
            ),
            "bring back the newer database",
        ));
    }
    if let (Some(checkpoint), Some(head)) = (&published, head)
        && checkpoint.size() == size
        && checkpoint.root() != head.root()
    {
        return Err(other_root(files, checkpoint, head.root()));
    }
    Ok(published)
}

/// The tree of the published checkpoint; writes nothing. It shows the published part of the log
/// before it is known whether the rest may be shown. Empty if nothing was published.
///
/// # Errors
/// As [`Integrator::recover`].
pub fn published_tree(
    data_directory: &Path,
    rows: &dyn Rows,
    head: &Head,
) -> Result<Tree, StoreError> {
    let files = LogFiles::of(data_directory)?;
    let Some(checkpoint) = published_under(&files, Some(head))? else {
        return Ok(Tree::new());
    };
    if let Some(tree) = tree_from_files(&files, &checkpoint) {
        return Ok(tree);
    }
    let mut tree = Tree::new();
    append_leaves(&mut tree, rows, checkpoint.size(), Tiles::Drop)?;
    if tree.root() == checkpoint.root() {
        Ok(tree)
    } else {
        Err(other_root(&files, &checkpoint, tree.root()))
    }
}

fn other_root(files: &LogFiles, published: &Checkpoint, ours: Hash) -> StoreError {
    StoreError::refused(
        format!(
            "{} says {} entries with root {}, but the database's first {} have root {ours}: one of the two is of another log, or damaged. Nothing was signed or changed",
            files.path("checkpoint").display(),
            published.size(),
            published.root(),
            published.size()
        ),
        "run `evidenceos-daemon fsck`: it says whether the database is sound and whether the log's key signed the checkpoint; if it did, bring the newer database back, else remove the checkpoint",
    )
}

/// Releases before 2.2 accepted a registration whose entry does not fit a bundle.
fn must_fit_bundles(first: u64, entries: &[&[u8]]) -> Result<(), StoreError> {
    let Some((index, entry)) = (first..)
        .zip(entries)
        .find(|(_, entry)| entry.len() > usize::from(u16::MAX))
    else {
        return Ok(());
    };
    Err(StoreError::refused(
        format!(
            "entry {index} of the log has {} bytes, and the log's files hold at most {} an entry: an earlier release accepted it, and this log cannot be published beyond it",
            entry.len(),
            u16::MAX
        ),
        format!(
            "Go on in another directory: if a backup from before that entry exists, restore it, then `evidenceos-daemon log restart --origin NEW --because TEXT`; else begin a new log in an empty directory (`--log-origin NEW --begin-log NEW`) and register fresh items. Receipts up to entry {index} stay valid"
        ),
    ))
}

fn bundle(index: u64, entries: &[&[u8]]) -> Option<(BundleId, Vec<u8>)> {
    let id = BundleId::new(index, u16::try_from(entries.len()).ok()?).ok()?;
    Some((id, encode_entries(entries).ok()?))
}

fn tree_from_files(files: &LogFiles, checkpoint: &Checkpoint) -> Option<Tree> {
    let tiles: Option<Vec<Tile>> = tiles_for_size(checkpoint.size())
        .into_iter()
        .map(|id| Tile::new(id, files.read_tile(id).ok()?).ok())
        .collect();
    let tree = Tree::from_parts(checkpoint.size(), tiles?).ok()?;
    (tree.root() == checkpoint.root()).then_some(tree)
}
