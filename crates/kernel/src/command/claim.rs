//! Submitters' commands about their claims.

use super::{Caller, Decision, RememberedOn};
use crate::{
    claim::{Artifact, Method, ModuleFacts, Terms},
    decide::{claims, own, runs},
    id::ClaimId,
    refusal::Refusal,
    state::{Key, Stage, Wanted},
};

/// A command about a claim.
#[derive(Debug, Clone)]
pub enum ClaimCommand {
    Create {
        /// `terms.claim_id()`; the caller computes it.
        id: ClaimId,
        /// The terms that it is bound to.
        terms: Box<Terms>,
        /// The owner's name, for the owner's account.
        principal: String,
    },
    /// Give a claim its module and artifacts.
    Commit {
        claim: ClaimId,
        /// The artifacts of the commitment, the module among them.
        artifacts: Vec<Artifact>,
        /// Facts about the validated module.
        module: ModuleFacts,
    },
    /// Bind a claim to its terms, module and artifacts.
    Seal { claim: ClaimId },
    /// Admit a claim's run.
    Execute { claim: ClaimId },
    /// Withdraw a settled claim's result.
    Revoke {
        claim: ClaimId,
        /// In the caller's words; 1–256 bytes.
        reason: String,
    },
    /// Take the module and the artifacts away from a claim that was not executed.
    Uncommit {
        claim: ClaimId,
        /// In Unix milliseconds. A claim that its owner has used since then keeps them.
        unused_since_unix_ms: u64,
    },
}

impl ClaimCommand {
    pub(crate) fn keys(&self, wanted: &mut Wanted<'_>) {
        match self {
            Self::Create { id, terms, .. } => {
                wanted.want(Key::Claim(*id));
                wanted.want(Key::Account(terms.owner));
            }
            Self::Commit {
                claim, artifacts, ..
            } => {
                wanted.want(Key::Claim(*claim));
                for artifact in artifacts.iter().filter(|artifact| artifact.is_dependency()) {
                    wanted.want(Key::Claim(artifact.parent_claim()));
                }
                if let Some(claim) = wanted.own(claim) {
                    wanted.want(Key::Account(claim.terms.owner));
                }
            }
            Self::Seal { claim } | Self::Revoke { claim, .. } => wanted.want(Key::Claim(*claim)),
            Self::Uncommit { claim, .. } => {
                wanted.want(Key::Claim(*claim));
                if let Some(claim) = wanted.own(claim) {
                    wanted.want(Key::Account(claim.terms.owner));
                }
            }
            Self::Execute { claim } => {
                wanted.want(Key::Claim(*claim));
                let Some(claim) = wanted.own(claim) else {
                    return;
                };
                wanted.want(Key::Pool(claim.terms.holdout, claim.terms.owner));
                wanted.want(Key::Account(claim.terms.owner));
                if let Some(question) = claim.question() {
                    wanted.want(Key::Question(question));
                    if let Some(earlier) = wanted.stage().asked_before(&question) {
                        wanted.want(Key::Claim(earlier));
                    }
                }
                wanted.want_ancestors(claim);
            }
        }
    }

    pub(crate) fn decide(&self, stage: &Stage<'_>, caller: &Caller) -> Result<Decision, Refusal> {
        match self {
            Self::Create {
                id,
                terms,
                principal,
            } => claims::create(stage, *id, terms, principal),
            Self::Commit {
                claim,
                artifacts,
                module,
            } => {
                let claim = own(stage, caller, claim)?;
                claims::commit(stage, claim, caller, artifacts, *module)
            }
            Self::Seal { claim } => claims::seal(stage, own(stage, caller, claim)?),
            Self::Execute { claim } => runs::admit(stage, own(stage, caller, claim)?),
            Self::Revoke { claim, reason } => {
                claims::revoke(stage, own(stage, caller, claim)?, reason)
            }
            Self::Uncommit {
                claim,
                unused_since_unix_ms,
            } => {
                caller.must_operate()?;
                Ok(claims::uncommit(
                    own(stage, caller, claim)?,
                    *unused_since_unix_ms,
                ))
            }
        }
    }

    pub(crate) fn remembered_on(&self) -> RememberedOn {
        match self {
            // The claim may not exist yet, so no row of it could remember the request.
            Self::Create { .. } | Self::Uncommit { .. } => RememberedOn::Key,
            Self::Commit { claim, .. } => RememberedOn::Claim(Method::Commit, *claim),
            Self::Seal { claim } => RememberedOn::Claim(Method::Seal, *claim),
            Self::Execute { claim } => RememberedOn::Claim(Method::Execute, *claim),
            Self::Revoke { claim, .. } => RememberedOn::Claim(Method::Revoke, *claim),
        }
    }
}
