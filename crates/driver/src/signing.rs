//! The signers of tree heads, and the time at which they sign.
//!
//! A key in memory signs inside the batch, so one sync persists entries and head. A key that never
//! leaves its KMS signs elsewhere while appends go on: at most one signature is under way, always
//! for the newest tree, and the returned head commits with the next batch before any reader sees
//! it. In both cases nothing signed is seen before it is durable.

use evidenceos_kernel::log_key::{KeyLink, SignedKeyLink};
use evidenceos_store::Head;
use evidenceos_tlog::{Hash, Tile, Tree};

/// Signs tree heads with a key in memory. The head leaves only after its batch is durable.
pub trait Signer: Send {
    /// The signed head of a tree.
    fn sign(&self, size: u64, root: Hash) -> Head;
    /// The log's name, the first line of each checkpoint.
    fn origin(&self) -> &str;
    /// The raw Ed25519 key, 32 bytes.
    fn public_key(&self) -> [u8; 32];
    /// An Ed25519 signature over the bytes as they are, without a domain before them.
    fn sign_bytes(&self, bytes: &[u8]) -> [u8; 64];
}

/// Requests signatures of tree heads elsewhere. The outcome comes back as [`crate::Input::Signed`].
pub trait RemoteSigner: Send {
    /// Starts signing the head of a tree; returns at once.
    fn start(&self, size: u64, root: Hash);
}

/// The place of the signer of heads.
pub enum Signing {
    /// The writer signs inside the batch, before it commits.
    Inside(Box<dyn Signer>),
    /// A remote signer signs; the head comes back as [`crate::Input::Signed`].
    Elsewhere(Box<dyn RemoteSigner>),
    /// The caller of [`crate::Alone`] signs, and enacts its commands.
    ByCaller,
}

/// A tree whose head is being signed elsewhere, and the tiles that it completed.
struct Asked {
    tree: Tree,
    full: Vec<Tile>,
}

/// The signed and pending heads of a driver.
pub(crate) struct Heads {
    signing: Signing,
    /// The largest tree whose signed head is durable.
    signed_size: u64,
    asked: Option<Asked>,
    /// Tiles of trees whose heads could not be signed.
    carried: Vec<Tile>,
    /// A head that was signed elsewhere and is not durable yet.
    back: Option<Head>,
    /// The key that takes over with the next batch.
    next: Option<Box<dyn Signer>>,
}

impl Heads {
    pub(crate) fn new(signing: Signing, signed_size: u64) -> Self {
        Self {
            signing,
            signed_size,
            asked: None,
            carried: Vec::new(),
            back: None,
            next: None,
        }
    }

    pub(crate) fn are_signed_elsewhere(&self) -> bool {
        matches!(self.signing, Signing::Elsewhere(_))
    }

    /// Lets another key take over. A key that never leaves its KMS takes over only at a start.
    pub(crate) fn follow(&mut self, next: Box<dyn Signer>) {
        match &self.signing {
            Signing::Inside(current) if current.public_key() == next.public_key() => {}
            Signing::Inside(_) => self.next = Some(next),
            Signing::Elsewhere(_) => {
                tracing::warn!(
                    "the log's key is in a KMS; the new key takes over only at the next start"
                );
            }
            Signing::ByCaller => {}
        }
    }

    /// The link to the key that takes over, over the tree before the batch.
    pub(crate) fn link(&self, tree: &Tree) -> Option<SignedKeyLink> {
        let (Signing::Inside(old), Some(new)) = (&self.signing, &self.next) else {
            return None;
        };
        let link = KeyLink {
            origin: old.origin().to_owned(),
            old_public_key: old.public_key(),
            new_public_key: new.public_key(),
            tree_size: tree.size(),
            root: tree.root().0,
        };
        let digest = link.digest();
        Some(SignedKeyLink {
            old_signature: old.sign_bytes(digest.as_bytes()),
            new_signature: new.sign_bytes(digest.as_bytes()),
            link,
        })
    }

    /// The head that commits with a batch; `grown` is the tree after it.
    pub(crate) fn head(&self, grown: Option<&Tree>) -> Option<Head> {
        match (&self.signing, grown) {
            (Signing::Inside(current), Some(tree)) => {
                // The first batch that a new key signs contains its link: its head vouches for the
                // link.
                let signer = self.next.as_ref().unwrap_or(current);
                Some(signer.sign(tree.size(), tree.root()))
            }
            (Signing::Inside(_), None) | (Signing::ByCaller, _) => None,
            (Signing::Elsewhere(_), _) => self.back.clone(),
        }
    }

    /// Takes in the result of signing elsewhere. A head of another tree than requested is ignored.
    pub(crate) fn came_back(&mut self, result: Result<Head, String>) {
        let fits = |head: &Head| {
            let asked = self.asked.as_ref();
            asked.is_some_and(|asked| {
                asked.tree.size() == head.size && asked.tree.root() == head.root()
            })
        };
        match result {
            Ok(head) if fits(&head) => self.back = Some(head),
            Ok(head) => {
                tracing::error!(
                    size = head.size,
                    "the signer returned a head that the driver did not ask for"
                )
            }
            Err(error) => {
                tracing::error!(error, "cannot sign the log's head; appends go on");
                // The tree gave up these tiles with the request. If they were dropped, they would
                // never reach the disk.
                let asked = self.asked.take();
                self.carried
                    .extend(asked.into_iter().flat_map(|asked| asked.full));
            }
        }
    }

    /// Notes a durable batch, and returns the head that may be shown now, if any. `tree` is the
    /// log's.
    pub(crate) fn committed(
        &mut self,
        head: Option<Head>,
        tree: &mut Tree,
        rotated: bool,
    ) -> Option<(Head, Tree, Vec<Tile>)> {
        // The old key signs until the link is durable, so after a failed commit the signing key is
        // still the one that the log names.
        if rotated && let Some(next) = self.next.take() {
            self.signing = Signing::Inside(next);
        }
        let head = head?;
        self.signed_size = head.size;
        if let Signing::Inside(_) = self.signing {
            let full = tree.take_full_tiles();
            return Some((head, tree.clone(), full));
        }
        self.back = None;
        let Asked { tree, full } = self.asked.take()?;
        Some((head, tree, full))
    }

    /// Requests a signature of the newest tree elsewhere, unless one is under way.
    pub(crate) fn ask(&mut self, tree: &mut Tree) {
        if let Signing::Elsewhere(remote) = &self.signing
            && self.asked.is_none()
            && tree.size() > self.signed_size
        {
            let mut full = std::mem::take(&mut self.carried);
            full.extend(tree.take_full_tiles());
            self.asked = Some(Asked {
                tree: tree.clone(),
                full,
            });
            remote.start(tree.size(), tree.root());
        }
    }

    /// Whether a batch is owed because of a head.
    pub(crate) fn owe_a_step(&self) -> bool {
        self.back.is_some() || self.next.is_some()
    }

    /// Whether entries have no durable head yet.
    pub(crate) fn are_behind(&self, tree: &Tree) -> bool {
        tree.size() > self.signed_size
    }
}
