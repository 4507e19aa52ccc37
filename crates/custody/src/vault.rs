//! The holdouts' labels: encrypted at rest, decrypted only when a run needs them.
//!
//! A holdout's secret, units, labels and keyed item ids are one blob, AES-256-GCM under a holdout
//! key, named by the digest of its ciphertext and bound to the holdout's name and policy: a blob in
//! the place of another does not decrypt. A bounded number of decrypted holdouts is kept in memory.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `EVH2` |
//! | 8 | tag of the key |
//! | 12 | nonce |
//! | rest | ciphertext and its 16-byte authentication tag |

use std::{collections::HashSet, num::NonZeroUsize, sync::Arc};

use aes_gcm::{
    Aes256Gcm, Key, KeyInit as _, Nonce,
    aead::{Aead as _, Payload},
};
use evidenceos_kernel::{
    holdout::{Holdout, Policy},
    id::{Digest, HoldoutId},
    score::Classes,
    split::{self, Salts},
};
use evidenceos_store::{StoreError, blobs::Blobs};
use evidenceos_tlog::{Tree, leaf_hash};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::keys::{HoldoutKey, HoldoutKeys, Tag};

const MAGIC: &[u8; 4] = b"EVH2";
const NONCE_LEN: usize = 12;
/// The prefix of the associated data.
const PURPOSE: &str = "evidenceos:holdout_items:v2";
/// The most decrypted holdouts in memory; the largest takes about ten MiB.
const KEPT: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");

/// Why a holdout cannot be decrypted.
#[derive(Debug, Error)]
pub enum VaultError {
    /// The blob with the items cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob does not decrypt under the known keys.
    #[error(
        "the keys of this data directory do not decrypt the items of holdout {0:?}; bring the secrets directory back from a backup"
    )]
    Sealed(String),
    /// The operating system gave no random bytes.
    #[error("the operating system returned no random bytes: {0}")]
    Random(getrandom::Error),
}

/// A holdout's items in their stored form.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Items {
    /// Draws the split and the salts.
    pub secret: [u8; 32],
    /// One byte for each item, 0 or 1.
    pub labels: Vec<u8>,
    /// The unit of each item; `None`: each item is a unit.
    pub units: Option<Vec<u64>>,
    /// Keyed digests of the item ids, sorted; empty if the items have none.
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

    /// Whether the two share an item id.
    #[must_use]
    pub fn shares_item_with(&self, other: &Self) -> bool {
        let ids: HashSet<&[u8; 16]> = self.item_ids.iter().collect();
        other.item_ids.iter().any(|id| ids.contains(id))
    }
}

/// A decrypted holdout, ready to answer and to judge.
pub struct OpenHoldout {
    items: Items,
    part_mask: Vec<u8>,
    classes: Classes,
    split: split::Split,
}

impl OpenHoldout {
    /// Splits the items; `None` if there are too many sizes of units.
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

    /// The items in their stored form, with labels and secret.
    #[must_use]
    pub fn items(&self) -> &Items {
        &self.items
    }

    /// One byte for each item, 0 or 1.
    #[must_use]
    pub fn labels(&self) -> &[u8] {
        &self.items.labels
    }

    /// One byte for each item: 1 in the answer part, 0 in the sealed part.
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
            // Only the root is needed.
            drop(tree.take_full_tiles());
        }
        Digest(tree.root().0)
    }
}

/// The facts to which a holdout's ciphertext is bound.
#[derive(Clone, Copy)]
pub struct Binding<'h> {
    /// The name of the holdout.
    pub reference: &'h str,
    pub policy: &'h Policy,
}

impl<'h> Binding<'h> {
    /// The binding of a registered holdout.
    #[must_use]
    pub fn of(holdout: &'h Holdout) -> Self {
        Self {
            reference: &holdout.reference,
            policy: &holdout.description.policy,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        // The digest has a fixed length, so that no name can pass for part of it.
        [
            PURPOSE.as_bytes(),
            &[0],
            self.policy.hash().as_bytes(),
            self.reference.as_bytes(),
        ]
        .concat()
    }

    fn does_not_open(&self) -> VaultError {
        VaultError::Sealed(self.reference.to_owned())
    }
}

/// Encrypts, stores and decrypts holdouts.
pub struct Vault {
    keys: RwLock<HoldoutKeys>,
    blobs: Blobs,
    open: Mutex<LruCache<HoldoutId, Arc<OpenHoldout>>>,
}

impl Vault {
    /// A vault over these blobs.
    #[must_use]
    pub fn new(keys: HoldoutKeys, blobs: Blobs) -> Self {
        Self {
            keys: RwLock::new(keys),
            blobs,
            open: Mutex::new(LruCache::new(KEPT)),
        }
    }

    /// Encrypts items under the active key and makes them durable.
    ///
    /// # Errors
    /// If the blob cannot be written.
    pub fn put(&self, items: &Items, binding: Binding<'_>) -> Result<Digest, VaultError> {
        let active = self.keys().active;
        self.put_under(&active, items, binding)
    }

    /// As [`Vault::put`], under a given key.
    ///
    /// # Errors
    /// As [`Vault::put`].
    pub fn put_under(
        &self,
        key: &HoldoutKey,
        items: &Items,
        binding: Binding<'_>,
    ) -> Result<Digest, VaultError> {
        // AES-GCM breaks if a nonce repeats under one key; random 96-bit nonces do not repeat in so
        // few blobs.
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(VaultError::Random)?;
        let plain = Zeroizing::new(
            postcard::to_allocvec(items)
                .unwrap_or_else(|error| unreachable!("items encode into memory: {error}")),
        );
        let payload = Payload {
            msg: &plain,
            aad: &binding.bytes(),
        };
        let sealed = cipher(key)
            .encrypt(&Nonce::from(nonce), payload)
            .unwrap_or_else(|_| unreachable!("AES-GCM takes some ten MiB"));
        let blob = [MAGIC.as_slice(), &key.tag, &nonce, &sealed].concat();
        Ok(self.blobs.put(&blob)?)
    }

    /// A holdout, from memory or its blob.
    ///
    /// # Errors
    /// If the blob is missing or damaged, or is of another key or another holdout.
    pub fn open(
        &self,
        id: HoldoutId,
        blob: &Digest,
        binding: Binding<'_>,
    ) -> Result<Arc<OpenHoldout>, VaultError> {
        let lock = || self.open.lock();
        if let Some(open) = lock().get(&id) {
            return Ok(Arc::clone(open));
        }
        // The lock is not held during decryption: two runs may decrypt the same blob, and no other
        // run waits.
        let items = self.read(blob, binding)?;
        let open = OpenHoldout::new(items, binding.policy.answer_share_micros)
            .ok_or_else(|| binding.does_not_open())?;
        let open = Arc::new(open);
        lock().put(id, Arc::clone(&open));
        Ok(open)
    }

    /// The items in a blob.
    ///
    /// # Errors
    /// As [`Vault::open`].
    pub fn read(&self, blob: &Digest, binding: Binding<'_>) -> Result<Items, VaultError> {
        let bytes = self.blobs.get(blob)?;
        let (tag, rest) = tagged(&bytes).ok_or_else(|| binding.does_not_open())?;
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or_else(|| binding.does_not_open())?;
        let keys = self.keys();
        let key = keys.of(&tag).ok_or_else(|| binding.does_not_open())?;
        let payload = Payload {
            msg: sealed,
            aad: &binding.bytes(),
        };
        let plain = cipher(key)
            .decrypt(&Nonce::from(*nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| binding.does_not_open())?;
        postcard::from_bytes(&plain).map_err(|_| binding.does_not_open())
    }

    /// Destroys the items of a withdrawn holdout. A copy in a backup stays.
    ///
    /// # Errors
    /// If the blob cannot be removed; the next start removes it.
    pub fn forget(&self, id: HoldoutId, blob: &Digest) -> Result<(), VaultError> {
        // Memory goes first, so that no run opens the holdout from there.
        self.open.lock().pop(&id);
        Ok(self.blobs.remove(blob)?)
    }

    /// The tag of the key that a blob needs.
    ///
    /// # Errors
    /// If the blob cannot be read.
    pub fn tag_of(&self, blob: &Digest) -> Result<Option<Tag>, VaultError> {
        let bytes = self.blobs.get(blob)?;
        Ok(tagged(&bytes).map(|(tag, _)| tag))
    }

    /// Encrypts new items under another key from now on. The old key still decrypts what runs under
    /// way may need.
    pub fn follow(&self, next: HoldoutKey) {
        self.keys.write().follow(next);
    }

    /// Learns another key, which encrypts nothing yet.
    pub fn know(&self, next: HoldoutKey) {
        self.keys.write().others.push(next);
    }

    fn keys(&self) -> HoldoutKeys {
        // A copy, so that no lock is held while about ten megabytes are encrypted or decrypted.
        self.keys.read().clone()
    }
}

fn tagged(bytes: &[u8]) -> Option<(Tag, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    rest.split_first_chunk::<8>()
        .map(|(tag, rest)| (*tag, rest))
}

fn cipher(key: &HoldoutKey) -> Aes256Gcm {
    Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key.secret))
}

#[cfg(test)]
mod tests {
    use evidenceos_kernel::bits::MicroBits;
    use evidenceos_keys::Secret;

    use super::*;

    fn items() -> Items {
        Items {
            secret: [3; 32],
            labels: vec![1, 0, 1, 1],
            units: None,
            item_ids: vec![[1; 16]],
        }
    }

    fn policy(share: u32) -> Policy {
        Policy {
            answer_share_micros: share,
            ..Policy::with_sealed_budget(MicroBits::from_bits(64))
        }
    }

    fn vault(directory: &tempfile::TempDir, keys: &[u8]) -> Vault {
        let blobs = Blobs::open(directory.path()).expect("writable");
        let mut keys = keys
            .iter()
            .map(|byte| HoldoutKey::new(Secret::new([*byte; 32])));
        let active = keys.next().expect("a key");
        let others = keys.collect();
        Vault::new(HoldoutKeys { active, others }, blobs)
    }

    #[test]
    fn what_was_put_opens_under_its_key_its_name_and_its_policy_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let (quarter, third) = (policy(250_000), policy(333_333));
        let binding = Binding {
            reference: "mine",
            policy: &quarter,
        };
        let blob = vault(&directory, &[1])
            .put(&items(), binding)
            .expect("writable");
        let id = HoldoutId([9; 32]);
        for keys in [&[1][..], &[2, 1]] {
            let open = vault(&directory, keys)
                .open(id, &blob, binding)
                .expect("its key is known");
            assert_eq!(open.labels(), items().labels);
            assert_eq!(open.split().answer_items, 1);
        }
        let renamed = Binding {
            reference: "yours",
            ..binding
        };
        let other_policy = Binding {
            policy: &third,
            ..binding
        };
        for (keys, binding) in [(&[2][..], binding), (&[1], renamed), (&[1], other_policy)] {
            let refused = vault(&directory, keys).open(id, &blob, binding);
            assert!(matches!(refused, Err(VaultError::Sealed(_))));
        }
    }

    #[test]
    fn another_key_takes_over_and_the_old_one_still_opens() {
        let directory = tempfile::tempdir().expect("a directory");
        let policy = policy(250_000);
        let binding = Binding {
            reference: "mine",
            policy: &policy,
        };
        let vault = vault(&directory, &[1]);
        let old = vault.put(&items(), binding).expect("writable");
        let next = HoldoutKey::new(Secret::new([2; 32]));
        let tag = next.tag;
        vault.follow(next);
        let new = vault.put(&items(), binding).expect("writable");
        assert_eq!(vault.tag_of(&new).expect("there"), Some(tag));
        for blob in [old, new] {
            let read = vault.read(&blob, binding).expect("both keys are known");
            assert_eq!(read.labels, items().labels);
        }
    }

    #[test]
    fn labels_are_not_in_the_blob_as_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut many = items();
        many.labels = [1, 0].repeat(500);
        let policy = policy(0);
        let binding = Binding {
            reference: "mine",
            policy: &policy,
        };
        let vault = vault(&directory, &[1]);
        let blob = vault.put(&many, binding).expect("writable");
        let bytes = vault.blobs.get(&blob).expect("there");
        assert!(!bytes.windows(16).any(|window| window == &many.labels[..16]));
    }
}
