//! The terms that a claim is created with.

use serde::{Deserialize, Serialize};

use crate::{
    cj,
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
};

/// A resource class; never changes a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Lane {
    /// 10⁸ fuel, 64 MiB, 64 oracle calls.
    Fast,
    /// 10⁹ fuel, 512 MiB, 1,024 oracle calls.
    Heavy,
}

impl Lane {
    /// The most fuel that a run may use.
    #[must_use]
    pub fn max_fuel(self) -> u64 {
        match self {
            Self::Fast => 100_000_000,
            Self::Heavy => 1_000_000_000,
        }
    }

    /// The most memory that a run may have, in bytes.
    #[must_use]
    pub fn max_memory_bytes(self) -> u64 {
        match self {
            Self::Fast => 64 << 20,
            Self::Heavy => 512 << 20,
        }
    }

    /// The most memory that a run may have, in Wasm pages of 64 KiB.
    #[must_use]
    pub fn max_memory_pages(self) -> u64 {
        self.max_memory_bytes() / (64 << 10)
    }

    /// The most oracle calls that a run may make.
    #[must_use]
    pub fn max_oracle_calls(self) -> u32 {
        match self {
            Self::Fast => 64,
            Self::Heavy => 1_024,
        }
    }

    /// The lane's name on the wire and in log entries.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Heavy => "heavy",
        }
    }
}

/// The terms that a claim is created with: everything that its id covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    pub owner: OwnerTag,
    /// The submitter's name for the claim, 1–128 bytes; never public.
    pub claim_name: String,
    /// The holdout that the claim is judged on.
    pub holdout: HoldoutId,
    /// The null spec that it is pinned to.
    pub null_spec_hash: Digest,
    /// The significance level α that the claim asks for, in millionths; the lower of this and the
    /// holdout policy's counts.
    pub alpha_micros: u32,
    /// Levels of the e-value that the claim may release.
    pub levels: u8,
    pub oracle_id: String,
    /// The number of symbols that the oracle answers with.
    pub oracle_num_symbols: u32,
    /// Fuel that an epoch lasts; 0: the epoch never advances.
    pub epoch_size: u64,
    /// The epoch configuration's name, or empty.
    pub epoch_config_ref: String,
    /// Sets the limits of fuel, memory and oracle calls.
    pub lane: Lane,
    /// The most credit that the claim's run may burn; 0: no limit of its own.
    pub access_credit: u64,
    /// The most that the claim's questions may be charged, if declared.
    pub max_answer_microbits: Option<u64>,
    /// The schema of its output.
    pub output_schema_id: String,
    /// The Merkle root of its dependencies, if it has any.
    pub dependency_merkle_root: Option<Digest>,
}

impl Terms {
    /// The claim id: `D("evidenceos:claim_id:v3", CJ(terms))`.
    #[must_use]
    pub fn claim_id(&self) -> ClaimId {
        let terms = self
            .judged_terms()
            .put("claim_name", self.claim_name.as_str())
            .put("access_credit", self.access_credit);
        ClaimId(Digest::domain("evidenceos:claim_id:v3", &terms.to_bytes()).0)
    }

    /// The terms that a verdict can depend on: all but the name and the credit.
    pub(super) fn judged_terms(&self) -> cj::Object {
        let mut terms = cj::Object::new()
            .put("owner_tag", self.owner.to_hex())
            .put("holdout_id", self.holdout.to_hex())
            .put("null_spec_hash", self.null_spec_hash.to_hex())
            .put("alpha_micros", u64::from(self.alpha_micros))
            .put("levels", u64::from(self.levels))
            .put("oracle_id", self.oracle_id.as_str())
            .put("oracle_num_symbols", u64::from(self.oracle_num_symbols))
            .put("epoch_size", self.epoch_size)
            .put("epoch_config_ref", self.epoch_config_ref.as_str())
            .put("lane", self.lane.as_str())
            .put("output_schema_id", self.output_schema_id.as_str());
        if let Some(most) = self.max_answer_microbits {
            terms = terms.put("max_answer_microbits", most);
        }
        if let Some(root) = self.dependency_merkle_root {
            terms = terms.put("dependency_merkle_root", root.to_hex());
        }
        terms
    }

    /// The topic id, a label: `D("evidenceos:topic:v3", holdout_id ‖ null_spec_hash)`.
    #[must_use]
    pub fn topic_id(&self) -> Digest {
        let mut payload = self.holdout.0.to_vec();
        payload.extend_from_slice(&self.null_spec_hash.0);
        Digest::domain("evidenceos:topic:v3", &payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_has_the_memory_that_the_documentation_promises() {
        assert_eq!(Lane::Fast.max_memory_bytes(), 67_108_864);
        assert_eq!(Lane::Heavy.max_memory_bytes(), 536_870_912);
        assert_eq!(Lane::Fast.max_memory_pages(), 1_024);
        assert_eq!(Lane::Heavy.max_memory_pages(), 8_192);
    }
}
