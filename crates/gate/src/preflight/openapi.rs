//! The OpenAPI 3.1 description of the HTTP port, generated from its handlers.

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
};
use utoipa::OpenApi;

use super::Front;

/// The description of the port.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "EvidenceOS gate for agents",
        description = "An agent asks before and after each tool call. Errors have the shape of decisions."
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

/// Shows the description to authenticated callers, as for every path except the health routes.
pub(super) async fn show(State(front): State<Front>, request: Request) -> Response {
    front.admit(request, || Json(Description::openapi()).into_response())
}
