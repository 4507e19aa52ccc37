//! Proofs from the right edge in memory and from the files, each verified before it is returned.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    num::NonZeroUsize,
    sync::{Arc, OnceLock},
};

use evidenceos_tlog::{
    Hash, Tile, TileId, TileSource, Tree, consistency_proof, inclusion_proof, proof::TileNodes,
    root_at, tile::encode_hashes, verify_consistency, verify_inclusion,
};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;

use super::{Integrator, LogFiles, WIDTH};
use crate::{Head, Rows, StoreError, blobs};

/// The number of full tiles whose inner nodes are kept: 16 KiB each.
const KEPT_NODES: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// The reason why no proof can be given.
#[derive(Debug, Error)]
pub enum LogError {
    /// The tree or entry does not exist yet.
    #[error("the log has {size} entries; {asked} is beyond it")]
    Beyond {
        /// The requested size or index.
        asked: u64,
        /// The number of entries that the log has.
        size: u64,
    },
    /// The first tree is larger than the second.
    #[error("the first tree, of {first} entries, is larger than the second, of {second}")]
    SizesOutOfOrder {
        /// Entries of the first tree.
        first: u64,
        /// Entries of the second tree.
        second: u64,
    },
    /// The store or a file failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Tiles and entries disagree with the signed head.
    #[error(
        "the log's tiles do not lead to the signed root, and making them again from the entries did not help; stop the daemon and run `evidenceos log entries` against a backup"
    )]
    Inconsistent,
}

/// The part of the log that may be shown: the newest durable head, and the right edge of its tree.
#[derive(Debug, Clone)]
pub struct Released {
    pub head: Arc<Head>,
    tree: Arc<Tree>,
    /// Inner nodes of the right edge, by level: computed once per head, since most proofs need
    /// them.
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
            // Only the last tile of a level is at the edge; a full tile that waits to be drained is not.
            Some(kept) if hashes.len() < WIDTH as usize => {
                Some(Arc::clone(kept.get_or_init(nodes)))
            }
            _ => Some(nodes()),
        }
    }
}

/// Serves proofs about released heads, and about nothing beyond them.
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
        self.released.read().clone()
    }

    /// Releases a durable head, with the tiles that its batch completed.
    pub fn release(&self, released: Released, full: Vec<Tile>) {
        if !full.is_empty() {
            let mut recent = self.recent.lock();
            for tile in full {
                let key = (tile.id().level(), tile.id().index());
                recent.insert(key, Arc::new(TileNodes::new(tile.hashes().to_vec())));
            }
        }
        // Show the head after its tiles, since a proof over it may need them at once.
        *self.released.write() = released;
    }

    /// Notes that every full tile below a size is in a file.
    pub fn integrated(&self, size: u64) {
        let mut recent = self.recent.lock();
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
    /// [`LogError`] if the entry or the tree is beyond the log, or the tiles cannot be rebuilt to
    /// match.
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

    /// As [`LogView::inclusion`], for an entry that was already read.
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
    /// [`LogError`] if the sizes are out of order or beyond the log, or the tiles cannot be rebuilt
    /// to match.
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

    /// The root of a tree, proved consistent with the released one.
    fn root(&self, source: &Touched<'_>, size: u64, released: &Released) -> Option<Hash> {
        if size == released.head.size {
            return Some(released.head.root());
        }
        let root = root_at(source, size).ok()?;
        let path = consistency_proof(source, size, released.head.size).ok()?;
        verify_consistency(size, released.head.size, &path, root, released.head.root()).ok()?;
        Some(root)
    }

    /// Computes a value from tiles. If it does not verify, every tile that was read is rebuilt from
    /// the entries, once: this mends tampered tiles.
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
        let touched = source.tiles.into_inner();
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
        // The file may have been repaired since it was read.
        self.nodes.lock().pop(&(level, index));
        if self.files.read_tile(id).ok().as_deref() == Some(hashes.as_slice()) {
            return Ok(());
        }
        tracing::error!(tile = %id, "a log tile did not match its entries; the daemon made it again");
        let path = self.files.path(id);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(StoreError::io("create", parent))?;
        }
        blobs::write_durably(&path, &encode_hashes(&hashes))?;
        Ok(())
    }

    /// A full tile rebuilt from the entries; `None` if it is not full.
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
        let lock = |map: &Mutex<HashMap<_, Arc<TileNodes>>>| map.lock().get(&key).cloned();
        if let Some(nodes) = lock(&self.recent) {
            return Ok(nodes);
        }
        let mut kept = self.nodes.lock();
        if let Some(nodes) = kept.get(&key) {
            return Ok(Arc::clone(nodes));
        }
        // Read the file without the lock: a slow disk must not delay proofs from memory.
        drop(kept);
        let id = TileId::new(level, index, WIDTH as u16).map_err(|_| StoreError::Damaged {
            table: "log tiles",
            key: format!("{level}/{index}"),
            what: "no such tile",
        })?;
        let nodes = Arc::new(TileNodes::new(self.files.read_tile(id)?));
        kept = self.nodes.lock();
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

/// The tiles of one released tree; records which full ones were read.
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
        self.tiles.lock().insert((level, index));
        self.view.full_tile(level, index)
    }
}
