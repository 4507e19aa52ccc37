//! A held log: no anchor agrees yet, so the daemon serves what was shown before and signs nothing.

use std::{ops::ControlFlow, path::Path, sync::Arc, time::Duration};

use evidenceos_driver::{
    Fatal, Publisher,
    mailbox::{self, Inbox},
};
use evidenceos_kernel::log_key::LogKey;
use evidenceos_notary::{
    anchors::{self, AnchorError, Anchors, Clearance, Own, Tip},
    keys::{self, LogKeyError, LogKeys},
    release::Anchored,
};
use evidenceos_store::{
    Head, Rows, StoreEngine, StoreError,
    facts::{Fact, Facts},
    log::{self, Released, Tiles, append_leaves},
};
use evidenceos_tlog::{Hash, Tile, Tree};
use tokio::runtime::Handle;

use super::{StartError, entries::former_origins};
use crate::config::Config;

/// How often anchors that do not answer are asked again.
const ASK_ANCHORS_EVERY: Duration = Duration::from_secs(1);

/// The log, in the form in which it is compared with an anchor.
#[derive(Clone)]
pub struct OwnLog {
    /// The tree of the log's files: all of it was shown before.
    pub published: Tree,
    pub readers: Arc<dyn Rows>,
    pub origin: String,
    /// The log's earlier names.
    pub former: Vec<String>,
    /// The newest signed head.
    pub head: Head,
    /// The number of all entries and their root. A KMS may not have signed the last ones.
    pub tip: (u64, Hash),
}

impl OwnLog {
    /// Reads the log of a directory with this newest head and `size` entries.
    ///
    /// # Errors
    /// If its files or rows cannot be read, or contradict each other.
    pub fn read(
        directory: &Path,
        readers: &Arc<dyn Rows>,
        head: &Head,
        facts: &Facts,
        keys: &LogKeys,
        size: u64,
    ) -> Result<Self, StoreError> {
        let published = log::published_tree(directory, &**readers, head)?;
        let mut tree = published.clone();
        append_leaves(&mut tree, &**readers, size, Tiles::Drop)?;
        Ok(Self {
            published,
            readers: Arc::clone(readers),
            origin: keys.signer.origin().to_owned(),
            former: former_origins(&**readers, facts)?,
            head: head.clone(),
            tip: (tree.size(), tree.root()),
        })
    }

    /// Whether signing may begin.
    pub fn is_free(&self, anchors: &Anchors) -> Result<bool, AnchorError> {
        let verdict = anchors.compare(&Own {
            origin: &self.origin,
            former: &self.former,
            tip: self.tip,
            root_at: &|size| Ok(self.tree_at(size)?.root()),
        })?;
        Ok(verdict == Clearance::Free)
    }

    /// The tree of `size` entries. It grows from the published tree if it can: an anchor that was
    /// reachable knows at least that much.
    fn tree_at(&self, size: u64) -> Result<Tree, StoreError> {
        let mut tree = if size >= self.published.size() {
            self.published.clone()
        } else {
            Tree::new()
        };
        append_leaves(&mut tree, &*self.readers, size, Tiles::Drop)?;
        Ok(tree)
    }

    /// The head to show while no anchor has answered: it covers what was shown before. If a crash
    /// came before an anchor knew the newest head, this signs a head over the published tree again.
    /// The signature is made with the key of that time, so the bytes are the same.
    pub fn shown_head(
        &self,
        config: &Config,
        keys: &LogKeys,
        history: &[LogKey],
        runtime: &Handle,
    ) -> Result<Head, StartError> {
        let size = self.published.size().max(1);
        // All that the newest head covers was shown before, so it may be shown again.
        if size >= self.head.size {
            return Ok(self.head.clone());
        }
        let then = history.iter().rfind(|key| key.since_size <= size);
        let signer = match then.filter(|key| key.id != keys.signer.key_id()) {
            Some(key) => keys::earlier(&config.log_keys(), &self.origin, key, runtime)?,
            None => keys.signer.clone(),
        };
        let root = self.tree_at(size)?.root();
        let signed = runtime.block_on(signer.sign_head(size, root));
        Ok(signed.map_err(LogKeyError::Kms)?)
    }

    /// What may be shown once an anchor knows it: the tree of the newest head, and the tiles that
    /// no file has yet.
    fn unshown(&self) -> Result<(Tree, Vec<Tile>), StoreError> {
        let mut tree = self.published.clone();
        append_leaves(&mut tree, &*self.readers, self.head.size, Tiles::Keep)?;
        let tiles = tree.take_full_tiles();
        Ok((tree, tiles))
    }
}

/// Why a start is held although its anchors agree.
pub const CANNOT_WRITE: &str = "no anchor can be written: reads are served, nothing is signed or charged until one can be; see the server's log for which, and why";

/// The writer's wait for an anchor.
pub struct Hold {
    pub own: OwnLog,
    pub tip: Tip,
    /// The tree of all entries.
    pub tree: Tree,
    pub anchors: Arc<Anchors>,
    pub anchored: Anchored,
    pub state: Arc<anchors::State>,
    pub facts: Facts,
}

impl Hold {
    /// Refuses calls until an anchor remembers the newest head, then publishes that head. Breaks if
    /// the daemon is told to stop first.
    pub fn wait(
        self,
        inbox: &Inbox,
        store: &mut dyn StoreEngine,
        publisher: &dyn Publisher,
    ) -> Result<ControlFlow<()>, Fatal> {
        tracing::error!("{}", self.state.held_because().unwrap_or_default());
        let flow = mailbox::hold(inbox, ASK_ANCHORS_EVERY, || {
            if !self.own.is_free(&self.anchors)? {
                return Ok(false);
            }
            // Agreement is not enough: an anchor must remember the newest head before another one
            // is signed.
            if !self.anchors.remember(&self.tip)? {
                self.state.hold(CANNOT_WRITE);
                return Ok(false);
            }
            settle(store, &self.anchors, &self.facts)?;
            Ok(true)
        })?;
        if flow.is_continue() {
            tracing::info!("an anchor answers: the daemon signs and charges again");
            self.anchored.is_free();
            let (tree, tiles) = self.own.unshown()?;
            publisher.grown(self.tree.size(), self.tree.root());
            publisher.release(Released::new(self.own.head, tree), tiles);
        }
        Ok(flow)
    }
}

/// An anchor agrees: the database records the anchors, and that a restored directory is no longer
/// in doubt.
pub fn settle(
    store: &mut dyn StoreEngine,
    anchors: &Anchors,
    facts: &Facts,
) -> Result<(), StoreError> {
    let mut changed = Vec::new();
    let places = anchors.to_remember();
    if !places.is_empty() && facts.anchors.as_ref() != Some(&places) {
        changed.push(Fact::Anchors(places));
    }
    if facts.restored.is_some() {
        tracing::info!(
            "an anchor remembers exactly this log: the daemon continues with the restored directory"
        );
        changed.push(Fact::Restored(None));
    }
    if changed.is_empty() {
        return Ok(());
    }
    let remembered = store.remember(changed);
    remembered.must_be_durable("the list of anchors")
}
