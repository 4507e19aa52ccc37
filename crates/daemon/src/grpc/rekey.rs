//! Another key for the holdouts, while the daemon serves.

use std::sync::Arc;

use evidenceos_kernel::{
    command::{Command, Reply},
    holdout::HoldoutStatus,
    id::{Digest, HoldoutId, RequestKey},
};
use evidenceos_proto as wire;
use tonic::{Status, metadata::MetadataMap};

use super::{
    Edge, parse,
    status::{internal, vault_failed},
    unexpected,
};
use crate::{
    auth::Principal,
    holdout_keys::{HoldoutKey, KeyShelf},
    vault::Binding,
};

/// Each holdout's new blob.
type Blobs = Vec<(HoldoutId, Digest)>;

/// Where the holdouts' keys lie, and the last rotation. Whoever rotates holds it.
pub struct Rekeying {
    shelf: Arc<KeyShelf>,
    /// A repeat of the same request is not another rotation. Kept in memory alone: after a start
    /// a repeat does again what is right to do twice.
    last: Option<(RequestKey, wire::RotateHoldoutKeyResponse)>,
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

impl Edge {
    /// Encrypts every holdout's items under a new key and destroys the old one. Either all
    /// holdouts are under the new key afterwards, or none.
    pub(super) async fn rotate_holdout_key(
        self: &Arc<Self>,
        principal: &Principal,
        metadata: &MetadataMap,
    ) -> Result<wire::RotateHoldoutKeyResponse, Status> {
        let content = wire::RotateHoldoutKeyRequest {};
        let stamp = parse::stamp(metadata, principal, "RotateHoldoutKey", &content)?;
        // One at a time, and nobody registers a holdout under the old key meanwhile: the commit
        // would say so.
        let mut rekeying = self.rekeying.lock().await;
        if let (Some(stamp), Some((last, reply))) = (stamp, &rekeying.last)
            && stamp.key == *last
        {
            return Ok(reply.clone());
        }
        let shelf = Arc::clone(&rekeying.shelf);
        let keys = Arc::clone(&shelf);
        let (next, generation, blobs) = self.blocking(move |edge| edge.encrypt_anew(&keys)).await?;
        let command = Command::RekeyHoldouts {
            generation,
            blobs: blobs.clone(),
        };
        match self.call(principal, None, command, None).await {
            Ok(Reply::Done) => {}
            Ok(other) => return Err(unexpected(&other)),
            Err(status) => {
                // Where the outcome is unknown the process ends, and the next start finds out.
                let keys = Arc::clone(&shelf);
                self.blocking(move |_| keys.forget_next().map_err(|error| internal(&error)))
                    .await?;
                return Err(status);
            }
        }
        let done = self.blocking(move |edge| {
            edge.guests.vault.follow(next);
            for (id, blob) in &blobs {
                edge.catalog.moved(*id, *blob);
            }
            shelf.promote().map_err(|error| internal(&error))?;
            tracing::info!(holdouts = blobs.len(), "the holdouts are under another key");
            Ok(wire::RotateHoldoutKeyResponse {
                holdouts: blobs.len() as u64,
                place: shelf.place(),
            })
        });
        let reply = done.await?;
        rekeying.last = stamp.map(|stamp| (stamp.key, reply.clone()));
        Ok(reply)
    }

    fn encrypt_anew(&self, keys: &KeyShelf) -> Result<(HoldoutKey, u64, Blobs), Status> {
        let failed = |error: &dyn std::fmt::Display| internal(error);
        let next = keys.make_next().map_err(|error| failed(&error))?;
        self.guests.vault.know(next.clone());
        let all = self.catalog.all();
        let mut blobs = Vec::with_capacity(all.len());
        let kept = all
            .iter()
            .filter(|holdout| holdout.status != HoldoutStatus::Withdrawn);
        for holdout in kept {
            let binding = Binding::of(holdout);
            let vault = &self.guests.vault;
            let blob = vault
                .read(&holdout.blob, binding)
                .and_then(|items| vault.put_under(&next, &items, binding))
                .map_err(|error| vault_failed(&error))?;
            blobs.push((holdout.id, blob));
        }
        // Each registration raises the generation by one.
        Ok((next, all.len() as u64, blobs))
    }
}
