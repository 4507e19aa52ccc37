//! Calls that only read: committed rows and proofs, never through the writer.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use evidenceos_kernel::{
    claim::{Claim, Reason, Settlement},
    command::{Command, Reply},
    holdout::{Holdout, HoldoutStatus},
    id::{ClaimId, Digest, OwnerTag},
    record::Capsule,
    refusal::{Refusal, Role},
};
use evidenceos_proto as wire;
use evidenceos_store::Entry;
use evidenceos_tlog::Hash;
use prost::bytes::Bytes;
use tonic::{Status, metadata::MetadataMap};

use super::{
    Edge, parse, render,
    status::{self, internal, invalid, not_found, precondition, refused},
    unexpected,
};
use crate::{
    auth::Principal,
    keys::verifier,
    vault::{Binding, Items},
};

/// Revocations in one reply.
const FEED_PAGE: usize = 1_000;
/// Entries in one reply.
const MAX_ENTRIES: u32 = 256;
/// Their bytes at most, unless the first alone has more: answers wait until they are read.
const MAX_ENTRIES_BYTES: usize = 1 << 20;
/// Claims or holdouts in one reply, and unless asked otherwise.
const MAX_PAGE: u32 = 500;
const PAGE: u32 = 50;

/// A page of revocations.
pub(super) struct Revocations {
    /// As it is sent.
    pub(super) feed: wire::GetRevocationFeedResponse,
    /// Index of the last one in it.
    pub(super) last: u64,
    /// Whether there are more that no shown head covers yet.
    pub(super) hidden: bool,
}

/// Something of a log entry that may not be shown yet.
pub(super) enum Shown<T> {
    /// It may be.
    Now(T),
    /// It may be once the shown head covers the entry with this index.
    After(u64),
}

impl Edge {
    /// A claim that the caller may read; another's looks like none.
    fn readable(&self, principal: &Principal, id: ClaimId) -> Result<Claim, Status> {
        self.readers
            .claim_of(&id, readable_of(principal))
            .map_err(|error| internal(&error))?
            .ok_or_else(|| refused(&Refusal::UnknownClaim(id)))
    }

    /// The result of a claim that the caller may read, and its log entry.
    fn settled(&self, principal: &Principal, id: &Bytes) -> Result<(Settlement, Entry), Status> {
        let id = parse::claim_id(id)?;
        let (claim, entry) = self
            .readers
            .claim_and_entry(&id, readable_of(principal))
            .map_err(|error| internal(&error))?
            .ok_or_else(|| refused(&Refusal::UnknownClaim(id)))?;
        let Some(settlement) = claim.settlement else {
            let state = claim.state;
            return Err(precondition(
                "NOT_SETTLED",
                &format!("the claim is {state}; it has a capsule once it has been executed"),
            ));
        };
        let entry = entry.ok_or_else(|| internal(&"a settled claim has no entry"))?;
        Ok((settlement, entry))
    }

    pub(super) fn get_capsule(
        &self,
        principal: &Principal,
        request: &wire::GetCapsuleRequest,
    ) -> Result<Shown<wire::GetCapsuleResponse>, Status> {
        let (settlement, entry) = self.settled(principal, &request.claim_id)?;
        let index = settlement.index;
        if self.log.released().head.size <= index {
            return Ok(Shown::After(index));
        }
        Ok(Shown::Now(wire::GetCapsuleResponse {
            capsule_bytes: entry.bytes.into(),
            capsule_hash: render::bytes(settlement.capsule_hash.as_bytes()),
            etl_index: index,
        }))
    }

    pub(super) fn fetch_capsule(
        &self,
        principal: &Principal,
        request: &wire::FetchCapsuleRequest,
    ) -> Result<Shown<wire::FetchCapsuleResponse>, Status> {
        let (settlement, entry) = self.settled(principal, &request.claim_id)?;
        let index = settlement.index;
        let head = self.log.released().head;
        if head.size <= index {
            return Ok(Shown::After(index));
        }
        let known = match request.known_tree_size {
            0 => index + 1,
            known => known,
        };
        let (path, _) = self
            .log
            .inclusion_of(entry.leaf, index, head.size)
            .map_err(|error| status::log(&error))?;
        let (grown, _, _) = self
            .log
            .consistency(known, head.size)
            .map_err(|error| status::log(&error))?;
        Ok(Shown::Now(wire::FetchCapsuleResponse {
            capsule_bytes: entry.bytes.into(),
            capsule_hash: render::bytes(settlement.capsule_hash.as_bytes()),
            etl_index: index,
            signed_tree_head: Some(render::head(&head)),
            inclusion_proof: Some(wire::MerkleInclusionProof {
                leaf_hash: render::bytes(entry.leaf.as_bytes()),
                leaf_index: index,
                tree_size: head.size,
                audit_path: hashes(&path),
            }),
            consistency_proof: Some(wire::MerkleConsistencyProof {
                old_tree_size: known,
                new_tree_size: head.size,
                path: hashes(&grown),
            }),
            root_hash: render::bytes(&head.root),
            tree_size: head.size,
            checkpoint: head.checkpoint.clone(),
        }))
    }

    pub(super) fn public_key(
        &self,
        request: &wire::GetPublicKeyRequest,
    ) -> Result<wire::GetPublicKeyResponse, Status> {
        let asked = parse::maybe_digest("key_id", &request.key_id)?;
        let public_key = match asked {
            None => self.keys.signer().public_key(),
            Some(id) => match self.keys.public_key(id) {
                Some((public_key, _)) => public_key,
                None => {
                    return Err(not_found(
                        "KEY_NOT_FOUND",
                        "no key of this log has that id; leave it empty for the one that signs",
                    ));
                }
            },
        };
        Ok(wire::GetPublicKeyResponse {
            ed25519_public_key: render::bytes(&public_key),
            key_id: render::bytes(Digest::of(&public_key).as_bytes()),
            vkey: verifier(&self.keys.origin(), &public_key).to_string(),
        })
    }

    pub(super) fn log_keys(&self) -> wire::ListLogKeysResponse {
        let origin = self.keys.origin();
        let keys = self.keys.history();
        wire::ListLogKeysResponse {
            keys: keys
                .iter()
                .map(|key| wire::LogKey {
                    ed25519_public_key: render::bytes(&key.public_key),
                    key_id: render::bytes(key.id.as_bytes()),
                    vkey: verifier(&origin, &key.public_key).to_string(),
                    since_size: key.since_size,
                })
                .collect(),
        }
    }

    /// Reads something of one claim's entry, as soon as a head that is shown covers it: an anchor
    /// must remember it first, and a KMS may have to sign it.
    pub(super) async fn once_shown<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl Fn(&Self) -> Result<Shown<T>, Status> + Clone + Send + 'static,
    ) -> Result<T, Status> {
        let mut released = self.released.subscribe();
        loop {
            let index = match self.blocking(read.clone()).await? {
                Shown::Now(found) => return Ok(found),
                Shown::After(index) => index,
            };
            let covered = released.wait_for(|size| *size > index);
            let patience = self.anchored.patience();
            if tokio::time::timeout(patience, covered).await.is_err() {
                return Err(if self.keys.signer().is_remote() {
                    status::unavailable(
                        "the log's key is in a KMS that does not answer; the result is durable, ask again",
                    )
                } else {
                    status::not_shown_yet(false)
                });
            }
        }
    }

    pub(super) fn tree_head(&self) -> wire::GetSignedTreeHeadResponse {
        let head = self.log.released().head;
        let signed = render::head(&head);
        wire::GetSignedTreeHeadResponse {
            tree_size: signed.tree_size,
            root_hash: signed.root_hash,
            signature: signed.signature,
            key_id: signed.key_id,
            checkpoint: signed.checkpoint,
        }
    }

    pub(super) fn inclusion(
        &self,
        request: &wire::GetInclusionProofRequest,
    ) -> Result<wire::GetInclusionProofResponse, Status> {
        let head = self.log.released().head;
        let size = match request.tree_size {
            0 => head.size,
            size => size,
        };
        let (leaf, path, root) = self
            .log
            .inclusion(request.leaf_index, size)
            .map_err(|error| status::log(&error))?;
        Ok(wire::GetInclusionProofResponse {
            leaf_hash: render::bytes(leaf.as_bytes()),
            sibling_hashes: hashes(&path),
            root_hash: render::bytes(root.as_bytes()),
            tree_size: size,
            checkpoint: if size == head.size {
                head.checkpoint.clone()
            } else {
                String::new()
            },
        })
    }

    pub(super) fn consistency(
        &self,
        request: &wire::GetConsistencyProofRequest,
    ) -> Result<wire::GetConsistencyProofResponse, Status> {
        let (first, second) = (request.first_tree_size, request.second_tree_size);
        let head = self.log.released().head;
        let (path, old_root, new_root) = self
            .log
            .consistency(first, second)
            .map_err(|error| status::log(&error))?;
        Ok(wire::GetConsistencyProofResponse {
            // The log view has verified the proof; it gives none that does not hold.
            consistent: true,
            first_root_hash: render::bytes(old_root.as_bytes()),
            second_root_hash: render::bytes(new_root.as_bytes()),
            path: hashes(&path),
            checkpoint: if second == head.size {
                head.checkpoint.clone()
            } else {
                String::new()
            },
        })
    }

    pub(super) fn entries(
        &self,
        request: &wire::ListEntriesRequest,
    ) -> Result<wire::ListEntriesResponse, Status> {
        let size = self.log.released().head.size;
        let count = match request.count {
            0 => MAX_ENTRIES,
            count => count.min(MAX_ENTRIES),
        };
        let count = u64::from(count).min(size.saturating_sub(request.start));
        let entries = self
            .readers
            .entries(request.start.min(size), count as usize)
            .map_err(|error| internal(&error))?;
        Ok(wire::ListEntriesResponse {
            entries: entries
                .into_iter()
                .map(|entry| Bytes::from(entry.bytes))
                .scan(0, |bytes, entry| {
                    let is_first = *bytes == 0;
                    *bytes += entry.len();
                    (is_first || *bytes <= MAX_ENTRIES_BYTES).then_some(entry)
                })
                .collect(),
            tree_size: size,
        })
    }

    /// Revocations after a log index, and a signature over just what is carried.
    pub(super) fn revocations(&self, after: u64) -> Result<Revocations, Status> {
        let mut claims = self
            .readers
            .revoked(after, FEED_PAGE + 1)
            .map_err(|error| internal(&error))?;
        let head = render::head(&self.log.released().head);
        // What the head does not cover yet is in the next page.
        let found = claims.len();
        claims.retain(|claim| {
            let index = claim.revocation.as_ref().map(|revocation| revocation.index);
            index.is_some_and(|index| index < head.tree_size)
        });
        let hidden = claims.len() < found;
        let more = claims.len() > FEED_PAGE;
        claims.truncate(FEED_PAGE);
        let entries: Vec<wire::RevocationEntry> =
            claims.iter().filter_map(render::revocation).collect();
        let last = entries.last().map_or(after, |entry| entry.etl_index);
        // A key in a KMS signs heads only: there the entries stand for themselves, in the log.
        let signature = self
            .keys
            .signer()
            .sign_here(&revocations_digest(&entries, &head).0);
        let feed = wire::GetRevocationFeedResponse {
            signature: signature.map_or_else(Bytes::new, |signature| render::bytes(&signature)),
            key_id: head.key_id.clone(),
            signed_tree_head: Some(head),
            entries,
            more,
        };
        Ok(Revocations { feed, last, hidden })
    }

    /// A holdout with its meters, and the caller's own.
    pub(super) fn holdout(
        &self,
        principal: &Principal,
        fixed: &Holdout,
    ) -> Result<wire::Holdout, Status> {
        let holdout = self
            .readers
            .holdout(fixed.seq)
            .map_err(|error| internal(&error))?
            .ok_or_else(|| internal(&"a registered holdout has no row"))?;
        let own = self
            .readers
            .pool(holdout.id, principal.caller.tag)
            .map_err(|error| internal(&error))?;
        Ok(render::holdout(
            &holdout,
            own.unwrap_or_default(),
            Vec::new(),
        ))
    }

    pub(super) fn list_holdouts(
        &self,
        principal: &Principal,
        request: &wire::ListHoldoutsRequest,
    ) -> Result<wire::ListHoldoutsResponse, Status> {
        let (first, size) = page(request.page_size, &request.page_token, 0)?;
        let all = self.catalog.all();
        let mut shown = all.iter().filter(|holdout| holdout.seq >= first);
        let holdouts = shown
            .by_ref()
            .take(size)
            .map(|holdout| self.holdout(principal, holdout))
            .collect::<Result<_, _>>()?;
        let next_page_token = shown
            .next()
            .map_or_else(String::new, |next| next.seq.to_string());
        Ok(wire::ListHoldoutsResponse {
            holdouts,
            next_page_token,
        })
    }

    pub(super) fn get_claim(
        &self,
        principal: &Principal,
        request: &wire::GetClaimRequest,
    ) -> Result<wire::GetClaimResponse, Status> {
        let claim = self.readable(principal, parse::claim_id(&request.claim_id)?)?;
        Ok(wire::GetClaimResponse {
            claim: Some(self.shown(&claim)?),
        })
    }

    pub(super) fn list_claims(
        &self,
        principal: &Principal,
        request: &wire::ListClaimsRequest,
    ) -> Result<wire::ListClaimsResponse, Status> {
        let owner = if request.all {
            if !principal.caller.auditor && !principal.caller.operator {
                return Err(refused(&Refusal::RoleRequired(Role::Auditor)));
            }
            None
        } else {
            Some(principal.caller.tag)
        };
        let (before, size) = page(request.page_size, &request.page_token, u64::MAX)?;
        let claims = self
            .readers
            .claims(owner, before, size)
            .map_err(|error| internal(&error))?;
        let next_page_token = match claims.last() {
            Some(last) if claims.len() == size => last.seq.to_string(),
            _ => String::new(),
        };
        let claims = claims
            .iter()
            .map(|claim| self.shown(claim))
            .collect::<Result<_, _>>()?;
        Ok(wire::ListClaimsResponse {
            claims,
            next_page_token,
        })
    }

    fn shown(&self, claim: &Claim) -> Result<wire::Claim, Status> {
        let holdout = self.catalog.by_id(claim.terms.holdout);
        let now = crate::server::unix_ms();
        let stale = holdout
            .as_ref()
            .is_some_and(|holdout| holdout.description.null_spec.expired_at(now));
        let name = holdout.map_or_else(String::new, |holdout| holdout.reference.clone());
        let tainted_by = claim
            .revoked_ancestor(|id| self.readers.claim(id))
            .map_err(|error| internal(&error))?;
        let duplicate_of = self.duplicate_of(claim)?;
        Ok(render::claim(claim, name, tainted_by, stale, duplicate_of))
    }

    /// The claim whose verdict stands for this one, if it was settled as a duplicate: its capsule
    /// says so.
    pub(super) fn duplicate_of(&self, claim: &Claim) -> Result<Option<ClaimId>, Status> {
        let Some(settlement) = &claim.settlement else {
            return Ok(None);
        };
        if !settlement.reasons.contains(&Reason::Duplicate) {
            return Ok(None);
        }
        let entries = self
            .readers
            .entries(settlement.index, 1)
            .map_err(|error| internal(&error))?;
        let capsule = entries
            .first()
            .and_then(|entry| Capsule::parse(&entry.bytes).ok());
        Ok(capsule.and_then(|capsule| capsule.duplicate_of))
    }

    /// A trace: for those who may read the claim, and for everybody once the labels are public.
    pub(super) fn trace(
        &self,
        principal: &Principal,
        request: &wire::FetchTraceRequest,
    ) -> Result<Vec<u8>, Status> {
        let id = parse::claim_id(&request.claim_id)?;
        let unknown = || refused(&Refusal::UnknownClaim(id));
        // Another's claim is looked at only if its trace could be public.
        let owner = readable_of(principal).filter(|_| !self.catalog.has_opened());
        let claim = self
            .readers
            .claim_of(&id, owner)
            .map_err(|error| internal(&error))?
            .ok_or_else(unknown)?;
        if !principal.caller.may_read(&claim) && !self.is_opened(&claim)? {
            return Err(unknown());
        }
        let no_trace = || {
            precondition(
                "NO_TRACE",
                "the claim has no trace; it was not executed to its end",
            )
        };
        let settlement = claim.settlement.as_ref().ok_or_else(no_trace)?;
        self.readers
            .trace(claim.seq, &settlement.trace_hash)
            .map_err(|error| internal(&error))?
            .ok_or_else(no_trace)
    }

    fn is_opened(&self, claim: &Claim) -> Result<bool, Status> {
        let Some(fixed) = self.catalog.by_id(claim.terms.holdout) else {
            return Ok(false);
        };
        let row = self
            .readers
            .holdout(fixed.seq)
            .map_err(|error| internal(&error))?;
        Ok(row.is_some_and(|holdout| holdout.status == HoldoutStatus::Opened))
    }

    /// Opens a retired holdout and gives its opening; whoever comes later gets it too.
    pub(super) async fn open_holdout(
        self: &Arc<Self>,
        principal: &Principal,
        metadata: &MetadataMap,
        request: &wire::OpenHoldoutRequest,
    ) -> Result<Vec<u8>, Status> {
        let fixed = self.catalog.find(&request.holdout)?;
        let seq = fixed.seq;
        let opened = self
            .read(move |edge| {
                let row = edge
                    .readers
                    .holdout(seq)
                    .map_err(|error| internal(&error))?;
                Ok(row.is_some_and(|holdout| holdout.status == HoldoutStatus::Opened))
            })
            .await?;
        if !opened {
            let command = Command::OpenHoldout { holdout: fixed.id };
            let stamp = parse::stamp(metadata, principal, "OpenHoldout", request)?;
            match self.call(principal, stamp, command, None).await? {
                Reply::Holdout(holdout) => self.catalog.add(&holdout),
                other => return Err(unexpected(&other)),
            }
        }
        self.blocking(move |edge| {
            let vault = &edge.guests.vault;
            let items = vault
                .read(&fixed.blob, Binding::of(&fixed))
                .map_err(|error| internal(&error))?;
            Ok(opening(&fixed, &items))
        })
        .await
    }

    pub(super) fn find_holdout(&self, name: &str) -> Result<Arc<Holdout>, Status> {
        self.catalog.find(name)
    }
}

/// The owner whose claims a caller may read; none if it may read all.
fn readable_of(principal: &Principal) -> Option<OwnerTag> {
    let caller = &principal.caller;
    (!caller.auditor && !caller.operator).then_some(caller.tag)
}

fn hashes(path: &[Hash]) -> Vec<Bytes> {
    path.iter()
        .map(|hash| render::bytes(hash.as_bytes()))
        .collect()
}

fn opening(holdout: &Holdout, items: &Items) -> Vec<u8> {
    let mut opening = serde_json::json!({
        "format": "evidenceos.opening.v1",
        "holdout_id": holdout.id.to_hex(),
        "secret": hex::encode(items.secret),
        "labels": BASE64_STANDARD.encode(&items.labels),
    });
    if let Some(units) = &items.units {
        opening["units"] = serde_json::json!(units);
    }
    opening.to_string().into_bytes()
}

/// First row and number of rows of a page.
pub(super) fn page(size: u32, token: &str, first: u64) -> Result<(u64, usize), Status> {
    let size = match size {
        0 => PAGE,
        size => size.min(MAX_PAGE),
    };
    let from = match token {
        "" => first,
        token => token
            .parse()
            .map_err(|_| invalid("page_token", "must be the next_page_token of a reply"))?,
    };
    Ok((from, size as usize))
}

/// The published digest of a feed: each entry with its lengths, then the tree head's numbers.
fn revocations_digest(entries: &[wire::RevocationEntry], head: &wire::SignedTreeHead) -> Digest {
    let mut payload = Vec::new();
    let length = |bytes: &[u8]| (bytes.len() as u64).to_be_bytes();
    for entry in entries {
        payload.extend_from_slice(&length(&entry.claim_id));
        payload.extend_from_slice(&entry.claim_id);
        payload.extend_from_slice(&entry.timestamp_unix.to_be_bytes());
        payload.extend_from_slice(&length(entry.reason.as_bytes()));
        payload.extend_from_slice(entry.reason.as_bytes());
    }
    payload.extend_from_slice(&head.tree_size.to_be_bytes());
    payload.extend_from_slice(&head.root_hash);
    payload.extend_from_slice(&length(&head.key_id));
    payload.extend_from_slice(&head.key_id);
    Digest::domain("evidenceos:revocations:v1", &payload)
}
