//! The subject of a call, for its line in the audit log: a claim, a holdout.
//!
//! The audit layer is outside of the handler, and only the handler learns the subject. The request carries a slot
//! in which the handler notes it, if audit lines are written at all.

use std::sync::{Arc, OnceLock};

use evidenceos_kernel::id::ClaimId;
use evidenceos_proto as wire;
use tonic::Streaming;

/// The longest name of a holdout that is noted, in bytes; no valid name is longer.
const LONGEST_NAME: usize = 128;

/// A slot for the subject of a call.
#[derive(Debug, Clone, Default)]
pub struct Subject(Arc<Slots>);

#[derive(Debug, Default)]
struct Slots {
    claim: OnceLock<ClaimId>,
    holdout: OnceLock<String>,
}

impl Subject {
    /// Notes the claim. If one was noted already, that one stays.
    pub fn is_claim(&self, claim: ClaimId) {
        let _ = self.0.claim.set(claim);
    }

    /// Notes the holdout by its name or id; the first one stays. The client chose the name, unless a holdout was
    /// found: a name that no holdout can have is not noted.
    pub fn is_holdout(&self, name: &str) {
        let is_name = (1..=LONGEST_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic());
        if is_name {
            let _ = self.0.holdout.set(name.to_owned());
        }
    }

    /// The claim, if the call is about one.
    #[must_use]
    pub fn claim(&self) -> Option<ClaimId> {
        self.0.claim.get().copied()
    }

    /// The holdout, if the call is about one.
    #[must_use]
    pub fn holdout(&self) -> Option<&str> {
        self.0.holdout.get().map(String::as_str)
    }

    pub(super) fn note<M: Concerns>(&self, message: &M) {
        if let Some(claim) = ClaimId::from_slice(message.claim()) {
            self.is_claim(claim);
        }
        self.is_holdout(message.holdout());
    }
}

/// A message that may name a claim or a holdout.
pub trait Concerns {
    /// The claim's id as it was sent; empty: none.
    fn claim(&self) -> &[u8] {
        &[]
    }

    /// The holdout's name or id as it was sent; empty: none.
    fn holdout(&self) -> &str {
        ""
    }
}

macro_rules! concerns {
    (
        claim: $($claim:ident),*;
        holdout: $($holdout:ident . $field:ident),*;
        neither: $($neither:ident),*;
    ) => {
        $(impl Concerns for wire::$claim {
            fn claim(&self) -> &[u8] {
                &self.claim_id
            }
        })*
        $(impl Concerns for wire::$holdout {
            fn holdout(&self) -> &str {
                &self.$field
            }
        })*
        $(impl Concerns for wire::$neither {})*
    };
}

concerns! {
    claim: CommitArtifactsRequest, FreezeRequest, FreezeGatesRequest, SealRequest, SealClaimRequest, ExecuteClaimRequest,
        ExecuteClaimV2Request, RevokeClaimRequest, GetCapsuleRequest, FetchCapsuleRequest, GetClaimRequest, FetchTraceRequest;
    holdout: CreateClaimV2Request.holdout_ref, ListClaimsRequest.holdout, GetHoldoutRequest.holdout,
        RetireHoldoutRequest.holdout, WithdrawHoldoutRequest.holdout, OpenHoldoutRequest.holdout,
        GetHoldoutPoolBudgetsRequest.holdout_id, SetHoldoutPoolBudgetsRequest.holdout_id;
    neither: GetServerInfoRequest, ConfirmClockRequest, CreateClaimRequest, GetInclusionProofRequest,
        GetConsistencyProofRequest, GetRevocationFeedRequest, ListEntriesRequest, GrantCreditRequest,
        SetCreditLimitRequest, GetAccountRequest, ListAccountsRequest, ExportAccountsRequest, ListHoldoutsRequest,
        RotateHoldoutKeyRequest, WatchRevocationsRequest, WatchAccountsRequest;
}

/// The stream's first message names the holdout; the method that reads this message notes it.
impl<M> Concerns for Streaming<M> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_it_is_about() {
        let subject = Subject::default();
        subject.note(&wire::GetClaimRequest {
            claim_id: vec![7; 32].into(),
        });
        assert_eq!(subject.claim(), Some(ClaimId([7; 32])));
        assert_eq!(subject.holdout(), None);
        subject.is_holdout("mine");
        subject.is_holdout("another");
        assert_eq!(subject.holdout(), Some("mine"));
    }

    #[test]
    fn what_could_be_no_name_is_not_repeated() {
        for bad in ["", "a b", "a\nforged=1", &"a".repeat(129), "\u{1b}[31m"] {
            let subject = Subject::default();
            subject.is_holdout(bad);
            assert_eq!(subject.holdout(), None, "{bad:?}");
        }
        let subject = Subject::default();
        subject.note(&wire::GetClaimRequest {
            claim_id: vec![7; 31].into(),
        });
        assert_eq!(subject.claim(), None);
    }
}
