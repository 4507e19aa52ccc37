//! Public records: the log's entries, byte for byte.
//!
//! An entry is a canonical JSON object whose `schema` names its kind. What an auditor needs to
//! recompute every debit, price and threshold is here; labels, names that submitters chose and
//! principals are not.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a reader wants one kind of value and refuses every other"
)]

use thiserror::Error;

use crate::{
    bits::MicroBits,
    cj,
    claim::{Outcome, Reason},
    evidence::Strategy,
    holdout::{Description, NarrowerBudgets, NullSpec, Policy},
    id::{ClaimId, Digest, HoldoutId, OwnerTag, canonical_hex},
    log_key::{KeyLink, SignedKeyLink},
    price::{AnswerPrices, Multiplicity, SettlementPrices},
};

/// The first entry of a log.
pub const LOG_STARTED: &str = "evidenceos.v2.log_started";
/// A holdout's description.
pub const HOLDOUT_REGISTERED: &str = "evidenceos.v2.holdout_registered";
/// A holdout takes no more claims.
pub const HOLDOUT_RETIRED: &str = "evidenceos.v2.holdout_retired";
/// A holdout's labels are public.
pub const HOLDOUT_OPENED: &str = "evidenceos.v2.holdout_opened";
/// A settled claim.
pub const CLAIM_CAPSULE: &str = "evidenceos.v2.claim_capsule";
/// A withdrawn claim.
pub const CLAIM_REVOKED: &str = "evidenceos.v2.claim_revoked";
/// Other budgets of a holdout from here on.
pub const HOLDOUT_POLICY: &str = "evidenceos.v2.holdout_policy";
/// A new column of labels was compared with a holdout's.
pub const HOLDOUT_COMPARED: &str = "evidenceos.v2.holdout_compared";
/// A holdout that released nothing takes no claims, and its labels may be registered again.
pub const HOLDOUT_WITHDRAWN: &str = "evidenceos.v2.holdout_withdrawn";

/// Another key signs the log.
pub const KEY_ROTATED: &str = "evidenceos.v2.key_rotated";
/// A principal was given credit.
pub const CREDIT_GRANTED: &str = "evidenceos.v2.credit_granted";
/// Accounts became what a file says.
pub const ACCOUNTS_IMPORTED: &str = "evidenceos.v2.accounts_imported";

/// The largest entry: a tile bundle counts its length in two bytes.
pub const MAX_ENTRY_LEN: usize = 65_535;

/// Why bytes are not the record that they were taken for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Not canonical JSON.
    #[error("not canonical JSON: {0}")]
    Json(#[from] cj::CjError),
    /// A field is missing, or not of its kind.
    #[error("field {0:?} is missing or not of its kind")]
    Field(String),
    /// A field that the record does not have.
    #[error("unknown field {0:?}")]
    Unknown(String),
    /// A value out of its range.
    #[error("field {field:?}: {rule}")]
    Value {
        /// The field.
        field: String,
        /// The rule.
        rule: String,
    },
}

/// `log_started`: entry 0.
#[must_use]
pub fn log_started(origin: &str, key_id: Digest, software: &str, unix_ms: u64) -> Vec<u8> {
    cj::Object::new()
        .put("schema", LOG_STARTED)
        .put("origin", origin)
        .put("key_id_hex", key_id.to_hex())
        .put("software", software)
        .put("started_unix_ms", unix_ms)
        .to_bytes()
}

/// `credit_granted`: to whom, how much, why.
#[must_use]
pub fn credit_granted(owner: OwnerTag, amount: u64, reason: &str, unix_ms: u64) -> Vec<u8> {
    cj::Object::new()
        .put("schema", CREDIT_GRANTED)
        .put("owner_tag_hex", owner.to_hex())
        .put("amount", amount)
        .put("reason", reason)
        .put("granted_unix_ms", unix_ms)
        .to_bytes()
}

/// `accounts_imported`: how many accounts became what which file says, and why.
#[must_use]
pub fn accounts_imported(accounts: u64, file: Digest, reason: &str, unix_ms: u64) -> Vec<u8> {
    cj::Object::new()
        .put("schema", ACCOUNTS_IMPORTED)
        .put("accounts", accounts)
        .put("file_sha256_hex", file.to_hex())
        .put("reason", reason)
        .put("imported_unix_ms", unix_ms)
        .to_bytes()
}

/// The name under which a log began, as its entry 0 says.
#[must_use]
pub fn started_as(entry: &[u8]) -> Option<String> {
    let mut fields = Fields::parse(entry).ok()?;
    fields.expect("schema", LOG_STARTED).ok()?;
    fields.string("origin").ok()
}

/// `holdout_retired`.
#[must_use]
pub fn holdout_retired(holdout: HoldoutId, reason: &str, unix_ms: u64) -> Vec<u8> {
    cj::Object::new()
        .put("schema", HOLDOUT_RETIRED)
        .put("holdout_id_hex", holdout.to_hex())
        .put("reason", reason)
        .put("retired_unix_ms", unix_ms)
        .to_bytes()
}

/// `holdout_opened`: the opening itself is larger than an entry, and bound already by the
/// commitment in the description.
#[must_use]
pub fn holdout_opened(holdout: HoldoutId, unix_ms: u64) -> Vec<u8> {
    cj::Object::new()
        .put("schema", HOLDOUT_OPENED)
        .put("holdout_id_hex", holdout.to_hex())
        .put("opened_unix_ms", unix_ms)
        .to_bytes()
}

/// `holdout_withdrawn`.
#[must_use]
pub fn holdout_withdrawn(holdout: HoldoutId, reason: &str, unix_ms: u64) -> Vec<u8> {
    cj::Object::new()
        .put("schema", HOLDOUT_WITHDRAWN)
        .put("holdout_id_hex", holdout.to_hex())
        .put("reason", reason)
        .put("withdrawn_unix_ms", unix_ms)
        .to_bytes()
}

/// `holdout_policy`: the budgets that hold for admissions from this entry on. A budget that is
/// absent is the registered one; an absent credit budget is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetsChanged {
    /// The holdout.
    pub holdout: HoldoutId,
    /// The budgets, each at most the registered one.
    pub budgets: NarrowerBudgets,
    /// When, in Unix milliseconds.
    pub changed_unix_ms: u64,
}

impl BudgetsChanged {
    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut object = cj::Object::new()
            .put("schema", HOLDOUT_POLICY)
            .put("holdout_id_hex", self.holdout.to_hex())
            .put("changed_unix_ms", self.changed_unix_ms);
        for (name, budget) in [
            (
                "sealed_budget_microbits",
                self.budgets.sealed.map(MicroBits::get),
            ),
            (
                "principal_answer_budget_microbits",
                self.budgets.principal_answers.map(MicroBits::get),
            ),
            ("credit_budget", self.budgets.credit),
        ] {
            if let Some(budget) = budget {
                object = object.put(name, budget);
            }
        }
        object.to_bytes()
    }

    /// Reads such an entry.
    ///
    /// # Errors
    /// [`RecordError`] if the bytes are not such an entry.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::parse(bytes)?;
        fields.expect("schema", HOLDOUT_POLICY)?;
        let changed = Self {
            holdout: HoldoutId(fields.digest("holdout_id_hex")?.0),
            budgets: NarrowerBudgets {
                sealed: fields.maybe_int("sealed_budget_microbits")?.map(MicroBits),
                principal_answers: fields
                    .maybe_int("principal_answer_budget_microbits")?
                    .map(MicroBits),
                credit: fields.maybe_int("credit_budget")?,
            },
            changed_unix_ms: fields.int("changed_unix_ms")?,
        };
        fields.finish()?;
        Ok(changed)
    }
}

/// `holdout_compared`: whether a column of labels that somebody registers agrees with this
/// holdout's beyond chance. The answer is a symbol about both of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared {
    /// The earlier holdout.
    pub holdout: HoldoutId,
    /// Whether the columns agree; then the registration was refused.
    pub agrees: bool,
    /// Charged to its answer pool.
    pub answers: MicroBits,
    /// Charged to its sealed pool.
    pub sealed: MicroBits,
    /// When, in Unix milliseconds.
    pub compared_unix_ms: u64,
}

impl Compared {
    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        cj::Object::new()
            .put("schema", HOLDOUT_COMPARED)
            .put("holdout_id_hex", self.holdout.to_hex())
            .put("agrees", self.agrees)
            .put("answers_microbits", self.answers.0)
            .put("sealed_microbits", self.sealed.0)
            .put("compared_unix_ms", self.compared_unix_ms)
            .to_bytes()
    }

    /// Reads such an entry.
    ///
    /// # Errors
    /// [`RecordError`] if the bytes are not such an entry.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::parse(bytes)?;
        fields.expect("schema", HOLDOUT_COMPARED)?;
        let compared = Self {
            holdout: HoldoutId(fields.digest("holdout_id_hex")?.0),
            agrees: fields.flag("agrees")?,
            answers: MicroBits(fields.int("answers_microbits")?),
            sealed: MicroBits(fields.int("sealed_microbits")?),
            compared_unix_ms: fields.int("compared_unix_ms")?,
        };
        fields.finish()?;
        Ok(compared)
    }
}

/// `claim_revoked`.
#[must_use]
pub fn claim_revoked(claim: ClaimId, capsule: Digest, reason: &str, unix_ms: u64) -> Vec<u8> {
    cj::Object::new()
        .put("schema", CLAIM_REVOKED)
        .put("claim_id_hex", claim.to_hex())
        .put("capsule_hash_hex", capsule.to_hex())
        .put("reason", reason)
        .put("revoked_unix_ms", unix_ms)
        .to_bytes()
}

/// Reads a `claim_revoked` entry: the claim, why, and when.
///
/// # Errors
/// Where the bytes are not such an entry.
pub fn parse_claim_revoked(bytes: &[u8]) -> Result<(ClaimId, String, u64), RecordError> {
    let mut fields = Fields::parse(bytes)?;
    fields.expect("schema", CLAIM_REVOKED)?;
    let claim = ClaimId(fields.digest("claim_id_hex")?.0);
    fields.digest("capsule_hash_hex")?;
    let revoked = (
        claim,
        fields.string("reason")?,
        fields.int("revoked_unix_ms")?,
    );
    fields.finish()?;
    Ok(revoked)
}

/// The latest time, in Unix milliseconds, that an entry says of itself.
#[must_use]
pub fn time_of(entry: &[u8]) -> Option<u64> {
    let cj::Value::Object(fields) = cj::parse(entry, MAX_ENTRY_LEN).ok()? else {
        return None;
    };
    fields
        .iter()
        .filter(|(name, _)| name.ends_with("_unix_ms"))
        .filter_map(|(_, value)| value.as_int())
        .max()
}

/// The holdout that an entry names as its own.
#[must_use]
pub fn holdout_of(entry: &[u8]) -> Option<HoldoutId> {
    let mut fields = Fields::parse(entry).ok()?;
    Some(HoldoutId(fields.digest("holdout_id_hex").ok()?.0))
}

/// `key_rotated`: the statement, and both signatures over its digest.
#[must_use]
pub fn key_rotated(signed: &SignedKeyLink, unix_ms: u64) -> Vec<u8> {
    signed
        .link
        .to_object()
        .put("schema", KEY_ROTATED)
        .put("old_signature_hex", hex::encode(signed.old_signature))
        .put("new_signature_hex", hex::encode(signed.new_signature))
        .put("rotated_unix_ms", unix_ms)
        .to_bytes()
}

/// Reads a `key_rotated` entry. Its signatures are the reader's to check.
///
/// # Errors
/// Where the bytes are not such an entry.
pub fn parse_key_rotated(bytes: &[u8]) -> Result<SignedKeyLink, RecordError> {
    let mut fields = Fields::parse(bytes)?;
    fields.expect("schema", KEY_ROTATED)?;
    let signed = SignedKeyLink {
        link: KeyLink {
            origin: fields.string("origin")?,
            old_public_key: fields.digest("old_public_key_hex")?.0,
            new_public_key: fields.digest("new_public_key_hex")?.0,
            tree_size: fields.int("tree_size")?,
            root: fields.digest("root_hash_hex")?.0,
        },
        old_signature: fields.signature("old_signature_hex")?,
        new_signature: fields.signature("new_signature_hex")?,
    };
    fields.int::<u64>("rotated_unix_ms")?;
    fields.finish()?;
    Ok(signed)
}

/// `holdout_registered`; its digest is the holdout's id.
#[must_use]
pub fn holdout_registered(reference: &str, description: &Description, unix_ms: u64) -> Vec<u8> {
    let mut object = cj::Object::new()
        .put("schema", HOLDOUT_REGISTERED)
        .put("ref", reference)
        .put("items", description.items)
        .put("units", description.units)
        .put("element", "u8_binary")
        .put("answer_items", description.answer_items)
        .put("sealed_items", description.sealed_items)
        .put("sealed_units", description.sealed_units)
        .put("commitment_root_hex", description.commitment_root.to_hex())
        .put(
            "secret_commitment_hex",
            description.secret_commitment.to_hex(),
        )
        .put("policy", description.policy.to_object())
        .put("null_spec", description.null_spec.to_object())
        .put("registered_unix_ms", unix_ms);
    if let Some(hash) = description.item_order_hash {
        object = object.put("item_order_hash_hex", hash.to_hex());
    }
    if description.fresh_items {
        object = object.put("fresh_items", true);
    }
    if let Some(withdrawn) = description.replaces {
        object = object.put("replaces_hex", withdrawn.to_hex());
    }
    object.to_bytes()
}

/// The handle of a holdout: `D("evidenceos:holdout:v1", entry)`.
#[must_use]
pub fn holdout_id(entry: &[u8]) -> HoldoutId {
    HoldoutId(Digest::domain("evidenceos:holdout:v1", entry).0)
}

/// The canonical record of a settled claim. Its SHA-256 is the capsule hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capsule {
    /// The claim.
    pub claim_id: ClaimId,
    /// Its topic.
    pub topic_id: Digest,
    /// SHA-256 of what the guest emitted.
    pub structured_output_hash: Digest,
    /// Its owner.
    pub owner_tag: OwnerTag,
    /// The holdout.
    pub holdout_id: HoldoutId,
    /// The policy that it was settled under.
    pub policy_hash: Digest,
    /// The null spec.
    pub null_spec_hash: Digest,
    /// The module.
    pub wasm_hash: Digest,
    /// Everything that was bound.
    pub seal_hash: Digest,
    /// Capsule hashes of the parents, sorted.
    pub dependencies: Vec<Digest>,
    /// The trace.
    pub trace_hash: Digest,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, sorted.
    pub reason_codes: Vec<u16>,
    /// What was asked.
    pub answers: AnswerTally,
    /// What it was measured against.
    pub ledger: Ledger,
    /// Items of the answer part and of the sealed part, and units of the sealed part.
    pub items: (u64, u64, u64),
    /// Exponent of the released e-value; only where certified.
    pub e_value_log2: Option<u64>,
    /// Fuel used.
    pub fuel: u64,
    /// When.
    pub settled_unix_ms: u64,
    /// The guest engine.
    pub engine: String,
    /// Its place in the holdout's order and what it had reserved; absent in capsules of releases
    /// before 2.2.
    pub run: Option<RunPlace>,
    /// The claim that asked the same before and was judged; only with [`Reason::Duplicate`].
    pub duplicate_of: Option<ClaimId>,
}

/// Where a run stood in its holdout's order, and its worst case at its admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunPlace {
    /// Its number in the order of admission, from 0: as many capsules of the holdout come before.
    pub number: u64,
    /// Runs of the holdout that had ended when it was admitted, at most `number`.
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

    fn read(mut fields: Fields) -> Result<Self, RecordError> {
        let place = Self {
            number: fields.int("number")?,
            ended_before: fields.int("ended_before")?,
            levels: fields.int("levels")?,
            answers_reserved: MicroBits(fields.int("answers_reserved_microbits")?),
            sealed_reserved: MicroBits(fields.int("sealed_reserved_microbits")?),
        };
        fields.finish()?;
        Ok(place)
    }
}

/// What a run asked and what it cost.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerTally {
    /// The alphabet.
    pub n_symbols: u32,
    /// Questions asked, replays and free ones included.
    pub asked: u32,
    /// Questions answered again free.
    pub replayed: u32,
    /// How often each symbol was answered and charged: sorted by symbol, no zeros.
    pub by_symbol: Vec<(u32, u32)>,
    /// What the answer pools were charged.
    pub charged: MicroBits,
}

/// What a settlement was measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ledger {
    /// k: charged to the sealed pool by claims admitted before.
    pub k: MicroBits,
    /// c: the price of the symbol "certified".
    pub c: MicroBits,
    /// What this settlement was charged.
    pub price: MicroBits,
    /// m.
    pub settled_before: u64,
    /// s.
    pub certified_before: u64,
    /// i = s + 1.
    pub ordinal: u64,
    /// α in millionths, before the division by `alpha_divisor`.
    pub alpha_micros: u32,
    /// α_i = α / divisor.
    pub alpha_divisor: u64,
    /// How α is shared.
    pub multiplicity: Multiplicity,
    /// What the evidence had to reach.
    pub threshold: MicroBits,
}

impl Capsule {
    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
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
            .put("schema", CLAIM_CAPSULE)
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
        object.to_bytes()
    }

    /// Reads a capsule.
    ///
    /// # Errors
    /// Where the bytes are not canonical, or a field is missing, unknown or out of range.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::parse(bytes)?;
        fields.expect("schema", CLAIM_CAPSULE)?;
        let mut answers = fields.object("answers")?;
        let mut ledger = fields.object("ledger")?;
        let mut items = fields.object("items")?;
        let capsule = Self {
            claim_id: ClaimId(fields.digest("claim_id_hex")?.0),
            topic_id: fields.digest("topic_id_hex")?,
            structured_output_hash: fields.digest("structured_output_hash_hex")?,
            owner_tag: fields.word("owner_tag_hex", OwnerTag::from_hex)?,
            holdout_id: HoldoutId(fields.digest("holdout_id_hex")?.0),
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
                charged: MicroBits(answers.int("charged_microbits")?),
            },
            ledger: Ledger {
                k: MicroBits(ledger.int("k_microbits")?),
                c: MicroBits(ledger.int("c_microbits")?),
                price: MicroBits(ledger.int("price_microbits")?),
                settled_before: ledger.int("settled_before")?,
                certified_before: ledger.int("certified_before")?,
                ordinal: ledger.int("ordinal")?,
                alpha_micros: ledger.int("alpha_micros")?,
                alpha_divisor: ledger.int("alpha_divisor")?,
                multiplicity: ledger.word("multiplicity", Multiplicity::parse)?,
                threshold: MicroBits(ledger.int("threshold_microbits")?),
            },
            items: (
                items.int("answer")?,
                items.int("sealed")?,
                items.int("units")?,
            ),
            e_value_log2: fields.maybe("e_value_log2").map(as_int).transpose()?,
            fuel: fields.int("fuel")?,
            settled_unix_ms: fields.int("settled_unix_ms")?,
            engine: fields.string("engine")?,
            run: fields
                .maybe("run")
                .map(|run| Fields::of(run).and_then(RunPlace::read))
                .transpose()?,
            duplicate_of: fields
                .maybe_digest("duplicate_of_hex")?
                .map(|earlier| ClaimId(earlier.0)),
        };
        for rest in [answers, ledger, items, fields] {
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

/// A holdout's description as read from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The holdout's id.
    pub id: HoldoutId,
    /// Its name.
    pub reference: String,
    /// What it says.
    pub description: Description,
    /// When.
    pub registered_unix_ms: u64,
}

impl Registered {
    /// Reads a `holdout_registered` entry and recomputes its id and the bet's constants.
    ///
    /// # Errors
    /// Where the bytes are not such an entry, or its policy or null spec breaks a rule.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut fields = Fields::parse(bytes)?;
        fields.expect("schema", HOLDOUT_REGISTERED)?;
        fields.expect("element", "u8_binary")?;
        let policy = read_policy(fields.object("policy")?)?;
        let null_spec = read_null_spec(fields.object("null_spec")?)?;
        let registered = Self {
            id: holdout_id(bytes),
            reference: fields.string("ref")?,
            description: Description {
                items: fields.int("items")?,
                units: fields.int("units")?,
                answer_items: fields.int("answer_items")?,
                sealed_items: fields.int("sealed_items")?,
                sealed_units: fields.int("sealed_units")?,
                item_order_hash: match fields.maybe("item_order_hash_hex") {
                    Some(value) => Some(as_digest(value)?),
                    None => None,
                },
                commitment_root: fields.digest("commitment_root_hex")?,
                secret_commitment: fields.digest("secret_commitment_hex")?,
                policy,
                null_spec,
                fresh_items: fields.said("fresh_items")?,
                replaces: fields
                    .maybe_digest("replaces_hex")?
                    .map(|withdrawn| HoldoutId(withdrawn.0)),
            },
            registered_unix_ms: fields.int("registered_unix_ms")?,
        };
        fields.finish()?;
        Ok(registered)
    }
}

/// The schema of an entry, if it is canonical JSON and has one.
#[must_use]
pub fn schema_of(entry: &[u8]) -> Option<String> {
    Fields::parse(entry).ok()?.string("schema").ok()
}

fn read_policy(mut fields: Fields) -> Result<Policy, RecordError> {
    let mut prices = AnswerPrices::default();
    for value in fields.array("answer_prices", Some)? {
        let mut table = Fields::of(value)?;
        let n_symbols: u32 = table.int("n_symbols")?;
        let list = table.array("prices_microbits", |value| match value {
            cj::Value::Int(price) => Some(MicroBits(price)),
            _ => None,
        })?;
        table.finish()?;
        prices.0.insert(n_symbols, list);
    }
    let mut settlement = fields.object("settlement_prices")?;
    let bits: u8 = settlement.int("bits")?;
    let settlement_prices = settlement.word("kind", |kind| match kind {
        "learned" => Some(SettlementPrices::Learned { c0_bits: bits }),
        "fixed" => Some(SettlementPrices::Fixed {
            certified_bits: bits,
        }),
        _ => None,
    })?;
    settlement.finish()?;
    let policy = Policy {
        answer_share_micros: fields.int("answer_share_micros")?,
        answer_prices: prices,
        answer_budget: MicroBits(fields.int("answer_budget_microbits")?),
        principal_answer_budget: MicroBits(fields.int("principal_answer_budget_microbits")?),
        settlement_prices,
        sealed_budget: MicroBits(fields.int("sealed_budget_microbits")?),
        levels: fields.int("levels")?,
        level_width: MicroBits(fields.int("level_width_microbits")?),
        alpha_micros: fields.int("alpha_micros")?,
        multiplicity: fields.word("multiplicity", Multiplicity::parse)?,
        max_symbols: fields.int("max_symbols")?,
        principal_sealed_budget: fields
            .maybe_int("principal_sealed_budget_microbits")?
            .map(MicroBits),
    };
    fields.finish()?;
    policy.validate().map_err(|error| RecordError::Value {
        field: error.field.to_owned(),
        rule: error.rule,
    })?;
    Ok(policy)
}

fn read_null_spec(mut fields: Fields) -> Result<NullSpec, RecordError> {
    fields.expect("kind", "accuracy")?;
    let strategy = match fields.string("strategy")?.as_str() {
        "grid" => Strategy::Grid,
        "fixed_alternative" => Strategy::FixedAlternative {
            p1_micros: fields.int("p1_micros")?,
        },
        _ => return Err(RecordError::Field("strategy".to_owned())),
    };
    let expires = fields.maybe("expires_unix").map(as_int).transpose()?;
    let null_spec =
        NullSpec::accuracy(fields.int("p0_micros")?, strategy, expires).map_err(|error| {
            RecordError::Value {
                field: error.field.to_owned(),
                rule: error.rule,
            }
        })?;
    let stated = fields.digest("constants_hash")?;
    if stated != Digest::of(&null_spec.bets.canonical_bytes()) {
        return Err(RecordError::Value {
            field: "constants_hash".to_owned(),
            rule: "the bet's constants, computed again, have another digest".to_owned(),
        });
    }
    fields.finish()?;
    Ok(null_spec)
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

fn as_int(value: cj::Value) -> Result<u64, RecordError> {
    match value {
        cj::Value::Int(int) => Ok(int),
        _ => Err(RecordError::Field("an integer".to_owned())),
    }
}

fn as_digest(value: cj::Value) -> Result<Digest, RecordError> {
    match &value {
        cj::Value::Str(text) => Digest::from_hex(text),
        _ => None,
    }
    .ok_or_else(|| RecordError::Field("a digest".to_owned()))
}

/// Takes an object apart field by field; what is left over is an error.
pub(crate) struct Fields(cj::Object);

impl Fields {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        Self::of(cj::parse(bytes, MAX_ENTRY_LEN)?)
    }

    fn of(value: cj::Value) -> Result<Self, RecordError> {
        match value {
            cj::Value::Object(fields) => Ok(Self(fields)),
            _ => Err(RecordError::Field("an object".to_owned())),
        }
    }

    pub(crate) fn maybe(&mut self, name: &str) -> Option<cj::Value> {
        self.0.remove(name)
    }

    fn take(&mut self, name: &str) -> Result<cj::Value, RecordError> {
        self.maybe(name)
            .ok_or_else(|| RecordError::Field(name.to_owned()))
    }

    fn object(&mut self, name: &str) -> Result<Self, RecordError> {
        Self::of(self.take(name)?)
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<String, RecordError> {
        match self.take(name)? {
            cj::Value::Str(text) => Ok(text),
            _ => Err(RecordError::Field(name.to_owned())),
        }
    }

    pub(crate) fn expect(&mut self, name: &str, wanted: &str) -> Result<(), RecordError> {
        if self.string(name)? == wanted {
            Ok(())
        } else {
            Err(RecordError::Field(name.to_owned()))
        }
    }

    pub(crate) fn word<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, RecordError> {
        let text = self.string(name)?;
        read(&text).ok_or_else(|| RecordError::Field(name.to_owned()))
    }

    pub(crate) fn digest(&mut self, name: &str) -> Result<Digest, RecordError> {
        self.word(name, Digest::from_hex)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }

    pub(crate) fn maybe_int(&mut self, name: &str) -> Result<Option<u64>, RecordError> {
        self.maybe(name).map(as_int).transpose()
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, RecordError> {
        match self.take(name)? {
            cj::Value::Bool(flag) => Ok(flag),
            _ => Err(RecordError::Field(name.to_owned())),
        }
    }

    /// A statement that is there and true, or absent.
    fn said(&mut self, name: &str) -> Result<bool, RecordError> {
        match self.maybe(name) {
            None => Ok(false),
            Some(cj::Value::Bool(true)) => Ok(true),
            Some(_) => Err(RecordError::Field(name.to_owned())),
        }
    }

    pub(crate) fn maybe_digest(&mut self, name: &str) -> Result<Option<Digest>, RecordError> {
        self.maybe(name).map(as_digest).transpose()
    }

    fn signature(&mut self, name: &str) -> Result<[u8; 64], RecordError> {
        self.word(name, canonical_hex)
    }

    pub(crate) fn int<T: TryFrom<u64>>(&mut self, name: &str) -> Result<T, RecordError> {
        T::try_from(as_int(self.take(name)?)?).map_err(|_| RecordError::Field(name.to_owned()))
    }

    fn array<T>(
        &mut self,
        name: &str,
        read: impl Fn(cj::Value) -> Option<T>,
    ) -> Result<Vec<T>, RecordError> {
        match self.take(name)? {
            cj::Value::Array(values) => values
                .into_iter()
                .map(|value| read(value).ok_or_else(|| RecordError::Field(name.to_owned())))
                .collect(),
            _ => Err(RecordError::Field(name.to_owned())),
        }
    }

    pub(crate) fn finish(self) -> Result<(), RecordError> {
        match self.0.iter().next() {
            Some((name, _)) => Err(RecordError::Unknown(name.to_owned())),
            None => Ok(()),
        }
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
