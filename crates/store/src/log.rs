//! The log's projection: C2SP tiles, entry bundles and the checkpoint under `<data-dir>/log/`,
//! and proofs from them.
//!
//! The rows of the store are the truth; everything here can be made again from them. [`Integrator`]
//! follows the commits and writes files: tiles and bundles are synced before the checkpoint that
//! covers them is put in place, so the published checkpoint says up to where the tiles are
//! durable. [`LogView`] serves proofs from the right edge in memory and the files, and verifies
//! each against the released root before it leaves.

mod leaves;

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::Write as _,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use evidenceos_failpoint::{self as failpoint, Point};
use evidenceos_tlog::{
    BundleId, Checkpoint, Hash, Note, Tile, TileId, TileSource, Tree, consistency_proof,
    inclusion_proof,
    proof::TileNodes,
    root_at,
    tile::{decode_hashes, encode_entries, encode_hashes, tiles_for_size},
    verify_consistency, verify_inclusion,
};
use lru::LruCache;
use thiserror::Error;

pub use self::leaves::{Tiles, append_leaves, root_of_entries};
use crate::{Head, Rows, StoreError, blobs};

/// Entries in a tile or a bundle.
const WIDTH: u64 = 256;
/// Full tiles whose inner nodes are kept: 16 KiB each.
const KEPT_NODES: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Why no proof can be given.
#[derive(Debug, Error)]
pub enum LogError {
    /// No such tree or entry yet.
    #[error("the log has {size} entries; {asked} is beyond it")]
    Beyond {
        /// What was asked for.
        asked: u64,
        /// The number of entries that the log has.
        size: u64,
    },
    /// A first tree that is larger than the second.
    #[error("the first tree, of {first} entries, is larger than the second, of {second}")]
    SizesOutOfOrder {
        /// Entries of the first tree.
        first: u64,
        /// Entries of the second tree.
        second: u64,
    },
    /// The store or a file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Tiles and entries disagree with the signed head.
    #[error(
        "the log's tiles do not lead to the signed root, and making them again from the entries did not help; stop the daemon and run `evidenceos log entries` against a backup"
    )]
    Inconsistent,
}

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
            // Directories on the way may be new, and their names must be durable too.
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
        // Whose signature it bears does not matter here: it only says how far the tiles go, and
        // the root that they lead to is compared with the head in the database.
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

/// Writes the files; owns the tree as far as it is published.
#[derive(Debug)]
pub struct Integrator {
    files: LogFiles,
    rows: Arc<dyn Rows>,
    tree: Tree,
    synced: u64,
    /// Whether a start makes all files again.
    recovering: bool,
}

impl Integrator {
    /// Finds out how far the files go, and brings them up to the head: what a crash left behind
    /// is written again. Files that do not fit the entries are all made again.
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
        // Files that fit are only brought up. If that fails, all of them are made again below.
        if tree.is_some() && integrator.integrate(head).is_ok() {
            return Ok(integrator);
        }
        // Without a checkpoint nothing was published: a new log, or a crash before its first one.
        if let Some(checkpoint) = &published {
            // Nothing is written over before this: if the entries do not lead to what was
            // published, the files may be right and the database wrong.
            let ours = root_of_entries(&*integrator.rows, checkpoint.size())?;
            if ours != checkpoint.root() {
                return Err(other_root(&integrator.files, checkpoint, ours));
            }
            tracing::warn!(
                size,
                "log tiles do not fit the entries; making all of them again"
            );
        }
        integrator.tree = Tree::new();
        integrator.recovering = true;
        integrator.integrate(head)?;
        integrator.recovering = false;
        Ok(integrator)
    }

    /// The tree as far as it is published.
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
        // A bundle that was partial is written again whole, so reading starts at its beginning.
        let mut start = tree.size() - tree.size() % WIDTH;
        while start < head.size && tree.size() < head.size {
            let count = WIDTH.min(head.size - start);
            let entries = self.rows.entries(start, count as usize)?;
            for (index, entry) in (start..).zip(&entries) {
                if index >= tree.size() {
                    tree.append(entry.leaf);
                }
            }
            let bytes: Vec<&[u8]> = entries.iter().map(|entry| entry.bytes.as_slice()).collect();
            must_fit_bundles(start, &bytes)?;
            let (bundle, encoded) = bundle(start / WIDTH, &bytes).ok_or(StoreError::Damaged {
                table: "entries",
                key: start.to_string(),
                what: "entries are missing",
            })?;
            self.files.write(bundle, &encoded, &mut written)?;
            failpoint::pass(Point::LogBundleWritten);
            if self.recovering {
                failpoint::pass(Point::StartupTilesRebuildMid);
            }
            if bundle.width() == WIDTH as u16 {
                complete.push(self.files.path(format!("{bundle}.p")));
            }
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
        // Without this sync a crash could leave a checkpoint over tiles that are not there.
        written.sync()?;
        failpoint::pass(Point::LogTilesSyncedBeforeWatermark);
        blobs::write_durably_past(
            &self.files.path("checkpoint"),
            head.checkpoint.as_bytes(),
            Some(Point::LogCheckpointTmp),
            Some(Point::LogCheckpointRenamed),
        )?;
        for partials in complete {
            // Only now is the full tile durable; a missing directory had no partials.
            let _ = fs::remove_dir_all(partials);
        }
        // The tree changes last: if a step before failed, the next attempt begins at what is
        // published.
        self.tree = tree;
        Ok(())
    }
}

impl Integrator {
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
            "the database is damaged: keep a copy, see what `evidenceos-daemon fsck` says, restore a backup",
        ))
    }
}

/// The published checkpoint, which must fit a head.
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

/// The tree of the published checkpoint, and nothing is written: what is there of the log already,
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
        "`evidenceos-daemon fsck` says whether the database is sound and the checkpoint is signed by the log's key; a checkpoint that is not may be removed, for one that is the newer database must be brought back",
    )
}

/// Releases before 2.2 accepted a registration whose entry no bundle can hold.
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

/// What may be shown of the log: the newest durable head, and the right edge of its tree.
#[derive(Debug, Clone)]
pub struct Released {
    pub head: Arc<Head>,
    tree: Arc<Tree>,
    /// Inner nodes of the right edge, by level: made once a head, since most proofs need them.
    edge: Arc<[OnceLock<Arc<TileNodes>>; 8]>,
}

impl Released {
    /// A head and the tree that it signs.
    #[must_use]
    pub fn new(head: Head, tree: Tree) -> Self {
        Self {
            head: Arc::new(head),
            tree: Arc::new(tree),
            edge: Arc::default(),
        }
    }

    fn edge(&self, level: u8, index: u64) -> Option<Arc<TileNodes>> {
        let hashes = self.tree.tile(level, index)?;
        let nodes = || Arc::new(TileNodes::new(hashes.to_vec()));
        match self.edge.get(usize::from(level)) {
            // Only the last tile of a level is at the edge; a full one that waits to be drained is not.
            Some(kept) if hashes.len() < WIDTH as usize => {
                Some(Arc::clone(kept.get_or_init(nodes)))
            }
            _ => Some(nodes()),
        }
    }
}

/// Serves proofs of what is released, and of nothing beyond it.
#[derive(Debug)]
pub struct LogView {
    files: LogFiles,
    rows: Arc<dyn Rows>,
    released: RwLock<Released>,
    /// Full tiles that are not in a file yet.
    recent: Mutex<HashMap<(u8, u64), Arc<TileNodes>>>,
    nodes: Mutex<LruCache<(u8, u64), Arc<TileNodes>>>,
}

impl LogView {
    /// A view of a recovered log.
    #[must_use]
    pub fn new(integrator: &Integrator, head: Head) -> Self {
        Self {
            files: integrator.files.clone(),
            rows: Arc::clone(&integrator.rows),
            released: RwLock::new(Released::new(head, integrator.tree.clone())),
            recent: Mutex::default(),
            nodes: Mutex::new(LruCache::new(KEPT_NODES)),
        }
    }

    /// The newest released head.
    #[must_use]
    pub fn released(&self) -> Released {
        self.released
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Shows a head that is durable, with the tiles that its batch completed.
    pub fn release(&self, released: Released, full: Vec<Tile>) {
        if !full.is_empty() {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            for tile in full {
                let key = (tile.id().level(), tile.id().index());
                recent.insert(key, Arc::new(TileNodes::new(tile.hashes().to_vec())));
            }
        }
        // The head is shown after its tiles are there, since a proof over it may need them at once.
        *self
            .released
            .write()
            .unwrap_or_else(PoisonError::into_inner) = released;
    }

    /// Notes that every full tile below a size is in a file.
    pub fn integrated(&self, size: u64) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|&(level, index), _| {
            let spanned = u64::from(level + 1) * 8;
            (index + 1)
                .checked_shl(spanned as u32)
                .is_none_or(|end| end > size)
        });
    }

    /// The leaf hash of an entry, its inclusion proof in the tree of a size, and that tree's root.
    ///
    /// # Errors
    /// Where the entry or the tree is beyond the log, or the tiles cannot be made to fit.
    pub fn inclusion(&self, index: u64, size: u64) -> Result<(Hash, Vec<Hash>, Hash), LogError> {
        let leaves = self.rows.leaves(index, 1)?;
        let beyond = || LogError::Beyond {
            asked: index,
            size: self.released().head.size,
        };
        let leaf = *leaves.first().ok_or_else(beyond)?;
        let (path, root) = self.inclusion_of(leaf, index, size)?;
        Ok((leaf, path, root))
    }

    /// As [`LogView::inclusion`], for an entry that was read already.
    ///
    /// # Errors
    /// As [`LogView::inclusion`].
    pub fn inclusion_of(
        &self,
        leaf: Hash,
        index: u64,
        size: u64,
    ) -> Result<(Vec<Hash>, Hash), LogError> {
        let released = self.released();
        within(size, released.head.size, released.head.size)?;
        if index >= size {
            return Err(LogError::Beyond { asked: index, size });
        }
        self.checked(&released, |source| {
            let root = self.root(source, size, &released)?;
            let path = inclusion_proof(source, index, size).ok()?;
            verify_inclusion(leaf, index, size, &path, root).ok()?;
            Some((path, root))
        })
    }

    /// A consistency proof between two trees, and their roots.
    ///
    /// # Errors
    /// Where the sizes are out of order or beyond the log, or the tiles cannot be made to fit.
    pub fn consistency(
        &self,
        first: u64,
        second: u64,
    ) -> Result<(Vec<Hash>, Hash, Hash), LogError> {
        let released = self.released();
        if first > second {
            return Err(LogError::SizesOutOfOrder { first, second });
        }
        within(second, released.head.size, released.head.size)?;
        self.checked(&released, |source| {
            let new_root = self.root(source, second, &released)?;
            let old_root = self.root(source, first, &released)?;
            let path = consistency_proof(source, first, second).ok()?;
            verify_consistency(first, second, &path, old_root, new_root).ok()?;
            Some((path, old_root, new_root))
        })
    }

    /// The root of a tree, proved to lead to the released one.
    fn root(&self, source: &Touched<'_>, size: u64, released: &Released) -> Option<Hash> {
        if size == released.head.size {
            return Some(released.head.root());
        }
        let root = root_at(source, size).ok()?;
        let path = consistency_proof(source, size, released.head.size).ok()?;
        verify_consistency(size, released.head.size, &path, root, released.head.root()).ok()?;
        Some(root)
    }

    /// Makes something from tiles. Where it does not verify, every tile that was touched is made
    /// again from the entries, once: this is how a tampered tile is met.
    fn checked<T>(
        &self,
        released: &Released,
        make: impl Fn(&Touched<'_>) -> Option<T>,
    ) -> Result<T, LogError> {
        let source = Touched {
            view: self,
            released,
            tiles: Mutex::default(),
        };
        if let Some(made) = make(&source) {
            return Ok(made);
        }
        let touched = source
            .tiles
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        for (level, index) in touched {
            self.repair(level, index, released.head.size)?;
        }
        let again = Touched {
            view: self,
            released,
            tiles: Mutex::default(),
        };
        make(&again).ok_or(LogError::Inconsistent)
    }

    fn repair(&self, level: u8, index: u64, size: u64) -> Result<(), LogError> {
        let Some(hashes) = self.rebuild(level, index, size)? else {
            return Ok(());
        };
        let Ok(id) = TileId::new(level, index, WIDTH as u16) else {
            return Ok(());
        };
        // The file may have been put right since it was read.
        self.nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop(&(level, index));
        if self.files.read_tile(id).ok().as_deref() == Some(hashes.as_slice()) {
            return Ok(());
        }
        tracing::error!(tile = %id, "a log tile was not what its entries say; made again");
        let path = self.files.path(id);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(StoreError::io("create", parent))?;
        }
        blobs::write_durably(&path, &encode_hashes(&hashes))?;
        Ok(())
    }

    /// A full tile from the entries; `None` where it is not full.
    fn rebuild(&self, level: u8, index: u64, size: u64) -> Result<Option<Vec<Hash>>, LogError> {
        let first = index * WIDTH;
        if level == 0 {
            if first + WIDTH > size {
                return Ok(None);
            }
            return Ok(Some(self.rows.leaves(first, WIDTH as usize)?));
        }
        let mut hashes = Vec::with_capacity(WIDTH as usize);
        for below in first..first + WIDTH {
            let Some(tile) = self.rebuild(level - 1, below, size)? else {
                return Ok(None);
            };
            hashes.extend(TileNodes::new(tile).node(8, 0));
        }
        Ok(Some(hashes))
    }

    fn full_tile(&self, level: u8, index: u64) -> Result<Arc<TileNodes>, StoreError> {
        let key = (level, index);
        let lock = |map: &Mutex<HashMap<_, Arc<TileNodes>>>| {
            map.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(&key)
                .cloned()
        };
        if let Some(nodes) = lock(&self.recent) {
            return Ok(nodes);
        }
        let mut kept = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nodes) = kept.get(&key) {
            return Ok(Arc::clone(nodes));
        }
        // The file is read without the lock: a slow disk must not hold up proofs from memory.
        drop(kept);
        let id = TileId::new(level, index, WIDTH as u16).map_err(|_| StoreError::Damaged {
            table: "log tiles",
            key: format!("{level}/{index}"),
            what: "no such tile",
        })?;
        let nodes = Arc::new(TileNodes::new(self.files.read_tile(id)?));
        kept = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.put(key, Arc::clone(&nodes));
        Ok(nodes)
    }
}

fn within(asked: u64, most: u64, size: u64) -> Result<(), LogError> {
    if asked <= most {
        Ok(())
    } else {
        Err(LogError::Beyond { asked, size })
    }
}

/// The tiles of one released tree, remembering which full ones were read.
struct Touched<'a> {
    view: &'a LogView,
    released: &'a Released,
    tiles: Mutex<BTreeSet<(u8, u64)>>,
}

impl TileSource for Touched<'_> {
    type Error = StoreError;

    fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<Hash>, StoreError> {
        self.nodes(level, index, width)
            .map(|nodes| nodes.hashes().to_vec())
    }

    fn nodes(&self, level: u8, index: u64, _width: u16) -> Result<Arc<TileNodes>, StoreError> {
        if let Some(edge) = self.released.edge(level, index) {
            return Ok(edge);
        }
        self.tiles
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((level, index));
        self.view.full_tile(level, index)
    }
}
