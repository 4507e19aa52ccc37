//! Records of decisions on tool calls, which their callers can show later.
//!
//! A [`DecisionRecord`] is canonical JSON with its own salt, kept beside the log and given to the
//! caller that it concerns. The log has only the Merkle root of a batch of them
//! ([`DecisionBatch`]), so the public learns the number of decisions and nothing of their content.
//! Session names, agent names and parameters are digests in the record itself.
//!
//! `leaf = SHA-256(0x00 ‖ record)`; the root is RFC 9162's over the leaves of a batch.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    cj,
    id::{Digest, OwnerTag, canonical_hex},
    record::{RecordError, fields::Fields},
};

/// The `schema` of a decision's record.
pub const DECISION: &str = "evidenceos.v2.decision";

/// Capacity in bytes that most records fit in.
const TYPICAL_BYTES: usize = 640;

/// The most decisions in a batch.
pub const MAX_BATCH: usize = 1_024;

/// A decision's number: the high 24 bits count the daemon's starts, the low 40 its decisions.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct DecisionId(pub u64);

impl DecisionId {
    /// The first decision of a start.
    #[must_use]
    pub fn first_of(epoch: u64) -> Self {
        Self(epoch << 40)
    }

    /// The daemon start that it belongs to.
    #[must_use]
    pub fn epoch(self) -> u64 {
        self.0 >> 40
    }

    /// The number of the next decision of the same start.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// Reads 16 lower-case hex digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        canonical_hex(text).map(|bytes| Self(u64::from_be_bytes(bytes)))
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The subject of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Gate {
    /// A tool call before it is made.
    Preflight,
    /// A tool call after it was made.
    Postflight,
    /// A module that is to become a tool.
    Admission,
    /// A claim that was created or executed by a principal that probes.
    Claim,
}

impl Gate {
    const ALL: [Self; 4] = [
        Self::Preflight,
        Self::Postflight,
        Self::Admission,
        Self::Claim,
    ];

    /// The gate's word in records.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Postflight => "postflight",
            Self::Admission => "admission",
            Self::Claim => "claim",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|gate| gate.word() == word)
    }
}

/// A decision about one tool call, as the log commits to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRecord {
    pub id: DecisionId,
    /// The subject of the decision.
    pub gate: Gate,
    /// When, in Unix milliseconds.
    pub decided_unix_ms: u64,
    /// The principal that asked for the decision.
    pub owner: OwnerTag,
    /// The tool's name; 1–128 bytes.
    pub tool_name: String,
    /// SHA-256 of the parameters as canonical JSON, or of the module if one was admitted.
    pub params_hash: Digest,
    /// SHA-256 of the session's name.
    pub session_hash: Option<Digest>,
    /// SHA-256 of the agent's name.
    pub agent_hash: Option<Digest>,
    /// The decision, in the wire's words.
    pub decision: String,
    /// The reason, in the wire's words.
    pub reason: String,
    /// Digest of the policy modules that were asked.
    pub policies: Digest,
    /// The policy module that objected, and its code.
    pub policy: Option<(String, u16)>,
    /// SHA-256 of the tool's output.
    pub output_hash: Option<Digest>,
    /// The receipt that the reply named, if it is not this record's own leaf.
    pub reply_receipt: Option<Digest>,
    /// The receipt of the preflight that a postflight follows.
    pub preflight_receipt: Option<Digest>,
    /// Random bytes that keep the leaf from being guessed.
    pub salt: [u8; 16],
}

impl DecisionRecord {
    /// The record as canonical JSON, the bytes that its leaf hashes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self {
            output_hash,
            reply_receipt,
            preflight_receipt,
            ..
        } = self;
        // The writer takes fields only in the order of their keys: it cannot sort written fields.
        let mut record = cj::Writer::with_capacity(TYPICAL_BYTES)
            .hex_if("agent_sha256_hex", self.agent_hash.map(|hash| hash.0))
            .int("decided_unix_ms", self.decided_unix_ms)
            .str("decision", &self.decision)
            .hex("decision_id_hex", &self.id.0.to_be_bytes())
            .str("gate", self.gate.word())
            .hex_if("output_sha256_hex", output_hash.map(|hash| hash.0))
            .hex("owner_tag_hex", &self.owner.0)
            .hex("params_sha256_hex", &self.params_hash.0)
            .hex("policies_sha256_hex", &self.policies.0);
        if let Some((oracle, code)) = &self.policy {
            record = record
                .int("policy_code", u64::from(*code))
                .str("policy_oracle", oracle);
        }
        record
            .hex_if(
                "preflight_receipt_hex",
                preflight_receipt.map(|hash| hash.0),
            )
            .str("reason", &self.reason)
            .hex_if("reply_receipt_hex", reply_receipt.map(|hash| hash.0))
            .hex("salt_hex", &self.salt)
            .str("schema", DECISION)
            .hex_if("session_sha256_hex", self.session_hash.map(|hash| hash.0))
            .str("tool_name", &self.tool_name)
            .to_bytes()
    }

    /// Reads the canonical bytes.
    ///
    /// # Errors
    /// [`RecordError`] if the bytes are not exactly such a record.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::parse(bytes)?;
        fields.expect("schema", DECISION)?;
        let record = Self {
            id: fields.word("decision_id_hex", DecisionId::from_hex)?,
            gate: fields.word("gate", Gate::of_word)?,
            decided_unix_ms: fields.int("decided_unix_ms")?,
            owner: fields.word("owner_tag_hex", OwnerTag::from_hex)?,
            tool_name: fields.string("tool_name")?,
            params_hash: fields.digest("params_sha256_hex")?,
            session_hash: fields.maybe_digest("session_sha256_hex")?,
            agent_hash: fields.maybe_digest("agent_sha256_hex")?,
            decision: fields.string("decision")?,
            reason: fields.string("reason")?,
            policies: fields.digest("policies_sha256_hex")?,
            policy: if fields.has("policy_oracle") {
                Some((fields.string("policy_oracle")?, fields.int("policy_code")?))
            } else {
                None
            },
            output_hash: fields.maybe_digest("output_sha256_hex")?,
            reply_receipt: fields.maybe_digest("reply_receipt_hex")?,
            preflight_receipt: fields.maybe_digest("preflight_receipt_hex")?,
            salt: fields.word("salt_hex", canonical_hex)?,
        };
        fields.finish()?;
        Ok(record)
    }
}

/// Decisions that go into the log together, one number after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionBatch {
    /// The number of the first decision.
    pub first: DecisionId,
    pub count: u32,
    /// Root of the Merkle tree over them.
    pub root: Digest,
}

impl DecisionBatch {
    /// The number of the last one.
    #[must_use]
    pub fn last(&self) -> DecisionId {
        DecisionId(self.first.0 + u64::from(self.count.saturating_sub(1)))
    }
}

/// `decision_batch`: a batch as the log's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRecorded {
    /// From 1 to [`MAX_BATCH`] decisions.
    pub batch: DecisionBatch,
    /// When, in Unix milliseconds.
    pub recorded_unix_ms: u64,
}

impl BatchRecorded {
    pub(crate) fn write(&self) -> cj::Object {
        let batch = &self.batch;
        cj::Object::new()
            .put("first_decision_hex", batch.first.to_string())
            .put("count", u64::from(batch.count))
            .put("root_hex", batch.root.to_hex())
            .put("recorded_unix_ms", self.recorded_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        let batch = DecisionBatch {
            first: fields.word("first_decision_hex", DecisionId::from_hex)?,
            count: fields.int("count")?,
            root: fields.digest("root_hex")?,
        };
        let recorded_unix_ms = fields.int("recorded_unix_ms")?;
        let wrong_count = |rule: String| RecordError::Value {
            field: "count".to_owned(),
            rule,
        };
        if batch.count == 0 || batch.count as usize > MAX_BATCH {
            return Err(wrong_count(format!("must be from 1 to {MAX_BATCH}")));
        }
        // Otherwise a log made by a stranger could make its verifier overflow at the number of the
        // last decision.
        let last = batch.first.0.checked_add(u64::from(batch.count - 1));
        if last.is_none() {
            let rule = "must leave the last decision a number";
            return Err(wrong_count(rule.to_owned()));
        }
        Ok(Self {
            batch,
            recorded_unix_ms,
        })
    }
}

/// The value of a decision receipt's `format`.
pub const RECEIPT_FORMAT: &str = "evidenceos.decision_receipt.v1";

/// A decision with everything that proves it, as the file has it: texts as they were hashed, hashes
/// as hex. `evidenceos-verify` checks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionReceipt {
    /// Always [`RECEIPT_FORMAT`] in this release.
    pub format: String,
    /// The record's canonical JSON, as it was hashed.
    pub record: String,
    /// The record's place in the batch, from 0.
    pub position: u32,
    /// The path from the record to the batch's root.
    pub batch_path: Vec<String>,
    /// The batch's entry in the log.
    pub entry: String,
    /// The entry's index, from 0.
    pub index: u64,
    /// The path from the entry to the log's root.
    pub inclusion: Vec<String>,
    /// The signed note that states the log's root.
    pub checkpoint: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> DecisionRecord {
        DecisionRecord {
            id: DecisionId::first_of(3).next(),
            gate: Gate::Preflight,
            decided_unix_ms: 1_795_000_000_000,
            owner: OwnerTag([1; 16]),
            tool_name: "search.web".to_owned(),
            params_hash: Digest([2; 32]),
            session_hash: None,
            agent_hash: None,
            decision: "ALLOW".to_owned(),
            reason: "PROBE_CLEAN".to_owned(),
            policies: Digest([0; 32]),
            policy: None,
            output_hash: None,
            reply_receipt: None,
            preflight_receipt: None,
            salt: [7; 16],
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let full = DecisionRecord {
            gate: Gate::Postflight,
            session_hash: Some(Digest([3; 32])),
            agent_hash: Some(Digest([4; 32])),
            policy: Some(("no-pipes".to_owned(), 9_001)),
            output_hash: Some(Digest([5; 32])),
            reply_receipt: Some(Digest([6; 32])),
            preflight_receipt: Some(Digest([7; 32])),
            ..record()
        };
        for record in [record(), full] {
            assert_eq!(DecisionRecord::parse(&record.to_bytes()), Ok(record));
        }
    }

    #[test]
    fn a_record_is_these_bytes() {
        let bytes = String::from_utf8(record().to_bytes()).expect("text");
        let zeros = "0".repeat(64);
        let expected = format!(
            r#"{{"decided_unix_ms":1795000000000,"decision":"ALLOW","decision_id_hex":"0000030000000001","gate":"preflight","owner_tag_hex":"{}","params_sha256_hex":"{}","policies_sha256_hex":"{zeros}","reason":"PROBE_CLEAN","salt_hex":"{}","schema":"evidenceos.v2.decision","tool_name":"search.web"}}"#,
            "01".repeat(16),
            "02".repeat(32),
            "07".repeat(16),
        );
        assert_eq!(bytes, expected);
    }

    #[test]
    fn anything_more_or_less_is_not_a_record() {
        let good = String::from_utf8(record().to_bytes()).expect("text");
        let cases = [
            good.replace("preflight", "inflight"),
            good.replace(r#""schema":"evidenceos.v2.decision","#, ""),
            good.replace(r#""tool_name""#, r#""tool_nbme""#),
            good.replace("07070707", "0707070"),
            // Found by fuzzing: another text for the same bytes.
            good.replace(&"02".repeat(32), &"0A".repeat(32)),
            good.replace(
                "0000030000000001",
                "0000030000000001".replace('3', "A").as_str(),
            ),
            good.replace(r#","tool_name""#, r#","session_sha256_hex":1,"tool_name""#),
        ];
        for text in cases {
            assert!(DecisionRecord::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_batch_is_read_as_it_was_written_and_is_never_empty() {
        let batch = DecisionBatch {
            first: DecisionId(42),
            count: 3,
            root: Digest([9; 32]),
        };
        let recorded = |batch| BatchRecorded {
            batch,
            recorded_unix_ms: 17,
        };
        assert_eq!(
            BatchRecorded::parse(&recorded(batch).to_bytes()),
            Ok(recorded(batch))
        );
        assert_eq!(batch.last(), DecisionId(44));
        for count in [0, 1_025] {
            let entry = recorded(DecisionBatch { count, ..batch }).to_bytes();
            assert!(BatchRecorded::parse(&entry).is_err(), "{count}");
        }
    }

    #[test]
    fn a_batch_has_no_decision_beyond_the_last_number() {
        // Found while writing the fuzz target `receipt`: the number of the last decision did not fit.
        for (count, fits) in [(1, true), (2, false), (1_024, false)] {
            let first = DecisionId(u64::MAX);
            let root = Digest([9; 32]);
            let entry = BatchRecorded {
                batch: DecisionBatch { first, count, root },
                recorded_unix_ms: 17,
            };
            let read = BatchRecorded::parse(&entry.to_bytes());
            assert_eq!(read.is_ok(), fits, "{count}");
        }
    }
}
