//! Entries about a claim's end: its capsule, and a revocation if there is one.

use super::fields::Fields;
use crate::{
    bits::MicroBits,
    cj,
    claim::{Outcome, Reason},
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
    price::Multiplicity,
    record::RecordError,
};

/// The canonical record of a settled claim. Its SHA-256 is the capsule hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capsule {
    /// The claim that was settled.
    pub claim_id: ClaimId,
    /// `D("evidenceos:topic:v3", holdout id ‖ null spec hash)`.
    pub topic_id: Digest,
    /// SHA-256 of what the guest emitted.
    pub structured_output_hash: Digest,
    /// Tag of the owner, under a key of the log's.
    pub owner_tag: OwnerTag,
    /// The holdout that it was judged on.
    pub holdout_id: HoldoutId,
    /// Hash of the holdout policy that it was settled under.
    pub policy_hash: Digest,
    /// Hash of the null spec that the evidence was measured against.
    pub null_spec_hash: Digest,
    /// SHA-256 of its module.
    pub wasm_hash: Digest,
    /// Hash of everything that its seal bound.
    pub seal_hash: Digest,
    /// Capsule hashes of the parents, sorted.
    pub dependencies: Vec<Digest>,
    /// SHA-256 of the run's trace.
    pub trace_hash: Digest,
    pub outcome: Outcome,
    /// Codes of the reasons, sorted and without repetition.
    pub reason_codes: Vec<u16>,
    /// The run's questions and their charge.
    pub answers: AnswerTally,
    /// The terms of its settlement.
    pub ledger: Ledger,
    /// Items of the answer part and of the sealed part, and units of the sealed part.
    pub items: (u64, u64, u64),
    /// Exponent of the released e-value, if the claim is certified.
    pub e_value_log2: Option<u64>,
    /// Fuel that the guest used.
    pub fuel: u64,
    /// When it was settled, in Unix milliseconds.
    pub settled_unix_ms: u64,
    /// The engine that ran the guest, with its version.
    pub engine: String,
    /// The run's place in the holdout's order and its reservations; releases before 2.2 did not
    /// state it.
    pub run: Option<RunPlace>,
    /// The claim that asked the same before and was judged; only with [`Reason::Duplicate`].
    pub duplicate_of: Option<ClaimId>,
}

/// A run's place in its holdout's order, and its worst case at its admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunPlace {
    /// Its number in the order of admission, from 0: as many capsules of the holdout come before.
    pub number: u64,
    /// Runs of the holdout that had ended at its admission, at most `number`.
    pub ended_before: u64,
    /// Levels of the e-value that its claim may release.
    pub levels: u8,
    /// The most that its questions may be charged.
    pub answers_reserved: MicroBits,
    /// The worst case of its settlement; 0 for a duplicate.
    pub sealed_reserved: MicroBits,
}

impl RunPlace {
    fn to_object(self) -> cj::Object {
        cj::Object::new()
            .put("number", self.number)
            .put("ended_before", self.ended_before)
            .put("levels", u64::from(self.levels))
            .put("answers_reserved_microbits", self.answers_reserved.0)
            .put("sealed_reserved_microbits", self.sealed_reserved.0)
    }

    fn read(mut fields: Fields<'_>) -> Result<Self, RecordError> {
        let place = Self {
            number: fields.int("number")?,
            ended_before: fields.int("ended_before")?,
            levels: fields.int("levels")?,
            answers_reserved: fields.bits("answers_reserved_microbits")?,
            sealed_reserved: fields.bits("sealed_reserved_microbits")?,
        };
        fields.finish()?;
        Ok(place)
    }
}

/// A run's questions and their charge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerTally {
    /// The size of the alphabet.
    pub n_symbols: u32,
    /// Questions asked, including repeated and free ones.
    pub asked: u32,
    /// Repeated questions, answered again free.
    pub replayed: u32,
    /// How often each symbol was answered and charged: sorted by symbol, no zeros.
    pub by_symbol: Vec<(u32, u32)>,
    /// Charged to the answer pools.
    pub charged: MicroBits,
}

/// The terms of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ledger {
    /// k: charged to the sealed pool by claims admitted before.
    pub k: MicroBits,
    /// c: the price of the symbol "certified".
    pub c: MicroBits,
    /// Charged for this settlement.
    pub price: MicroBits,
    /// m: claims of the holdout that were judged before.
    pub settled_before: u64,
    /// s: claims of the holdout that were certified before.
    pub certified_before: u64,
    /// i = s + 1.
    pub ordinal: u64,
    /// α in millionths, before the division by `alpha_divisor`.
    pub alpha_micros: u32,
    /// α_i = α / divisor.
    pub alpha_divisor: u64,
    /// How α is shared among certifications.
    pub multiplicity: Multiplicity,
    /// The evidence that was needed.
    pub threshold: MicroBits,
}

impl Capsule {
    pub(crate) fn write(&self) -> cj::Object {
        let hashes = |digests: &[Digest]| -> Vec<cj::Value> {
            digests
                .iter()
                .map(|digest| digest.to_hex().into())
                .collect()
        };
        let by_symbol: Vec<cj::Value> = self
            .answers
            .by_symbol
            .iter()
            .map(|&(symbol, count)| {
                cj::Value::from(vec![
                    cj::Value::from(u64::from(symbol)),
                    cj::Value::from(u64::from(count)),
                ])
            })
            .collect();
        let answers = cj::Object::new()
            .put("n_symbols", u64::from(self.answers.n_symbols))
            .put("asked", u64::from(self.answers.asked))
            .put("replayed", u64::from(self.answers.replayed))
            .put("by_symbol", by_symbol)
            .put("charged_microbits", self.answers.charged.0);
        let ledger = cj::Object::new()
            .put("k_microbits", self.ledger.k.0)
            .put("c_microbits", self.ledger.c.0)
            .put("price_microbits", self.ledger.price.0)
            .put("settled_before", self.ledger.settled_before)
            .put("certified_before", self.ledger.certified_before)
            .put("ordinal", self.ledger.ordinal)
            .put("alpha_micros", u64::from(self.ledger.alpha_micros))
            .put("alpha_divisor", self.ledger.alpha_divisor)
            .put("multiplicity", self.ledger.multiplicity.as_str())
            .put("threshold_microbits", self.ledger.threshold.0);
        let (answer, sealed, units) = self.items;
        let items = cj::Object::new()
            .put("answer", answer)
            .put("sealed", sealed)
            .put("units", units);
        let reasons: Vec<cj::Value> = self
            .reason_codes
            .iter()
            .map(|&code| u64::from(code).into())
            .collect();
        let mut object = cj::Object::new()
            .put("claim_id_hex", self.claim_id.to_hex())
            .put("topic_id_hex", self.topic_id.to_hex())
            .put(
                "structured_output_hash_hex",
                self.structured_output_hash.to_hex(),
            )
            .put("owner_tag_hex", self.owner_tag.to_hex())
            .put("holdout_id_hex", self.holdout_id.to_hex())
            .put("policy_hash_hex", self.policy_hash.to_hex())
            .put("null_spec_hash_hex", self.null_spec_hash.to_hex())
            .put("wasm_hash_hex", self.wasm_hash.to_hex())
            .put("seal_hash_hex", self.seal_hash.to_hex())
            .put("dependencies", hashes(&self.dependencies))
            .put("trace_hash_hex", self.trace_hash.to_hex())
            .put("outcome", self.outcome.as_str())
            .put("reason_codes", reasons)
            .put("answers", answers)
            .put("ledger", ledger)
            .put("items", items)
            .put("fuel", self.fuel)
            .put("settled_unix_ms", self.settled_unix_ms)
            .put("engine", self.engine.as_str());
        if let Some(exponent) = self.e_value_log2 {
            object = object.put("e_value_log2", exponent);
        }
        if let Some(run) = self.run {
            object = object.put("run", run.to_object());
        }
        if let Some(earlier) = self.duplicate_of {
            object = object.put("duplicate_of_hex", earlier.to_hex());
        }
        object
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        let mut answers = fields.object("answers")?;
        let mut ledger = fields.object("ledger")?;
        let mut items = fields.object("items")?;
        let capsule = Self {
            claim_id: ClaimId(fields.digest("claim_id_hex")?.0),
            topic_id: fields.digest("topic_id_hex")?,
            structured_output_hash: fields.digest("structured_output_hash_hex")?,
            owner_tag: fields.word("owner_tag_hex", OwnerTag::from_hex)?,
            holdout_id: fields.holdout()?,
            policy_hash: fields.digest("policy_hash_hex")?,
            null_spec_hash: fields.digest("null_spec_hash_hex")?,
            wasm_hash: fields.digest("wasm_hash_hex")?,
            seal_hash: fields.digest("seal_hash_hex")?,
            dependencies: fields.array("dependencies", |value| match value {
                cj::Value::Str(text) => Digest::from_hex(&text),
                _ => None,
            })?,
            trace_hash: fields.digest("trace_hash_hex")?,
            outcome: fields.word("outcome", Outcome::parse)?,
            reason_codes: fields.array("reason_codes", |value| match value {
                cj::Value::Int(code) => u16::try_from(code).ok(),
                _ => None,
            })?,
            answers: AnswerTally {
                n_symbols: answers.int("n_symbols")?,
                asked: answers.int("asked")?,
                replayed: answers.int("replayed")?,
                by_symbol: answers.array("by_symbol", symbol_count)?,
                charged: answers.bits("charged_microbits")?,
            },
            ledger: Ledger {
                k: ledger.bits("k_microbits")?,
                c: ledger.bits("c_microbits")?,
                price: ledger.bits("price_microbits")?,
                settled_before: ledger.int("settled_before")?,
                certified_before: ledger.int("certified_before")?,
                ordinal: ledger.int("ordinal")?,
                alpha_micros: ledger.int("alpha_micros")?,
                alpha_divisor: ledger.int("alpha_divisor")?,
                multiplicity: ledger.word("multiplicity", Multiplicity::parse)?,
                threshold: ledger.bits("threshold_microbits")?,
            },
            items: (
                items.int("answer")?,
                items.int("sealed")?,
                items.int("units")?,
            ),
            e_value_log2: fields.maybe_int("e_value_log2")?,
            fuel: fields.int("fuel")?,
            settled_unix_ms: fields.int("settled_unix_ms")?,
            engine: fields.string("engine")?,
            run: fields
                .maybe_object("run")?
                .map(RunPlace::read)
                .transpose()?,
            duplicate_of: fields
                .maybe_digest("duplicate_of_hex")?
                .map(|earlier| ClaimId(earlier.0)),
        };
        // The caller calls `finish` on `fields` alone: an unknown field within these objects would
        // pass.
        for rest in [answers, ledger, items] {
            rest.finish()?;
        }
        Ok(capsule)
    }

    /// SHA-256 of the canonical bytes.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }
}

fn symbol_count(value: cj::Value) -> Option<(u32, u32)> {
    let cj::Value::Array(pair) = value else {
        return None;
    };
    match pair.as_slice() {
        [cj::Value::Int(symbol), cj::Value::Int(count)] => {
            Some((u32::try_from(*symbol).ok()?, u32::try_from(*count).ok()?))
        }
        _ => None,
    }
}

/// `claim_revoked`: a settled claim no longer counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRevoked {
    /// The claim that is revoked.
    pub claim: ClaimId,
    /// The hash of its capsule.
    pub capsule: Digest,
    /// The revoker's reason.
    pub reason: String,
    /// When, in Unix milliseconds.
    pub revoked_unix_ms: u64,
}

impl ClaimRevoked {
    pub(crate) fn write(&self) -> cj::Object {
        cj::Object::new()
            .put("claim_id_hex", self.claim.to_hex())
            .put("capsule_hash_hex", self.capsule.to_hex())
            .put("reason", self.reason.as_str())
            .put("revoked_unix_ms", self.revoked_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            claim: ClaimId(fields.digest("claim_id_hex")?.0),
            capsule: fields.digest("capsule_hash_hex")?,
            reason: fields.string("reason")?,
            revoked_unix_ms: fields.int("revoked_unix_ms")?,
        })
    }
}

/// The codes of reasons, sorted and without repetition.
#[must_use]
pub fn reason_codes(reasons: &[Reason]) -> Vec<u16> {
    let mut codes: Vec<u16> = reasons.iter().map(|reason| reason.code()).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}
