//! The bodies of requests and receipts, only for the description of the port: `parse` and `calls`
//! read requests, and the kernel makes receipts.

use serde::Serialize;
use utoipa::ToSchema;

/// A tool call that is about to be made.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "a description; `parse` reads the body")]
pub(super) struct PreflightRequest {
    /// The tool's name; printable ASCII, not spaces alone.
    #[schema(min_length = 1, max_length = 128, pattern = "^[ -~]*[!-~][ -~]*$")]
    tool_name: String,
    /// The tool's parameters.
    #[schema(value_type = Object)]
    params: serde_json::Value,
    /// SHA-256 of the parameters as canonical JSON.
    #[schema(pattern = "^(sha256:)?[0-9a-fA-F]{64}$")]
    params_hash: Option<String>,
    /// The session; required for tools that can do harm.
    #[schema(max_length = 128, pattern = "^[ -~]*$")]
    session_id: Option<String>,
    /// The agent's name; never an identity.
    #[schema(max_length = 128, pattern = "^[ -~]*$")]
    agent_id: Option<String>,
}

/// The result of a tool call.
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
    /// The tool's name; printable ASCII, not spaces alone.
    #[schema(min_length = 1, max_length = 128, pattern = "^[ -~]*[!-~][ -~]*$")]
    tool_name: String,
    /// SHA-256 of the parameters, from the preflight's answer.
    #[schema(pattern = "^[0-9a-fA-F]{64}$")]
    params_hash: String,
    /// The result of the call.
    status: CallStatus,
    /// The session; required for tools that can do harm.
    #[schema(max_length = 128, pattern = "^[ -~]*$")]
    session_id: Option<String>,
    /// The agent's name; never an identity.
    agent_id: Option<String>,
    /// The preflight's `receiptHash`.
    #[schema(pattern = "^[0-9a-fA-F]{64}$")]
    preflight_receipt_hash: Option<String>,
    /// SHA-256 of the output as compact JSON; the gate computes it if it is absent.
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
    /// The exports that the module must have.
    #[schema(max_items = 64)]
    declared_exports: Option<Vec<String>>,
    /// The most fuel that it may use.
    #[schema(minimum = 1)]
    fuel_limit: Option<u64>,
}

/// A decision with its proof: see `docs/preflight.md`.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "a description; the kernel has the type")]
pub(super) struct DecisionReceiptBody {
    /// `evidenceos.decision_receipt.v1`.
    format: String,
    /// The hashed bytes of the record.
    record: String,
    /// The record's position in the batch, from 0.
    position: u32,
    /// From the record towards the batch's root, in hex.
    batch_path: Vec<String>,
    /// The hashed bytes of the batch's log entry.
    entry: String,
    /// The entry's index, from 0.
    index: u64,
    /// From the entry towards the log's root, in hex.
    inclusion: Vec<String>,
    /// The signed head.
    checkpoint: String,
}
