//! Commands of the daemon and its operators about the log itself.

use super::{Caller, Decision};
use crate::{
    bits::MicroBits,
    continuity::{BegunBy, KnownTree},
    decide::{continuity, keys},
    id::HoldoutId,
    log_key::SignedKeyLink,
    refusal::Refusal,
    state::{Key, Stage, Wanted},
};

/// A command about the log.
#[derive(Debug, Clone)]
pub enum LogCommand {
    /// Begin the log with its entry 0.
    Begin(Box<BeginLog>),
    /// Note the first key of a log that was begun by a release without a history of keys.
    KnowFirstKey([u8; 32]),
    /// Note that another key signs the log from here on.
    RotateKey(Box<SignedKeyLink>),
    /// Go on under another name, because the end of the log was lost.
    Restart(Box<RestartLog>),
    /// State that the log was signed nowhere else since its newest entry.
    Continue(Box<ContinueLog>),
    /// Append an entry that this log had.
    Recover(Vec<u8>),
}

/// A log that begins.
#[derive(Debug, Clone)]
pub struct BeginLog {
    /// The log's name, the first line of each checkpoint.
    pub origin: String,
    /// The key that signs it, Ed25519.
    pub public_key: [u8; 32],
    /// The release that begins it.
    pub software: String,
    /// The reason why the log may begin.
    pub begun_by: BegunBy,
}

/// A log that goes on under another name.
#[derive(Debug, Clone)]
pub struct RestartLog {
    /// Its name from here on.
    pub origin: String,
    /// Its name so far.
    pub old_origin: String,
    /// The tree that is left of it.
    pub old: KnownTree,
    /// The largest tree that an anchor remembers.
    pub known: Option<KnownTree>,
    /// In the operator's words; 1–256 bytes.
    pub because: String,
    /// The charges that the operator states for the lost entries, by holdout.
    pub charged: Vec<(HoldoutId, MicroBits)>,
}

/// A log that goes on by the operator's word.
#[derive(Debug, Clone)]
pub struct ContinueLog {
    /// The log's name, the first line of each checkpoint.
    pub origin: String,
    /// Size and root of the log that goes on.
    pub tree: KnownTree,
    /// In the operator's words; 1–256 bytes.
    pub because: String,
}

impl LogCommand {
    pub(crate) fn keys(&self, wanted: &mut Wanted<'_>) {
        match self {
            Self::Begin(_) | Self::KnowFirstKey(_) | Self::RotateKey(_) | Self::Continue(_) => {}
            Self::Restart(_) => {
                // A restart aborts every run under way.
                for holdout in wanted.stage().holdouts() {
                    for run in &holdout.in_flight {
                        wanted.want_run(holdout.id, run);
                    }
                }
            }
            Self::Recover(entry) => {
                let (claim, capsule) = continuity::subject(entry);
                if let Some(claim) = claim {
                    wanted.want(Key::Claim(claim));
                }
                if let Some(capsule) = capsule {
                    wanted.want(Key::Pool(capsule.holdout_id, capsule.owner_tag));
                    wanted.want(Key::Account(capsule.owner_tag));
                }
            }
        }
    }

    pub(crate) fn decide(&self, stage: &Stage<'_>, caller: &Caller) -> Result<Decision, Refusal> {
        match self {
            Self::Begin(begin) => Ok(continuity::begin(stage, begin)),
            Self::KnowFirstKey(public_key) => Ok(keys::know_first(public_key)),
            Self::RotateKey(signed) => Ok(keys::rotate(stage, signed)),
            Self::Restart(restart) => continuity::restart(stage, caller, restart),
            Self::Continue(stated) => continuity::carry_on(stage, caller, stated),
            Self::Recover(entry) => continuity::recover(stage, caller, entry),
        }
    }
}
