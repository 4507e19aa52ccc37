//! The fixed facts of each holdout, by id and by name. Its meters are read from the store.

use std::{collections::HashMap, sync::Arc};

use evidenceos_kernel::{
    holdout::{Holdout, HoldoutStatus},
    id::{Digest, HoldoutId},
};
use parking_lot::RwLock;

use super::Error;

/// The least similarity of a suggested name, from 0 to 1, and the most names suggested.
const LIKE: f64 = 0.85;
const MOST_LIKE: usize = 3;
/// The newest holdouts whose names are compared, and the longest name that is compared or repeated: a caller must
/// not choose how much work the daemon does for an answer.
const COMPARED: usize = 1_000;
const LONGEST: usize = 64;

/// All holdouts, by name and by id.
#[derive(Default)]
pub struct Catalog {
    holdouts: RwLock<Cataloged>,
}

/// Two maps, so that a holdout's name can never pass for another's id.
#[derive(Default)]
struct Cataloged {
    by_id: HashMap<HoldoutId, Arc<Holdout>>,
    by_name: HashMap<String, HoldoutId>,
}

impl Catalog {
    /// A catalog of the store's holdouts.
    #[must_use]
    pub fn new(holdouts: &[Holdout]) -> Self {
        let catalog = Self::default();
        holdouts.iter().for_each(|holdout| catalog.add(holdout));
        catalog
    }

    /// Adds a holdout, or replaces its entry.
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

    /// A holdout by id, if `name` has 64 hex digits, otherwise by name.
    ///
    /// # Errors
    /// `HOLDOUT_NOT_FOUND`, with similar names.
    pub fn find(&self, name: &str) -> Result<Arc<Holdout>, Error> {
        self.by_id_or_name(name).ok_or_else(|| Error::Absent {
            code: "HOLDOUT_NOT_FOUND",
            message: not_found(name, &self.names_like(name)).into(),
        })
    }

    fn by_id_or_name(&self, name: &str) -> Option<Arc<Holdout>> {
        let holdouts = self.holdouts.read();
        let id = HoldoutId::from_typed_hex(name).or_else(|| holdouts.by_name.get(name).copied());
        id.and_then(|id| holdouts.by_id.get(&id).cloned())
    }

    /// Similar names of holdouts that were not withdrawn, the most similar first. Names are no secret: every caller
    /// may list them.
    fn names_like(&self, name: &str) -> Vec<String> {
        if name.chars().count() > LONGEST {
            return Vec::new();
        }
        let asked = name.to_lowercase();
        let all = self.all();
        let newest = all.iter().rev().take(COMPARED);
        let mut like: Vec<(f64, &str)> = newest
            .filter(|holdout| holdout.status != HoldoutStatus::Withdrawn)
            .map(|holdout| holdout.reference.as_str())
            .map(|other| (strsim::jaro_winkler(&asked, &other.to_lowercase()), other))
            .filter(|(likeness, _)| *likeness >= LIKE)
            .collect();
        like.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        like.into_iter()
            .take(MOST_LIKE)
            .map(|(_, other)| other.to_owned())
            .collect()
    }

    /// Notes that a holdout's items are in a new blob.
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

fn not_found(name: &str, like: &[String]) -> String {
    let shown: String = name.chars().take(LONGEST).collect();
    let hint = match like {
        [] => String::new(),
        like => format!(" did you mean {}?", like.join(" or ")),
    };
    format!("holdout {shown:?} not found;{hint} `evidenceos holdout list` shows what is registered")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_repeated_in_bounds_and_with_what_is_like_it() {
        let none = not_found(&"x".repeat(1_000_000), &[]);
        assert!(none.len() < 200, "{none}");
        let like = ["tumours".to_owned(), "tumors".to_owned()];
        let text = not_found("tumour", &like);
        assert!(text.contains("did you mean tumours or tumors?"), "{text}");
    }
}
