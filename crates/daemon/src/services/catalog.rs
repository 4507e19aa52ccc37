//! What is fixed of each holdout, by id and by name. Its meters are read from the store.

use std::{collections::HashMap, sync::Arc};

use evidenceos_kernel::{
    holdout::{Holdout, HoldoutStatus},
    id::{Digest, HoldoutId},
    refusal::Refusal,
};
use parking_lot::RwLock;

/// All holdouts, by name and by id.
#[derive(Default)]
pub struct Catalog {
    holdouts: RwLock<Cataloged>,
}

/// Two maps, so that no holdout's name can ever be taken for another's id.
#[derive(Default)]
struct Cataloged {
    by_id: HashMap<HoldoutId, Arc<Holdout>>,
    by_name: HashMap<String, HoldoutId>,
}

impl Catalog {
    /// A catalog of what the store holds.
    #[must_use]
    pub fn new(holdouts: &[Holdout]) -> Self {
        let catalog = Self::default();
        holdouts.iter().for_each(|holdout| catalog.add(holdout));
        catalog
    }

    /// Adds a holdout, or what has changed of one.
    pub fn add(&self, holdout: &Holdout) {
        let shared = Arc::new(holdout.clone());
        let mut holdouts = self.holdouts.write();
        // A withdrawn holdout keeps its name only until another one takes it.
        let named = holdouts.by_name.entry(holdout.reference.clone());
        if holdout.status == HoldoutStatus::Withdrawn {
            named.or_insert(holdout.id);
        } else {
            named.insert_entry(holdout.id);
        }
        holdouts.by_id.insert(holdout.id, shared);
    }

    /// A holdout by id, if `name` is written as one (64 hex digits), else by name.
    ///
    /// # Errors
    /// [`Refusal::UnknownHoldout`].
    pub fn find(&self, name: &str) -> Result<Arc<Holdout>, Refusal> {
        let holdouts = self.holdouts.read();
        let id = HoldoutId::from_typed_hex(name).or_else(|| holdouts.by_name.get(name).copied());
        id.and_then(|id| holdouts.by_id.get(&id).cloned())
            .ok_or_else(|| Refusal::UnknownHoldout(name.to_owned()))
    }

    /// Notes that a holdout's items are in another blob.
    pub fn moved(&self, id: HoldoutId, blob: Digest) {
        if let Some(holdout) = self.by_id(id) {
            self.add(&Holdout {
                blob,
                ..(*holdout).clone()
            });
        }
    }

    /// Whether the labels of any holdout are public.
    #[must_use]
    pub fn has_opened(&self) -> bool {
        let holdouts = self.holdouts.read();
        let mut all = holdouts.by_id.values();
        all.any(|holdout| holdout.status == HoldoutStatus::Opened)
    }

    /// A holdout by its id.
    #[must_use]
    pub fn by_id(&self, id: HoldoutId) -> Option<Arc<Holdout>> {
        let holdouts = self.holdouts.read();
        holdouts.by_id.get(&id).cloned()
    }

    /// All, in the order of registration.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Holdout>> {
        let holdouts = self.holdouts.read();
        let mut all: Vec<Arc<Holdout>> = holdouts.by_id.values().cloned().collect();
        all.sort_unstable_by_key(|holdout| holdout.seq);
        all
    }
}
