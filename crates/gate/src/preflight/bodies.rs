//! The bodies of requests and receipts, for the description of the port alone: `parse` and `calls`
//! read requests, and the kernel makes receipts.

use serde::Serialize;
use utoipa::ToSchema;

/// A tool call that is about to be made.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "a description; `parse` reads the body")]
pub(super) struct PreflightRequest {
    /// Which tool; printable ASCII, not spaces alone.
    #[schema(min_length = 1, max_length = 128, pattern = "^[ -~]*[!-~][ -~]*$")]
    tool_name: String,
    /// With what.
    #[schema(value_type = Object)]
    params: serde_json::Value,
    /// SHA-256 of the parameters as canonical JSON.
    #[schema(pattern = "^(sha256:)?[0-9a-fA-F]{64}$")]
    params_hash: Option<String>,
    /// In which session; needed for tools that can do harm.
    #[schema(max_length = 128, pattern = "^[ -~]*$")]
    session_id: Option<String>,
    /// On whose behalf; never an identity.
    #[schema(max_length = 128, pattern = "^[ -~]*$")]
    agent_id: Option<String>,
}

/// How a tool call ended.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "a description; `calls` reads the body")]
pub(super) enum CallStatus {
    Ok,
    Error,
}

/// A tool call that was made.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "a description; `calls` reads the body")]
pub(super) struct PostflightRequest {
    /// Which tool; printable ASCII, not spaces alone.
    #[schema(min_length = 1, max_length = 128, pattern = "^[ -~]*[!-~][ -~]*$")]
    tool_name: String,
    /// SHA-256 of the parameters, as the preflight answered it.
    #[schema(pattern = "^[0-9a-fA-F]{64}$")]
    params_hash: String,
    /// How it ended.
    status: CallStatus,
    /// In which session; needed for tools that can do harm.
    #[schema(max_length = 128, pattern = "^[ -~]*$")]
    session_id: Option<String>,
    /// On whose behalf.
    agent_id: Option<String>,
    /// The preflight's `receiptHash`.
    #[schema(pattern = "^[0-9a-fA-F]{64}$")]
    preflight_receipt_hash: Option<String>,
    /// SHA-256 of the output as compact JSON; computed where it is absent.
    #[schema(pattern = "^[0-9a-fA-F]{64}$")]
    output_hash: Option<String>,
    /// The output.
    #[schema(value_type = Option<Object>)]
    output: Option<serde_json::Value>,
}

/// A module that is to become a tool.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "a description; `calls` reads the body")]
pub(super) struct AdmitRequest {
    /// The module, in base64; at most 1 MiB of it.
    module_base64: String,
    /// What it must export.
    #[schema(max_items = 64)]
    declared_exports: Option<Vec<String>>,
    /// What it may burn.
    #[schema(minimum = 1)]
    fuel_limit: Option<u64>,
}

/// A decision with all that proves it: see `docs/preflight.md`.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "a description; the kernel has the type")]
pub(super) struct DecisionReceiptBody {
    /// `evidenceos.decision_receipt.v1`.
    format: String,
    /// The record, as it was hashed.
    record: String,
    /// Its place in the batch, from 0.
    position: u32,
    /// From the record towards the batch's root, in hex.
    batch_path: Vec<String>,
    /// The batch's entry in the log, as it was hashed.
    entry: String,
    /// The entry's index, from 0.
    index: u64,
    /// From the entry towards the log's root, in hex.
    inclusion: Vec<String>,
    /// The signed head.
    checkpoint: String,
}
