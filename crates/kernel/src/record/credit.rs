//! Log entries about credit.

use super::fields::Fields;
use crate::{
    cj,
    id::{Digest, OwnerTag},
    record::RecordError,
};

/// `credit_granted`: an operator granted credit to a principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreditGranted {
    pub owner: OwnerTag,
    /// In whole credits, at least 1.
    pub amount: u64,
    /// The operator's reason; 1–256 bytes.
    pub reason: String,
    /// When, in Unix milliseconds.
    pub granted_unix_ms: u64,
}

impl CreditGranted {
    pub(crate) fn write(&self) -> cj::Object {
        cj::Object::new()
            .put("owner_tag_hex", self.owner.to_hex())
            .put("amount", self.amount)
            .put("reason", self.reason.as_str())
            .put("granted_unix_ms", self.granted_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            owner: fields.word("owner_tag_hex", OwnerTag::from_hex)?,
            amount: fields.int("amount")?,
            reason: fields.string("reason")?,
            granted_unix_ms: fields.int("granted_unix_ms")?,
        })
    }
}

/// `accounts_imported`: accounts were set to a file's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountsImported {
    /// The number of accounts that changed.
    pub accounts: u64,
    /// SHA-256 of the file.
    pub file: Digest,
    /// The operator's reason; 1–256 bytes.
    pub reason: String,
    /// When, in Unix milliseconds.
    pub imported_unix_ms: u64,
}

impl AccountsImported {
    pub(crate) fn write(&self) -> cj::Object {
        cj::Object::new()
            .put("accounts", self.accounts)
            .put("file_sha256_hex", self.file.to_hex())
            .put("reason", self.reason.as_str())
            .put("imported_unix_ms", self.imported_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            accounts: fields.int("accounts")?,
            file: fields.digest("file_sha256_hex")?,
            reason: fields.string("reason")?,
            imported_unix_ms: fields.int("imported_unix_ms")?,
        })
    }
}
