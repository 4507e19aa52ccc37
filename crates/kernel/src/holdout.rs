//! A holdout: its policy, its null spec, its meters and its runs under way.
//!
//! The store holds the holdout's items encrypted and opens them only when a run needs them.
//! Everything here is public, except the order in which runs were admitted.
//!
//! Journals and rows of earlier releases hold these types in their old form, so serde skips the
//! fields that came later, and they are stored beside the rest: see [`Later`].

mod asked;
mod left;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    bits::MicroBits,
    cj,
    claim::Outcome,
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
    null::NullSpec,
    price::{self, AnswerPrices, Multiplicity, SettlementPrices},
    refusal::Refusal,
};

pub use asked::AskedPolicy;
pub use left::{CertificationsLeft, MOST_CERTIFICATIONS, Record};

/// A million: the denominator of shares and of significance levels.
pub const MICROS: u32 = 1_000_000;
/// The most items of a holdout.
pub const MAX_ITEMS: u64 = 1_000_000;
/// The largest budget: a million bits, far beyond what any holdout can carry.
pub const MAX_BUDGET: MicroBits = MicroBits(1_000_000_000_000);
/// The most levels of a released e-value.
pub const MAX_LEVELS: u8 = 32;
/// The largest alphabet of an oracle.
pub const MAX_SYMBOLS: u32 = 65_536;
/// The holdout policy that the operator fixed at registration; public, and a log entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Share of the units from which oracles answer, in millionths; 0: claims only.
    pub answer_share_micros: u32,
    pub answer_prices: AnswerPrices,
    /// The most that the answer part will release.
    pub answer_budget: MicroBits,
    /// The most that the answer part will release to one principal.
    pub principal_answer_budget: MicroBits,
    pub settlement_prices: SettlementPrices,
    /// All that settlements may release about the sealed part.
    pub sealed_budget: MicroBits,
    /// The most levels of the e-value that a claim may choose to release.
    pub levels: u8,
    /// Width of a level.
    pub level_width: MicroBits,
    /// The highest significance level α, in millionths.
    pub alpha_micros: u32,
    /// How α is shared among certifications.
    pub multiplicity: Multiplicity,
    /// The largest alphabet that a claim may choose.
    pub max_symbols: u32,
    /// The most that settlements of one principal's claims may release about the sealed part. It
    /// limits each name and does not protect against many names. `None`: no limit, as in holdouts
    /// registered before there was one.
    #[serde(skip)]
    pub principal_sealed_budget: Option<MicroBits>,
}

/// The error for a policy or null spec that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {rule}")]
pub struct PolicyError {
    /// The field's name in the public record.
    pub field: &'static str,
    /// The rule for the field's value.
    pub rule: String,
}

impl Policy {
    /// The defaults; the sealed budget is the planner's proposal.
    #[must_use]
    pub fn with_sealed_budget(sealed_budget: MicroBits) -> Self {
        Self {
            answer_share_micros: 200_000,
            answer_prices: AnswerPrices::default(),
            answer_budget: MicroBits(64_000_000),
            principal_answer_budget: MicroBits(16_000_000),
            settlement_prices: SettlementPrices::default(),
            sealed_budget,
            levels: 0,
            level_width: MicroBits(1_000_000),
            alpha_micros: 50_000,
            multiplicity: Multiplicity::Each,
            max_symbols: 256,
            principal_sealed_budget: None,
        }
    }

    /// The default of `principal_sealed_budget`: a quarter of the sealed budget, but at least the
    /// cost of one dear settlement (8 bits, and the dearest level beyond its certification), and
    /// never more than the budget itself.
    #[must_use]
    pub fn proposed_fence(&self) -> MicroBits {
        let dear = MicroBits::from_bits(8).saturating_add(price::dearest_level_extra(self.levels));
        MicroBits(self.sealed_budget.0 / 4)
            .max(dear)
            .min(self.sealed_budget)
    }

    /// Checks every rule.
    ///
    /// # Errors
    /// [`PolicyError`] with the first broken rule and its field.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let rule = |field, holds: bool, rule: &str| {
            if holds {
                Ok(())
            } else {
                Err(PolicyError {
                    field,
                    rule: rule.to_owned(),
                })
            }
        };
        rule(
            "answer_share_micros",
            self.answer_share_micros < MICROS,
            "must be below 1000000: some items must stay sealed",
        )?;
        for (field, budget) in [
            ("answer_budget_microbits", self.answer_budget),
            (
                "principal_answer_budget_microbits",
                self.principal_answer_budget,
            ),
            ("sealed_budget_microbits", self.sealed_budget),
            (
                "principal_sealed_budget_microbits",
                self.principal_sealed_budget.unwrap_or(MicroBits::ZERO),
            ),
        ] {
            rule(
                field,
                budget <= MAX_BUDGET,
                "must be at most a million bits",
            )?;
        }
        rule("levels", self.levels <= MAX_LEVELS, "must be at most 32")?;
        rule(
            "level_width_microbits",
            (1..=64_000_000).contains(&self.level_width.0),
            "must be between 1 microbit and 64 bits",
        )?;
        rule(
            "alpha_micros",
            (1..MICROS).contains(&self.alpha_micros),
            "must be between 1 and 999999",
        )?;
        rule(
            "max_symbols",
            (2..=MAX_SYMBOLS).contains(&self.max_symbols),
            "must be between 2 and 65536",
        )?;
        self.settlement_prices
            .validate()
            .and_then(|()| self.answer_prices.validate())
            .map_err(|error| PolicyError {
                field: "prices",
                rule: error.to_string(),
            })
    }

    /// The policy's digest, `D("evidenceos:policy:v1", CJ(policy))`.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::domain("evidenceos:policy:v1", &self.to_object().to_bytes())
    }

    /// The policy as public records and the wire have it.
    #[must_use]
    pub fn to_object(&self) -> cj::Object {
        let prices: Vec<cj::Value> = self
            .answer_prices
            .0
            .iter()
            .map(|(&n_symbols, prices)| {
                let prices: Vec<cj::Value> = prices.iter().map(|price| price.0.into()).collect();
                cj::Object::new()
                    .put("n_symbols", u64::from(n_symbols))
                    .put("prices_microbits", prices)
                    .into()
            })
            .collect();
        let settlement = match self.settlement_prices {
            SettlementPrices::Learned { c0_bits } => cj::Object::new()
                .put("kind", "learned")
                .put("bits", u64::from(c0_bits)),
            SettlementPrices::Fixed { certified_bits } => cj::Object::new()
                .put("kind", "fixed")
                .put("bits", u64::from(certified_bits)),
        };
        let object = cj::Object::new()
            .put("answer_share_micros", u64::from(self.answer_share_micros))
            .put("answer_prices", prices)
            .put("answer_budget_microbits", self.answer_budget.0)
            .put(
                "principal_answer_budget_microbits",
                self.principal_answer_budget.0,
            )
            .put("settlement_prices", settlement)
            .put("sealed_budget_microbits", self.sealed_budget.0)
            .put("levels", u64::from(self.levels))
            .put("level_width_microbits", self.level_width.0)
            .put("alpha_micros", u64::from(self.alpha_micros))
            .put("multiplicity", self.multiplicity.as_str())
            .put("max_symbols", u64::from(self.max_symbols));
        // Left out if there is none, so that policies of releases without this budget keep their
        // hash.
        match self.principal_sealed_budget {
            Some(fence) => object.put("principal_sealed_budget_microbits", fence.0),
            None => object,
        }
    }
}

/// Leakage of one pool: charged for good, or reserved by runs under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meter {
    /// Charged for good; it never goes down.
    pub charged: MicroBits,
    /// The worst case of the runs under way.
    pub reserved: MicroBits,
}

impl Meter {
    /// The part of a budget that is not charged, reservations included.
    #[must_use]
    pub fn left(&self, budget: MicroBits) -> MicroBits {
        // If a budget was narrowed below its charges, nothing is left; that is not an error.
        budget.saturating_sub(self.charged)
    }

    /// The part of a budget that is neither charged nor reserved.
    #[must_use]
    pub fn free(&self, budget: MicroBits) -> MicroBits {
        self.left(budget).saturating_sub(self.reserved)
    }

    /// Reserves a worst case.
    pub fn reserve(&mut self, amount: MicroBits) {
        self.reserved = self.reserved.saturating_add(amount);
    }

    /// Charges an amount that this state may never have reserved, and releases its reservation, if
    /// there is one.
    pub fn recover(&mut self, reserved: MicroBits, charged: MicroBits) {
        self.reserved = self.reserved.saturating_sub(reserved);
        self.charged = self.charged.saturating_add(charged);
    }

    /// Releases a reservation and charges what was realised.
    ///
    /// # Panics
    /// If more is released than is reserved: the kernel's own arithmetic would be wrong, and
    /// nothing may be signed after that.
    pub fn settle(&mut self, reserved: MicroBits, charged: MicroBits) {
        assert!(
            charged <= reserved,
            "a run is never charged more than it reserved"
        );
        assert!(
            reserved <= self.reserved,
            "a reservation is given back once"
        );
        self.reserved = self.reserved.saturating_sub(reserved);
        self.charged = self.charged.saturating_add(charged);
    }
}

/// A run under way, in the holdout's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InFlight {
    /// Its number in the holdout's order of admission, from 0.
    pub number: u64,
    pub claim: ClaimId,
    pub owner: OwnerTag,
    /// The most that its questions may be charged.
    pub answers_reserved: MicroBits,
    /// The worst case of its settlement.
    pub sealed_reserved: MicroBits,
    /// How often it failed.
    pub attempt: u8,
    /// The guest engine under which it started.
    pub engine: String,
    /// The capsule's facts about its admission; `None` if an earlier release admitted it.
    #[serde(skip)]
    pub place: Option<Place>,
}

/// Facts about a run's admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Runs of the holdout that had ended before it.
    pub ended_before: u64,
    /// The claim that asked the same before and was judged: then nothing runs.
    pub duplicate_of: Option<ClaimId>,
}

/// Whether a holdout takes claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldoutStatus {
    /// It takes claims and runs.
    Registered,
    /// It takes no more claims; runs under way settle.
    Retired,
    /// Its labels are public.
    Opened,
    /// It takes no more claims and never released anything: its secret is deleted, and its labels
    /// may be registered again.
    Withdrawn,
}

impl HoldoutStatus {
    /// The status's word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Retired => "retired",
            Self::Opened => "opened",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// A registered holdout: its public description, its meters and its runs under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdout {
    /// Number in order of registration; the store's key.
    pub seq: u64,
    /// The digest of its public description.
    pub id: HoldoutId,
    /// The name by which claims refer to it; unique on the server.
    pub reference: String,
    /// Its public description.
    pub description: Description,
    /// Digest of its encrypted items, and their blob's name.
    pub blob: Digest,
    /// Keyed digest of its labels, so that the same labels are not registered twice.
    pub labels_key: Digest,
    /// Whether its items have ids.
    pub has_item_ids: bool,
    /// Whether it takes claims.
    pub status: HoldoutStatus,
    /// When it was registered.
    pub registered_unix_ms: u64,
    /// Index of its description in the log.
    pub index: u64,
    /// About the answer part.
    pub answers: Meter,
    /// About the sealed part; `charged` is k.
    pub sealed: Meter,
    /// m: runs whose evidence was computed.
    pub settled: u64,
    /// s: runs that were certified; never decreases.
    pub certified: u64,
    /// Runs admitted so far.
    pub admitted: u64,
    /// Runs under way, in order.
    pub in_flight: VecDeque<InFlight>,
    /// Budgets that an operator narrowed since.
    pub narrower: NarrowerBudgets,
    /// Credits burned on it.
    pub credit_burned: u64,
    /// Credits reserved for its runs under way.
    pub credit_reserved: u64,
    /// Number of withdrawn holdouts of these labels in a row before this one.
    #[serde(skip)]
    pub replaced: u8,
    /// Whether the log was restarted, or continued by an operator's statement, since the
    /// registration: then nothing can show that the holdout released nothing.
    #[serde(skip)]
    pub carried_on: bool,
}

/// Fields added after the first release that kept rows, stored behind the rest of a holdout's row.
/// New fields go at its end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Later {
    principal_sealed_budget: Option<MicroBits>,
    fresh_items: bool,
    replaces: Option<HoldoutId>,
    replaced: u8,
    carried_on: bool,
    /// One for each run under way, in order; fewer in rows of earlier releases.
    places: Vec<Option<Place>>,
}

impl Holdout {
    /// The fields for which rows of earlier releases have no room.
    #[must_use]
    pub fn later(&self) -> Later {
        Later {
            principal_sealed_budget: self.description.policy.principal_sealed_budget,
            fresh_items: self.description.fresh_items,
            replaces: self.description.replaces,
            replaced: self.replaced,
            carried_on: self.carried_on,
            places: self.in_flight.iter().map(|run| run.place).collect(),
        }
    }

    /// Puts back the fields of [`Holdout::later`].
    #[must_use]
    pub fn with_later(mut self, later: Later) -> Self {
        self.description.policy.principal_sealed_budget = later.principal_sealed_budget;
        self.description.fresh_items = later.fresh_items;
        self.description.replaces = later.replaces;
        self.replaced = later.replaced;
        self.carried_on = later.carried_on;
        for (run, place) in self.in_flight.iter_mut().zip(later.places) {
            run.place = place;
        }
        self
    }

    /// Demands that the holdout takes claims and runs.
    ///
    /// # Errors
    /// [`Refusal::HoldoutRetired`] and [`Refusal::HoldoutWithdrawn`]: create the claim on another
    /// holdout.
    pub fn must_take_claims(&self) -> Result<(), Refusal> {
        match self.status {
            HoldoutStatus::Registered => Ok(()),
            HoldoutStatus::Retired | HoldoutStatus::Opened => {
                Err(Refusal::HoldoutRetired(self.reference.clone()))
            }
            HoldoutStatus::Withdrawn => Err(Refusal::HoldoutWithdrawn(self.reference.clone())),
        }
    }

    /// The reason why the holdout may have released something about its labels, as a clause. `None`: it cannot have,
    /// and may be withdrawn. An abort is charged its worst case, so the meters show it.
    #[must_use]
    pub fn may_have_released(&self) -> Option<String> {
        if !self.in_flight.is_empty() {
            return Some(format!("{} runs are under way on it", self.in_flight.len()));
        }
        if self.settled > 0 {
            return Some(format!("{} claims were judged on it", self.settled));
        }
        // Aborted runs and comparisons are charged but do not count as settlements.
        for (meter, part) in [(self.answers, "answer part"), (self.sealed, "sealed part")] {
            if meter.charged > MicroBits::ZERO {
                return Some(format!("{} were charged about its {part}", meter.charged));
            }
        }
        if self.carried_on {
            return Some(
                "the log was restored or restarted since its registration, and the lost entries may have released something about it".to_owned(),
            );
        }
        (self.status == HoldoutStatus::Opened).then(|| "its labels are public".to_owned())
    }

    /// The record of verdicts so far.
    #[must_use]
    pub fn record(&self) -> Record {
        Record {
            k: self.sealed.charged,
            settled: self.settled,
            certified: self.certified,
        }
    }

    /// The most certifications in a row that the ledger still carries: for all submitters together,
    /// and for one submitter with `own_left` of its own budget left. It depends on the ledger
    /// alone, so it says nothing about labels.
    #[must_use]
    pub fn certifications_left(&self, own_left: MicroBits) -> CertificationsLeft {
        if self.status != HoldoutStatus::Registered {
            return CertificationsLeft { all: 0, own: 0 };
        }
        let description = &self.description;
        let reach = description.null_spec.reach(description.sealed_units);
        let left = self.sealed.left(self.sealed_budget());
        self.record()
            .certifications_left(&description.policy, reach, left, own_left)
    }

    /// Runs that have ended.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.admitted.saturating_sub(self.in_flight.len() as u64)
    }
}

/// Budgets below those of the policy. The policy is public and stays as it is; an operator may
/// release less than it promises, never more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NarrowerBudgets {
    /// The budget of settlements; `None` leaves the policy's budget.
    pub sealed: Option<MicroBits>,
    /// The budget of each principal's answers.
    pub principal_answers: Option<MicroBits>,
    /// The budget of credits burned on the holdout.
    pub credit: Option<u64>,
}

impl Holdout {
    /// The budget of settlements in force.
    #[must_use]
    pub fn sealed_budget(&self) -> MicroBits {
        let policy = self.description.policy.sealed_budget;
        self.narrower.sealed.map_or(policy, |n| n.min(policy))
    }

    /// The budget of each principal's answers in force.
    #[must_use]
    pub fn principal_answer_budget(&self) -> MicroBits {
        let policy = self.description.policy.principal_answer_budget;
        let narrower = self.narrower.principal_answers;
        narrower.map_or(policy, |n| n.min(policy))
    }
}

impl Holdout {
    /// Counts a run that ended.
    pub(crate) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Certified => {
                self.settled += 1;
                self.certified += 1;
            }
            Outcome::NotCertified => self.settled += 1,
            // Prices are learned from verdicts about evidence, and these two outcomes looked at
            // none.
            Outcome::NotJudged | Outcome::Aborted => {}
        }
    }
}

/// The public description of a holdout, as the operator fixed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub items: u64,
    pub units: u64,
    /// Items of the answer part.
    pub answer_items: u64,
    /// Items of the sealed part.
    pub sealed_items: u64,
    /// Units of the sealed part.
    pub sealed_units: u64,
    /// SHA-256 of the item ids in order, LF after each.
    pub item_order_hash: Option<Digest>,
    /// Merkle root over the salted labels.
    pub commitment_root: Digest,
    /// Digest of the secret.
    pub secret_commitment: Digest,
    pub policy: Policy,
    pub null_spec: NullSpec,
    /// Whether the operator declared that no item is in an earlier holdout, which switches the
    /// comparison of labels off.
    #[serde(skip)]
    pub fresh_items: bool,
    /// The withdrawn holdout whose labels were registered again here.
    #[serde(skip)]
    pub replaces: Option<HoldoutId>,
}

/// Leakage of one principal's claims about one holdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PrincipalPool {
    /// About the answer part.
    pub answers: Meter,
    /// About the sealed part; counted only under policies with a sealed budget per principal.
    pub sealed: Meter,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy::with_sealed_budget(MicroBits(64_000_000))
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(policy().validate(), Ok(()));
    }

    #[test]
    fn broken_rules_name_their_field() {
        let check = |field: &str, change: &dyn Fn(&mut Policy)| {
            let mut policy = policy();
            change(&mut policy);
            assert_eq!(policy.validate().expect_err(field).field, field);
        };
        check("answer_share_micros", &|p| p.answer_share_micros = MICROS);
        check("alpha_micros", &|p| p.alpha_micros = 0);
        check("alpha_micros", &|p| p.alpha_micros = MICROS);
        check("levels", &|p| p.levels = 33);
        check("level_width_microbits", &|p| p.level_width = MicroBits(0));
        check("max_symbols", &|p| p.max_symbols = 1);
        check("sealed_budget_microbits", &|p| {
            p.sealed_budget = MicroBits(u64::MAX)
        });
    }

    #[test]
    fn a_changed_policy_has_another_hash() {
        let mut other = policy();
        other.levels = 1;
        assert_ne!(policy().hash(), other.hash());
    }

    #[test]
    fn meter_gives_back_what_was_not_used() {
        let mut meter = Meter::default();
        meter.reserve(MicroBits(10));
        assert_eq!(meter.free(MicroBits(15)), MicroBits(5));
        meter.settle(MicroBits(10), MicroBits(3));
        assert_eq!(
            (meter.charged, meter.reserved),
            (MicroBits(3), MicroBits(0))
        );
        assert_eq!(meter.free(MicroBits(2)), MicroBits(0));
    }
}
