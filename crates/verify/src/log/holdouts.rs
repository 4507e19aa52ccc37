//! Descriptions of holdouts, comparisons with them, their budgets, their end.

use evidenceos_kernel::{
    holdout::Policy,
    id::{Digest, HoldoutId},
    price::SettlementPrices,
    record::{BudgetsChanged, Compared, Registered},
};

use super::{Book, Event, Replay};
use crate::{
    arithmetic::{evidence::Bets, kraft, log2::microbits_up, split},
    fault::{Check, Fault},
    fields::{Fields, public_text},
};

/// The most bits of "the labels agree": R. Then "they do not" costs ⌈10⁶·log2(2ᴿ/(2ᴿ − 1))⌉, 23 microbits for 16.
const MOST_AGREEMENT_BITS: u64 = 16;
/// The most items of a holdout.
const MOST_ITEMS: u64 = 1_000_000;
/// The largest budget: a million bits.
const LARGEST_BUDGET: u64 = 1_000_000_000_000;
/// The most registrations of withdrawn labels in a row.
const MOST_REPLACED: u32 = 3;
/// The dearest answer: 64 bits.
const DEAREST_ANSWER: u64 = 64_000_000;

impl Replay {
    pub(super) fn registered(&mut self, index: u64, entry: &[u8]) -> Result<(), Fault> {
        let registered = match Registered::parse(entry) {
            Ok(registered) => registered,
            Err(error) => {
                // An entry that cannot be read does not show which comparisons belong to it.
                self.compared.clear();
                return Err(error.into());
            }
        };
        let compared = self.was_compared(index, registered.description.fresh_items);
        let id = HoldoutId(Digest::of(&[b"evidenceos:holdout:v1\0".as_slice(), entry].concat()).0);
        if self.by_id.contains_key(&id) {
            return Err(Fault::RegisteredTwice(id));
        }
        let description = &registered.description;
        self.modern |= description.fresh_items
            || description.replaces.is_some()
            || description.policy.principal_sealed_budget.is_some();
        let (replaced, replaces) = self.replaced(&registered);
        let named = self.named(&registered.reference);
        let sound = check_description(&registered);
        let bets = Bets::of(&description.null_spec)?;
        // A faulty registration opens a book too: without one, each capsule about it would be
        // another finding.
        let at = self.books.len();
        self.by_id.insert(id, at);
        self.names.insert(registered.reference.clone(), at);
        self.books
            .push(Book::new(registered, index, bets, replaced));
        compared.and(named).and(replaces).and(sound)
    }

    /// A name must not belong to another holdout, unless that one is withdrawn, and must not look
    /// like an id.
    fn named(&self, name: &str) -> Result<(), Fault> {
        public_text("ref", name)?;
        let taken = self.names.get(name).map(|at| &self.books[*at]);
        Check::Registration.holds(
            taken.is_none_or(|book| book.ledger.withdrawn),
            "ref is the name of one holdout only",
        )?;
        let looks_like_an_id = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let means_another =
            HoldoutId::from_typed_hex(name).is_some_and(|id| self.by_id.contains_key(&id));
        // Earlier releases accepted such names. In their logs this is a fault only if the name is
        // another holdout's id.
        Check::Registration.holds(
            !(looks_like_an_id && (self.modern || means_another)),
            "ref is not written like a holdout's id",
        )
    }

    /// The number of withdrawn holdouts of these labels in a row before this one.
    fn replaced(&self, registered: &Registered) -> (u32, Result<(), Fault>) {
        let Some(id) = registered.description.replaces else {
            return (0, Ok(()));
        };
        let Some(book) = self.by_id.get(&id).map(|at| &self.books[*at]) else {
            return (0, Err(Fault::UnknownHoldout(id)));
        };
        let replaced = book.replaced + 1;
        let again = self
            .books
            .iter()
            .any(|other| other.ledger.registered.description.replaces == Some(id));
        let allowed = Check::Registration
            .holds(
                book.ledger.withdrawn,
                "replaces_hex names a holdout that was withdrawn",
            )
            .and(Check::Registration.holds(
                !again,
                "replaces_hex names a holdout that no other replaces",
            ))
            .and(Check::Registration.holds(
                book.ledger.registered.description.items == registered.description.items,
                "a holdout that replaces another has as many items",
            ))
            .and(Check::Registration.holds(
                replaced <= MOST_REPLACED,
                "the same labels are registered again at most 3 times in a row",
            ));
        (replaced, allowed)
    }

    pub(super) fn compared(&mut self, index: u64, entry: &[u8]) -> Result<(), Fault> {
        let compared = Compared::parse(entry)?;
        let at = *self
            .by_id
            .get(&compared.holdout)
            .ok_or(Fault::UnknownHoldout(compared.holdout))?;
        self.modern = true;
        // A registration compares with the earlier holdouts in order: a comparison out of order begins another
        // registration.
        if self
            .compared
            .last()
            .is_some_and(|&(before, _)| before >= at)
        {
            self.close_comparison(index);
        }
        self.compared.push((at, compared.agrees));
        self.events.push((
            index,
            Event::Compared {
                holdout: compared.holdout,
                agrees: compared.agrees,
            },
        ));
        let book = &mut self.books[at];
        let Some(most) = book
            .whole_bits_left()
            .map(|bits| bits.min(MOST_AGREEMENT_BITS))
        else {
            return Err(Fault::rule(
                Check::Comparison,
                "no labels are compared with a holdout that has less than a bit left",
            ));
        };
        let bits = bits_compared(&compared, most);
        // The right charge, whatever the entry states.
        let charged = price_of_comparison(bits.unwrap_or(most), compared.agrees);
        let answers = match book.ledger.registered.description.answer_items {
            0 => 0,
            _ => charged,
        };
        if let Some(bits) = bits {
            book.compare(index, bits);
        }
        if let Some(bits) = bits.filter(|&bits| bits < most) {
            book.squeeze(index, bits);
        }
        let within = book.add(charged, answers);
        Check::Comparison.holds(
            !book.ledger.opened && !book.ledger.withdrawn,
            "no labels are compared with a holdout whose labels are public or that was withdrawn",
        )?;
        Check::Comparison.holds(
            bits.is_some(),
            "sealed_microbits is the price of the answer, at 16 bits for agreement or as many whole bits as are left",
        )?;
        Check::Comparison.equal("answers_microbits", compared.answers.get(), answers)?;
        within
    }

    /// Closes comparisons without a registration after them: one of them must have agreed, and none may be left out.
    pub(super) fn close_comparison(&mut self, index: u64) {
        let group = std::mem::take(&mut self.compared);
        if group.is_empty() {
            return;
        }
        let refused = group.iter().any(|&(_, agrees)| agrees);
        let fault = Check::Comparison
            .holds(
                refused,
                "comparisons that all disagree are followed by the registration that they were made for",
            )
            .and(self.all_compared(&group));
        if let Err(fault) = fault {
            self.find(Some(index), fault);
        }
    }

    /// Checks that a registration was compared with every earlier holdout that still takes claims, and disagreed with
    /// each.
    fn was_compared(&mut self, index: u64, fresh_items: bool) -> Result<(), Fault> {
        let refused = self.compared.iter().any(|&(_, agrees)| agrees);
        if fresh_items || refused {
            // Comparisons before this entry, if any, belong to another registration.
            self.close_comparison(index);
        }
        let group = std::mem::take(&mut self.compared);
        if fresh_items || !self.modern {
            return Ok(());
        }
        self.all_compared(&group)
    }

    fn all_compared(&self, group: &[(usize, bool)]) -> Result<(), Fault> {
        // A holdout that can start no run may still have runs under way, which the log shows later, if at all.
        let left_out = self.books.iter().enumerate().any(|(at, book)| {
            book.can_certify() && !group.iter().any(|&(compared, _)| compared == at)
        });
        Check::Comparison.holds(
            !left_out,
            "a registration is compared with every earlier holdout on which a claim can still be certified, unless its items are declared fresh",
        )
    }

    pub(super) fn budgets_changed(&mut self, index: u64, entry: &[u8]) -> Result<(), Fault> {
        let changed = BudgetsChanged::parse(entry)?;
        self.modern = true;
        let book = self.book(changed.holdout)?;
        let policy = &book.ledger.registered.description.policy;
        let within = Check::BudgetChange.holds(
            changed
                .budgets
                .sealed
                .is_none_or(|budget| budget <= policy.sealed_budget)
                && changed
                    .budgets
                    .principal_answers
                    .is_none_or(|budget| budget <= policy.principal_answer_budget),
            "a changed budget is at most the registered one",
        );
        let (before, after) = (book.ledger.budgets, changed.budgets);
        let news = Check::BudgetChange.holds(
            before != after,
            "a change of budgets changes at least one budget",
        );
        let kept = Check::BudgetChange.holds(
            before.sealed.is_none_or(|_| after.sealed.is_some())
                && before
                    .principal_answers
                    .is_none_or(|_| after.principal_answers.is_some())
                && before.credit.is_none_or(|_| after.credit.is_some()),
            "a budget that was changed once is stated from then on",
        );
        let open = Check::BudgetChange.holds(
            !book.ledger.withdrawn,
            "the budgets of a withdrawn holdout do not change",
        );
        book.change_budgets(index, after);
        self.events.push((
            index,
            Event::BudgetsChanged {
                holdout: changed.holdout,
            },
        ));
        within.and(news).and(kept).and(open)
    }

    pub(super) fn withdrawn(&mut self, index: u64, mut fields: Fields) -> Result<(), Fault> {
        let id = fields.holdout()?;
        let reason = fields.public_text("reason")?;
        fields.int("withdrawn_unix_ms")?;
        fields.finish()?;
        self.modern = true;
        self.events.push((
            index,
            Event::Withdrawn {
                holdout: id,
                reason,
            },
        ));
        let book = self.book(id)?;
        let ledger = &mut book.ledger;
        let again = std::mem::replace(&mut ledger.withdrawn, true);
        let released_nothing = (ledger.settled, ledger.aborted) == (0, 0)
            && (ledger.sealed_charged.get(), ledger.answers_charged.get()) == (0, 0);
        Check::Withdrawal.holds(!again, "a holdout is withdrawn once")?;
        Check::Withdrawal.holds(
            released_nothing && !ledger.opened,
            "a holdout that was judged on, charged or opened is not withdrawn",
        )?;
        Check::Withdrawal.holds(
            !book.carried_on,
            "a holdout is not withdrawn after a restart or a continuation of the log: the lost entries may have been about it",
        )
    }

    pub(super) fn retired(&mut self, index: u64, mut fields: Fields) -> Result<(), Fault> {
        let id = fields.holdout()?;
        fields.public_text("reason")?;
        fields.int("retired_unix_ms")?;
        fields.finish()?;
        let book = self.book(id)?;
        let again = book.ledger.retired;
        book.retire(index);
        Check::Retirement.holds(
            !again && !book.ledger.withdrawn,
            "a holdout is retired once, and not after it was withdrawn",
        )
    }

    pub(super) fn opened(&mut self, mut fields: Fields) -> Result<(), Fault> {
        let id = fields.holdout()?;
        fields.int("opened_unix_ms")?;
        fields.finish()?;
        let ledger = &mut self.book(id)?.ledger;
        let again = std::mem::replace(&mut ledger.opened, true);
        Check::Retirement.holds(
            ledger.retired && !again && !ledger.withdrawn,
            "a holdout is opened once, and retired before",
        )
    }
}

/// The most bits at which an answer about agreement has the price that the entry states.
fn bits_compared(compared: &Compared, most: u64) -> Option<u64> {
    let sealed = compared.sealed.get();
    (1..=most)
        .rev()
        .find(|&bits| price_of_comparison(bits, compared.agrees) == sealed)
}

/// The price of an answer about agreement if "they agree" has mass 2^−bits.
fn price_of_comparison(bits: u64, agrees: bool) -> u64 {
    let whole = 1u128 << bits.min(MOST_AGREEMENT_BITS);
    microbits_up(whole, if agrees { 1 } else { whole - 1 })
}

/// Checks the statements of a description: sizes, policy, null spec.
fn check_description(registered: &Registered) -> Result<(), Fault> {
    let description = &registered.description;
    let (items, units) = (description.items, description.units);
    Check::Registration.holds(
        (1..=MOST_ITEMS).contains(&items) && (1..=items).contains(&units),
        "there are 1 to 1,000,000 items, and no more units than items",
    )?;
    let answer_units = split::answer_units(units, description.policy.answer_share_micros);
    Check::Registration.equal(
        "sealed_units",
        description.sealed_units,
        units.saturating_sub(answer_units),
    )?;
    Check::Registration.holds(
        description
            .answer_items
            .checked_add(description.sealed_items)
            == Some(items)
            && description.answer_items >= answer_units
            && description.sealed_items >= description.sealed_units
            && description.sealed_items > 0
            && (answer_units > 0 || description.answer_items == 0)
            && (units < items || description.answer_items == answer_units),
        "the parts add up to the items, and each has at least an item a unit",
    )?;
    check_policy(&description.policy)?;
    let null_spec = &description.null_spec;
    Check::Registration.holds(
        null_spec
            .expires_unix()
            .is_none_or(|expires| registered.registered_unix_ms / 1_000 < expires),
        "a null spec expires after its registration",
    )?;
    let stated = null_spec.to_object();
    let stated = stated.get("constants_hash").and_then(|hash| hash.as_str());
    Check::Registration.equal(
        "null_spec.constants_hash",
        stated.unwrap_or_default(),
        &Bets::of(null_spec)?.digest().to_hex(),
    )
}

fn check_policy(policy: &Policy) -> Result<(), Fault> {
    let in_range = policy.answer_share_micros < 1_000_000
        && [
            policy.answer_budget,
            policy.principal_answer_budget,
            policy.sealed_budget,
            policy.principal_sealed_budget.unwrap_or_default(),
        ]
        .iter()
        .all(|budget| budget.get() <= LARGEST_BUDGET)
        && policy.levels <= crate::capsule::MOST_LEVELS
        && (1..=64_000_000).contains(&policy.level_width.get())
        && (1..1_000_000).contains(&policy.alpha_micros)
        && (2..=65_536).contains(&policy.max_symbols);
    let (SettlementPrices::Learned { c0_bits: bits }
    | SettlementPrices::Fixed {
        certified_bits: bits,
    }) = policy.settlement_prices;
    Check::Registration.holds(
        in_range && (1..=40).contains(&bits),
        "every field of the policy is in its range",
    )?;
    for (&n_symbols, listed) in &policy.answer_prices.0 {
        let listed: Vec<u64> = listed.iter().map(|price| price.get()).collect();
        Check::Registration.holds(
            (2..=65_536).contains(&n_symbols)
                && listed.len() as u64 == u64::from(n_symbols)
                && listed.iter().all(|&price| price <= DEAREST_ANSWER)
                && kraft::fits(&listed),
            "the listed prices are one for each symbol, and their masses sum to at most 1",
        )?;
    }
    Ok(())
}
