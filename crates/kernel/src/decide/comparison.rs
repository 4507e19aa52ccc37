//! The charge for finding out that labels were registered before, exactly or almost.
//!
//! Whether a new column agrees with an earlier holdout's is a symbol about that holdout's labels,
//! both parts of them: if answers were free, an operator's client could read the labels item by
//! item. So "it agrees" has mass 2⁻ᴿ and costs R bits, "it does not" has the rest, and both pools
//! are charged. R is 16 (then the other answer costs 23 microbits), or as many whole bits as the
//! pools carry, so that a small budget does not block other registrations. R follows from the
//! ledger, before the answer is looked at.

use std::collections::HashMap;

use crate::{
    bits::{MICROBITS_PER_BIT, MicroBits},
    command::{Event, PutHoldout},
    holdout::{Holdout, HoldoutStatus},
    id::HoldoutId,
    log2::log2_microbits_up,
    record::Compared,
    refusal::{Pool, Refusal},
    state::Stage,
};

/// The most bits of "the columns agree".
const AGREES_BITS: u64 = 16;

/// The charges and the refusal that a registration's comparisons lead to.
#[derive(Default)]
pub(super) struct Comparison {
    pub(super) events: Vec<Event>,
    pub(super) entries: Vec<Vec<u8>>,
    /// The labels are an earlier holdout's, exactly or almost.
    pub(super) refusal: Option<Refusal>,
}

/// Charges the answers that a registration gets, one for each earlier holdout.
///
/// # Errors
/// [`Refusal::CannotCompare`] or [`Refusal::Reserved`] if a holdout's pools do not carry an answer:
/// then no answer was looked at. [`Refusal::HoldoutsChanged`] if the caller did not compare with
/// exactly the present holdouts: compare again.
pub(super) fn of(stage: &Stage<'_>, put: &PutHoldout) -> Result<Comparison, Refusal> {
    if put.description.fresh_items {
        return Ok(Comparison::default());
    }
    let mut others: Vec<&Holdout> = stage
        .holdouts()
        .filter(|other| other.status != HoldoutStatus::Withdrawn)
        .collect();
    // The order of a hash map differs between machines, and the entries must be the same bytes.
    others.sort_unstable_by_key(|other| other.seq);
    let answers: HashMap<HoldoutId, bool> = put.compared.iter().copied().collect();
    // The labels were compared outside the writer. A holdout registered since then would be left
    // out.
    if answers.len() != others.len() || !others.iter().all(|other| answers.contains_key(&other.id))
    {
        return Err(Refusal::HoldoutsChanged);
    }
    // Check all pools before using the first answer: a refusal for want of bits must not depend on
    // an answer.
    let carried = others
        .into_iter()
        .map(|other| Ok((other, Carried::by(other)?)))
        .collect::<Result<Vec<_>, Refusal>>()?;
    let mut comparison = Comparison::default();
    for (other, carried) in carried {
        let agrees = answers[&other.id] || other.labels_key == put.labels_key;
        if agrees {
            comparison.refusal.get_or_insert_with(|| same_labels(other));
        }
        // The refusal names the first holdout that agrees, but all were compared, so all are
        // charged.
        carried.charge(stage, other, agrees, &mut comparison);
    }
    Ok(comparison)
}

fn same_labels(other: &Holdout) -> Refusal {
    Refusal::HoldoutExists(format!(
        "these labels are registered already, exactly or almost, as holdout {:?}; registering them twice would release twice as much about them. If they are labels of other items, declare that with fresh items (`evidenceos holdout add --fresh-items`), which is public",
        other.reference
    ))
}

/// The bits that a holdout's pools carry for an answer about it.
struct Carried {
    /// R, if any pool is to be charged.
    bits: u64,
    sealed: bool,
    answers: bool,
}

impl Carried {
    /// # Errors
    /// [`Refusal::CannotCompare`] if a pool has less than a bit left, [`Refusal::Reserved`] if
    /// runs under way have reserved it.
    fn by(holdout: &Holdout) -> Result<Self, Refusal> {
        let policy = &holdout.description.policy;
        let counts = may_still_certify(holdout);
        let mut carried = Self {
            bits: AGREES_BITS,
            sealed: counts,
            answers: counts && holdout.description.answer_items > 0,
        };
        for (counts, pool, meter, budget) in [
            (
                carried.sealed,
                Pool::Sealed,
                holdout.sealed,
                holdout.sealed_budget(),
            ),
            (
                carried.answers,
                Pool::Answers,
                holdout.answers,
                policy.answer_budget,
            ),
        ] {
            if !counts {
                continue;
            }
            let (left, free) = (meter.left(budget), meter.free(budget));
            // R = 0 would leave no mass for "they do not agree", and its price would be infinite.
            if left < MicroBits::from_bits(1) {
                return Err(Refusal::CannotCompare {
                    reference: holdout.reference.clone(),
                    pool,
                    needed: MicroBits::from_bits(1),
                    left,
                });
            }
            if free < MicroBits::from_bits(1) {
                return Err(Refusal::Reserved { pool });
            }
            // Rounded down, so that the dearer answer fits into what is free.
            carried.bits = carried.bits.min(free.get() / MICROBITS_PER_BIT);
        }
        Ok(carried)
    }

    /// The price of an answer: ⌈10⁶·log2(1/mass)⌉, the mass of "agrees" being 2⁻ᴿ.
    fn price(&self, agrees: bool) -> MicroBits {
        let whole = 1u128 << self.bits;
        if agrees {
            log2_microbits_up(whole, 1)
        } else {
            log2_microbits_up(whole, whole - 1)
        }
    }

    /// The entry has its place in the order of the holdout's settlements: a run that was admitted
    /// before it and settles after it reads a k that includes this charge, which only raises its
    /// threshold.
    fn charge(
        &self,
        stage: &Stage<'_>,
        other: &Holdout,
        agrees: bool,
        comparison: &mut Comparison,
    ) {
        if !self.sealed && !self.answers {
            return;
        }
        let price = self.price(agrees);
        let of = |counts| if counts { price } else { MicroBits::ZERO };
        let entry = Compared {
            holdout: other.id,
            agrees,
            answers: of(self.answers),
            sealed: of(self.sealed),
            compared_unix_ms: stage.now_unix_ms(),
        };
        comparison.events.push(Event::HoldoutCompared {
            holdout: other.id,
            answers: entry.answers,
            sealed: entry.sealed,
        });
        comparison.entries.push(entry.to_bytes());
    }
}

/// Whether any claim can still be certified on a holdout: a run is under way, or it takes claims
/// and another settlement fits the registered budget. Charges never decrease. If the answer is no,
/// it stays no, no claim can ask anything, and an answer about the holdout does no harm.
fn may_still_certify(holdout: &Holdout) -> bool {
    let policy = &holdout.description.policy;
    let least = policy
        .settlement_prices
        .worst_case(holdout.settled, holdout.certified, 0, 0);
    let takes_claims = holdout.status == HoldoutStatus::Registered;
    // A narrowed budget can be widened again, so the registered budget decides.
    !holdout.in_flight.is_empty()
        || (takes_claims && least <= holdout.sealed.left(policy.sealed_budget))
}
