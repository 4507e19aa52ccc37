//! From refusals and failures to gRPC statuses: only here.
//!
//! Every error carries `x-evidenceos-outcome`: `not-applied`, or `unknown` if only a repeated call
//! can tell; the published public code; and a finer code of the daemon. The message says what to
//! do.

use evidenceos_access::Misused;
use evidenceos_custody::VaultError;
use evidenceos_driver::Failure;
use evidenceos_kernel::refusal::{Refusal, RefusalKind};
use evidenceos_store::{StoreError, log::LogError};
use tonic::{Code, Status, metadata::MetadataValue};

use crate::services::Error;

/// Longest message that is put into a trailer.
const MAX_MESSAGE: usize = 2_048;

fn status(code: Code, public: &'static str, own: &'static str, message: &str) -> Status {
    let message: String = message.chars().take(MAX_MESSAGE).collect();
    let mut status = Status::new(code, message);
    let metadata = status.metadata_mut();
    metadata.insert(
        "x-evidenceos-public-error-code",
        MetadataValue::from_static(public),
    );
    metadata.insert("x-evidenceos-code", MetadataValue::from_static(own));
    metadata.insert(
        "x-evidenceos-outcome",
        MetadataValue::from_static("not-applied"),
    );
    status
}

fn retry(mut status: Status) -> Status {
    status.metadata_mut().insert(
        "x-evidenceos-retry-after-ms",
        MetadataValue::from_static("1000"),
    );
    status
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => refused(&refusal),
            Error::Failed(failure) => failed(&failure),
            Error::NotShownYet { changed } => not_shown_yet(changed),
            Error::NotSignedYet => unavailable(&error.to_string()),
            Error::Throttled { retry_after } => throttled(retry_after),
            Error::Frozen => frozen(),
            Error::Absent { code, message } => status(Code::NotFound, "NOT_FOUND", code, &message),
            Error::WrongState { code, message } => precondition(code, &message),
            Error::Busy(message) => busy(&message),
            Error::Unavailable(message) => unavailable(&message),
            Error::Log(error) => log(&error),
            Error::Store(error) | Error::Vault(VaultError::Store(error)) => not_stored(&error),
            Error::Vault(error) => internal(&error),
            Error::HoldoutKeys(error) => internal(&error),
            Error::Fault(what) => internal(&what),
        }
    }
}

/// The caller creates and executes many claims.
fn throttled(retry_after: std::time::Duration) -> Status {
    let ms = retry_after.as_millis();
    let message = format!("PROBE_THROTTLED: probe_throttle_threshold; retry_after_ms={ms}");
    let mut status = status(
        Code::ResourceExhausted,
        "RATE_LIMITED",
        "PROBE_THROTTLED",
        &message,
    );
    if let Ok(value) = ms.to_string().parse() {
        status
            .metadata_mut()
            .insert("x-evidenceos-retry-after-ms", value);
    }
    status
}

/// The caller creates and executes far too many claims.
fn frozen() -> Status {
    status(
        Code::PermissionDenied,
        "FORBIDDEN",
        "PROBE_FROZEN",
        "PROBE_FROZEN: probe_freeze_threshold",
    )
}

/// A field that breaks a rule.
#[must_use]
pub fn invalid(field: &str, rule: &str) -> Status {
    refused(&Refusal::field(field, rule))
}

/// A create names a holdout that does not exist: an invalid argument by the published contract.
#[must_use]
pub fn unknown_reference(error: Error) -> Status {
    match error {
        Error::Absent { code, message } => status(
            Code::InvalidArgument,
            "INVALID_INPUT",
            code,
            &format!("unknown holdout_ref: {message}"),
        ),
        error => error.into(),
    }
}

/// The call has no valid credential.
#[must_use]
pub fn unauthenticated(message: &str) -> Status {
    status(
        Code::Unauthenticated,
        "UNAUTHORIZED",
        "UNAUTHENTICATED",
        message,
    )
}

/// The signature is not valid for this request.
#[must_use]
pub fn misused(misused: Misused) -> Status {
    let message = misused.to_string();
    match misused {
        Misused::OtherRequest => status(
            Code::AlreadyExists,
            "INVALID_INPUT",
            "REQUEST_ID_REUSED",
            &message,
        ),
        Misused::TooLate => unauthenticated(&message),
        Misused::Full => busy(&message),
    }
}

/// The caller is authenticated and lacks the role.
#[must_use]
pub fn role_required(roles: &str, principal: &str) -> Status {
    status(
        Code::PermissionDenied,
        "FORBIDDEN",
        "ROLE_REQUIRED",
        &format!(
            "this call needs the {roles} role, and {principal} does not have it; ask an operator to add it to the role policy"
        ),
    )
}

/// There is no room at the moment.
#[must_use]
pub fn busy(message: &str) -> Status {
    retry(status(
        Code::ResourceExhausted,
        "RATE_LIMITED",
        "BUSY",
        message,
    ))
}

/// The request did not come in time.
#[must_use]
pub fn too_slow(waited: std::time::Duration) -> Status {
    status(
        Code::DeadlineExceeded,
        "INVALID_INPUT",
        "TOO_SLOW",
        &format!(
            "the server waited {} s for the request, and it has not come; send it again",
            waited.as_secs()
        ),
    )
}

/// A part of the server is not available at the moment.
#[must_use]
pub fn unavailable(message: &str) -> Status {
    retry(status(
        Code::Unavailable,
        "UNAVAILABLE",
        "UNAVAILABLE",
        message,
    ))
}

/// The decision is durable, but no anchor remembers it yet, so it must not be shown. `changed`: the
/// call asked for a change, which may have been made.
fn not_shown_yet(changed: bool) -> Status {
    let mut status = retry(status(
        Code::Unavailable,
        "UNAVAILABLE",
        "NOT_ANCHORED",
        "no anchor can be written at present, and nothing that none remembers is shown; what was decided is durable: ask again, with the same x-request-id",
    ));
    if changed {
        let unknown = MetadataValue::from_static("unknown");
        status
            .metadata_mut()
            .insert("x-evidenceos-outcome", unknown);
    }
    status
}

/// The call can never succeed in this state.
#[must_use]
pub fn precondition(own: &'static str, message: &str) -> Status {
    status(
        Code::FailedPrecondition,
        "FAILED_PRECONDITION",
        own,
        message,
    )
}

/// A fault of the daemon: the details go to the operator's log, not to the caller.
#[must_use]
pub fn internal(error: &dyn std::fmt::Display) -> Status {
    tracing::error!(%error, "a call failed by a fault of ours");
    status(
        Code::Internal,
        "INTERNAL",
        "INTERNAL",
        "the server failed; nothing was done. Its operator finds the reason in its log",
    )
}

/// The store failed: the disk is full or read-only, or the daemon has a fault.
fn not_stored(error: &StoreError) -> Status {
    if error.is_full() {
        return failed(&Failure::DiskFull);
    }
    if error.is_read_only() {
        tracing::error!(%error, "the disk is read-only");
        return retry(status(
            Code::Unavailable,
            "UNAVAILABLE",
            "READ_ONLY",
            "the server's disk is read-only; nothing was done, ask again later",
        ));
    }
    internal(error)
}

/// A refusal of the kernel.
#[must_use]
pub fn refused(refusal: &Refusal) -> Status {
    let (code, public) = match refusal.kind() {
        RefusalKind::Invalid => (Code::InvalidArgument, "INVALID_INPUT"),
        RefusalKind::NotFound => (Code::NotFound, "NOT_FOUND"),
        RefusalKind::Forbidden => (Code::PermissionDenied, "FORBIDDEN"),
        RefusalKind::Precondition => (Code::FailedPrecondition, "FAILED_PRECONDITION"),
        RefusalKind::Exhausted => (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
        RefusalKind::Conflict => (Code::AlreadyExists, "INVALID_INPUT"),
        RefusalKind::Retry => (Code::ResourceExhausted, "RATE_LIMITED"),
    };
    let status = status(code, public, refusal.code(), &refusal.to_string());
    if refusal.asks_to_retry() {
        retry(status)
    } else {
        status
    }
}

/// A call that the driver did not answer with a reply.
fn failed(failure: &Failure) -> Status {
    let message = failure.to_string();
    match failure {
        Failure::Refused(refusal) => refused(refusal),
        Failure::DiskFull => retry(status(
            Code::ResourceExhausted,
            "RESOURCE_EXHAUSTED",
            "DISK_FULL",
            &message,
        )),
        Failure::NotStored => status(Code::Internal, "INTERNAL", "NOT_STORED", &message),
        Failure::Held => retry(status(Code::Unavailable, "UNAVAILABLE", "HELD", &message)),
        Failure::Stopping => retry(status(
            Code::Unavailable,
            "UNAVAILABLE",
            "STOPPING",
            &message,
        )),
        Failure::Unknown => {
            let mut status = status(Code::Unavailable, "UNAVAILABLE", "UNKNOWN", &message);
            let unknown = MetadataValue::from_static("unknown");
            status
                .metadata_mut()
                .insert("x-evidenceos-outcome", unknown);
            status
        }
    }
}

/// A proof that cannot be given.
fn log(error: &LogError) -> Status {
    match error {
        LogError::Beyond { .. } => status(
            Code::NotFound,
            "NOT_FOUND",
            "BEYOND_THE_LOG",
            &error.to_string(),
        ),
        LogError::SizesOutOfOrder { .. } => status(
            Code::InvalidArgument,
            "INVALID_INPUT",
            "SIZES_OUT_OF_ORDER",
            &error.to_string(),
        ),
        LogError::Store(error) => not_stored(error),
        LogError::Inconsistent => {
            tracing::error!("the log's tiles do not lead to its signed root");
            status(
                Code::DataLoss,
                "INTERNAL",
                "LOG_INCONSISTENT",
                &error.to_string(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_the_disk_refuses_is_said_to_be_the_disks() {
        for (kind, code, own) in [
            (
                io::ErrorKind::StorageFull,
                Code::ResourceExhausted,
                "DISK_FULL",
            ),
            (
                io::ErrorKind::ReadOnlyFilesystem,
                Code::Unavailable,
                "READ_ONLY",
            ),
            (io::ErrorKind::PermissionDenied, Code::Internal, "INTERNAL"),
        ] {
            let error = StoreError::io("write", "blob")(kind.into());
            let status = not_stored(&error);
            let told = status.metadata().get("x-evidenceos-code");
            assert_eq!(status.code(), code);
            assert_eq!(told.and_then(|code| code.to_str().ok()), Some(own));
        }
    }
}
