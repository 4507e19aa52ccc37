//! A decision with its proof, for its caller and for auditors.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use evidenceos_kernel::decision::{DecisionId, DecisionReceipt, RECEIPT_FORMAT};
use evidenceos_store::decisions::FoundDecision;
use evidenceos_tlog::{Hash, leaf_hash, small::path_in};
use serde_json::json;

use super::{Api, Front, Known, SOON_S, Unknown, status_of};

/// How long a request waits until a shown head covers a durable decision.
const COVERED_WITHIN: Duration = Duration::from_millis(250);
const NO_DECISION: &str = "no such decision";
const UNREADABLE: &str = "the decision cannot be read now";

/// Show a decision's receipt, once it is in the log.
///
/// Another caller's decision looks exactly like one that does not exist; auditors see all.
#[utoipa::path(
    get,
    path = "/v1/decisions/{decision_id}",
    tag = "gate",
    params(("decision_id" = String, Path, description = "16 hex digits, as in a decision's answer")),
    responses(
        (status = 200, description = "The receipt, for `evidenceos verify`", content_type = "application/json", body = super::bodies::DecisionReceiptBody),
        (status = 202, description = "The decision is not in the log yet; see Retry-After"),
        (status = 401, description = "The caller is not authenticated"),
        (status = 404, description = "No such decision, or the daemon no longer keeps it"),
        (status = 503, description = "The daemon starts, or the log cannot be read"),
    )
)]
pub(super) async fn receipt(
    State(front): State<Front>,
    Path(decision_id): Path<String>,
    request: Request,
) -> Response {
    let Some(api) = front.api() else {
        return unavailable("the daemon is starting");
    };
    let principal = match api.known(request) {
        Ok(Known { principal, .. }) => principal,
        Err(why) => return unknown(why),
    };
    let Some(id) = DecisionId::from_hex(&decision_id) else {
        return not_found(NO_DECISION);
    };
    // Auditors see all. For any other caller, a read of another's decision finds as little as a
    // read of an unused number.
    let owner = (!principal.roles.auditor).then_some(principal.caller.tag);
    // This comes before the store is read: a decision that is committed in between is found there.
    let is_pending = api.parts.recorder.is_pending(id, owner);
    let readers = std::sync::Arc::clone(&api.parts.readers);
    let found = tokio::task::spawn_blocking(move || readers.decision(id, owner)).await;
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::error!(%error, "a decision cannot be read");
            return unavailable(UNREADABLE);
        }
        Err(panic) => {
            tracing::error!(%panic, "a decision cannot be read");
            return unavailable(UNREADABLE);
        }
    };
    let found = match found {
        Some(found) => found,
        None if is_pending => return pending(),
        None => return not_found(NO_DECISION),
    };
    // A decision that is just being anchored can be shown in a moment.
    let mut released = api.parts.released.subscribe();
    let covered = released.wait_for(|size| *size > found.index);
    let _ = tokio::time::timeout(COVERED_WITHIN, covered).await;
    match api.proved(&found) {
        Some(receipt) => Json(receipt).into_response(),
        None => pending(),
    }
}

impl Api {
    /// The receipt of a decision; `None` if no head covers it yet.
    fn proved(&self, found: &FoundDecision) -> Option<DecisionReceipt> {
        let head = self.parts.log.released().head;
        let leaf = leaf_hash(&found.entry);
        let (inclusion, _) = self
            .parts
            .log
            .inclusion_of(leaf, found.index, head.size)
            .ok()?;
        let path = path_in(&found.leaves, found.position as usize)?;
        let hex = |hashes: Vec<Hash>| hashes.iter().map(Hash::to_hex).collect();
        Some(DecisionReceipt {
            format: RECEIPT_FORMAT.to_owned(),
            record: String::from_utf8(found.record.clone()).ok()?,
            position: found.position,
            batch_path: hex(path),
            entry: String::from_utf8(found.entry.clone()).ok()?,
            index: found.index,
            inclusion: hex(inclusion),
            checkpoint: head.checkpoint.clone(),
        })
    }
}

fn pending() -> Response {
    let again = [(header::RETRY_AFTER, HeaderValue::from(SOON_S))];
    let body = Json(json!({ "status": "pending" }));
    (StatusCode::ACCEPTED, again, body).into_response()
}

pub(super) fn unknown(why: Unknown) -> Response {
    let (status, error) = match why {
        Unknown::Caller => (StatusCode::UNAUTHORIZED, "the caller is not known"),
        Unknown::Signature(misused) => (status_of(misused), misused.text()),
    };
    let body = Json(json!({ "error": error }));
    if status != StatusCode::UNAUTHORIZED {
        let again = [(header::RETRY_AFTER, HeaderValue::from(SOON_S))];
        return (status, again, body).into_response();
    }
    let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
    (status, challenge, body).into_response()
}

/// The routes themselves add the allowed methods.
pub(super) fn wrong_method() -> Response {
    let body = Json(json!({ "error": "another method is needed here" }));
    (StatusCode::METHOD_NOT_ALLOWED, body).into_response()
}

pub(super) fn not_found(what: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({ "error": what }))).into_response()
}

pub(super) fn unavailable(why: &str) -> Response {
    let again = [(header::RETRY_AFTER, HeaderValue::from(SOON_S))];
    (
        StatusCode::SERVICE_UNAVAILABLE,
        again,
        Json(json!({ "error": why })),
    )
        .into_response()
}
