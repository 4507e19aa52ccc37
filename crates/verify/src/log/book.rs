//! One holdout's book: its ledger, the end of each of its runs, and the room at each admission.
//!
//! Admissions are not entries. If E runs had ended when a run was admitted, its admission lies between the capsule of
//! run E − 1 and that of run E: everything before the former held at its admission, and nothing after the latter did.
//! If these two bounds do not decide a rule, it is not checked.

use std::collections::HashMap;

use evidenceos_kernel::{
    bits::MicroBits,
    claim::Outcome,
    holdout::NarrowerBudgets,
    id::OwnerTag,
    record::{Capsule, Registered, RunPlace},
};

use super::{
    HoldoutLedger,
    rooms::{Room, Tightest},
};
use crate::{
    arithmetic::{evidence::Bets, prices},
    fault::{Check, Fault},
};

/// The end of a run, and the ledger after it.
#[derive(Debug, Clone, Copy)]
struct End {
    index: u64,
    unix_ms: u64,
    settled: u64,
    certified: u64,
    after: Sums,
}

/// Sums over all runs up to one: charged amounts, and amounts reserved at their admissions.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    sealed: u64,
    answers: u64,
    sealed_reserved: u64,
    answers_reserved: u64,
}

impl Sums {
    /// The sums with one more run.
    fn plus(self, sealed: u64, answers: u64, place: &RunPlace) -> Self {
        Self {
            sealed: self.sealed.saturating_add(sealed),
            answers: self.answers.saturating_add(answers),
            sealed_reserved: self
                .sealed_reserved
                .saturating_add(place.sealed_reserved.get()),
            answers_reserved: self
                .answers_reserved
                .saturating_add(place.answers_reserved.get()),
        }
    }
}

/// A restart after which nothing was left but the reservations of runs under way.
#[derive(Debug, Clone, Copy)]
struct Exhausted {
    index: u64,
    ended: u64,
    sealed_reserved: u64,
    answers_reserved: u64,
    sealed_found: u64,
    answers_found: u64,
    /// A later run was seen, so all runs that were under way have been seen.
    complete: bool,
}

/// A comparison that charged fewer bits than 16 although more were uncharged: the reservations of runs under way must
/// have left no more.
#[derive(Debug, Clone, Copy)]
struct Squeezed {
    index: u64,
    ended: u64,
    /// The least that they must have reserved, in one pool or the other.
    sealed_reserved: u64,
    answers_reserved: Option<u64>,
    sealed_found: u64,
    answers_found: u64,
    /// A later run was seen, so all runs that were under way have been seen.
    complete: bool,
}

/// The moment at which a holdout stopped taking claims, for capsules that do not state their admission: the runs that
/// end after it were all under way together.
#[derive(Debug, Clone, Copy)]
struct Closing {
    settled: u64,
    certified: u64,
    charged: u64,
    reserved: u64,
    runs: u64,
}

pub(super) struct Book {
    pub(super) ledger: HoldoutLedger,
    pub(super) bets: Bets,
    /// The number of withdrawn holdouts of these labels in a row before it.
    pub(super) replaced: u32,
    /// Whether the log was restarted or continued since the registration.
    pub(super) carried_on: bool,
    ends: Vec<End>,
    owners: HashMap<OwnerTag, Vec<(u64, Sums)>>,
    retired_at: Option<u64>,
    /// Each change of budgets, with its index, in order.
    changes: Vec<(u64, NarrowerBudgets)>,
    exhausted: Option<Exhausted>,
    squeezed: Vec<Squeezed>,
    /// Comparisons after which runs may still end that were under way at them.
    rooms: Vec<Room>,
    /// The first comparison that found more room than there was.
    roomy: Option<u64>,
    closing: Option<Closing>,
    /// `run.ended_before` of the previous run; `None` before the first capsule that has it.
    last_ended_before: Option<u64>,
}

impl Book {
    pub(super) fn new(registered: Registered, index: u64, bets: Bets, replaced: u32) -> Self {
        Self {
            ledger: HoldoutLedger {
                registered,
                index,
                sealed_charged: MicroBits::ZERO,
                answers_charged: MicroBits::ZERO,
                settled: 0,
                certified: 0,
                not_judged: 0,
                duplicates: 0,
                aborted: 0,
                retired: false,
                opened: false,
                withdrawn: false,
                budgets: NarrowerBudgets::default(),
                owners: Default::default(),
            },
            bets,
            replaced,
            carried_on: false,
            ends: Vec::new(),
            owners: HashMap::new(),
            retired_at: None,
            changes: Vec::new(),
            exhausted: None,
            squeezed: Vec::new(),
            rooms: Vec::new(),
            roomy: None,
            closing: None,
            last_ended_before: None,
        }
    }

    /// Runs that have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ends.len() as u64
    }

    pub(super) fn retire(&mut self, index: u64) {
        self.ledger.retired = true;
        // A second retirement is a separate fault, and runs are measured by the first.
        self.retired_at.get_or_insert(index);
        self.close();
    }

    pub(super) fn change_budgets(&mut self, index: u64, budgets: NarrowerBudgets) {
        self.ledger.budgets = budgets;
        self.changes.push((index, budgets));
    }

    /// Adds charges that belong to no run.
    pub(super) fn add(&mut self, sealed: u64, answers: u64) -> Result<(), Fault> {
        let ledger = &mut self.ledger;
        ledger.sealed_charged = ledger.sealed_charged.saturating_add(MicroBits(sealed));
        ledger.answers_charged = ledger.answers_charged.saturating_add(MicroBits(answers));
        let policy = &ledger.registered.description.policy;
        must_fit(
            "sealed_budget_microbits",
            ledger.sealed_charged,
            policy.sealed_budget,
        )?;
        must_fit(
            "answer_budget_microbits",
            ledger.answers_charged,
            policy.answer_budget,
        )
    }

    /// The rest of the budgets in force: of the sealed part, and of the answer part if there is one.
    fn left(&self) -> (u64, Option<u64>) {
        let description = &self.ledger.registered.description;
        let policy = &description.policy;
        let sealed = self.ledger.budgets.sealed.unwrap_or(policy.sealed_budget);
        let sealed = sealed.min(policy.sealed_budget);
        let answers = policy
            .answer_budget
            .saturating_sub(self.ledger.answers_charged);
        (
            sealed.saturating_sub(self.ledger.sealed_charged).get(),
            (description.answer_items > 0).then_some(answers.get()),
        )
    }

    /// The most whole bits that both pools carry, reservations ignored; `None` if less than one.
    pub(super) fn whole_bits_left(&self) -> Option<u64> {
        let (sealed, answers) = self.left();
        let bits = answers.map_or(sealed, |answers| answers.min(sealed)) / 1_000_000;
        (bits > 0).then_some(bits)
    }

    /// Whether a claim admitted now could be certified.
    pub(super) fn can_certify(&self) -> bool {
        let policy = &self.ledger.registered.description.policy;
        let (m, s) = (self.ledger.settled, self.ledger.certified);
        let least = prices::worst_case(policy.settlement_prices, m, s, 0, 0);
        // A narrowed budget can be widened again, so the registered budget decides.
        let left = policy
            .sealed_budget
            .saturating_sub(self.ledger.sealed_charged);
        !self.ledger.retired && !self.ledger.withdrawn && least <= left.get()
    }

    /// Notes that a comparison found room for this many bits.
    pub(super) fn compare(&mut self, index: u64, bits: u64) {
        let (sealed, answers) = self.left();
        let ended = self.ended();
        let sealed = Tightest::new(index, sealed, bits);
        let answers = answers.map(|left| Tightest::new(index, left, bits));
        // Comparisons between the same two ends saw the same runs under way, so the tightest one decides for all of
        // them.
        match self.rooms.last_mut().filter(|room| room.ended == ended) {
            Some(room) => {
                room.sealed = room.sealed.tighter(sealed);
                room.answers = room.answers.zip(answers).map(|(a, b)| a.tighter(b));
            }
            None => self.rooms.push(Room {
                ended,
                sealed,
                answers,
                sealed_reserved: 0,
                answers_reserved: 0,
            }),
        }
    }

    /// Notes that a comparison found room for only this many bits, fewer than the uncharged budget has.
    pub(super) fn squeeze(&mut self, index: u64, bits: u64) {
        let (sealed, answers) = self.left();
        // The reservations must exceed the amount that leaves room for another bit.
        let reserved = |left: u64| (left + 1).saturating_sub((bits + 1) * 1_000_000);
        self.squeezed.push(Squeezed {
            index,
            ended: self.ended(),
            sealed_reserved: reserved(sealed),
            answers_reserved: answers.map(reserved),
            sealed_found: 0,
            answers_found: 0,
            complete: false,
        });
    }

    /// Notes that nothing is left but the reservations of runs under way.
    pub(super) fn exhaust(&mut self, index: u64) {
        let policy = &self.ledger.registered.description.policy;
        let left = |budget: MicroBits, charged| budget.saturating_sub(charged).get();
        self.exhausted = Some(Exhausted {
            index,
            ended: self.ended(),
            sealed_reserved: left(policy.sealed_budget, self.ledger.sealed_charged),
            answers_reserved: left(policy.answer_budget, self.ledger.answers_charged),
            sealed_found: 0,
            answers_found: 0,
            complete: false,
        });
    }

    pub(super) fn exhausted_at(&self) -> Option<u64> {
        self.exhausted.map(|exhausted| exhausted.index)
    }

    /// The comparison, if there is one, whose price implies another number of free bits than there was.
    pub(super) fn mispriced_comparison(&self) -> Option<u64> {
        let cheap = self.squeezed.iter().find(|squeezed| {
            let explained = squeezed.sealed_found >= squeezed.sealed_reserved
                || squeezed
                    .answers_reserved
                    .is_some_and(|reserved| squeezed.answers_found >= reserved);
            squeezed.complete && !explained
        });
        self.roomy.or(cheap.map(|squeezed| squeezed.index))
    }

    /// Checks the rule that only the end of the log can decide: if a restart exhausted the holdout, its runs under
    /// way had reserved exactly the rest.
    pub(super) fn end(&self) -> Result<(), Fault> {
        let Some(exhausted) = self.exhausted else {
            return Ok(());
        };
        let found = (exhausted.sealed_found, exhausted.answers_found);
        let left = (exhausted.sealed_reserved, exhausted.answers_reserved);
        Check::Restart.holds(
            found == left,
            "a restart charges a holdout the whole budget that its runs under way have not reserved, or the bits that the operator states",
        )
    }

    /// Adds a settlement to the ledger and compares the sums with the registered budgets.
    pub(super) fn settle(
        &mut self,
        index: u64,
        capsule: &Capsule,
        price: u64,
    ) -> Result<(), Fault> {
        let answers = capsule.answers.charged.get();
        self.count(capsule, price, answers);
        let summed = self.summed(capsule, price, answers);
        // If an earlier entry broke the budget, the fault belongs to that entry.
        let own_budgets = self.check_owners_budgets(capsule, price, answers);
        let budgets = if (price, answers) == (0, 0) {
            Ok(())
        } else {
            self.add(price, answers)
        };
        self.ends.push(End {
            index,
            unix_ms: capsule.settled_unix_ms,
            settled: self.ledger.settled,
            certified: self.ledger.certified,
            after: Sums {
                sealed: self.ledger.sealed_charged.get(),
                answers: self.ledger.answers_charged.get(),
                ..summed
            },
        });
        budgets.and(own_budgets)
    }

    /// Counts a claim that ended, for the holdout and for its owner.
    fn count(&mut self, capsule: &Capsule, price: u64, answers: u64) {
        let ledger = &mut self.ledger;
        let owner = ledger.owners.entry(capsule.owner_tag).or_default();
        owner.claims += 1;
        owner.answers_charged = owner.answers_charged.saturating_add(MicroBits(answers));
        owner.sealed_charged = owner.sealed_charged.saturating_add(MicroBits(price));
        match capsule.outcome {
            Outcome::Certified => {
                ledger.settled += 1;
                ledger.certified += 1;
                owner.certified += 1;
            }
            Outcome::NotCertified => ledger.settled += 1,
            Outcome::NotJudged => {
                ledger.not_judged += 1;
                ledger.duplicates += u64::from(capsule.duplicate_of.is_some());
            }
            Outcome::Aborted => ledger.aborted += 1,
        }
    }

    /// The sums over all runs that ended, this one included; also notes those of its owner.
    fn summed(&mut self, capsule: &Capsule, price: u64, answers: u64) -> Sums {
        // The reservation of a run of an earlier release is unknown. It adds nothing, so no other run is refused for
        // a guess.
        let place = capsule.run.unwrap_or(RunPlace {
            number: 0,
            ended_before: 0,
            levels: 0,
            answers_reserved: MicroBits::ZERO,
            sealed_reserved: MicroBits::ZERO,
        });
        let number = self.ended();
        let all = self.ends.last().map(|end| end.after).unwrap_or_default();
        let own = self.owners.entry(capsule.owner_tag).or_default();
        let own_so_far = own.last().map(|(_, sums)| *sums).unwrap_or_default();
        own.push((number, own_so_far.plus(price, answers, &place)));
        all.plus(price, answers, &place)
    }

    /// Checks the owner's charges so far against the holdout policy's budgets for one principal.
    fn check_owners_budgets(
        &self,
        capsule: &Capsule,
        price: u64,
        answers: u64,
    ) -> Result<(), Fault> {
        let policy = &self.ledger.registered.description.policy;
        let owner = self.ledger.owners.get(&capsule.owner_tag);
        let owner = owner.copied().unwrap_or_default();
        if answers > 0 {
            must_fit(
                "principal_answer_budget_microbits",
                owner.answers_charged,
                policy.principal_answer_budget,
            )?;
        }
        match policy.principal_sealed_budget {
            Some(fence) if price > 0 => must_fit(
                "principal_sealed_budget_microbits",
                owner.sealed_charged,
                fence,
            ),
            _ => Ok(()),
        }
    }

    /// Checks whether the run that ends now could be admitted at its stated admission. Called before
    /// [`Book::settle`].
    pub(super) fn check_admission(&mut self, capsule: &Capsule) -> Result<(), Fault> {
        Check::Withdrawal.holds(
            !self.ledger.withdrawn,
            "nothing settles on a holdout that was withdrawn",
        )?;
        Check::Retirement.holds(
            !self.ledger.opened,
            "nothing settles on a holdout whose labels are public",
        )?;
        let Some(run) = capsule.run else {
            // The reservation of this run is unknown.
            self.exhausted = None;
            self.squeezed.clear();
            self.rooms.clear();
            Check::Admission.holds(
                self.last_ended_before.is_none(),
                "run is present in every capsule of a holdout after the first that has it",
            )?;
            return self.check_room();
        };
        Check::Admission.equal("run.number", run.number, self.ended())?;
        Check::Admission.holds(
            run.ended_before <= run.number,
            "run.ended_before is at most run.number",
        )?;
        let before = self.last_ended_before.replace(run.ended_before);
        Check::Admission.holds(
            before.is_none_or(|before| before <= run.ended_before),
            "run.ended_before does not go down: runs are admitted in the order of their numbers",
        )?;
        self.note_reserved(&run);
        self.check_open(&run)?;
        self.check_reserved(capsule, &run)
    }

    /// Counts the reservation of a run that was under way at a restart or comparison that found reservations.
    fn note_reserved(&mut self, run: &RunPlace) {
        // Runs are admitted in the order of their numbers: no later one was under way either.
        self.rooms.retain(|room| run.ended_before < room.ended);
        for room in &mut self.rooms {
            room.sealed_reserved = room
                .sealed_reserved
                .saturating_add(run.sealed_reserved.get());
            room.answers_reserved = room
                .answers_reserved
                .saturating_add(run.answers_reserved.get());
            self.roomy = self.roomy.or(room.exceeded());
        }
        for squeezed in &mut self.squeezed {
            squeezed.complete |= run.ended_before > squeezed.ended;
            if !squeezed.complete {
                squeezed.sealed_found = squeezed
                    .sealed_found
                    .saturating_add(run.sealed_reserved.get());
                squeezed.answers_found = squeezed
                    .answers_found
                    .saturating_add(run.answers_reserved.get());
            }
        }
        if let Some(exhausted) = &mut self.exhausted {
            exhausted.complete |= run.ended_before > exhausted.ended;
            if !exhausted.complete {
                exhausted.sealed_found = exhausted
                    .sealed_found
                    .saturating_add(run.sealed_reserved.get());
                exhausted.answers_found = exhausted
                    .answers_found
                    .saturating_add(run.answers_reserved.get());
            }
        }
    }

    /// The end of the run after which a run was admitted; `None`: it was admitted after the registration.
    fn admitted_after(&self, run: &RunPlace) -> Option<&End> {
        let before = run.ended_before.checked_sub(1)?;
        self.ends.get(usize::try_from(before).ok()?)
    }

    /// Whether a run was certainly admitted after the entry at an index.
    pub(super) fn admitted_after_index(&self, run: &RunPlace, index: u64) -> bool {
        self.admitted_after(run)
            .is_some_and(|end| end.index > index)
    }

    /// Checks that the holdout took claims and its null spec had not expired.
    fn check_open(&self, run: &RunPlace) -> Result<(), Fault> {
        let after_retirement = self
            .retired_at
            .is_some_and(|index| self.admitted_after_index(run, index));
        Check::Admission.holds(
            !after_retirement,
            "no run is admitted after its holdout was retired",
        )?;
        let since = self
            .admitted_after(run)
            .map_or(self.ledger.registered.registered_unix_ms, |end| end.unix_ms);
        let expires = self.ledger.registered.description.null_spec.expires_unix();
        Check::Admission.holds(
            expires.is_none_or(|expires| since / 1_000 < expires),
            "no run is admitted after its null spec expired",
        )
    }

    /// Checks that a run reserved its worst case at its admission, and that it fitted beside the reservations of
    /// other runs.
    fn check_reserved(&self, capsule: &Capsule, run: &RunPlace) -> Result<(), Fault> {
        let policy = &self.ledger.registered.description.policy;
        let since = self.admitted_after(run);
        let (settled, certified) = since.map_or((0, 0), |end| (end.settled, end.certified));
        let ahead = run.number - run.ended_before;
        // A reservation is at least a bit, since the smaller of two masses is at most a half.
        let most_runs = policy.sealed_budget.get() / 1_000_000;
        let worst = match capsule.duplicate_of {
            Some(_) => 0,
            // That many runs cannot have been ahead, and `worst_case` would go through each of them: a forged log must
            // not choose how long its check takes.
            None if ahead > most_runs && self.in_flight_reserved(run) => u64::MAX,
            None => prices::worst_case(
                policy.settlement_prices,
                settled,
                certified,
                ahead,
                run.levels,
            ),
        };
        Check::Admission.equal(
            "run.sealed_reserved_microbits",
            run.sealed_reserved.get(),
            worst,
        )?;
        self.check_room_at_admission(capsule, run)
    }

    /// Whether the runs ahead of one reserved anything.
    fn in_flight_reserved(&self, run: &RunPlace) -> bool {
        let all = self.ends.last().map(|end| end.after).unwrap_or_default();
        let ended = self
            .admitted_after(run)
            .map(|end| end.after)
            .unwrap_or_default();
        all.sealed_reserved > ended.sealed_reserved
    }

    /// Checks the charged and reserved sums at the admission of a run, itself included, against the budgets in force.
    fn check_room_at_admission(&self, capsule: &Capsule, run: &RunPlace) -> Result<(), Fault> {
        let policy = &self.ledger.registered.description.policy;
        let ended = self
            .admitted_after(run)
            .map(|end| end.after)
            .unwrap_or_default();
        let all = self.ends.last().map(|end| end.after).unwrap_or_default();
        let (own_ended, own_all) = self.own_sums(capsule, run);
        let sealed_budget = self.largest_in_force(run, policy.sealed_budget, |b| b.sealed);
        let answer_fence =
            self.largest_in_force(run, policy.principal_answer_budget, |b| b.principal_answers);
        let sealed = run.sealed_reserved.get();
        let answers = run.answers_reserved.get();
        let under_way = |all: u64, ended: u64| all.saturating_sub(ended);
        for (budget, added, charged, reserved, allowed) in [
            (
                "sealed_budget_microbits",
                sealed,
                ended.sealed,
                under_way(all.sealed_reserved, ended.sealed_reserved),
                Some(sealed_budget),
            ),
            (
                "answer_budget_microbits",
                answers,
                ended.answers,
                under_way(all.answers_reserved, ended.answers_reserved),
                Some(policy.answer_budget),
            ),
            (
                "principal_answer_budget_microbits",
                answers,
                own_ended.answers,
                under_way(own_all.answers_reserved, own_ended.answers_reserved),
                Some(answer_fence),
            ),
            (
                "principal_sealed_budget_microbits",
                sealed,
                own_ended.sealed,
                under_way(own_all.sealed_reserved, own_ended.sealed_reserved),
                policy.principal_sealed_budget,
            ),
        ] {
            let needed = charged.saturating_add(reserved).saturating_add(added);
            // A run that reserves nothing of a pool is admitted even if the pool is spent.
            if let Some(allowed) = allowed.filter(|_| added > 0) {
                must_fit(budget, MicroBits(needed), allowed)?;
            }
        }
        Ok(())
    }

    /// The sums over the runs of a claim's owner: those that had ended when a run was admitted, and all of them.
    fn own_sums(&self, capsule: &Capsule, run: &RunPlace) -> (Sums, Sums) {
        let own = self
            .owners
            .get(&capsule.owner_tag)
            .map_or(&[][..], Vec::as_slice);
        let all = own.last().map(|(_, sums)| *sums).unwrap_or_default();
        let ended_runs = own.partition_point(|(number, _)| *number < run.ended_before);
        let ended = ended_runs
            .checked_sub(1)
            .map(|at| own[at].1)
            .unwrap_or_default();
        (ended, all)
    }

    /// The largest budget in force at any time at which the run may have been admitted.
    fn largest_in_force(
        &self,
        run: &RunPlace,
        registered: MicroBits,
        of: impl Fn(&NarrowerBudgets) -> Option<MicroBits>,
    ) -> MicroBits {
        let from = self.admitted_after(run).map_or(0, |end| end.index);
        let next = usize::try_from(run.ended_before).ok();
        let to = next
            .and_then(|next| self.ends.get(next))
            .map_or(u64::MAX, |end| end.index);
        let at_first = self.changes.iter().rev().find(|(index, _)| *index < from);
        let at_first = at_first
            .and_then(|(_, budgets)| of(budgets))
            .unwrap_or(registered);
        self.changes
            .iter()
            .filter(|(index, _)| (from..to).contains(index))
            .map(|(_, budgets)| of(budgets).unwrap_or(registered))
            .fold(at_first, MicroBits::max)
    }

    /// From here on only runs that are under way may end.
    fn close(&mut self) {
        let ledger = &self.ledger;
        self.closing.get_or_insert(Closing {
            settled: ledger.settled,
            certified: ledger.certified,
            charged: ledger.sealed_charged.get(),
            reserved: 0,
            runs: 0,
        });
    }

    /// Checks capsules of earlier releases, which do not state their runs' admissions. After the holdout was retired
    /// or its null spec expired, no more runs can end than could be under way together: each had reserved at least
    /// the worst case of its place in the queue.
    fn check_room(&mut self) -> Result<(), Fault> {
        let registered = &self.ledger.registered.description;
        let expires = registered.null_spec.expires_unix();
        let last = self.ends.last().map(|end| end.unix_ms);
        if expires.is_some_and(|expires| last.is_some_and(|last| last / 1_000 >= expires)) {
            self.close();
        }
        let policy = &self.ledger.registered.description.policy;
        let Some(closing) = &mut self.closing else {
            return Ok(());
        };
        let worst = prices::worst_case(
            policy.settlement_prices,
            closing.settled,
            closing.certified,
            closing.runs,
            0,
        );
        closing.runs += 1;
        closing.reserved = closing.reserved.saturating_add(worst);
        Check::Admission.holds(
            closing.charged.saturating_add(closing.reserved) <= policy.sealed_budget.get(),
            "more runs ended after the holdout was retired, or its null spec expired, than could be under way then",
        )
    }
}

fn must_fit(budget: &'static str, charged: MicroBits, allowed: MicroBits) -> Result<(), Fault> {
    if charged <= allowed {
        Ok(())
    } else {
        Err(Fault::Budget {
            budget,
            charged: charged.get(),
            allowed: allowed.get(),
        })
    }
}
