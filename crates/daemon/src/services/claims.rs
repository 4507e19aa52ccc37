//! Claims, from their creation to their capsules.
//!
//! Another principal's claim looks exactly like one that does not exist, and takes as long.

mod listing;
mod modules;
mod unexecuted;

use std::{num::NonZeroUsize, sync::Arc};

use evidenceos_access::Principal;
use evidenceos_custody::Guests;
use evidenceos_driver::clock::unix_ms;
use evidenceos_kernel::{
    account::Accounting,
    claim::{Claim, ClaimState, ModuleFacts, Reason, Settlement, Terms},
    command::{ClaimCommand, Reply, Stamp},
    holdout::{Holdout, HoldoutStatus},
    id::{ClaimId, Digest, Fingerprint, HoldoutId, OwnerTag, RequestKey},
    record::Capsule,
    refusal::Refusal,
};
use evidenceos_store::{Entry, Head};
use evidenceos_tlog::Hash;
use lru::LruCache;
use parking_lot::Mutex;

use self::modules::Modules;
pub use self::{
    listing::{Asked, FEWEST_DIGITS, ids_that_begin},
    modules::Offer,
    unexecuted::uncommit_forever,
};
use super::{
    Catalog, Error, Log, Names, ShownRows, Writer,
    log::Shown,
    probing::{Counted, Probing},
    rows::blocking,
    writer::unexpected,
};

/// Claims whose owners are remembered, in some 2 MiB.
const KNOWN_CLAIMS: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");

/// The use cases of claims.
pub struct Claims {
    writer: Arc<Writer>,
    rows: ShownRows,
    catalog: Arc<Catalog>,
    log: Arc<Log>,
    modules: Arc<Modules>,
    probing: Option<Probing>,
    known: KnownClaims,
    names: Arc<Names>,
}

/// The limits for the claims of one principal.
pub struct Bounds {
    pub accounting: Accounting,
    /// Detects callers that create and execute many claims; `None`: no caller is counted.
    pub probing: Option<Probing>,
}

/// A created claim, or an existing one with the same terms and owner.
pub struct Created {
    /// Its id, which follows from its terms and its owner.
    pub claim: ClaimId,
    /// The digest of its subject.
    pub topic: Digest,
    pub state: ClaimState,
}

/// A claim as its reader sees it.
pub struct ShownClaim {
    /// The claim as its row has it.
    pub claim: Claim,
    /// The name of its holdout.
    pub holdout: String,
    /// The role policy's name for its owner; empty if there is none.
    pub owner_name: String,
    /// The revoked claim that it depends on, if there is one.
    pub tainted_by: Option<ClaimId>,
    /// Whether the null spec of its holdout has expired.
    pub stale: bool,
    /// The significance level that applies: the claim's, or its holdout's if that is stricter; in
    /// millionths.
    pub applied_alpha_micros: u32,
    /// The claim whose verdict this one has, if it was settled as a duplicate.
    pub duplicate_of: Option<ClaimId>,
}

/// A settled claim's entry in the log.
pub struct ShownCapsule {
    /// The canonical bytes and the leaf hash.
    pub entry: Entry,
    /// How the claim was settled.
    pub settlement: Settlement,
}

/// A capsule with its proofs against the shown head.
pub struct ProvenCapsule {
    pub capsule: ShownCapsule,
    /// The head that the proofs lead to.
    pub head: Arc<Head>,
    /// The inclusion path of the entry.
    pub inclusion: Vec<Hash>,
    /// The tree size that the caller knew; if it knew none, the size that its own entry completed.
    pub known_size: u64,
    /// The consistency path from that size.
    pub consistency: Vec<Hash>,
}

impl Claims {
    /// Claims over a daemon's parts.
    #[must_use]
    pub fn new(
        writer: Arc<Writer>,
        rows: ShownRows,
        catalog: Arc<Catalog>,
        log: Arc<Log>,
        guests: Arc<Guests>,
        bounds: Bounds,
        names: Arc<Names>,
    ) -> Self {
        Self {
            writer,
            modules: Modules::new(guests, Arc::clone(&rows.readers), bounds.accounting),
            rows,
            catalog,
            log,
            probing: bounds.probing,
            known: KnownClaims::default(),
            names,
        }
    }

    /// The holdout's name, if the claim was created lately.
    #[must_use]
    pub fn holdout_of(&self, claim: &ClaimId) -> Option<String> {
        let holdout = self.catalog.by_id(self.known.holdout(claim)?)?;
        Some(holdout.reference.clone())
    }

    /// Creates a claim on these terms.
    ///
    /// # Errors
    /// If the terms break a rule, or the caller creates too many claims.
    pub async fn create(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        terms: Terms,
    ) -> Result<Created, Error> {
        let call = Counted {
            method: "CreateClaimV2",
            topic: terms.topic_id(),
            claim: Digest(terms.claim_id().0),
        };
        self.must_not_probe(principal, call).await?;
        let holdout = terms.holdout;
        let command = ClaimCommand::Create {
            id: terms.claim_id(),
            terms: Box::new(terms),
            principal: principal.name.clone(),
        }
        .into();
        match self.writer.call(principal, stamp, command, None).await? {
            Reply::Created {
                claim,
                topic,
                state,
            } => {
                // Another principal's claim with the same terms has another id.
                self.known.add(claim, principal.caller.tag, holdout);
                Ok(Created {
                    claim,
                    topic,
                    state,
                })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Commits a claim to a module and artifacts. `key` identifies the request; `fingerprint`
    /// computes the request's fingerprint from the module's digest.
    ///
    /// # Errors
    /// If the claim is not the caller's, the module breaks a rule, or a limit is reached.
    pub async fn commit(
        self: &Arc<Self>,
        principal: &Principal,
        key: Option<RequestKey>,
        offer: Offer,
        fingerprint: impl FnOnce(&Digest) -> Fingerprint,
    ) -> Result<ClaimState, Error> {
        let (claim, artifacts) = (offer.claim, offer.artifacts.clone());
        // A caller must not have modules compiled for another's claim.
        self.must_own(principal, claim).await?;
        let (prepared, row) = self.modules.admit(principal.caller.tag, offer).await?;
        let kept = row.kept.clone();
        let info = prepared.info();
        let module = ModuleFacts {
            hash: Digest(info.sha256),
            len: info.len as u32,
            asks: info.asks,
            submits: info.submits,
        };
        let stamp = key.map(|key| Stamp {
            key,
            fingerprint: fingerprint(&module.hash),
        });
        let command = ClaimCommand::Commit {
            claim,
            artifacts,
            module,
        }
        .into();
        match self
            .writer
            .call(principal, stamp, command, Some(row))
            .await?
        {
            Reply::State(state) => {
                // It could not be released while it was kept.
                self.modules.is_stored(module.hash);
                drop(kept);
                Ok(state)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Seals a claim: nothing of it changes from then on.
    ///
    /// # Errors
    /// If it is not the caller's, or not committed.
    pub async fn seal(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        claim: ClaimId,
    ) -> Result<ClaimState, Error> {
        self.must_own(principal, claim).await?;
        let command = ClaimCommand::Seal { claim }.into();
        match self.writer.call(principal, stamp, command, None).await? {
            Reply::State(state) => Ok(state),
            other => Err(unexpected(&other)),
        }
    }

    /// Executes a claim, and waits until it is settled. Returns the claim, and, if it is a
    /// duplicate, the claim whose verdict it has.
    ///
    /// # Errors
    /// If the claim is not the caller's, is not sealed or cannot be paid for, or if the caller
    /// executes too many.
    pub async fn execute(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        claim: ClaimId,
    ) -> Result<(Box<Claim>, Option<ClaimId>), Error> {
        // The claim's creation has counted its subject.
        let call = Counted {
            method: "ExecuteClaimV2",
            topic: Digest([0; 32]),
            claim: Digest(claim.0),
        };
        self.must_not_probe(principal, call).await?;
        self.must_own(principal, claim).await?;
        let command = ClaimCommand::Execute { claim }.into();
        match self.writer.call(principal, stamp, command, None).await? {
            Reply::Settled(claim) => {
                let duplicate_of = self.duplicate_of(&claim)?;
                Ok((claim, duplicate_of))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Revokes a claim; returns the time in Unix milliseconds.
    ///
    /// # Errors
    /// If it is not the caller's, or not settled.
    pub async fn revoke(
        &self,
        principal: &Principal,
        stamp: Option<Stamp>,
        claim: ClaimId,
        reason: String,
    ) -> Result<u64, Error> {
        self.must_own(principal, claim).await?;
        let command = ClaimCommand::Revoke { claim, reason }.into();
        match self.writer.call(principal, stamp, command, None).await? {
            Reply::Revoked { at_unix_ms } => {
                self.log.was_revoked();
                Ok(at_unix_ms)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// A claim that the caller may read.
    ///
    /// # Errors
    /// [`Refusal::UnknownClaim`] for another's.
    pub async fn get(
        self: &Arc<Self>,
        principal: &Principal,
        id: ClaimId,
    ) -> Result<ShownClaim, Error> {
        let (claims, owner) = (Arc::clone(self), readable_of(principal));
        let read = move || {
            let claim = claims.rows.readers.claim_of(&id, owner)?;
            claims.shown(claim.ok_or(Refusal::UnknownClaim(id))?)
        };
        self.rows.read(read).await
    }

    /// The capsule of a settled claim that the caller may read, once a shown head covers it.
    ///
    /// # Errors
    /// If there is none yet, or no shown head covers it in time.
    pub async fn capsule(
        self: &Arc<Self>,
        principal: &Principal,
        id: ClaimId,
    ) -> Result<ShownCapsule, Error> {
        let (claims, owner) = (Arc::clone(self), readable_of(principal));
        let read = move || {
            let capsule = claims.settled(owner, id)?;
            let covered = claims.log.head().size > capsule.settlement.index;
            Ok(Shown::of(covered, capsule.settlement.index, capsule))
        };
        self.log.once_shown(read).await
    }

    /// A capsule with its proofs: that the shown head covers it, and that this head extends the
    /// head that the caller knows (0: none).
    ///
    /// # Errors
    /// As [`Claims::capsule`]; also if the head has no such proof.
    pub async fn proven_capsule(
        self: &Arc<Self>,
        principal: &Principal,
        id: ClaimId,
        known_size: u64,
    ) -> Result<ProvenCapsule, Error> {
        let (claims, owner) = (Arc::clone(self), readable_of(principal));
        let read = move || {
            let capsule = claims.settled(owner, id)?;
            let index = capsule.settlement.index;
            let head = claims.log.head();
            if head.size <= index {
                return Ok(Shown::After(index));
            }
            let known_size = match known_size {
                0 => index + 1,
                known => known,
            };
            let leaf = capsule.entry.leaf;
            let (inclusion, consistency) =
                claims.log.proofs_of(leaf, index, known_size, head.size)?;
            Ok(Shown::Now(ProvenCapsule {
                capsule,
                head,
                inclusion,
                known_size,
                consistency,
            }))
        };
        self.log.once_shown(read).await
    }

    /// The trace of a claim, for callers that may read the claim; for every caller once the labels
    /// are public.
    ///
    /// # Errors
    /// [`Refusal::UnknownClaim`] for any other caller; `NO_TRACE` if the claim was not executed to
    /// its end.
    pub async fn trace(
        self: &Arc<Self>,
        principal: &Principal,
        id: ClaimId,
    ) -> Result<Vec<u8>, Error> {
        let (claims, principal) = (Arc::clone(self), principal.clone());
        self.rows
            .read(move || claims.read_trace(&principal, id))
            .await
    }

    fn read_trace(&self, principal: &Principal, id: ClaimId) -> Result<Vec<u8>, Error> {
        let readers = &self.rows.readers;
        // Another principal's claim is read only if its trace could be public.
        let owner = readable_of(principal).filter(|_| !self.catalog.has_opened());
        let claim = readers
            .claim_of(&id, owner)?
            .ok_or(Refusal::UnknownClaim(id))?;
        if !principal.caller.may_read(&claim) && !self.is_opened(&claim)? {
            return Err(Refusal::UnknownClaim(id).into());
        }
        let no_trace = || Error::WrongState {
            code: "NO_TRACE",
            message: "the claim has no trace; it was not executed to its end".to_owned(),
        };
        let settlement = claim.settlement.as_ref().ok_or_else(no_trace)?;
        let trace = readers.trace(claim.seq, &settlement.trace_hash)?;
        trace.ok_or_else(no_trace)
    }

    fn is_opened(&self, claim: &Claim) -> Result<bool, Error> {
        let Some(fixed) = self.catalog.by_id(claim.terms.holdout) else {
            return Ok(false);
        };
        let row = self.rows.readers.holdout(fixed.seq)?;
        Ok(row.is_some_and(|holdout| holdout.status == HoldoutStatus::Opened))
    }

    /// The result and log entry of a claim, of this owner only if one is given.
    fn settled(&self, owner: Option<OwnerTag>, id: ClaimId) -> Result<ShownCapsule, Error> {
        let (claim, entry) = self
            .rows
            .readers
            .claim_and_entry(&id, owner)?
            .ok_or(Refusal::UnknownClaim(id))?;
        let Some(settlement) = claim.settlement else {
            let state = claim.state;
            return Err(Error::WrongState {
                code: "NOT_SETTLED",
                message: format!(
                    "the claim is {state}; it has a capsule once it has been executed"
                ),
            });
        };
        let entry = entry.ok_or_else(|| Error::Fault("a settled claim has no entry".to_owned()))?;
        Ok(ShownCapsule { entry, settlement })
    }

    fn shown(&self, claim: Claim) -> Result<ShownClaim, Error> {
        let holdout = self.catalog.by_id(claim.terms.holdout);
        let expired = |holdout: &Holdout| holdout.description.null_spec.expired_at(unix_ms());
        let readers = &self.rows.readers;
        Ok(ShownClaim {
            owner_name: self.names.of(&claim.terms.owner),
            tainted_by: claim.revoked_ancestor(|id| readers.claim(id))?,
            duplicate_of: self.duplicate_of(&claim)?,
            stale: holdout.as_deref().is_some_and(expired),
            applied_alpha_micros: holdout
                .as_deref()
                .map_or(claim.terms.alpha_micros, |holdout| {
                    let registered = holdout.description.policy.alpha_micros;
                    claim.terms.alpha_micros.min(registered)
                }),
            holdout: holdout.map_or_else(String::new, |holdout| holdout.reference.clone()),
            claim,
        })
    }

    /// The claim whose verdict this one has, if its capsule says that it is a duplicate.
    fn duplicate_of(&self, claim: &Claim) -> Result<Option<ClaimId>, Error> {
        let Some(settlement) = &claim.settlement else {
            return Ok(None);
        };
        if !settlement.reasons.contains(&Reason::Duplicate) {
            return Ok(None);
        }
        let entries = self.rows.readers.entries(settlement.index, 1)?;
        let capsule = entries
            .first()
            .and_then(|entry| Capsule::parse(&entry.bytes).ok());
        Ok(capsule.and_then(|capsule| capsule.duplicate_of))
    }

    async fn must_not_probe(&self, principal: &Principal, call: Counted) -> Result<(), Error> {
        match &self.probing {
            Some(probing) => probing.must_not_probe(principal, call).await,
            None => Ok(()),
        }
    }

    /// Refuses a claim that is not the caller's before the writer would read its row: another's
    /// claim takes no longer than a missing one, however large it is.
    async fn must_own(&self, principal: &Principal, claim: ClaimId) -> Result<(), Error> {
        let caller = principal.caller;
        if self.known.owner(&claim) == Some(caller.tag) {
            return Ok(());
        }
        let owner = (!caller.operator).then_some(caller.tag);
        let readers = Arc::clone(&self.rows.readers);
        blocking(move || match readers.has_claim(&claim, owner)? {
            true => Ok(()),
            false => Err(Refusal::UnknownClaim(claim).into()),
        })
        .await
    }
}

/// The owner whose claims a caller may read; `None` if it may read all.
fn readable_of(principal: &Principal) -> Option<OwnerTag> {
    let caller = &principal.caller;
    (!caller.auditor && !caller.operator).then_some(caller.tag)
}

/// The owners and holdouts of the latest claims. Only the owner of a claim in it is spared a look
/// into the database, so that another's claim takes as long as a missing one.
struct KnownClaims(Mutex<LruCache<ClaimId, (OwnerTag, HoldoutId)>>);

impl Default for KnownClaims {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(KNOWN_CLAIMS)))
    }
}

impl KnownClaims {
    fn owner(&self, claim: &ClaimId) -> Option<OwnerTag> {
        let mut known = self.0.lock();
        known.get(claim).map(|(owner, _)| *owner)
    }

    fn holdout(&self, claim: &ClaimId) -> Option<HoldoutId> {
        // A peek does not count as a use: it is for the audit log alone.
        let known = self.0.lock();
        known.peek(claim).map(|(_, holdout)| *holdout)
    }

    fn add(&self, claim: ClaimId, owner: OwnerTag, holdout: HoldoutId) {
        let mut known = self.0.lock();
        known.put(claim, (owner, holdout));
    }
}
