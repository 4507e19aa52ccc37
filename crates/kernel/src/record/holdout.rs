//! Entries about a holdout: its registration, its budgets, its end.

use super::fields::Fields;
use crate::{
    bits::MicroBits,
    cj,
    holdout::{Description, NarrowerBudgets, Policy},
    id::{Digest, HoldoutId},
    null::NullSpec,
    price::{AnswerPrices, Multiplicity, SettlementPrices},
    record::RecordError,
};

/// `holdout_registered`: a holdout's public description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// [`holdout_id`] of the entry.
    pub id: HoldoutId,
    /// The name by which claims refer to it.
    pub reference: String,
    /// The description that the operator fixed.
    pub description: Description,
    /// When, in Unix milliseconds.
    pub registered_unix_ms: u64,
}

impl Registered {
    /// A registration with these fields; its id is the digest of its bytes.
    #[must_use]
    pub fn new(reference: String, description: Description, registered_unix_ms: u64) -> Self {
        // The bytes do not contain the id, so any id serves until they are hashed.
        let mut registered = Self {
            id: HoldoutId([0; 32]),
            reference,
            description,
            registered_unix_ms,
        };
        registered.id = holdout_id(&registered.to_bytes());
        registered
    }

    pub(crate) fn write(&self) -> cj::Object {
        let description = &self.description;
        let mut object = cj::Object::new()
            .put("ref", self.reference.as_str())
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
            .put("registered_unix_ms", self.registered_unix_ms);
        if let Some(hash) = description.item_order_hash {
            object = object.put("item_order_hash_hex", hash.to_hex());
        }
        if description.fresh_items {
            object = object.put("fresh_items", true);
        }
        if let Some(withdrawn) = description.replaces {
            object = object.put("replaces_hex", withdrawn.to_hex());
        }
        object
    }

    /// Reads the fields and recomputes the bet's constants.
    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        fields.expect("element", "u8_binary")?;
        let policy = read_policy(fields.object("policy")?)?;
        let null_spec = NullSpec::read(fields.object("null_spec")?)?;
        Ok(Self {
            // The id is the digest of the bytes in the log, which may list answer prices in another
            // order than `write` does.
            id: holdout_id(fields.entry()),
            reference: fields.string("ref")?,
            description: Description {
                items: fields.int("items")?,
                units: fields.int("units")?,
                answer_items: fields.int("answer_items")?,
                sealed_items: fields.int("sealed_items")?,
                sealed_units: fields.int("sealed_units")?,
                item_order_hash: fields.maybe_digest("item_order_hash_hex")?,
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
        })
    }
}

/// The id of a holdout: `D("evidenceos:holdout:v1", entry)`.
#[must_use]
pub fn holdout_id(entry: &[u8]) -> HoldoutId {
    HoldoutId(Digest::domain("evidenceos:holdout:v1", entry).0)
}

/// `holdout_policy`: the budgets in force for admissions from this entry on. An absent budget is
/// the registered one; an absent credit budget is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetsChanged {
    pub holdout: HoldoutId,
    /// The budgets, each at most the registered one.
    pub budgets: NarrowerBudgets,
    /// When, in Unix milliseconds.
    pub changed_unix_ms: u64,
}

impl BudgetsChanged {
    pub(crate) fn write(&self) -> cj::Object {
        let mut object = cj::Object::new()
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
        object
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            holdout: fields.holdout()?,
            budgets: NarrowerBudgets {
                sealed: fields.maybe_bits("sealed_budget_microbits")?,
                principal_answers: fields.maybe_bits("principal_answer_budget_microbits")?,
                credit: fields.maybe_int("credit_budget")?,
            },
            changed_unix_ms: fields.int("changed_unix_ms")?,
        })
    }
}

/// `holdout_compared`: whether the labels of a new registration agree with this holdout's beyond
/// chance. The answer is a symbol about both of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared {
    /// The earlier holdout, which was charged for the comparison.
    pub holdout: HoldoutId,
    /// Whether the columns agree; then the registration was refused.
    pub agrees: bool,
    /// Charged to its answer part.
    pub answers: MicroBits,
    /// Charged to its sealed part.
    pub sealed: MicroBits,
    /// When, in Unix milliseconds.
    pub compared_unix_ms: u64,
}

impl Compared {
    pub(crate) fn write(&self) -> cj::Object {
        cj::Object::new()
            .put("holdout_id_hex", self.holdout.to_hex())
            .put("agrees", self.agrees)
            .put("answers_microbits", self.answers.0)
            .put("sealed_microbits", self.sealed.0)
            .put("compared_unix_ms", self.compared_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            holdout: fields.holdout()?,
            agrees: fields.flag("agrees")?,
            answers: fields.bits("answers_microbits")?,
            sealed: fields.bits("sealed_microbits")?,
            compared_unix_ms: fields.int("compared_unix_ms")?,
        })
    }
}

/// `holdout_retired`: the holdout takes no more claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldoutRetired {
    pub holdout: HoldoutId,
    /// The operator's reason; 1–256 bytes.
    pub reason: String,
    /// When, in Unix milliseconds.
    pub retired_unix_ms: u64,
}

impl HoldoutRetired {
    pub(crate) fn write(&self) -> cj::Object {
        cj::Object::new()
            .put("holdout_id_hex", self.holdout.to_hex())
            .put("reason", self.reason.as_str())
            .put("retired_unix_ms", self.retired_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            holdout: fields.holdout()?,
            reason: fields.string("reason")?,
            retired_unix_ms: fields.int("retired_unix_ms")?,
        })
    }
}

/// `holdout_opened`: the labels are public. The opening itself is larger than an entry, and the
/// commitment in the description already binds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldoutOpened {
    pub holdout: HoldoutId,
    /// When, in Unix milliseconds.
    pub opened_unix_ms: u64,
}

impl HoldoutOpened {
    pub(crate) fn write(&self) -> cj::Object {
        cj::Object::new()
            .put("holdout_id_hex", self.holdout.to_hex())
            .put("opened_unix_ms", self.opened_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            holdout: fields.holdout()?,
            opened_unix_ms: fields.int("opened_unix_ms")?,
        })
    }
}

/// `holdout_withdrawn`: the holdout released nothing and takes no claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldoutWithdrawn {
    pub holdout: HoldoutId,
    /// The operator's reason; 1–256 bytes.
    pub reason: String,
    /// When, in Unix milliseconds.
    pub withdrawn_unix_ms: u64,
}

impl HoldoutWithdrawn {
    pub(crate) fn write(&self) -> cj::Object {
        cj::Object::new()
            .put("holdout_id_hex", self.holdout.to_hex())
            .put("reason", self.reason.as_str())
            .put("withdrawn_unix_ms", self.withdrawn_unix_ms)
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        Ok(Self {
            holdout: fields.holdout()?,
            reason: fields.string("reason")?,
            withdrawn_unix_ms: fields.int("withdrawn_unix_ms")?,
        })
    }
}

fn read_policy(mut fields: Fields<'_>) -> Result<Policy, RecordError> {
    let mut prices = AnswerPrices::default();
    for mut table in fields.objects("answer_prices")? {
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
        answer_budget: fields.bits("answer_budget_microbits")?,
        principal_answer_budget: fields.bits("principal_answer_budget_microbits")?,
        settlement_prices,
        sealed_budget: fields.bits("sealed_budget_microbits")?,
        levels: fields.int("levels")?,
        level_width: fields.bits("level_width_microbits")?,
        alpha_micros: fields.int("alpha_micros")?,
        multiplicity: fields.word("multiplicity", Multiplicity::parse)?,
        max_symbols: fields.int("max_symbols")?,
        principal_sealed_budget: fields.maybe_bits("principal_sealed_budget_microbits")?,
    };
    fields.finish()?;
    // A policy that could not be registered is refused here too: an auditor must not compute with
    // prices below Kraft's bound.
    policy.validate().map_err(|error| RecordError::Value {
        field: error.field.to_owned(),
        rule: error.rule,
    })?;
    Ok(policy)
}
