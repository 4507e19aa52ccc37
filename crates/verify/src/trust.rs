//! The keys to trust, and the trees that each may sign.
//!
//! A reader trusts one key. A replayed log may prove that others came before or after it: each
//! `key_rotated` entry states, signed by the old key and by the new, up to which size the one signs
//! and from which size on the other. A head by a key over a tree that the key may not sign is
//! refused, so an old key that leaks later can rewrite nothing.

use evidenceos_kernel::{id::Digest, log_key::SignedKeyLink};
use evidenceos_tlog::{CheckpointError, SignedCheckpoint, VerifierKey, note::KeyKind};
use thiserror::Error;

use crate::{
    fault::{Check, Fault},
    log::KeyChain,
};

/// A trusted key, with the keys that a log proves beside it.
#[derive(Debug, Clone)]
pub struct Trust {
    /// The reader's own key comes first.
    keys: Vec<Trusted>,
}

#[derive(Debug, Clone)]
struct Trusted {
    key: VerifierKey,
    first_size: u64,
    last_size: u64,
}

/// The reason why a head is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Distrust {
    /// No trusted key has signed it.
    #[error(
        "{0}. If the log has changed its key since, give the log with --log, or the key that signed"
    )]
    Key(CheckpointError),
    /// The checkpoint is of another log.
    #[error(transparent)]
    Origin(CheckpointError),
    /// The log names other keys.
    #[error(
        "key {key} is neither the one that this log began under ({}) nor one that took over from it: the log's entry 0, or an entry about a change of keys, was changed after it was signed",
        first.map_or_else(|| "none".to_owned(), |first| first.to_hex())
    )]
    NotOfThisLog {
        /// SHA-256 of the key that the reader trusts.
        key: Digest,
        /// SHA-256 of the key in entry 0.
        first: Option<Digest>,
    },
    /// A key has signed a tree that it may not sign.
    #[error(
        "the key that signed a tree of {size} entries signs trees of {first} to {last} entries: it had been replaced, or had not taken over"
    )]
    NotItsTree {
        /// Entries of the tree.
        size: u64,
        /// The smallest tree that the key may sign.
        first: u64,
        /// The largest tree that the key may sign.
        last: u64,
    },
}

impl From<VerifierKey> for Trust {
    /// Trusts one key, for trees of any size.
    fn from(key: VerifierKey) -> Self {
        Self {
            keys: vec![Trusted {
                key,
                first_size: 0,
                last_size: u64::MAX,
            }],
        }
    }
}

impl Trust {
    /// The key, and those before and after it as a replayed log states them: from the key of entry 0 on, each vouches
    /// for the next. Each is trusted for the trees that it may sign, and no others.
    ///
    /// # Errors
    /// [`Distrust::NotOfThisLog`] if the key is none of them: then the log does not state which trees it may sign.
    pub fn along(key: VerifierKey, chain: &KeyChain) -> Result<Self, Distrust> {
        let public_key = key.public_key();
        let links = chain.links.as_slice();
        let is_first = chain.first == Some(Digest::of(&public_key));
        let took_over = links.iter().any(|link| link.new_public_key == public_key);
        if !is_first && !took_over {
            return Err(Distrust::NotOfThisLog {
                key: Digest::of(&public_key),
                first: chain.first,
            });
        }
        if links.is_empty() {
            return Ok(Self::from(key));
        }
        let name = key.name().to_owned();
        let mut sizes = Vec::new();
        let mut first_size = 0;
        for link in links {
            sizes.push((link.old_public_key, first_size, link.tree_size));
            // The tree that holds the link has one entry more, and is the first that the new key
            // signs.
            first_size = link.tree_size + 1;
        }
        sizes.extend(
            links
                .last()
                .map(|link| (link.new_public_key, first_size, u64::MAX)),
        );
        let mut keys: Vec<Trusted> = sizes
            .into_iter()
            .filter_map(|(public_key, first_size, last_size)| {
                // Bytes that are not a key have signed nothing: leaving them out trusts less, not
                // more.
                Some(Trusted {
                    key: VerifierKey::new(&name, KeyKind::Ed25519, &public_key).ok()?,
                    first_size,
                    last_size,
                })
            })
            .collect();
        // The reader's own key is tried first, since `open` reports what the first key found.
        keys.sort_by_key(|trusted| trusted.key.public_key() != public_key);
        Ok(Self { keys })
    }

    /// The same keys under another name of the log, for heads from before a restart.
    #[must_use]
    pub(crate) fn named(&self, origin: &str) -> Self {
        let renamed = |trusted: &Trusted| {
            let public_key = trusted.key.public_key();
            let key = VerifierKey::new(origin, KeyKind::Ed25519, &public_key);
            Trusted {
                key: key.unwrap_or_else(|_| trusted.key.clone()),
                ..trusted.clone()
            }
        };
        Self {
            keys: self.keys.iter().map(renamed).collect(),
        }
    }

    /// Reads a checkpoint that a trusted key has signed, over a tree that the key may sign.
    ///
    /// # Errors
    /// [`Distrust`] if no trusted key signed it, it is of another log, or the key may not sign this
    /// tree.
    pub fn open(&self, note: &[u8]) -> Result<SignedCheckpoint, Distrust> {
        let mut first_error = None;
        for trusted in &self.keys {
            match SignedCheckpoint::open(note, &trusted.key, &[]) {
                Ok(signed) => return trusted.check(signed),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(match first_error {
            Some(error @ CheckpointError::OtherLog { .. }) => Distrust::Origin(error),
            Some(error) => Distrust::Key(error),
            None => unreachable!("somebody is trusted"),
        })
    }
}

impl Trusted {
    fn check(&self, signed: SignedCheckpoint) -> Result<SignedCheckpoint, Distrust> {
        let size = signed.checkpoint().size();
        if (self.first_size..=self.last_size).contains(&size) {
            Ok(signed)
        } else {
            Err(Distrust::NotItsTree {
                size,
                first: self.first_size,
                last: self.last_size,
            })
        }
    }
}

/// Checks that both keys have signed a link.
pub(crate) fn check_signatures(signed: &SignedKeyLink) -> Result<(), Fault> {
    let link = &signed.link;
    let digest = link.digest();
    for (public_key, signature, rule) in [
        (
            &link.old_public_key,
            &signed.old_signature,
            "the old key has signed that the new one follows",
        ),
        (
            &link.new_public_key,
            &signed.new_signature,
            "the new key has signed that it follows",
        ),
    ] {
        let key = VerifierKey::new(&link.origin, KeyKind::Ed25519, public_key);
        let holds = key.is_ok_and(|key| key.verify_bytes(digest.as_bytes(), signature));
        Check::Keys.holds(holds, rule)?;
    }
    Ok(())
}
