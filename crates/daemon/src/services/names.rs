//! The role policy's names for principals.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use evidenceos_access::{Authenticator, Owners};
use evidenceos_kernel::id::OwnerTag;

/// The names of principals, by the owner tags that rows and records have.
pub struct Names {
    owners: Arc<Owners>,
    by_tag: ArcSwap<HashMap<OwnerTag, String>>,
}

impl Names {
    /// The names in force.
    #[must_use]
    pub fn new(owners: Arc<Owners>, authenticator: &Authenticator) -> Self {
        let names = Self {
            owners,
            by_tag: ArcSwap::default(),
        };
        names.follow(authenticator);
        names
    }

    /// Takes over the names of a role policy that was read again.
    pub fn follow(&self, authenticator: &Authenticator) {
        let named = authenticator.names().map(|(principal, name)| {
            // Rows and records know a principal by its tag alone.
            (self.owners.tag(principal), name.to_owned())
        });
        self.by_tag.store(Arc::new(named.collect()));
    }

    /// The name of a principal; empty if the role policy does not name it.
    #[must_use]
    pub fn of(&self, owner: &OwnerTag) -> String {
        self.by_tag.load().get(owner).cloned().unwrap_or_default()
    }
}
