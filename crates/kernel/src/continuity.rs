//! How a log begins, goes on, and restarts after its end was lost.
//!
//! A log is never signed again below a size that it had. Either the missing entries are appended
//! again, byte for byte, and their charges are charged; or the log goes on under another name, and
//! its first entry there binds the old head. Then no record says what was charged in between, so
//! every holdout is exhausted unless the operator states the charges. If nothing is missing but
//! nothing can prove that, the operator states it. That statement is an entry, and so is the
//! beginning of a log.

use crate::{
    bits::MicroBits,
    cj,
    id::{Digest, HoldoutId},
    record::{RecordError, fields::Fields},
};

/// The statement of a `log_continued` entry.
const NOTHING_SINCE: &str = "nothing_was_signed_since";

/// The reason why a log may begin: nothing can have been signed under its key before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BegunBy {
    /// The start that began the log created the key.
    NewKey,
    /// An anchor outside the data directory knew no head of the key.
    Anchor,
    /// The operator stated it.
    Operator,
}

impl BegunBy {
    const ALL: [Self; 3] = [Self::NewKey, Self::Anchor, Self::Operator];

    /// The word in entry 0.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NewKey => "new_key",
            Self::Anchor => "anchor",
            Self::Operator => "operator",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.name() == name)
    }
}

/// `log_started`: entry 0, which names the log and its first key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogStarted {
    /// The log's name, the first line of each checkpoint.
    pub origin: String,
    /// SHA-256 of the first public key.
    pub key_id: Digest,
    /// The release that began it.
    pub software: String,
    /// The reason why it may begin; releases before 2.2 did not state it.
    pub begun_by: Option<BegunBy>,
    /// When, in Unix milliseconds.
    pub started_unix_ms: u64,
}

impl LogStarted {
    pub(crate) fn write(&self) -> cj::Object {
        cj::Object::new()
            .put("origin", self.origin.as_str())
            .put("key_id_hex", self.key_id.to_hex())
            .put("software", self.software.as_str())
            .put_some("begun_by", self.begun_by.map(BegunBy::name))
            .put("started_unix_ms", self.started_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            origin: fields.string("origin")?,
            key_id: fields.digest("key_id_hex")?,
            software: fields.string("software")?,
            begun_by: if fields.has("begun_by") {
                Some(fields.word("begun_by", BegunBy::named)?)
            } else {
                None
            },
            started_unix_ms: fields.int("started_unix_ms")?,
        })
    }
}

/// `log_continued`: the operator's statement that the log was signed nowhere else since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogContinued {
    /// The log's name, the first line of each checkpoint.
    pub origin: String,
    /// The tree of the entries before this one.
    pub tree: KnownTree,
    /// The operator's reason; 1–256 bytes.
    pub because: String,
    /// When, in Unix milliseconds.
    pub stated_unix_ms: u64,
}

impl LogContinued {
    pub(crate) fn write(&self) -> cj::Object {
        cj::Object::new()
            .put("origin", self.origin.as_str())
            .put("size", self.tree.size)
            .put("root_hash_hex", Digest(self.tree.root).to_hex())
            .put("statement", NOTHING_SINCE)
            .put("because", self.because.as_str())
            .put("stated_unix_ms", self.stated_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        fields.expect("statement", NOTHING_SINCE)?;
        Ok(Self {
            origin: fields.string("origin")?,
            tree: KnownTree {
                size: fields.int("size")?,
                root: fields.digest("root_hash_hex")?.0,
            },
            because: fields.string("because")?,
            stated_unix_ms: fields.int("stated_unix_ms")?,
        })
    }
}

/// A size and root that a log had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownTree {
    /// How many entries it has.
    pub size: u64,
    /// Its root hash (RFC 9162).
    pub root: [u8; 32],
}

/// `log_restarted`: the log goes on under another name, because its end was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRestarted {
    /// The name from here on.
    pub origin: String,
    /// The name so far.
    pub old_origin: String,
    /// The tree of the entries before this one: the part of the old log that is left.
    pub old: KnownTree,
    /// The largest tree that an anchor remembered, if one did: the lost entries lie between the
    /// two.
    pub known: Option<KnownTree>,
    /// The operator's reason; 1–256 bytes.
    pub because: String,
    /// When, in Unix milliseconds.
    pub restarted_unix_ms: u64,
}

impl LogRestarted {
    pub(crate) fn write(&self) -> cj::Object {
        let mut object = cj::Object::new()
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
        object
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        // A root without a size stays unread, and the caller's `finish` refuses it.
        let known = match fields.maybe_int("known_size")? {
            None => None,
            Some(size) => Some(KnownTree {
                size,
                root: fields.digest("known_root_hash_hex")?.0,
            }),
        };
        Ok(Self {
            origin: fields.string("origin")?,
            old_origin: fields.string("old_origin")?,
            old: KnownTree {
                size: fields.int("old_size")?,
                root: fields.digest("old_root_hash_hex")?.0,
            },
            known,
            because: fields.string("because")?,
            restarted_unix_ms: fields.int("restarted_unix_ms")?,
        })
    }
}

/// `holdout_charged`: bits beyond those of the capsules in this log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldoutCharged {
    /// The holdout that is charged.
    pub holdout: HoldoutId,
    /// Charged to its answer part.
    pub answers: MicroBits,
    /// Charged to its sealed part.
    pub sealed: MicroBits,
    /// True if the operator stated the charge; false if the holdout is exhausted.
    pub stated: bool,
    /// When, in Unix milliseconds.
    pub charged_unix_ms: u64,
}

impl HoldoutCharged {
    pub(crate) fn write(&self) -> cj::Object {
        cj::Object::new()
            .put("holdout_id_hex", self.holdout.to_hex())
            .put("answers_microbits", self.answers.0)
            .put("sealed_microbits", self.sealed.0)
            .put("basis", if self.stated { "stated" } else { "exhausted" })
            .put("charged_unix_ms", self.charged_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            holdout: fields.holdout()?,
            answers: fields.bits("answers_microbits")?,
            sealed: fields.bits("sealed_microbits")?,
            stated: fields.word("basis", |basis| match basis {
                "stated" => Some(true),
                "exhausted" => Some(false),
                _ => None,
            })?,
            charged_unix_ms: fields.int("charged_unix_ms")?,
        })
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
        let continued = LogContinued {
            origin: "example.org/log".to_owned(),
            tree: KnownTree {
                size: 5,
                root: [2; 32],
            },
            because: "the volume moved".to_owned(),
            stated_unix_ms: 7,
        };
        assert_eq!(LogContinued::parse(&continued.to_bytes()), Ok(continued));
        for (begun_by, word) in [
            (BegunBy::NewKey, "\"begun_by\":\"new_key\""),
            (BegunBy::Anchor, "\"begun_by\":\"anchor\""),
            (BegunBy::Operator, "\"begun_by\":\"operator\""),
        ] {
            let first = LogStarted {
                origin: "example.org/log".to_owned(),
                key_id: Digest([1; 32]),
                software: "test".to_owned(),
                begun_by: Some(begun_by),
                started_unix_ms: 9,
            };
            assert_eq!(LogStarted::parse(&first.to_bytes()), Ok(first.clone()));
            let text = String::from_utf8(first.to_bytes()).expect("text");
            assert!(text.contains(word), "{text}");
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
