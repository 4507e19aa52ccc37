//! Capsules and revocations, checked against the history before them.

use std::collections::HashSet;

use evidenceos_kernel::{
    claim::{Outcome, Reason},
    id::{ClaimId, Digest},
    record::Capsule,
};

use super::{Replay, Revoked, Settled};
use crate::{
    capsule::{Expected, second_reason},
    fault::{Check, Fault},
    fields::Fields,
};

/// The most ancestors of a claim.
const MOST_ANCESTORS: u64 = 256;
const MOST_GENERATIONS: u64 = 32;

impl Replay {
    pub(super) fn capsule(&mut self, index: u64, entry: &[u8]) -> Result<(), Fault> {
        let capsule = Capsule::parse(entry)?;
        self.modern |= capsule.run.is_some();
        let known = self.bookkept(&capsule).and(Check::Admission.holds(
            capsule.run.is_some() || !self.begun_modern,
            "run is present in every capsule of a log that began under release 2.2 or a later release",
        ));
        let tainted = self.revoked_ancestor(&capsule);
        if tainted.is_some() {
            self.tainted.push(index);
        }
        let history = self
            .check_taint(&capsule, tainted)
            .and(self.check_duplicate(&capsule));
        let book = self.book(capsule.holdout_id)?;
        let expected = Expected {
            description: &book.ledger.registered.description,
            bets: &book.bets,
            k: book.ledger.sealed_charged.get(),
            settled: book.ledger.settled,
            certified: book.ledger.certified,
        };
        let own = expected.check(&capsule);
        let charge = expected.charge(&capsule);
        let admitted = book.check_admission(&capsule);
        let budgets = book.settle(index, &capsule, charge);
        let (claim, digest) = (capsule.claim_id, Digest::of(entry));
        let place = self.capsules.len();
        let (parents, ancestors, depth) = self.lineage(&capsule);
        // The first capsule counts. A second one is a fault, and later entries refer to the first.
        self.settled.entry(claim).or_insert(Settled {
            capsule: digest,
            place,
            parents,
            ancestors,
            depth,
            revoked_at: None,
        });
        self.claim_of_capsule.entry(digest).or_insert(claim);
        self.capsules.push((index, capsule));
        let related = Check::Dependencies.holds(
            ancestors <= MOST_ANCESTORS && depth <= MOST_GENERATIONS,
            "a claim has at most 256 ancestors in 32 generations",
        );
        // The first fault of an entry is the one that explains the others.
        known
            .and(own)
            .and(admitted)
            .and(history)
            .and(related)
            .and(budgets)
    }

    /// Checks that a claim has one capsule, and that its parents have theirs.
    fn bookkept(&self, capsule: &Capsule) -> Result<(), Fault> {
        if self.settled.contains_key(&capsule.claim_id) {
            return Err(Fault::SettledTwice(capsule.claim_id));
        }
        match capsule
            .dependencies
            .iter()
            .find(|parent| !self.claim_of_capsule.contains_key(parent))
        {
            Some(parent) => Err(Fault::UnknownCapsule(*parent)),
            None => Ok(()),
        }
    }

    /// The parents, an upper bound of the number of ancestors, and the number of generations.
    fn lineage(&self, capsule: &Capsule) -> (Vec<ClaimId>, u64, u64) {
        let parents: Vec<ClaimId> = capsule
            .dependencies
            .iter()
            .filter_map(|parent| self.claim_of_capsule.get(parent).copied())
            .collect();
        let (mut ancestors, mut depth) = (0u64, 0);
        for parent in parents.iter().filter_map(|parent| self.settled.get(parent)) {
            ancestors = ancestors.saturating_add(1 + parent.ancestors);
            depth = depth.max(1 + parent.depth);
        }
        (parents, ancestors, depth)
    }

    /// Index of the first revocation among a claim's ancestors.
    fn revoked_ancestor(&self, capsule: &Capsule) -> Option<u64> {
        let mut open = self.lineage(capsule).0;
        let mut seen = HashSet::new();
        let mut first: Option<u64> = None;
        // The log of a stranger may have any number of paths to one ancestor.
        while let Some(claim) = open.pop() {
            let Some(settled) = self.settled.get(&claim).filter(|_| seen.insert(claim)) else {
                continue;
            };
            first = first.into_iter().chain(settled.revoked_at).min();
            open.extend(&settled.parents);
        }
        first
    }

    /// Checks that a claim with a revoked ancestor is not judged, and was admitted before the revocation.
    fn check_taint(&mut self, capsule: &Capsule, revoked_at: Option<u64>) -> Result<(), Fault> {
        let judged = matches!(capsule.outcome, Outcome::Certified | Outcome::NotCertified);
        let called_tainted = second_reason(capsule) == Some(Reason::AncestorRevoked);
        let Some(revoked_at) = revoked_at else {
            return Check::Taint.holds(
                !called_tainted,
                "the claim was called tainted, but no ancestor was revoked before",
            );
        };
        Check::Taint.holds(
            !judged,
            "the claim was judged after an ancestor was revoked",
        )?;
        // A reason that is checked after the taint would release more than a tainted claim may.
        let looked_further = matches!(
            second_reason(capsule),
            Some(Reason::OutOfReach | Reason::NothingToJudge | Reason::Policy(_))
        );
        Check::Taint.holds(
            !looked_further,
            "a claim that emitted its output and has a revoked ancestor is called tainted",
        )?;
        let book = self.book(capsule.holdout_id)?;
        let after = capsule
            .run
            .is_some_and(|run| book.admitted_after_index(&run, revoked_at));
        Check::Taint.holds(
            !after,
            "no run is admitted after an ancestor of its claim was revoked",
        )
    }

    /// Checks that a duplicate refers to a verdict that was valid at its admission, of the same owner, module and
    /// terms.
    fn check_duplicate(&mut self, capsule: &Capsule) -> Result<(), Fault> {
        // A duplicate without `run` is a fault that the check of the capsule itself reports.
        let (Some(earlier), Some(run)) = (capsule.duplicate_of, capsule.run) else {
            return Ok(());
        };
        let no_such = || {
            Fault::rule(
                Check::Duplicate,
                "duplicate_of_hex names a claim that was settled before",
            )
        };
        let settled = self.settled.get(&earlier).ok_or_else(no_such)?;
        let revoked_at = settled.revoked_at;
        let first = self.capsules[settled.place].1.clone();
        Check::Duplicate.holds(
            matches!(first.outcome, Outcome::Certified | Outcome::NotCertified),
            "duplicate_of_hex names a claim that was judged",
        )?;
        let same = first.owner_tag == capsule.owner_tag
            && first.holdout_id == capsule.holdout_id
            && first.wasm_hash == capsule.wasm_hash
            && first.answers.n_symbols == capsule.answers.n_symbols
            && first.ledger.alpha_micros == capsule.ledger.alpha_micros
            && first.run.is_none_or(|first| first.levels == run.levels);
        Check::Duplicate.holds(
            same,
            "a duplicate has the owner, the holdout, the module, the alphabet, the alpha and the levels of the claim that it names",
        )?;
        Check::Duplicate.holds(
            first.answers.asked == 0,
            "a duplicate's module asks no questions",
        )?;
        Check::Duplicate.holds(
            first
                .run
                .is_none_or(|first| first.number < run.ended_before),
            "duplicate_of_hex names a claim that was judged when this one was admitted",
        )?;
        let book = self.book(capsule.holdout_id)?;
        let stood = revoked_at.is_none_or(|index| !book.admitted_after_index(&run, index));
        Check::Duplicate.holds(
            stood,
            "duplicate_of_hex names a claim that was not revoked when this one was admitted",
        )
    }

    pub(super) fn revoked(&mut self, index: u64, mut fields: Fields) -> Result<(), Fault> {
        let claim = ClaimId(fields.digest("claim_id_hex")?.0);
        let capsule = fields.digest("capsule_hash_hex")?;
        let reason = fields.public_text("reason")?;
        let unix_ms = fields.int("revoked_unix_ms")?;
        fields.finish()?;
        let Some(settled) = self.settled.get_mut(&claim) else {
            return Err(Fault::rule(
                Check::Revocation,
                "claim_id_hex names a claim that was settled before",
            ));
        };
        if settled.revoked_at.is_some() {
            return Err(Fault::RevokedTwice(claim));
        }
        settled.revoked_at = Some(index);
        let named = Check::Revocation.equal("capsule_hash_hex", capsule, settled.capsule);
        self.revoked.push(Revoked {
            claim,
            index,
            reason,
            unix_ms,
        });
        named
    }
}
