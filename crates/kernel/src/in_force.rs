//! Which policies decide beside the kernel: those that vote on runs and tool calls, and the file
//! that says who may do what.
//!
//! The log names them by digest whenever they change, so that an auditor can lay a veto, and who
//! could ask for a run, beside the policies of that time.

use serde::{Deserialize, Serialize};

use crate::{
    cj,
    id::Digest,
    record::{RecordError, fields::Fields},
};

/// Names the empty set of policies.
pub const NO_POLICIES: Digest = Digest([0; 32]);

/// The policies that are in force. A log begins with none of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The set that votes; [`NO_POLICIES`] if it is empty.
    pub policies: Digest,
    /// The file of roles, under a key of the log's, since its words are not public; none without one.
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

/// `policies_in_force`: other policies, or another file of roles, are in force from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoliciesStated {
    /// What is in force.
    pub in_force: InForce,
    /// Since when, in Unix milliseconds.
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
