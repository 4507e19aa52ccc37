//! A stopped data directory, opened to work on its log.

use std::sync::Arc;

use evidenceos_driver::Alone;
use evidenceos_kernel::{continuity::KnownTree, log_key::LogKey};
use evidenceos_notary::anchors::{self, AnchorError, Anchoring, Anchors, Clearance, Own};
use evidenceos_store::{
    self as store, Found, Head, Rows, StoreEngine, StoreError,
    facts::{Fact, Facts},
    lock::DirectoryLock,
    log::{Tiles, append_leaves, root_of_entries},
};
use evidenceos_tlog::Tree;
use tokio::runtime::Handle;

use crate::{
    assemble::{StartError, data::note_backup, entries::former_origins},
    config::Config,
};

/// A stopped data directory, opened to work on its log.
pub struct Opened {
    /// The store with its state and the tree of all entries.
    pub alone: Alone<Box<dyn StoreEngine>>,
    pub head: Head,
    pub log_keys: Vec<LogKey>,
    pub facts: Facts,
    pub readers: Arc<dyn Rows>,
    _lock: DirectoryLock,
}

impl Opened {
    /// Locks the data directory and opens its database, log and tree.
    ///
    /// # Errors
    /// [`StartError::Store`] if a daemon has the directory, or it cannot be read;
    /// [`StartError::Refused`] if the database has no log yet.
    pub fn open(config: &Config) -> Result<Self, StartError> {
        let lock = DirectoryLock::take(&config.data_dir)?;
        let store::OpenedStore {
            mut store,
            rows: readers,
            mut found,
        } = config.store().open()?;
        // Recovery protects what was charged, so it may use the room that is kept free from new
        // work.
        store.keep_free(0);
        note_backup(&config.data_dir, &mut *store, &mut found.facts)?;
        // No guest runs here, so no engine is named.
        let resident = found.resident(config.accounting.clone(), String::new());
        let Found {
            counters,
            head,
            log_keys,
            facts,
            ..
        } = found;
        let head = head.ok_or_else(|| {
            StartError::refused(
                "the database has no log yet",
                "restore a backup, or start the daemon",
            )
        })?;
        let mut tree = Tree::new();
        append_leaves(&mut tree, &*readers, counters.next_index, Tiles::Drop)?;
        Ok(Self {
            alone: Alone::new(store, resident, tree),
            head,
            log_keys,
            facts,
            readers,
            _lock: lock,
        })
    }

    /// The anchors to compare with and to write. If the settings name none and the remembered
    /// anchors are gone, as on another machine, the command uses the directory beside the data
    /// directory.
    pub fn anchors(&self, config: &Config, runtime: &Handle) -> Result<Anchors, AnchorError> {
        let state = || Arc::new(anchors::State::default());
        let anchors = Anchors::new(&config.anchoring(), &self.facts, runtime, state())?;
        let origin = self.origin();
        if config.anchors != Anchoring::Default || anchors.any_answers(origin) {
            return Ok(anchors);
        }
        let nowhere = Facts {
            anchors: None,
            ..self.facts.clone()
        };
        Anchors::new(&config.anchoring(), &nowhere, runtime, state())
    }

    /// Whether the anchors agree with this log.
    ///
    /// # Errors
    /// As [`Anchors::compare`].
    pub fn compare(&self, anchors: &Anchors) -> Result<Clearance, AnchorError> {
        let former = former_origins(&*self.readers, &self.facts)?;
        anchors.compare(&Own {
            origin: self.origin(),
            former: &former,
            tip: (self.alone.tree().size(), self.alone.tree().root()),
            root_at: &|size| root_of_entries(&*self.readers, size),
        })
    }

    /// Has the database remember these anchors, which have the newest head already.
    pub fn remember(&mut self, anchors: &Anchors) -> Result<(), StoreError> {
        let places = anchors.to_remember();
        if places.is_empty() || self.facts.anchors.as_ref() == Some(&places) {
            return Ok(());
        }
        let fact = Fact::Anchors(places);
        let remembered = self.alone.store_mut().remember(vec![fact]);
        remembered.must_be_durable("the list of anchors")
    }

    /// The size and root of this log.
    pub fn tree(&self) -> KnownTree {
        let tree = self.alone.tree();
        KnownTree {
            size: tree.size(),
            root: tree.root().0,
        }
    }

    /// The log's name, the first line of its newest checkpoint.
    pub fn origin(&self) -> &str {
        self.head.checkpoint.lines().next().unwrap_or_default()
    }
}
