//! Checks charges: every meter is the sum over the log's entries, and nothing else.

use std::collections::{HashMap, HashSet};

use evidenceos_kernel::{
    bits::MicroBits,
    claim::Outcome,
    entry::{Charge, Entry, Kind},
    holdout::{Holdout, InFlight, PrincipalPool},
    id::{HoldoutId, OwnerTag},
    record::Capsule,
};

use super::{Examination, TELL, history::each_entry, rows};
use crate::StoreError;

#[derive(Default)]
struct Sums {
    sealed: MicroBits,
    answers: MicroBits,
    settled: u64,
    certified: u64,
    owners: HashMap<OwnerTag, OwnSums>,
}

/// The charges of one owner's claims.
#[derive(Default, Clone, Copy)]
struct OwnSums {
    answers: MicroBits,
    sealed: MicroBits,
}

impl Sums {
    fn charge(&mut self, charge: &Charge) {
        self.sealed = self.sealed.saturating_add(charge.sealed);
        self.answers = self.answers.saturating_add(charge.answers);
    }

    /// Counts a claim that ended, with its charges.
    fn count(&mut self, capsule: &Capsule) {
        let own = self.owners.entry(capsule.owner_tag).or_default();
        own.answers = own.answers.saturating_add(capsule.answers.charged);
        own.sealed = own.sealed.saturating_add(capsule.ledger.price);
        match capsule.outcome {
            Outcome::Certified => {
                self.settled += 1;
                self.certified += 1;
            }
            Outcome::NotCertified => self.settled += 1,
            Outcome::NotJudged | Outcome::Aborted => {}
        }
    }
}

/// The log's sums for each holdout, and the holdouts that it registers.
fn summed(
    on: &mut Examination<'_>,
) -> Result<(HashMap<HoldoutId, Sums>, HashSet<HoldoutId>), StoreError> {
    let mut sums: HashMap<HoldoutId, Sums> = HashMap::new();
    let mut registered = HashSet::new();
    each_entry(on, false, |on, index, _, bytes| {
        let entry = match Entry::parse(bytes) {
            Ok(entry) => entry,
            Err(error) => {
                // The check of the entries notes bytes that are not a record at all.
                if Kind::of(bytes).is_some() {
                    on.note("entries", index, error.to_string(), TELL);
                }
                return Ok(());
            }
        };
        if let Some(charge) = entry.charge() {
            sums.entry(charge.holdout).or_default().charge(&charge);
        }
        if let Entry::ClaimCapsule(capsule) = &entry {
            let sums = sums.entry(capsule.holdout_id).or_default();
            sums.count(capsule);
        } else if let Entry::HoldoutRegistered(holdout) = &entry {
            registered.insert(holdout.id);
        }
        Ok(())
    })?;
    Ok((sums, registered))
}

/// Bits charged to holdouts and principals are the sums over the capsules in the log.
pub(super) fn ledger(on: &mut Examination<'_>) -> Result<u64, StoreError> {
    let (mut sums, registered) = summed(on)?;
    let holdouts = rows::all_holdouts(on)?;
    let mut pools = rows::all_pools(on)?;
    for (id, holdout) in &holdouts {
        let sum = sums.remove(id).unwrap_or_default();
        charged_to_all(on, holdout, &sum);
        for (owner, charged) in sum.owners {
            let pool = pools.remove(&(*id, owner)).unwrap_or_default();
            charged_to_one(on, holdout, owner, &pool, charged);
            reserved(on, holdout, owner, &pool);
        }
    }
    // A principal without a capsule was charged nothing.
    for ((id, owner), pool) in pools {
        for charged in [pool.answers.charged, pool.sealed.charged] {
            on.must(
                charged == MicroBits::ZERO,
                ("pools", format!("{id} {owner}")),
                || format!("{} charged, but the log charges nothing", charged.0),
                TELL,
            );
        }
        if let Some(holdout) = holdouts.get(&id) {
            reserved(on, holdout, owner, &pool);
        }
    }
    // If a holdout's items were lost, it is in the log only, after a recovery of its entries.
    for id in sums.into_keys().filter(|id| !registered.contains(id)) {
        on.note(
            "entries",
            id,
            "capsules name a holdout that was never registered",
            TELL,
        );
    }
    Ok(holdouts.len() as u64)
}

/// A holdout's own meters and counts.
fn charged_to_all(on: &mut Examination<'_>, holdout: &Holdout, sum: &Sums) {
    for (what, said, is) in [
        (
            "the sealed part's charge",
            holdout.sealed.charged.0,
            sum.sealed.0,
        ),
        (
            "the answer part's charge",
            holdout.answers.charged.0,
            sum.answers.0,
        ),
        ("the number of judged claims", holdout.settled, sum.settled),
        (
            "the number of certified claims",
            holdout.certified,
            sum.certified,
        ),
    ] {
        on.must(
            said == is,
            ("holdouts", &holdout.reference),
            || format!("{what} is {said}, but the log gives {is}"),
            TELL,
        );
    }
}

/// The meters of one principal at a holdout.
fn charged_to_one(
    on: &mut Examination<'_>,
    holdout: &Holdout,
    owner: OwnerTag,
    pool: &PrincipalPool,
    charged: OwnSums,
) {
    let mut is = vec![(pool.answers.charged, charged.answers)];
    // Without a sealed budget per principal these are not counted.
    if fenced(holdout) {
        is.push((pool.sealed.charged, charged.sealed));
    }
    for (said, is) in is {
        on.must(
            said == is,
            ("pools", format!("{} {owner}", holdout.id)),
            || format!("{} charged, but the log charges {}", said.0, is.0),
            TELL,
        );
    }
}

fn fenced(holdout: &Holdout) -> bool {
    let policy = &holdout.description.policy;
    policy.principal_sealed_budget.is_some()
}

/// An owner's pool reserves exactly the reservations of its runs under way.
fn reserved(on: &mut Examination<'_>, holdout: &Holdout, owner: OwnerTag, pool: &PrincipalPool) {
    let sum = |of: fn(&InFlight) -> MicroBits| {
        let own = holdout.in_flight.iter().filter(|run| run.owner == owner);
        own.fold(MicroBits::ZERO, |sum, run| sum.saturating_add(of(run)))
    };
    let mut meters = vec![(pool.answers, sum(|run| run.answers_reserved))];
    if fenced(holdout) {
        meters.push((pool.sealed, sum(|run| run.sealed_reserved)));
    }
    for (meter, by_runs) in meters {
        on.must(
            meter.reserved == by_runs,
            ("pools", format!("{} {owner}", holdout.id)),
            || {
                format!(
                    "{} reserved, but runs under way reserve {}",
                    meter.reserved.0, by_runs.0
                )
            },
            TELL,
        );
    }
}
