//! What operators command about credit.

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
        /// The name that `owner` is the tag of.
        principal: String,
        /// In credits, at least 1.
        amount: u64,
        /// In the operator's words; 1–256 bytes.
        reason: String,
    },
    /// Set the most that a principal's credit may come to.
    SetLimit {
        owner: OwnerTag,
        /// The name that `owner` is the tag of.
        principal: String,
        /// In credits; balance and reservations together.
        limit: u64,
    },
    /// Make accounts what a file says.
    Import {
        /// The accounts in the file, in its order.
        accounts: Vec<ImportedAccount>,
        /// Digest of the file.
        file: Digest,
        /// In the operator's words; 1–256 bytes.
        reason: String,
    },
}

/// An account as a file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedAccount {
    /// Whose, as the log names the principal.
    pub owner: OwnerTag,
    /// The name that `owner` is the tag of; 1–256 bytes.
    pub principal: String,
    /// What is not burned, reservations included.
    pub unburned: u64,
    /// What may still be minted on `last_mint_day`.
    pub daily_mint_remaining: u64,
    /// The UTC day of the last mint.
    pub last_mint_day: u64,
    /// The most that the balance comes to.
    pub credit_limit: u64,
    /// The most that a day mints.
    pub daily_mint_limit: u64,
    /// Credits that runs burned since the account was opened.
    pub burned_total: u64,
    /// Runs refused for want of credit since the account was opened.
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
            // It acts on many accounts.
            Self::Import { .. } => RememberedOn::Key,
        }
    }
}
