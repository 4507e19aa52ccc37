//! Which policies decide beside the kernel: those that vote on runs and tool calls, and the file
//! that says who may do what.
//!
//! The log names them by digest whenever they change, so that an auditor can lay a veto, and who
//! could ask for a run, beside the policies of that time.

use serde::{Deserialize, Serialize};

use crate::{
    cj,
    id::Digest,
    record::{Fields, RecordError},
};

/// Other policies are in force from here on.
pub const POLICIES_IN_FORCE: &str = "evidenceos.v2.policies_in_force";

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

impl InForce {
    /// The entry that states them.
    #[must_use]
    pub fn to_bytes(&self, in_force_unix_ms: u64) -> Vec<u8> {
        let mut object = cj::Object::new()
            .put("schema", POLICIES_IN_FORCE)
            .put("policies_sha256_hex", self.policies.to_hex())
            .put("in_force_unix_ms", in_force_unix_ms);
        if let Some(roles) = self.roles {
            object = object.put("roles_hmac_hex", roles.to_hex());
        }
        object.to_bytes()
    }

    /// Reads such an entry.
    ///
    /// # Errors
    /// [`RecordError`] if the bytes are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::parse(bytes)?;
        fields.expect("schema", POLICIES_IN_FORCE)?;
        let in_force = Self {
            policies: fields.digest("policies_sha256_hex")?,
            roles: fields.maybe_digest("roles_hmac_hex")?,
        };
        let _: u64 = fields.int("in_force_unix_ms")?;
        fields.finish()?;
        Ok(in_force)
    }
}
