//! Operators' commands about credit.

use super::{Caller, Decision, RememberedOn};
use crate::{
    decide::credit,
    id::{Digest, OwnerTag},
    refusal::Refusal,
    state::{Key, Stage, Wanted},
};

/// A command about principals' credit.
#[derive(Debug, Clone)]
pub enum CreditCommand {
    /// Give a principal credit.
    Grant {
        owner: OwnerTag,
        /// The principal's name; `owner` is its tag.
        principal: String,
        /// In credits, at least 1.
        amount: u64,
        /// In the operator's words; 1–256 bytes.
        reason: String,
    },
    /// Set the limit of a principal's credit.
    SetLimit {
        owner: OwnerTag,
        /// The principal's name; `owner` is its tag.
        principal: String,
        /// In credits; balance and reservations together.
        limit: u64,
    },
    /// Set accounts to a file's numbers.
    Import {
        /// The accounts in the file, in its order.
        accounts: Vec<ImportedAccount>,
        /// Digest of the file.
        file: Digest,
        /// In the operator's words; 1–256 bytes.
        reason: String,
    },
}

/// An account as the file states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedAccount {
    /// The principal's tag, which the log uses.
    pub owner: OwnerTag,
    /// The principal's name; `owner` is its tag. 1–256 bytes.
    pub principal: String,
    /// Credit that is not burned, reservations included.
    pub unburned: u64,
    /// The most that may still be minted on `last_mint_day`.
    pub daily_mint_remaining: u64,
    /// The UTC day of the last mint.
    pub last_mint_day: u64,
    /// The limit of balance plus reservations.
    pub credit_limit: u64,
    /// The most that a day mints.
    pub daily_mint_limit: u64,
    /// Credits that runs burned since the account was opened.
    pub burned_total: u64,
    /// Runs refused because credit was short since the account was opened.
    pub denied_total: u64,
}

impl CreditCommand {
    pub(crate) fn keys(&self, wanted: &mut Wanted<'_>) {
        match self {
            Self::Grant { owner, .. } | Self::SetLimit { owner, .. } => {
                wanted.want(Key::Account(*owner));
            }
            Self::Import { accounts, .. } => {
                for account in accounts {
                    wanted.want(Key::Account(account.owner));
                }
            }
        }
    }

    pub(crate) fn decide(&self, stage: &Stage<'_>, caller: &Caller) -> Result<Decision, Refusal> {
        match self {
            Self::Grant {
                owner,
                principal,
                amount,
                reason,
            } => credit::grant(stage, caller, *owner, principal, *amount, reason),
            Self::SetLimit {
                owner,
                principal,
                limit,
            } => credit::set_limit(stage, caller, *owner, principal, *limit),
            Self::Import {
                accounts,
                file,
                reason,
            } => credit::import(stage, caller, accounts, *file, reason),
        }
    }

    pub(crate) fn remembered_on(&self) -> RememberedOn {
        match self {
            Self::Grant { owner, .. } => RememberedOn::Account {
                owner: *owner,
                limits: false,
            },
            Self::SetLimit { owner, .. } => RememberedOn::Account {
                owner: *owner,
                limits: true,
            },
            // The command acts on many accounts, so no single row can remember it.
            Self::Import { .. } => RememberedOn::Key,
        }
    }
}
