//! Digests of the policies in force: the policy modules that vote on runs and tool calls, and the
//! role policy.
//!
//! The log states them whenever they change, so an auditor can check a veto, and which principals
//! could ask for a run, against the policies of that time.

use serde::{Deserialize, Serialize};

use crate::{
    cj,
    id::Digest,
    record::{RecordError, fields::Fields},
};

/// The digest of the empty set of policy modules.
pub const NO_POLICIES: Digest = Digest([0; 32]);

/// The policies in force. A log begins with no policy module and no role policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The set of policy modules that vote; [`NO_POLICIES`] if it is empty.
    pub policies: Digest,
    /// Digest of the role policy under a key of the log's, since its words are not public; `None` without a role
    /// policy.
    pub roles: Option<Digest>,
}

impl Default for InForce {
    fn default() -> Self {
        Self {
            policies: NO_POLICIES,
            roles: None,
        }
    }
}

/// `policies_in_force`: other policy modules, or another role policy, are in force from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoliciesStated {
    /// The policies in force from this entry on.
    pub in_force: InForce,
    /// Start of their validity, in Unix milliseconds.
    pub in_force_unix_ms: u64,
}

impl PoliciesStated {
    pub(crate) fn write(&self) -> cj::Object {
        let InForce { policies, roles } = self.in_force;
        cj::Object::new()
            .put("policies_sha256_hex", policies.to_hex())
            .put_some("roles_hmac_hex", roles.map(|roles| roles.to_hex()))
            .put("in_force_unix_ms", self.in_force_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            in_force: InForce {
                policies: fields.digest("policies_sha256_hex")?,
                roles: fields.maybe_digest("roles_hmac_hex")?,
            },
            in_force_unix_ms: fields.int("in_force_unix_ms")?,
        })
    }
}
