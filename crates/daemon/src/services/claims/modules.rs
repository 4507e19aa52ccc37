//! Modules on their way into the store: admitted, compiled once for each digest, made durable.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use evidenceos_custody::Guests;
use evidenceos_kernel::{
    account::Accounting,
    claim::Artifact,
    decide::may_commit,
    id::{ClaimId, Digest, OwnerTag},
    refusal::Refusal,
};
use evidenceos_sandbox::{AdmitError, Prepared};
use evidenceos_store::{MAX_ROW_BYTES, Module, ModuleBytes, Rows};
use lru::LruCache;
use parking_lot::Mutex;
use prost::bytes::Bytes;

use crate::services::{Error, compiling::Compiling, rows::blocking};

/// Above this many bytes, even hashing a module runs on a thread that may block.
const SMALL_MODULE: usize = 64 * 1_024;
/// The most broken rules named in one message.
const MAX_VIOLATIONS: usize = 20;
/// The most modules remembered as stored.
const KNOWN_MODULES: NonZeroUsize = NonZeroUsize::new(4_096).expect("not zero");

/// The module and artifacts to which a claim is to be committed.
pub struct Offer {
    pub claim: ClaimId,
    /// The artifacts that it depends on.
    pub artifacts: Vec<Artifact>,
    /// The module that makes its predictions.
    pub wasm: Bytes,
}

/// Admits modules: checks them, compiles each once, and remembers which are stored.
pub struct Modules {
    guests: Arc<Guests>,
    readers: Arc<dyn Rows>,
    accounting: Accounting,
    compiling: Compiling,
    /// Modules that the store held, each with the number of releases at that time: a later release
    /// may have removed them.
    stored: Mutex<LruCache<Digest, u64>>,
}

impl Modules {
    /// Modules for these guests.
    pub fn new(guests: Arc<Guests>, readers: Arc<dyn Rows>, accounting: Accounting) -> Arc<Self> {
        Arc::new(Self {
            guests,
            readers,
            accounting,
            compiling: Compiling::default(),
            stored: Mutex::new(LruCache::new(KNOWN_MODULES)),
        })
    }

    /// Validates and compiles a module, once for each digest, and makes a large one durable. The
    /// store keeps the module's blob until the command has committed or was refused.
    ///
    /// # Errors
    /// If the module breaks a rule, the claim cannot be committed whatever the module is, or the
    /// caller had too many compiled lately.
    pub async fn admit(
        self: &Arc<Self>,
        caller: OwnerTag,
        offer: Offer,
    ) -> Result<(Arc<Prepared>, Module), Error> {
        if offer.wasm.is_empty() {
            return Err(Error::field("wasm_module", "is required"));
        }
        // A compiled module needs no compiler, hence neither a turn nor a thread that blocks.
        if let Some(ready) = self.ready(&offer.wasm) {
            return Ok(ready);
        }
        let turn = self.compiling.turn(caller).await?;
        let modules = Arc::clone(self);
        blocking(move || {
            let _turn = turn;
            let Offer {
                claim,
                artifacts,
                wasm,
            } = offer;
            modules.must_be_committable(claim, &artifacts, &wasm)?;
            let mut spent = Duration::ZERO;
            let prepared = modules.guests.sandbox.prepare_timed(&wasm, &mut spent);
            // The time also counts if the module is refused: the compilers have spent it.
            modules.compiling.spent_by(caller, spent);
            let prepared = prepared.map_err(|error| not_admitted(&error))?;
            let module = modules.keep(Digest(prepared.info().sha256), &wasm)?;
            Ok((prepared, module))
        })
        .await
    }

    /// Notes that a module is stored.
    pub fn is_stored(&self, hash: Digest) {
        let mut stored = self.stored.lock();
        stored.put(hash, self.readers.blobs().releases());
    }

    /// A small module that was compiled before and is stored, or that fits into a row.
    fn ready(&self, wasm: &[u8]) -> Option<(Arc<Prepared>, Module)> {
        if wasm.len() > SMALL_MODULE {
            return None;
        }
        let prepared = self.guests.sandbox.prepared(&Digest::of(wasm).0)?;
        let hash = Digest(prepared.info().sha256);
        let blobs = self.readers.blobs();
        // This comes before the check: a kept blob is not released.
        let kept = Some(blobs.keep(hash));
        let stored = {
            let mut stored = self.stored.lock();
            stored.get(&hash).copied()
        };
        let bytes = if stored == Some(blobs.releases()) {
            ModuleBytes::Stored
        } else if wasm.len() <= MAX_ROW_BYTES {
            ModuleBytes::Row(wasm.to_vec())
        } else {
            // If a large module is not stored, it must be made durable first.
            return None;
        };
        Some((prepared, Module { hash, bytes, kept }))
    }

    /// Refuses a commitment that would be refused whatever the module is, before anything is
    /// compiled or stored.
    fn must_be_committable(
        &self,
        claim: ClaimId,
        artifacts: &[Artifact],
        wasm: &[u8],
    ) -> Result<(), Error> {
        let claim = self
            .readers
            .claim(&claim)?
            .ok_or(Refusal::UnknownClaim(claim))?;
        let hash = Digest::of(wasm);
        let named = claim.commitment.as_ref().map(|named| named.module.hash);
        if named == Some(hash) {
            // It may be a repeat of the same request, which already has its reply.
            return Ok(());
        }
        let account = self.readers.account(&claim.terms.owner)?;
        // A longer module does not fit into 32 bits; its length is over the limit anyway.
        let len = u32::try_from(wasm.len()).unwrap_or(u32::MAX);
        Ok(may_commit(
            &claim,
            account.as_ref(),
            &self.accounting,
            artifacts,
            hash,
            len,
        )?)
    }

    /// Keeps an admitted module. A large one that is not stored yet is made durable first.
    fn keep(&self, hash: Digest, wasm: &[u8]) -> Result<Module, Error> {
        let blobs = self.readers.blobs();
        // It is kept before the check, so that no other thread releases it in between.
        let kept = blobs.keep(hash);
        let (bytes, kept) = if self.readers.has_module(&hash)? {
            (ModuleBytes::Stored, kept)
        } else if wasm.len() <= MAX_ROW_BYTES {
            (ModuleBytes::Row(wasm.to_vec()), kept)
        } else {
            (ModuleBytes::Blob, blobs.put_kept(wasm)?)
        };
        let kept = Some(kept);
        Ok(Module { hash, bytes, kept })
    }
}

fn not_admitted(error: &AdmitError) -> Error {
    let rules = match error {
        AdmitError::Refused(violations) => violations
            .iter()
            .take(MAX_VIOLATIONS)
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; "),
        AdmitError::Engine(_) | AdmitError::TooExpensive(_) => error.to_string(),
        AdmitError::Host(_) => return Error::Unavailable(error.to_string()),
    };
    Error::field("wasm_module", &rules)
}
