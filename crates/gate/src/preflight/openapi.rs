//! What the HTTP port serves, described by what serves it: OpenAPI 3.1.

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use utoipa::OpenApi;

use super::Front;

/// The description.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "EvidenceOS gate for agents",
        description = "Asked before and after tool calls. Errors have the shape of decisions."
    ),
    paths(
        super::preflight,
        super::postflight,
        super::admit,
        super::receipts::receipt,
    ),
    tags((name = "gate", description = "Decisions about tool calls"))
)]
struct Description;

/// Like every path but the health routes, for callers who are known.
pub(super) async fn show(State(front): State<Front>, request: Request) -> Response {
    front.admit(request, || Json(Description::openapi()).into_response())
}
