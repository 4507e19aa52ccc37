//! The entry points of the fuzz targets: the pure steps between a request's bytes and a command. No
//! other code calls them.

use evidenceos_kernel::{
    claim::{Artifact, Terms},
    holdout::Policy,
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
    null::NullSpec,
};
use evidenceos_proto as wire;
use tonic::Status;

use super::{claims, fields, parse, registration, status};

/// The most fields at the top level of one message.
pub const MOST_FIELDS: usize = fields::MOST as usize;

/// Whether the counter of fields accepts a body that comes in these pieces.
#[must_use]
pub fn is_let_through<'b>(pieces: impl IntoIterator<Item = &'b [u8]>) -> bool {
    let mut counted = fields::Counted::new(tonic::body::Body::empty());
    pieces.into_iter().all(|piece| counted.read(piece))
}

/// The terms of `CreateClaimV2`, with one holdout behind every name.
///
/// # Errors
/// The field that breaks a rule.
pub fn terms(request: &wire::CreateClaimV2Request) -> Result<Terms, Status> {
    let holdout = (HoldoutId([1; 32]), Digest([2; 32]));
    claims::terms(OwnerTag([3; 16]), request, |_| Ok(holdout)).map(|(terms, _)| terms)
}

/// The terms of the older `CreateClaim`.
///
/// # Errors
/// As [`terms`].
pub fn older_terms(request: &wire::CreateClaimRequest) -> Result<Terms, Status> {
    terms(&claims::as_v2(request)?)
}

/// The claim and the artifacts of `CommitArtifacts`.
///
/// # Errors
/// As [`terms`].
pub fn artifacts(
    request: &wire::CommitArtifactsRequest,
) -> Result<(ClaimId, Vec<Artifact>), Status> {
    Ok((
        parse::claim_id(&request.claim_id)?,
        parse::artifacts(&request.artifacts)?,
    ))
}

/// A holdout as `PutHoldout` registers it.
pub struct Registration {
    /// One byte for each item.
    pub labels: Vec<u8>,
    /// The unit of each item, if items belong together.
    pub units: Option<Vec<u64>>,
    /// The null hypothesis that a claim must refute.
    pub null_spec: NullSpec,
    /// Its budgets and prices, as if every item were a sealed unit of its own.
    pub policy: Policy,
}

/// The messages of `PutHoldout`.
///
/// # Errors
/// As [`terms`].
pub fn registration(
    messages: impl IntoIterator<Item = wire::PutHoldoutRequest>,
) -> Result<Registration, Status> {
    let submission = registration::of(messages)?;
    let sealed_units = submission.labels.len() as u64;
    let (policy, _) = submission
        .policy
        .for_units(&submission.null_spec, sealed_units)
        .map_err(|error| status::invalid(error.field, &error.rule))?;
    Ok(Registration {
        labels: submission.labels,
        units: submission.units,
        null_spec: submission.null_spec,
        policy,
    })
}
