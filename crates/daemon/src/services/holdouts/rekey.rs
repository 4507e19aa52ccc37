//! Rotates the holdouts' key while the daemon serves.

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

/// The holdouts' keys and the last rotation. A rotation holds its lock.
pub struct Rekeying {
    shelf: Arc<KeyShelf>,
    /// The last rotation, so that a repeated request is not another one. Kept in memory only: after
    /// a restart a repeat rotates again, which is harmless.
    last: Option<(RequestKey, Rekeyed)>,
}

/// The result of a rotation.
#[derive(Clone)]
pub struct Rekeyed {
    /// The number of holdouts under the new key.
    pub holdouts: u64,
    /// Where the key is.
    pub place: String,
}

impl Rekeying {
    /// The state before any rotation.
    #[must_use]
    pub fn new(shelf: KeyShelf) -> Self {
        Self {
            shelf: Arc::new(shelf),
            last: None,
        }
    }
}

impl Holdouts {
    /// Encrypts every holdout's items under a new key and destroys the old one. Afterwards either
    /// all holdouts are under the new key, or none.
    ///
    /// # Errors
    /// If the caller is not an operator, or the key cannot be made or put in place.
    pub async fn rotate_key(
        self: &Arc<Self>,
        principal: &Principal,
        key: Option<RequestKey>,
    ) -> Result<Rekeyed, Error> {
        // One rotation runs at a time. If a holdout is registered under the old key meanwhile, the
        // commit refuses.
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
                // If the outcome is unknown, the process ends, and the next start finds out.
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
            // The old key goes last: after a crash before this, the next start finishes the
            // rotation.
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
        // A reader of a blob under the next key must find that key.
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
