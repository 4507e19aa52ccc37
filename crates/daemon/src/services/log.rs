//! The shown log: heads, proofs, entries, keys, revocations.

use std::sync::Arc;

use evidenceos_kernel::{
    claim::Claim,
    id::{ClaimId, Digest},
    log_key::LogKey,
};
use evidenceos_notary::keys::{Keys, verifier};
use evidenceos_store::{Head, log::LogView};
use evidenceos_tlog::Hash;
use tokio::sync::{mpsc, watch};

use super::{Error, ShownRows, rows::blocking};

/// The most revocations in one page.
const FEED_PAGE: usize = 1_000;
/// Pages that wait for a slow watcher.
const WATCH_DEPTH: usize = 4;
/// The most bytes of entries in one page, unless the first entry has more: answers wait in memory
/// until they are read.
const MAX_ENTRIES_BYTES: usize = 1 << 20;

/// The use cases of the log.
pub struct Log {
    keys: Arc<Keys>,
    view: Arc<LogView>,
    rows: ShownRows,
    /// The size of the newest shown head.
    released: watch::Sender<u64>,
    /// The log index of the newest revocation.
    revoked: watch::Sender<u64>,
}

/// A key of the log, for verifiers.
pub struct ShownKey {
    /// The key, and the size from which it signs.
    pub key: LogKey,
    /// As a C2SP verifier key.
    pub vkey: String,
}

/// An entry's place in the tree of a size.
pub struct Inclusion {
    /// Hash of the entry.
    pub leaf: Hash,
    /// The path from the leaf to the root.
    pub path: Vec<Hash>,
    /// The root of the tree of `size` entries.
    pub root: Hash,
    /// The size of the tree, in entries.
    pub size: u64,
    /// The checkpoint of that size, if it is the shown one.
    pub checkpoint: Option<String>,
}

/// A proof that one tree is the beginning of another.
pub struct Consistency {
    /// The path from the smaller tree to the larger one.
    pub path: Vec<Hash>,
    /// Root of the smaller tree.
    pub old_root: Hash,
    /// Root of the larger one.
    pub new_root: Hash,
    /// The checkpoint of the larger one, if it is the shown one.
    pub checkpoint: Option<String>,
}

/// A claim that was revoked.
pub struct Revoked {
    pub claim: ClaimId,
    /// The time of the revocation, in Unix milliseconds.
    pub revoked_unix_ms: u64,
    /// The owner's reason.
    pub reason: String,
    /// The capsule that is no longer valid.
    pub capsule: Option<Digest>,
    /// The log index of the revocation.
    pub index: u64,
}

/// A page of revocations.
pub struct Revocations {
    /// In the order of the log.
    pub entries: Vec<Revoked>,
    /// The head that covers them.
    pub head: Arc<Head>,
    /// The log's signature over the page; `None` if the key is in a KMS, which signs heads only.
    pub signature: Option<[u8; 64]>,
    /// Whether more revocations follow this page.
    pub more: bool,
    /// The log index of the last revocation in it.
    last: u64,
    /// Whether there are more that no shown head covers yet.
    hidden: bool,
}

/// A part of a log entry that may not be shown yet.
pub enum Shown<T> {
    /// The shown head covers it.
    Now(T),
    /// It may be shown once the shown head covers the entry with this index.
    After(u64),
}

impl<T> Shown<T> {
    /// `Now` if the entry is covered, otherwise `After` its index.
    pub fn of(is_covered: bool, index: u64, what: T) -> Self {
        if is_covered {
            Self::Now(what)
        } else {
            Self::After(index)
        }
    }
}

impl Log {
    /// The log over its view.
    #[must_use]
    pub fn new(
        keys: Arc<Keys>,
        view: Arc<LogView>,
        rows: ShownRows,
        released: watch::Sender<u64>,
    ) -> Self {
        let revoked = watch::Sender::new(0);
        Self {
            keys,
            view,
            rows,
            released,
            revoked,
        }
    }

    /// The newest shown head.
    #[must_use]
    pub fn head(&self) -> Arc<Head> {
        self.view.released().head
    }

    /// The log's keys, the first one first.
    #[must_use]
    pub fn keys(&self) -> Vec<ShownKey> {
        let origin = self.keys.origin();
        let shown = |key: LogKey| ShownKey {
            vkey: verifier(&origin, &key.public_key).to_string(),
            key,
        };
        self.keys.history().into_iter().map(shown).collect()
    }

    /// A key by its id, or the signing key: its bytes, and its C2SP verifier key.
    ///
    /// # Errors
    /// `KEY_NOT_FOUND`.
    pub fn public_key(&self, id: Option<Digest>) -> Result<([u8; 32], String), Error> {
        let found = match id {
            None => Some(self.keys.signer().public_key()),
            Some(id) => self.keys.public_key(id).map(|(public_key, _)| public_key),
        };
        let public_key = found.ok_or(Error::Absent {
            code: "KEY_NOT_FOUND",
            message: "no key of this log has that id; leave it empty for the key that signs now"
                .into(),
        })?;
        let vkey = verifier(&self.keys.origin(), &public_key).to_string();
        Ok((public_key, vkey))
    }

    /// The place of an entry in the tree of `size` entries; 0 means the shown head's size.
    ///
    /// # Errors
    /// If the size is beyond what is shown, or the entry beyond the size.
    pub async fn inclusion(self: &Arc<Self>, index: u64, size: u64) -> Result<Inclusion, Error> {
        let log = Arc::clone(self);
        blocking(move || {
            let head = log.head();
            let size = match size {
                0 => head.size,
                size => size,
            };
            let (leaf, path, root) = log.view.inclusion(index, size)?;
            Ok(Inclusion {
                leaf,
                path,
                root,
                size,
                checkpoint: (size == head.size).then(|| head.checkpoint.clone()),
            })
        })
        .await
    }

    /// The proof that the tree of one size is the beginning of the other. The view returns only
    /// proofs that it has verified.
    ///
    /// # Errors
    /// If a size is beyond what is shown, or the first is above the second.
    pub async fn consistency(
        self: &Arc<Self>,
        first: u64,
        second: u64,
    ) -> Result<Consistency, Error> {
        let log = Arc::clone(self);
        blocking(move || {
            let head = log.head();
            let (path, old_root, new_root) = log.view.consistency(first, second)?;
            Ok(Consistency {
                path,
                old_root,
                new_root,
                checkpoint: (second == head.size).then(|| head.checkpoint.clone()),
            })
        })
        .await
    }

    /// Entries from an index on, up to a count and a MiB of them, and the shown size.
    ///
    /// # Errors
    /// If rows cannot be read.
    pub async fn entries(
        self: &Arc<Self>,
        start: u64,
        most: u32,
    ) -> Result<(Vec<Vec<u8>>, u64), Error> {
        let log = Arc::clone(self);
        blocking(move || {
            let size = log.head().size;
            let count = u64::from(most).min(size.saturating_sub(start));
            let read = log.rows.readers.entries(start.min(size), count as usize)?;
            let entries = read
                .into_iter()
                .scan(0, |bytes, entry| {
                    let is_first = *bytes == 0;
                    *bytes += entry.bytes.len();
                    (is_first || *bytes <= MAX_ENTRIES_BYTES).then_some(entry.bytes)
                })
                .collect();
            Ok((entries, size))
        })
        .await
    }

    /// Revocations after a log index, with a signature over exactly this page.
    ///
    /// # Errors
    /// If rows cannot be read.
    pub async fn revocations(self: &Arc<Self>, after: u64) -> Result<Revocations, Error> {
        let log = Arc::clone(self);
        blocking(move || log.read_revocations(after)).await
    }

    /// All revocations, then new ones as they come, a page each. The first page comes at once, even
    /// if it is empty.
    ///
    /// The watcher reads from the store after each revocation, so a slow reader misses nothing and
    /// costs no memory. The watch ends when the receiver is dropped.
    #[must_use]
    pub fn watch_revocations(self: &Arc<Self>) -> mpsc::Receiver<Result<Revocations, Error>> {
        let (sender, receiver) = mpsc::channel(WATCH_DEPTH);
        tokio::spawn(Arc::clone(self).tell_revocations(sender));
        receiver
    }

    async fn tell_revocations(self: Arc<Self>, sender: mpsc::Sender<Result<Revocations, Error>>) {
        let mut changed = self.revoked.subscribe();
        let mut shown = self.released.subscribe();
        let mut after = 0;
        let mut first = true;
        loop {
            // This comes before the read: a head that comes meanwhile must not be missed.
            shown.mark_unchanged();
            let page = match self.revocations(after).await {
                Ok(page) => page,
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            after = page.last;
            let (more, hidden) = (page.more, page.hidden);
            if (first || !page.entries.is_empty()) && sender.send(Ok(page)).await.is_err() {
                return;
            }
            first = false;
            if more {
                continue;
            }
            tokio::select! {
                () = sender.closed() => return,
                changed = changed.changed() => if changed.is_err() { return },
                changed = shown.changed(), if hidden => if changed.is_err() { return },
            }
        }
    }

    /// Wakes watchers after a revocation.
    pub(super) fn was_revoked(&self) {
        let newest = self.head().size;
        self.revoked.send_modify(|index| *index = newest);
    }

    /// The path that proves an entry to be in a tree, and the path that proves the tree to extend a
    /// known one.
    pub(super) fn proofs_of(
        &self,
        leaf: Hash,
        index: u64,
        known_size: u64,
        size: u64,
    ) -> Result<(Vec<Hash>, Vec<Hash>), Error> {
        let (inclusion, _) = self.view.inclusion_of(leaf, index, size)?;
        let (consistency, _, _) = self.view.consistency(known_size, size)?;
        Ok((inclusion, consistency))
    }

    /// Reads a part of one claim's entry once a shown head covers it: an anchor must remember the
    /// head first, and a KMS may have to sign it.
    pub(super) async fn once_shown<T: Send + 'static>(
        &self,
        read: impl Fn() -> Result<Shown<T>, Error> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        let mut released = self.released.subscribe();
        loop {
            let index = match blocking(read.clone()).await? {
                Shown::Now(found) => return Ok(found),
                Shown::After(index) => index,
            };
            let covered = released.wait_for(|size| *size > index);
            let patience = self.rows.anchored.patience();
            if tokio::time::timeout(patience, covered).await.is_err() {
                return Err(if self.keys.signer().is_remote() {
                    Error::NotSignedYet
                } else {
                    Error::NotShownYet { changed: false }
                });
            }
        }
    }

    fn read_revocations(&self, after: u64) -> Result<Revocations, Error> {
        // One more than a page shows whether there are more.
        let mut claims = self.rows.readers.revoked(after, FEED_PAGE + 1)?;
        let head = self.head();
        // The next page has what the head does not cover yet.
        let found = claims.len();
        claims.retain(|claim| {
            let index = claim.revocation.as_ref().map(|revocation| revocation.index);
            index.is_some_and(|index| index < head.size)
        });
        let hidden = claims.len() < found;
        let more = claims.len() > FEED_PAGE;
        claims.truncate(FEED_PAGE);
        let entries: Vec<Revoked> = claims.iter().filter_map(Revoked::of).collect();
        // A key in a KMS signs heads only: the entries then need no signature beside the log.
        let digest = revocations_digest(&entries, &head);
        Ok(Revocations {
            signature: self.keys.signer().sign_here(&digest.0),
            last: entries.last().map_or(after, |entry| entry.index),
            head,
            entries,
            more,
            hidden,
        })
    }
}

impl Revoked {
    /// The revocation of a claim, if it was revoked.
    #[must_use]
    pub fn of(claim: &Claim) -> Option<Self> {
        let revocation = claim.revocation.as_ref()?;
        let settlement = claim.settlement.as_ref();
        Some(Self {
            claim: claim.id,
            revoked_unix_ms: revocation.revoked_unix_ms,
            reason: revocation.reason.clone(),
            capsule: settlement.map(|settlement| settlement.capsule_hash),
            index: revocation.index,
        })
    }
}

/// The published digest of a feed: each entry with its lengths, then the tree head's numbers.
fn revocations_digest(entries: &[Revoked], head: &Head) -> Digest {
    let mut payload = Vec::new();
    let length = |bytes: &[u8]| (bytes.len() as u64).to_be_bytes();
    for entry in entries {
        payload.extend_from_slice(&length(entry.claim.as_bytes()));
        payload.extend_from_slice(entry.claim.as_bytes());
        payload.extend_from_slice(&(entry.revoked_unix_ms / 1_000).to_be_bytes());
        payload.extend_from_slice(&length(entry.reason.as_bytes()));
        payload.extend_from_slice(entry.reason.as_bytes());
    }
    payload.extend_from_slice(&head.size.to_be_bytes());
    payload.extend_from_slice(&head.root);
    payload.extend_from_slice(&length(head.key_id.as_bytes()));
    payload.extend_from_slice(head.key_id.as_bytes());
    Digest::domain("evidenceos:revocations:v1", &payload)
}
