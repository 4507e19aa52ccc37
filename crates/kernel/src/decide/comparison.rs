//! What it costs to find out that labels were registered before, almost or exactly.
//!
//! Whether a new column agrees with an earlier holdout's is a symbol about that holdout's labels,
//! both parts of them: with free answers its custodian's client could read them item by item. So
//! "it agrees" has mass 2⁻¹⁶ and costs 16 bits, "it does not" costs the rest, 23 microbits, and
//! both pools are charged. Whether an earlier holdout carries the dearer answer is decided before
//! the answer is looked at.

use std::collections::HashMap;

use crate::{
    bits::MicroBits,
    command::{Event, PutHoldout},
    holdout::{Holdout, HoldoutStatus},
    id::HoldoutId,
    log2::log2_microbits_up,
    record::Compared,
    refusal::{Pool, Refusal},
    state::Stage,
};

/// Bits of "the columns agree".
const AGREES_BITS: u32 = 16;

/// What the comparisons of a registration lead to.
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
/// [`Refusal::CannotCompare`] or [`Refusal::Reserved`] if one does not carry its dearer answer:
/// then nothing was looked at. [`Refusal::HoldoutsChanged`] if the caller did not compare with
/// just the holdouts that are there.
pub(super) fn of(stage: &Stage<'_>, put: &PutHoldout) -> Result<Comparison, Refusal> {
    if put.description.fresh_items {
        return Ok(Comparison::default());
    }
    let mut others: Vec<&Holdout> = stage
        .holdouts()
        .filter(|other| other.status != HoldoutStatus::Withdrawn)
        .collect();
    others.sort_unstable_by_key(|other| other.seq);
    let answers: HashMap<HoldoutId, bool> = put.compared.iter().copied().collect();
    if answers.len() != others.len() || !others.iter().all(|other| answers.contains_key(&other.id))
    {
        return Err(Refusal::HoldoutsChanged);
    }
    for other in &others {
        must_carry(other)?;
    }
    let mut comparison = Comparison::default();
    for other in others {
        let agrees = answers[&other.id] || other.labels_key == put.labels_key;
        if agrees {
            comparison.refusal.get_or_insert_with(|| same_labels(other));
        }
        charge(stage, other, agrees, &mut comparison);
    }
    Ok(comparison)
}

fn same_labels(other: &Holdout) -> Refusal {
    Refusal::HoldoutExists(format!(
        "these labels are registered already, exactly or almost, as holdout {:?}; registering them twice would release twice as much about them. If they are labels of other items, declare that with fresh items (`evidenceos holdout add --fresh-items`), which is public",
        other.reference
    ))
}

/// Nothing is certified any more on a holdout that takes no claims and has no run under way, so
/// that an answer about it costs nothing.
fn is_over(holdout: &Holdout) -> bool {
    holdout.status != HoldoutStatus::Registered && holdout.in_flight.is_empty()
}

/// The price of an answer: ⌈10⁶·log2(1/mass)⌉, the mass of "agrees" being 2⁻¹⁶.
fn price(agrees: bool) -> MicroBits {
    let whole = 1u128 << AGREES_BITS;
    if agrees {
        log2_microbits_up(whole, 1)
    } else {
        log2_microbits_up(whole, whole - 1)
    }
}

fn must_carry(holdout: &Holdout) -> Result<(), Refusal> {
    if is_over(holdout) {
        return Ok(());
    }
    let policy = &holdout.description.policy;
    let mut pools = vec![(Pool::Sealed, holdout.sealed, holdout.sealed_budget())];
    if holdout.description.answer_items > 0 {
        pools.push((Pool::Answers, holdout.answers, policy.answer_budget));
    }
    let needed = price(true);
    for (pool, meter, budget) in pools {
        let left = meter.left(budget);
        if needed > left {
            return Err(Refusal::CannotCompare {
                reference: holdout.reference.clone(),
                pool,
                needed,
                left,
            });
        }
        if needed > meter.free(budget) {
            return Err(Refusal::Reserved { pool });
        }
    }
    Ok(())
}

/// The entry has its place in the order of the holdout's settlements: a run that was admitted
/// before and settles after it reads a k with this charge, which only raises its bar.
fn charge(stage: &Stage<'_>, other: &Holdout, agrees: bool, comparison: &mut Comparison) {
    if is_over(other) {
        return;
    }
    let sealed = price(agrees);
    let answers = if other.description.answer_items > 0 {
        sealed
    } else {
        MicroBits::ZERO
    };
    comparison.events.push(Event::HoldoutCompared {
        holdout: other.id,
        answers,
        sealed,
    });
    let entry = Compared {
        holdout: other.id,
        agrees,
        answers,
        sealed,
        compared_unix_ms: stage.now_unix_ms(),
    };
    comparison.entries.push(entry.to_bytes());
}
