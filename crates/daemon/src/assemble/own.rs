//! Commands of the daemon's own, signed by a key in memory or in a KMS.

use evidenceos_driver::{Alone, Enacted, NotEnacted, OwnWork};
use evidenceos_kernel::{command::Command, refusal::Refusal};
use evidenceos_store::{Head, Store, StoreError};
use tokio::runtime::Handle;

use super::StartError;
use crate::{
    clock::unix_ms,
    keys::{LogKeyError, LogSigner},
};

/// What signs, and where it is waited for.
#[derive(Clone, Copy)]
pub struct Signing<'s> {
    pub signer: &'s LogSigner,
    /// Where a KMS is asked.
    pub runtime: &'s Handle,
}

/// Enacts commands that append entries, in one commit with the head over them. `what` says what
/// they are, for errors. Gives the head and the entries.
///
/// # Errors
/// If the kernel refuses one of them, the head cannot be signed, or the store fails.
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
    let Enacted { head, entries } = enacted.map_err(|error| {
        let refused = |_, refusal: Refusal| StoreError::Unusable(format!("{what}: {refusal}"));
        not_enacted(error, what, refused)
    })?;
    let head = head.ok_or_else(|| StoreError::Unusable(format!("{what} appends no entry")))?;
    Ok((head, entries))
}

/// Enacts a command that appends no entry.
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
    noted.map(drop).map_err(|error| {
        let refused = |_, refusal: Refusal| StoreError::Unusable(format!("{what}: {refusal}"));
        not_enacted(error, what, refused)
    })
}

/// An error for the operator; `refused` says which command was refused.
pub fn not_enacted(
    error: NotEnacted<LogKeyError>,
    what: &str,
    refused: impl FnOnce(usize, Refusal) -> StoreError,
) -> StartError {
    match error {
        NotEnacted::Refused { nth, refusal } => refused(nth, refusal).into(),
        NotEnacted::Unsigned(error) => error.into(),
        NotEnacted::Full => {
            StoreError::Unusable(format!("{what} cannot be written: the disk is full")).into()
        }
        NotEnacted::Store(error) => error.into(),
    }
}
