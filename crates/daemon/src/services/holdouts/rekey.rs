//! Another key for the holdouts, while the daemon serves.

use std::sync::Arc;

use evidenceos_access::Principal;
use evidenceos_custody::{Binding, HoldoutKey, KeyShelf};
use evidenceos_kernel::{
    command::{HoldoutCommand, Reply},
    holdout::HoldoutStatus,
    id::{Digest, HoldoutId, RequestKey},
};

use super::Holdouts;
use crate::services::{Error, rows::blocking, writer::unexpected};

/// Each holdout's new blob.
type Blobs = Vec<(HoldoutId, Digest)>;

/// Where the holdouts' keys lie, and the last rotation. Whoever rotates holds it.
pub struct Rekeying {
    shelf: Arc<KeyShelf>,
    /// A repeat of the same request is not another rotation. Kept in memory alone: after a start
    /// a repeat does again what is right to do twice.
    last: Option<(RequestKey, Rekeyed)>,
}

/// What a rotation did.
#[derive(Clone)]
pub struct Rekeyed {
    /// Holdouts that are under the new key.
    pub holdouts: u64,
    /// Where the key lies.
    pub place: String,
}

impl Rekeying {
    /// Nothing was rotated yet.
    #[must_use]
    pub fn new(shelf: KeyShelf) -> Self {
        Self {
            shelf: Arc::new(shelf),
            last: None,
        }
    }
}

impl Holdouts {
    /// Encrypts every holdout's items under a new key and destroys the old one. Either all
    /// holdouts are under the new key afterwards, or none.
    ///
    /// # Errors
    /// If the caller does not operate, or the key cannot be made or put into place.
    pub async fn rotate_key(
        self: &Arc<Self>,
        principal: &Principal,
        key: Option<RequestKey>,
    ) -> Result<Rekeyed, Error> {
        // One at a time, and nobody registers a holdout under the old key meanwhile: the commit
        // would say so.
        let mut rekeying = self.rekeying.lock().await;
        if let (Some(key), Some((last, done))) = (key, &rekeying.last)
            && key == *last
        {
            return Ok(done.clone());
        }
        let shelf = Arc::clone(&rekeying.shelf);
        let (holdouts, keys) = (Arc::clone(self), Arc::clone(&shelf));
        let (next, generation, blobs) = blocking(move || holdouts.encrypt_anew(&keys)).await?;
        let command = HoldoutCommand::Rekey {
            generation,
            blobs: blobs.clone(),
        }
        .into();
        match self.writer.call(principal, None, command, None).await {
            Ok(Reply::Done) => {}
            Ok(other) => return Err(unexpected(&other)),
            Err(error) => {
                // If the outcome is unknown the process ends, and the next start finds out.
                blocking(move || Ok(shelf.forget_next()?)).await?;
                return Err(error);
            }
        }
        let holdouts = Arc::clone(self);
        let done = blocking(move || {
            holdouts.guests.vault.follow(next);
            for (id, blob) in &blobs {
                holdouts.catalog.moved(*id, *blob);
            }
            // The old key goes last: a crash before this leaves a rotation that the next start
            // finishes.
            shelf.promote()?;
            tracing::info!(holdouts = blobs.len(), "the holdouts are under another key");
            Ok(Rekeyed {
                holdouts: blobs.len() as u64,
                place: shelf.place(),
            })
        })
        .await?;
        rekeying.last = key.map(|key| (key, done.clone()));
        Ok(done)
    }

    fn encrypt_anew(&self, keys: &KeyShelf) -> Result<(HoldoutKey, u64, Blobs), Error> {
        let next = keys.make_next()?;
        // A reader of a blob that is under the next key must find that key.
        self.guests.vault.know(next.clone());
        let all = self.catalog.all();
        let mut blobs = Vec::with_capacity(all.len());
        let kept = all
            .iter()
            .filter(|holdout| holdout.status != HoldoutStatus::Withdrawn);
        for holdout in kept {
            let binding = Binding::of(holdout);
            let vault = &self.guests.vault;
            let items = vault.read(&holdout.blob, binding)?;
            blobs.push((holdout.id, vault.put_under(&next, &items, binding)?));
        }
        // Each registration raises the generation by one.
        Ok((next, all.len() as u64, blobs))
    }
}
