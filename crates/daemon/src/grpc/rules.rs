//! The role that each call needs: one table, which `docs/security.md` shows.
//!
//! The daemon applies it before it decodes a message. If a rule depends on the message, such as on
//! the claim's owner, the kernel decides: another principal's claim looks there like one that does
//! not exist.

use evidenceos_access::Roles;

/// What a call requires of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: not even authentication.
    Nobody,
    /// Authentication; no role.
    Known,
    /// At least one role, whichever.
    AnyRole,
    /// The submitter or the operator role.
    Submitter,
    /// The auditor or the operator role.
    Auditor,
    /// The operator role; no other role is enough.
    Operator,
}

impl Needs {
    /// Whether these roles are enough.
    #[must_use]
    pub fn met_by(self, roles: Roles) -> bool {
        match self {
            Self::Nobody | Self::Known => true,
            Self::AnyRole => !roles.is_empty(),
            Self::Submitter => roles.submitter || roles.operator,
            Self::Auditor => roles.auditor || roles.operator,
            Self::Operator => roles.operator,
        }
    }

    /// The roles that allow the call, for a message to a caller who has none of them.
    #[must_use]
    pub fn roles(self) -> &'static str {
        match self {
            Self::AnyRole => "submitter, auditor or operator",
            needs => needs.word(),
        }
    }

    /// The word for the requirement in documents.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Known => "known",
            Self::AnyRole => "any role",
            Self::Submitter => "submitter",
            Self::Auditor => "auditor",
            Self::Operator => "operator",
        }
    }
}

const SERVICE: &str = "/evidenceos.v2.EvidenceOS/";

/// The requirement of every call of the service.
pub const RULES: [(&str, Needs); 42] = [
    ("Health", Needs::Nobody),
    ("GetServerInfo", Needs::Known),
    ("GetPublicKey", Needs::Known),
    ("GetSignedTreeHead", Needs::Known),
    ("GetCheckpoint", Needs::Known),
    ("GetInclusionProof", Needs::Known),
    ("GetConsistencyProof", Needs::Known),
    ("ListEntries", Needs::Known),
    ("GetRevocationFeed", Needs::Known),
    ("WatchRevocations", Needs::Known),
    ("ListHoldouts", Needs::AnyRole),
    ("GetHoldout", Needs::AnyRole),
    ("CreateClaim", Needs::Submitter),
    ("CreateClaimV2", Needs::Submitter),
    ("CommitArtifacts", Needs::Submitter),
    ("Freeze", Needs::Submitter),
    ("FreezeGates", Needs::Submitter),
    ("Seal", Needs::Submitter),
    ("SealClaim", Needs::Submitter),
    ("ExecuteClaim", Needs::Submitter),
    ("ExecuteClaimV2", Needs::Submitter),
    ("RevokeClaim", Needs::Submitter),
    ("GetClaim", Needs::AnyRole),
    ("ListClaims", Needs::AnyRole),
    ("GetCapsule", Needs::AnyRole),
    ("FetchCapsule", Needs::AnyRole),
    ("FetchTrace", Needs::AnyRole),
    ("OpenHoldout", Needs::AnyRole),
    ("PutHoldout", Needs::Operator),
    ("RetireHoldout", Needs::Operator),
    ("WithdrawHoldout", Needs::Operator),
    ("RotateHoldoutKey", Needs::Operator),
    ("GrantCredit", Needs::Operator),
    ("SetCreditLimit", Needs::Operator),
    ("SetHoldoutPoolBudgets", Needs::Operator),
    ("GetHoldoutPoolBudgets", Needs::Auditor),
    ("GetAccount", Needs::AnyRole),
    ("ListAccounts", Needs::Operator),
    ("WatchAccounts", Needs::AnyRole),
    ("ExportAccounts", Needs::Operator),
    ("ConfirmClock", Needs::Operator),
    ("ListLogKeys", Needs::Known),
];

/// Calls of other services that the daemon serves, by their names in metrics.
const OTHERS: [&str; 4] = [
    "grpc.health.v1.Health/Check",
    "grpc.health.v1.Health/Watch",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The name of a path's call in metrics: one of a closed set, whatever the path is.
#[must_use]
pub fn label(path: &str) -> &'static str {
    let found = match path.strip_prefix(SERVICE) {
        Some(method) => RULES
            .iter()
            .map(|(name, _)| *name)
            .find(|name| *name == method),
        None => OTHERS
            .into_iter()
            .find(|name| path.strip_prefix('/') == Some(*name)),
    };
    // The client chooses the path. As a label, each path would be another series of metrics.
    found.unwrap_or("other")
}

/// Whether a call, as [`label`] names it, brings a module or labels.
#[must_use]
pub fn brings_much(label: &str) -> bool {
    matches!(label, "CommitArtifacts" | "PutHoldout")
}

/// Whether a call, as [`label`] names it, is answered whatever its body is.
#[must_use]
pub fn needs_no_body(label: &str) -> bool {
    label == "Health"
}

/// Whether a call's answer, as [`label`] names the call, can be megabytes long.
#[must_use]
pub fn answers_much(label: &str) -> bool {
    matches!(
        label,
        "ListEntries"
            | "ListClaims"
            | "ListHoldouts"
            | "ListAccounts"
            | "ExportAccounts"
            | "GetRevocationFeed"
            | "FetchTrace"
            | "OpenHoldout"
    )
}

/// Whether a call, as [`label`] names it, lasts as long as its client wants.
#[must_use]
pub fn is_watch(label: &str) -> bool {
    matches!(
        label,
        "WatchRevocations"
            | "WatchAccounts"
            | "grpc.health.v1.Health/Watch"
            | "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            | "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
}

/// Whether a call, as [`label`] names it, is answered in several messages, so that its caller's
/// rights are checked between them.
#[must_use]
pub fn answers_in_parts(label: &str) -> bool {
    is_watch(label) || matches!(label, "OpenHoldout" | "FetchTrace")
}

/// Whether a call, as [`label`] names it, is sent or answered in several messages, over any time.
#[must_use]
pub fn lasts(label: &str) -> bool {
    answers_in_parts(label) || label == "PutHoldout"
}

/// Whether a path's answer begins before its request has ended.
#[must_use]
pub fn is_conversation(path: &str) -> bool {
    path.starts_with("/grpc.reflection.")
}

/// What a path requires. An unknown path requires authentication, and the router answers it.
#[must_use]
pub fn of(path: &str) -> Needs {
    if path.starts_with("/grpc.health.v1.Health/") {
        return Needs::Nobody;
    }
    let Some(method) = path.strip_prefix(SERVICE) else {
        return Needs::Known;
    };
    // A method that is missing in the table requires the strongest role, so that a forgotten row
    // opens no call.
    RULES
        .iter()
        .find(|(name, _)| *name == method)
        .map_or(Needs::Operator, |(_, needs)| *needs)
}
