//! A log that lost its end: what may be brought back, and what a new beginning says.
//!
//! A log is never signed again below a size that it had. Either the entries that are missing are
//! appended again, byte for byte, and what they charged is charged; or the log goes on under
//! another name, and its first entry there binds the old head. Then nobody knows what was charged
//! in between, so that every holdout is exhausted unless the operator states what it was.

use crate::{
    bits::MicroBits,
    cj,
    id::{Digest, HoldoutId},
    record::{Fields, RecordError},
};

/// The first entry under another name.
pub const LOG_RESTARTED: &str = "evidenceos.v2.log_restarted";
/// What a holdout was charged that no capsule in this log says.
pub const HOLDOUT_CHARGED: &str = "evidenceos.v2.holdout_charged";

/// A size and root that a log had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownTree {
    /// Entries.
    pub size: u64,
    /// Root.
    pub root: [u8; 32],
}

/// `log_restarted`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRestarted {
    /// The name from here on.
    pub origin: String,
    /// The name so far.
    pub old_origin: String,
    /// The entries before this one: all that is left of the old log.
    pub old: KnownTree,
    /// The largest tree that an anchor remembered, where one did: what was lost lies between.
    pub known: Option<KnownTree>,
    /// Why, in the operator's words; 1–256 bytes.
    pub because: String,
    /// When.
    pub restarted_unix_ms: u64,
}

impl LogRestarted {
    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut object = cj::Object::new()
            .put("schema", LOG_RESTARTED)
            .put("origin", self.origin.as_str())
            .put("old_origin", self.old_origin.as_str())
            .put("old_size", self.old.size)
            .put("old_root_hash_hex", Digest(self.old.root).to_hex())
            .put("because", self.because.as_str())
            .put("restarted_unix_ms", self.restarted_unix_ms);
        if let Some(known) = self.known {
            object = object
                .put("known_size", known.size)
                .put("known_root_hash_hex", Digest(known.root).to_hex());
        }
        object.to_bytes()
    }

    /// Reads such an entry.
    ///
    /// # Errors
    /// Where the bytes are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::parse(bytes)?;
        fields.expect("schema", LOG_RESTARTED)?;
        let known = match fields.maybe("known_size") {
            None => None,
            Some(cj::Value::Int(size)) => Some(KnownTree {
                size,
                root: fields.digest("known_root_hash_hex")?.0,
            }),
            Some(
                cj::Value::Bool(_) | cj::Value::Str(_) | cj::Value::Array(_) | cj::Value::Object(_),
            ) => return Err(RecordError::Field("known_size".to_owned())),
        };
        let restarted = Self {
            origin: fields.string("origin")?,
            old_origin: fields.string("old_origin")?,
            old: KnownTree {
                size: fields.int("old_size")?,
                root: fields.digest("old_root_hash_hex")?.0,
            },
            known,
            because: fields.string("because")?,
            restarted_unix_ms: fields.int("restarted_unix_ms")?,
        };
        fields.finish()?;
        Ok(restarted)
    }
}

/// `holdout_charged`: bits beyond those of the capsules in this log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldoutCharged {
    /// Which.
    pub holdout: HoldoutId,
    /// About the answer part.
    pub answers: MicroBits,
    /// About the sealed part.
    pub sealed: MicroBits,
    /// Whether the operator stated it; else the holdout is exhausted.
    pub stated: bool,
    /// When.
    pub charged_unix_ms: u64,
}

impl HoldoutCharged {
    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        cj::Object::new()
            .put("schema", HOLDOUT_CHARGED)
            .put("holdout_id_hex", self.holdout.to_hex())
            .put("answers_microbits", self.answers.0)
            .put("sealed_microbits", self.sealed.0)
            .put("basis", if self.stated { "stated" } else { "exhausted" })
            .put("charged_unix_ms", self.charged_unix_ms)
            .to_bytes()
    }

    /// Reads such an entry.
    ///
    /// # Errors
    /// Where the bytes are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::parse(bytes)?;
        fields.expect("schema", HOLDOUT_CHARGED)?;
        let charged = Self {
            holdout: HoldoutId(fields.digest("holdout_id_hex")?.0),
            answers: MicroBits(fields.int("answers_microbits")?),
            sealed: MicroBits(fields.int("sealed_microbits")?),
            stated: fields.word("basis", |basis| match basis {
                "stated" => Some(true),
                "exhausted" => Some(false),
                _ => None,
            })?,
            charged_unix_ms: fields.int("charged_unix_ms")?,
        };
        fields.finish()?;
        Ok(charged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written() {
        for known in [
            None,
            Some(KnownTree {
                size: 9,
                root: [3; 32],
            }),
        ] {
            let restarted = LogRestarted {
                origin: "example.org/new".to_owned(),
                old_origin: "example.org/old".to_owned(),
                old: KnownTree {
                    size: 5,
                    root: [2; 32],
                },
                known,
                because: "the disk was lost".to_owned(),
                restarted_unix_ms: 7,
            };
            assert_eq!(LogRestarted::parse(&restarted.to_bytes()), Ok(restarted));
        }
        for stated in [true, false] {
            let charged = HoldoutCharged {
                holdout: HoldoutId([1; 32]),
                answers: MicroBits(2),
                sealed: MicroBits(3),
                stated,
                charged_unix_ms: 4,
            };
            assert_eq!(HoldoutCharged::parse(&charged.to_bytes()), Ok(charged));
        }
    }
}
