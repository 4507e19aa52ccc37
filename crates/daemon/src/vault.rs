//! The private items: encrypted at rest, opened only where a run needs them.
//!
//! A holdout's secret, units, labels and keyed item ids are one blob, AES-256-GCM under the
//! data directory's holdout key, named by the digest of its ciphertext. Opened holdouts are kept
//! in memory, a bounded number of items.

use std::{
    collections::HashSet,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use aes_gcm::{Aes256Gcm, Key, KeyInit as _, Nonce, aead::Aead as _};
use evidenceos_kernel::{
    id::{Digest, HoldoutId},
    score::Classes,
    split::{self, Salts},
};
use evidenceos_store::{StoreError, blobs::Blobs};
use evidenceos_tlog::{Tree, leaf_hash};
use lru::LruCache;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::keys::Secret;

const NONCE_LEN: usize = 12;
/// Opened holdouts kept; the largest takes some ten MiB.
const KEPT: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");

/// Why a holdout cannot be opened.
#[derive(Debug, Error)]
pub enum VaultError {
    /// The blob.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob does not open under our key.
    #[error(
        "the items of holdout {0} do not open under this data directory's key; bring keys/holdouts.secret back from a backup"
    )]
    Sealed(HoldoutId),
    /// No random bytes.
    #[error("the operating system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// A holdout's private items, as they are stored.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Items {
    /// Draws the split and the salts.
    pub secret: [u8; 32],
    /// One byte an item, 0 or 1.
    pub labels: Vec<u8>,
    /// The unit of each item; absent: each item is a unit.
    pub units: Option<Vec<u64>>,
    /// Keyed digests of the item ids, sorted; empty where items have none.
    pub item_ids: Vec<[u8; 16]>,
}

impl Items {
    /// The unit of each item.
    #[must_use]
    pub fn units(&self) -> Vec<u64> {
        self.units
            .clone()
            .unwrap_or_else(|| (0..self.labels.len() as u64).collect())
    }

    /// Whether an item id is in both.
    #[must_use]
    pub fn shares_item_with(&self, other: &Self) -> bool {
        let ids: HashSet<&[u8; 16]> = self.item_ids.iter().collect();
        other.item_ids.iter().any(|id| ids.contains(id))
    }
}

/// A holdout ready to answer and to judge.
pub struct OpenHoldout {
    items: Items,
    part_mask: Vec<u8>,
    classes: Classes,
    split: split::Split,
}

impl OpenHoldout {
    /// Splits the items; `None` where there are too many sizes of units.
    #[must_use]
    pub fn new(items: Items, answer_share_micros: u32) -> Option<Self> {
        let units = items.units();
        let split = split::split(&items.secret, &units, answer_share_micros);
        let part_mask = split.part_mask.clone();
        let classes = match &items.units {
            None => Classes::of_single_items(split.sealed_items),
            Some(units) => Classes::new(units, &part_mask)?,
        };
        Some(Self {
            items,
            part_mask,
            classes,
            split,
        })
    }

    /// The private items.
    #[must_use]
    pub fn items(&self) -> &Items {
        &self.items
    }

    /// One byte an item, 0 or 1.
    #[must_use]
    pub fn labels(&self) -> &[u8] {
        &self.items.labels
    }

    /// One byte an item: 1 in the answer part, 0 in the sealed part.
    #[must_use]
    pub fn part_mask(&self) -> &[u8] {
        &self.part_mask
    }

    /// The sealed units by size.
    #[must_use]
    pub fn classes(&self) -> &Classes {
        &self.classes
    }

    /// Sizes of the parts.
    #[must_use]
    pub fn split(&self) -> &split::Split {
        &self.split
    }

    /// Merkle root over the salted labels.
    #[must_use]
    pub fn commitment_root(&self) -> Digest {
        let salts = Salts::new(&self.items.secret);
        let mut tree = Tree::new();
        for (i, unit) in self.items.units().into_iter().enumerate() {
            let index = i as u64;
            tree.append(leaf_hash(&split::commitment_leaf_bytes(
                index,
                unit,
                self.part_mask[i],
                &salts.salt(index),
                self.items.labels[i],
            )));
            // Only the root is wanted.
            drop(tree.take_full_tiles());
        }
        Digest(tree.root().0)
    }
}

/// Where the holdouts are.
pub struct Vault {
    key: Secret,
    blobs: Blobs,
    open: Mutex<LruCache<HoldoutId, Arc<OpenHoldout>>>,
}

impl Vault {
    /// A vault over blobs.
    #[must_use]
    pub fn new(key: Secret, blobs: Blobs) -> Self {
        Self {
            key,
            blobs,
            open: Mutex::new(LruCache::new(KEPT)),
        }
    }

    /// Encrypts items and makes them durable.
    ///
    /// # Errors
    /// Where the blob cannot be written.
    pub fn put(&self, items: &Items) -> Result<Digest, VaultError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(VaultError::Random)?;
        let mut plain = postcard::to_allocvec(items)
            .unwrap_or_else(|error| unreachable!("items encode into memory: {error}"));
        let sealed = self
            .cipher()
            .encrypt(&Nonce::from(nonce), plain.as_slice())
            .unwrap_or_else(|_| unreachable!("AES-GCM takes some ten MiB"));
        plain.zeroize();
        Ok(self.blobs.put(&[nonce.as_slice(), &sealed].concat())?)
    }

    /// A holdout, from memory or its blob.
    ///
    /// # Errors
    /// Where the blob is missing, damaged, or of another key.
    pub fn open(
        &self,
        id: HoldoutId,
        blob: &Digest,
        answer_share_micros: u32,
    ) -> Result<Arc<OpenHoldout>, VaultError> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = lock().get(&id) {
            return Ok(Arc::clone(open));
        }
        let items = self.read(id, blob)?;
        let open = OpenHoldout::new(items, answer_share_micros).ok_or(VaultError::Sealed(id))?;
        let open = Arc::new(open);
        lock().put(id, Arc::clone(&open));
        Ok(open)
    }

    /// The items in a blob.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn read(&self, id: HoldoutId, blob: &Digest) -> Result<Items, VaultError> {
        let bytes = self.blobs.get(blob)?;
        let (nonce, sealed) = bytes
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(VaultError::Sealed(id))?;
        let mut plain = self
            .cipher()
            .decrypt(&Nonce::from(*nonce), sealed)
            .map_err(|_| VaultError::Sealed(id))?;
        let items = postcard::from_bytes(&plain).map_err(|_| VaultError::Sealed(id));
        plain.zeroize();
        items
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&Key::<Aes256Gcm>::from(*self.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Items {
        Items {
            secret: [3; 32],
            labels: vec![1, 0, 1, 1],
            units: None,
            item_ids: vec![[1; 16]],
        }
    }

    #[test]
    fn what_was_put_is_opened_under_the_same_key_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let blobs = Blobs::open(directory.path()).expect("writable");
        let vault = Vault::new(Secret::new([1; 32]), blobs.clone());
        let (id, blob) = (HoldoutId([9; 32]), vault.put(&items()).expect("writable"));
        let open = vault.open(id, &blob, 250_000).expect("same key");
        assert_eq!(open.labels(), items().labels);
        assert_eq!(open.split().answer_items, 1);
        assert_eq!(
            open.part_mask().iter().filter(|part| **part == 1).count(),
            1
        );
        let other = Vault::new(Secret::new([2; 32]), blobs);
        assert!(matches!(
            other.open(id, &blob, 0),
            Err(VaultError::Sealed(_))
        ));
    }

    #[test]
    fn labels_are_not_in_the_blob_as_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let blobs = Blobs::open(directory.path()).expect("writable");
        let vault = Vault::new(Secret::new([1; 32]), blobs.clone());
        let mut many = items();
        many.labels = [1, 0].repeat(500);
        let blob = vault.put(&many).expect("writable");
        let bytes = blobs.get(&blob).expect("there");
        assert!(!bytes.windows(16).any(|window| window == &many.labels[..16]));
    }
}
