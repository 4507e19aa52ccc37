//! The daemon's own commands, signed by a key in memory or in a KMS.

use evidenceos_driver::{Alone, Enacted, NotEnacted, OwnWork, clock::unix_ms};
use evidenceos_kernel::command::Command;
use evidenceos_notary::keys::{LogKeyError, LogSigner};
use evidenceos_store::{Head, Store, StoreError};
use tokio::runtime::Handle;

use super::StartError;

/// The key that signs, and the runtime on which the call waits for it.
#[derive(Clone, Copy)]
pub struct Signing<'s> {
    pub signer: &'s LogSigner,
    /// The runtime for calls to a KMS.
    pub runtime: &'s Handle,
}

/// Commits commands that append entries, in one commit with the head over them. `what` names them
/// in errors. Returns the head and the entries.
///
/// # Errors
/// [`StartError::NotEnacted`] if the kernel refuses one of them, [`StartError::LogKeys`] if the
/// head cannot be signed, [`StartError::Store`] if the store fails.
pub fn enact<S: Store>(
    alone: &mut Alone<S>,
    work: OwnWork,
    signing: Signing<'_>,
    what: &str,
) -> Result<(Head, Vec<Vec<u8>>), StartError> {
    let Signing { signer, runtime } = signing;
    let sign = |size, root| {
        let signed = runtime.block_on(signer.sign_head(size, root));
        signed.map(Some).map_err(LogKeyError::Kms)
    };
    let enacted = alone.enact(unix_ms(), work, sign);
    let Enacted { head, entries } =
        enacted.map_err(|error| not_enacted(error, what, |_| what.to_owned()))?;
    let head = head.ok_or_else(|| {
        StartError::refused(
            format!("{what} appends no entry"),
            "report this: it is a bug",
        )
    })?;
    Ok((head, entries))
}

/// Commits a command that appends no entry.
///
/// # Errors
/// As [`enact`].
pub fn note<S: Store>(
    alone: &mut Alone<S>,
    command: Command,
    what: &str,
) -> Result<(), StartError> {
    let unsigned = |_, _| Ok::<_, LogKeyError>(None);
    let noted = alone.enact(unix_ms(), OwnWork::command(command), unsigned);
    noted
        .map(drop)
        .map_err(|error| not_enacted(error, what, |_| what.to_owned()))
}

/// An error for the operator about the `nth` command.
pub fn not_enacted(
    error: NotEnacted<LogKeyError>,
    what: &str,
    nth: impl FnOnce(usize) -> String,
) -> StartError {
    match error {
        NotEnacted::Refused { nth: n, refusal } => StartError::NotEnacted {
            what: nth(n),
            refusal,
        },
        NotEnacted::Unsigned(error) => error.into(),
        NotEnacted::Full => StoreError::full(what).into(),
        NotEnacted::Store(error) => error.into(),
    }
}
