//! Credit: a principal's balance for runs, and the price of a run.
//!
//! Credits are whole numbers in checked integers. Admission reserves a run's worst case; the
//! settlement burns what the run used and refunds the rest. Each day mints credit towards the
//! limit.
//!
//! Invariant ([`Totals::balance_out`]): initial + minted + granted − withdrawn − burned − reserved
//! is the sum of all balances.

use std::{collections::HashMap, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    bits::MicroBits,
    id::{Fingerprint, OwnerTag, RequestKey},
    refusal::Refusal,
};

/// A day in milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// Parts of a credit in a [`Rate`]: 10¹².
const RATE_PARTS: u64 = 1_000_000_000_000;
/// Decimals of a [`Rate`].
const RATE_DECIMALS: usize = 12;
/// The most credits that a [`Rate`] may be.
const MAX_RATE: u64 = 1_000_000;
/// Parts of a credit in a sum of prices: rates times microbits.
const SUM_PARTS: u128 = RATE_PARTS as u128 * 1_000_000;

/// The largest limit, grant or balance of an account: 2⁵³ − 1, which every reader of the log and of
/// `accounts.json` represents exactly.
pub const MAX_CREDIT: u64 = (1 << 53) - 1;

/// The bytes that a claim counts beside its module, its artifacts and its trace: for its row, its journal and its
/// entries in the log.
pub const CLAIM_BYTES: u64 = 4_096;

/// The number of a UTC day since 1970-01-01.
#[must_use]
pub fn unix_day(unix_ms: u64) -> u64 {
    unix_ms / DAY_MS
}

/// A price in credits, exact to 12 decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate(u64);

/// The error for a text that is not a rate.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "must be a decimal number from 0 to {MAX_RATE} with at most {RATE_DECIMALS} decimals, such as 0.001"
)]
pub struct RateError;

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > RATE_DECIMALS {
            return Err(RateError);
        }
        let whole: u64 = whole.parse().map_err(|_| RateError)?;
        // Padded on the right, the digits count parts of 10⁻¹²: `.5` and `.50` are one rate.
        let padded = format!("{decimals:0<RATE_DECIMALS$}");
        let decimals: u64 = padded.parse().map_err(|_| RateError)?;
        // A million credits are 10¹⁸ parts. They fit in 64 bits, and times any number of microbits
        // in 128, so that `without_fuel` need not check its first product.
        let in_range = whole < MAX_RATE || (whole == MAX_RATE && decimals == 0);
        in_range
            .then_some(Self(whole * RATE_PARTS + decimals))
            .ok_or(RateError)
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, decimals) = (self.0 / RATE_PARTS, self.0 % RATE_PARTS);
        if decimals == 0 {
            return write!(f, "{whole}");
        }
        let decimals = format!("{decimals:0>RATE_DECIMALS$}");
        write!(f, "{whole}.{}", decimals.trim_end_matches('0'))
    }
}

/// The amounts that a run uses, or may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Leakage, of answers and of the settlement together.
    pub bits: MicroBits,
    pub fuel: u64,
    /// Wasm pages of 64 KiB.
    pub pages: u64,
    /// Bytes of the module, which the server checks, compiles and keeps.
    pub module_bytes: u64,
}

/// The prices of a run: λ_k for a bit of leakage, λ_cpu for a unit of fuel, λ_mem for a page of 64 KiB, λ_code for a
/// byte of the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tariff {
    /// A bit of leakage.
    pub per_bit: Rate,
    /// A unit of fuel.
    pub per_fuel: Rate,
    /// A Wasm page of 64 KiB.
    pub per_page: Rate,
    /// A byte of the module.
    pub per_module_byte: Rate,
}

impl Default for Tariff {
    /// The defaults are 1, 0.000001, 0.001 and 0.000001: a small claim costs one credit.
    fn default() -> Self {
        Self {
            per_bit: Rate(RATE_PARTS),
            per_fuel: Rate(RATE_PARTS / 1_000_000),
            per_page: Rate(RATE_PARTS / 1_000),
            per_module_byte: Rate(RATE_PARTS / 1_000_000),
        }
    }
}

impl Tariff {
    /// The charge for a run, in whole credits: the sum of its parts rounded up once, at least 1.
    #[must_use]
    pub fn charge(&self, used: Usage) -> u64 {
        // No balance carries a sum beyond 128 bits, so such a sum need not be exact.
        self.without_fuel(used)
            .checked_add(part(self.per_fuel, used.fuel))
            .map_or(u64::MAX, whole_credits)
    }

    /// The most fuel that `credits` pay for after the other parts of `used`; the fuel in `used` is ignored. `None` if
    /// the credits do not even pay for the other parts. If fuel is free, the result is `u64::MAX`.
    #[must_use]
    pub fn affordable_fuel(&self, credits: u64, used: Usage) -> Option<u64> {
        let rest = (u128::from(credits) * SUM_PARTS).checked_sub(self.without_fuel(used))?;
        // Rounded down, so that the charge for this fuel, which is rounded up, is at most
        // `credits`.
        let fuel = rest
            .checked_div(part(self.per_fuel, 1))
            .unwrap_or(u128::MAX);
        Some(u64::try_from(fuel).unwrap_or(u64::MAX))
    }

    /// The charge for all parts but the fuel, in 10⁻¹⁸ credits.
    fn without_fuel(&self, used: Usage) -> u128 {
        (u128::from(self.per_bit.0) * u128::from(used.bits.0))
            .saturating_add(part(self.per_page, used.pages))
            .saturating_add(part(self.per_module_byte, used.module_bytes))
    }
}

/// The price of an amount at a rate, in 10⁻¹⁸ credits.
fn part(rate: Rate, amount: u64) -> u128 {
    u128::from(rate.0)
        .saturating_mul(1_000_000)
        .saturating_mul(u128::from(amount))
}

fn whole_credits(sum: u128) -> u64 {
    // If fractions were rounded down, any number of small runs would be free.
    u64::try_from(sum.div_ceil(SUM_PARTS))
        .unwrap_or(u64::MAX)
        .max(1)
}

/// Prices and the limits of new accounts, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounting {
    pub tariff: Tariff,
    /// Balance and limit of a new account.
    pub credit_limit: u64,
    /// The most that a day mints to a new account; the account's credit limit if absent.
    pub daily_mint_limit: Option<u64>,
    /// Credit limits of single principals; all others get `credit_limit`.
    pub credit_limits: HashMap<String, u64>,
    /// The most bytes that the server stores for one principal.
    pub storage_limit: u64,
}

impl Default for Accounting {
    fn default() -> Self {
        Self {
            tariff: Tariff::default(),
            credit_limit: 10_000,
            daily_mint_limit: None,
            credit_limits: HashMap::new(),
            storage_limit: 4 << 30,
        }
    }
}

impl Accounting {
    /// Refuses a request that would take an account beyond the storage limit of a principal. A principal without an
    /// account has nothing stored.
    ///
    /// # Errors
    /// [`Refusal::StorageLimit`] if the limit would be exceeded: the caller can send fewer bytes, or ask an operator
    /// for a larger limit.
    pub fn must_hold(&self, account: Option<&Account>, more: u64) -> Result<(), Refusal> {
        let stored = account.map_or(0, |account| account.stored_bytes);
        if stored.saturating_add(more) <= self.storage_limit {
            return Ok(());
        }
        Err(Refusal::StorageLimit {
            stored,
            more,
            limit: self.storage_limit,
        })
    }

    /// The account of a new principal: balance and daily mint start at their limits.
    #[must_use]
    pub fn open(&self, seq: u64, owner: OwnerTag, principal: &str, now_unix_ms: u64) -> Account {
        let own = self.credit_limits.get(principal).copied();
        let credit_limit = own.unwrap_or(self.credit_limit);
        let daily_mint_limit = self.daily_mint_limit.unwrap_or(credit_limit);
        Account {
            seq,
            owner,
            principal: principal.to_owned(),
            balance: credit_limit,
            reserved: 0,
            daily_mint_remaining: daily_mint_limit,
            last_mint_day: unix_day(now_unix_ms),
            credit_limit,
            daily_mint_limit,
            burned_total: 0,
            denied_total: 0,
            requests: Vec::new(),
            displaced_requests: false,
            stored_bytes: 0,
        }
    }
}

/// A principal's credit: what they may spend, what is reserved, and their limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Number in order of opening; the store's key.
    pub seq: u64,
    /// The principal's tag, which the log uses.
    pub owner: OwnerTag,
    /// The principal's name; 1–256 bytes.
    pub principal: String,
    /// Credit that the principal can spend now.
    pub balance: u64,
    /// The worst case of the principal's runs under way; not part of the balance.
    pub reserved: u64,
    /// The most that may still be minted on `last_mint_day`.
    pub daily_mint_remaining: u64,
    /// The UTC day of the last mint, since 1970-01-01.
    pub last_mint_day: u64,
    /// Mints and grants raise balance plus reservations to at most this.
    pub credit_limit: u64,
    /// The most that a day mints.
    pub daily_mint_limit: u64,
    /// Burned by runs, ever.
    pub burned_total: u64,
    /// Runs refused because credit was short, ever.
    pub denied_total: u64,
    /// The last request of each method on this account.
    pub requests: Vec<LastCredit>,
    /// Whether an earlier request is remembered elsewhere.
    pub displaced_requests: bool,
    /// Bytes stored for the principal: [`CLAIM_BYTES`] a claim, and the claims' modules, artifacts and traces. Claims
    /// of releases before storage was counted are not included.
    pub stored_bytes: u64,
}

/// The last grant, or the last limit set, with the number in its reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCredit {
    /// True if the request set the limit, false if it was a grant.
    pub limits: bool,
    pub key: RequestKey,
    /// Distinguishes a repeated request from another one under the same key.
    pub fingerprint: Fingerprint,
    /// When it was remembered.
    pub at_unix_ms: u64,
    /// The number in the reply (balance and reservations after a grant, or the limit), or the
    /// refusal.
    pub result: Result<u64, Refusal>,
}

impl Account {
    /// Balance plus reservations: credit that is neither burned nor withdrawn, as `accounts.json`
    /// states it.
    #[must_use]
    pub fn unburned(&self) -> u64 {
        self.balance.saturating_add(self.reserved)
    }

    /// Whether the principal's name is known. Claims of releases without accounts name their owner
    /// by its tag only.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.principal != unnamed(self.owner)
    }

    /// The amount that the first touch on a day mints: the distance to the limit, at most the day's
    /// mint. `None` on the day of the last mint and on any earlier day: a clock that goes back
    /// mints nothing.
    #[must_use]
    pub fn due_mint(&self, day: u64) -> Option<u64> {
        let missing = self.credit_limit.saturating_sub(self.unburned());
        (day > self.last_mint_day).then(|| missing.min(self.daily_mint_limit))
    }

    /// Mints on a day.
    pub fn mint(&mut self, day: u64, amount: u64) {
        self.last_mint_day = day;
        self.daily_mint_remaining = self.daily_mint_limit - amount.min(self.daily_mint_limit);
        self.add(amount);
    }

    /// Adds a mint or a grant to the balance.
    pub fn add(&mut self, amount: u64) {
        self.balance = sum(self.balance, amount);
    }

    /// Reserves a worst case from the balance.
    ///
    /// # Panics
    /// If the balance does not carry it: the kernel's own arithmetic would be wrong.
    pub fn reserve(&mut self, amount: u64) {
        assert!(
            amount <= self.balance,
            "a run is admitted within the balance"
        );
        self.balance -= amount;
        self.reserved = sum(self.reserved, amount);
    }

    /// Releases a reservation, burns the amount used and refunds the rest.
    ///
    /// # Panics
    /// If more is burned than was reserved, or more released than is reserved.
    pub fn settle(&mut self, reserved: u64, burned: u64) {
        assert!(burned <= reserved, "a run burns no more than it reserved");
        assert!(
            reserved <= self.reserved,
            "a reservation is given back once"
        );
        self.reserved -= reserved;
        self.balance = sum(self.balance, reserved - burned);
        self.burned_total = sum(self.burned_total, burned);
    }

    /// Sets the limit and withdraws the part of the balance beyond it. Returns the amount
    /// withdrawn.
    pub fn limit(&mut self, credit_limit: u64) -> u64 {
        let beyond = self.unburned().saturating_sub(credit_limit);
        // Only the balance is cut: runs under way may still burn their reservations.
        let withdrawn = beyond.min(self.balance);
        self.balance -= withdrawn;
        self.credit_limit = credit_limit;
        withdrawn
    }
}

/// The stand-in name of a principal that only its tag identifies.
#[must_use]
pub fn unnamed(owner: OwnerTag) -> String {
    format!("owner-{}", owner.to_hex())
}

fn sum(a: u64, b: u64) -> u64 {
    a.checked_add(b).expect("credits stay below 2⁶⁴")
}

/// Sums over all accounts that commit with each batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Accounts opened so far.
    pub accounts: u64,
    /// Opening balances of all accounts.
    pub initial: u128,
    /// Added by the daily mints, in credits.
    pub minted: u128,
    /// Granted by operators, and what imports added.
    pub granted: u128,
    /// Taken by lowered limits and by imports.
    pub withdrawn: u128,
    /// Burned by runs, in credits.
    pub burned: u128,
    /// Reserved for runs under way.
    pub reserved: u128,
    /// Free to spend, reservations not included.
    pub balances: u128,
}

impl Totals {
    /// Whether credit was neither created nor lost outside the books: initial + minted + granted −
    /// withdrawn − burned − reserved = balances.
    #[must_use]
    pub fn balance_out(&self) -> bool {
        // Both sides are sums: a difference of unsigned numbers could wrap and balance by accident.
        let came = [self.initial, self.minted, self.granted];
        let went = [self.withdrawn, self.burned, self.reserved, self.balances];
        let sum = |terms: &[u128]| terms.iter().try_fold(0u128, |sum, t| sum.checked_add(*t));
        let came = sum(&came);
        // Two sums that overflow are both `None`, and equal.
        came.is_some() && came == sum(&went)
    }

    /// Updates the sums of balances, reservations and burned credit for an account's change of
    /// state; the caller updates sources and sinks.
    pub(crate) fn follow(&mut self, before: Option<&Account>, after: &Account) {
        match before {
            Some(before) => {
                // Subtract the account's old numbers first. The sums contain them, so the
                // subtraction cannot go below zero.
                self.balances -= u128::from(before.balance);
                self.reserved -= u128::from(before.reserved);
            }
            None => self.accounts += 1,
        }
        self.balances += u128::from(after.balance);
        self.reserved += u128::from(after.reserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().expect("a rate")
    }

    #[test]
    fn rates_are_exact_decimals() {
        for (text, parts) in [
            ("0", 0),
            ("1", RATE_PARTS),
            ("0.000001", 1_000_000),
            ("0.000000000001", 1),
            ("1000000", MAX_RATE * RATE_PARTS),
            ("2.50", 2 * RATE_PARTS + RATE_PARTS / 2),
        ] {
            assert_eq!(rate(text), Rate(parts), "{text}");
            assert_eq!(rate(&rate(text).to_string()), rate(text), "{text}");
        }
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "1,5",
            "0.0000000000001",
            "1000000.1",
            "nan",
            " 1",
        ] {
            assert_eq!(text.parse::<Rate>(), Err(RateError), "{text:?}");
        }
        assert_eq!(rate("0.0010").to_string(), "0.001");
    }

    #[test]
    fn charges_are_rounded_up_once_and_never_nothing() {
        let tariff = Tariff::default();
        for (microbits, fuel, pages, module_bytes, credits) in [
            (0, 0, 0, 0, 1),
            (100_000, 100_000, 17, 20_000, 1),
            (500_000, 400_000, 100, 0, 1),
            (500_000, 400_001, 100, 0, 2),
            (500_000, 300_000, 100, 100_000, 1),
            (500_000, 300_000, 100, 100_001, 2),
            (1_000_000, 0, 0, 0, 1),
            (1_000_001, 0, 0, 0, 2),
            (0, 0, 0, 4 << 20, 5),
            (8_000_000, 100_000_000, 1_024, 0, 110),
        ] {
            let used = Usage {
                bits: MicroBits(microbits),
                fuel,
                pages,
                module_bytes,
            };
            assert_eq!(tariff.charge(used), credits, "{used:?}");
        }
        let dear = Tariff {
            per_bit: rate("1000000"),
            per_fuel: rate("1000000"),
            per_page: rate("1000000"),
            per_module_byte: rate("1000000"),
        };
        let all = Usage {
            bits: MicroBits(u64::MAX),
            fuel: u64::MAX,
            pages: u64::MAX,
            module_bytes: u64::MAX,
        };
        assert_eq!(dear.charge(all), u64::MAX);
    }

    #[test]
    fn affordable_fuel_is_the_most_that_does_not_cost_more() {
        for text in ["0.000001", "0.000003", "0.7"] {
            let tariff = Tariff {
                per_fuel: rate(text),
                ..Tariff::default()
            };
            let rest = Usage {
                bits: MicroBits(8_123_456),
                pages: 1_024,
                module_bytes: 4_321,
                ..Usage::default()
            };
            for credits in [10, 11, 100, 9_999] {
                let fuel = tariff
                    .affordable_fuel(credits, rest)
                    .expect("pays for bits");
                let charge = |fuel| tariff.charge(Usage { fuel, ..rest });
                assert!(charge(fuel) <= credits, "{text} {credits}");
                assert!(charge(fuel + 1) > credits, "{text} {credits}");
            }
            assert_eq!(tariff.affordable_fuel(9, rest), None);
        }
        let free = Tariff {
            per_fuel: rate("0"),
            ..Tariff::default()
        };
        assert_eq!(free.affordable_fuel(1, Usage::default()), Some(u64::MAX));
    }

    fn account() -> Account {
        let accounting = Accounting {
            credit_limit: 100,
            daily_mint_limit: Some(30),
            ..Accounting::default()
        };
        accounting.open(0, OwnerTag([1; 16]), "alice", 20_000 * DAY_MS)
    }

    #[test]
    fn a_day_mints_once_towards_the_limit_and_never_backwards() {
        let mut account = account();
        assert_eq!((account.balance, account.daily_mint_remaining), (100, 30));
        assert_eq!(account.due_mint(20_000), None);
        assert_eq!(account.due_mint(19_999), None);
        account.reserve(60);
        account.settle(60, 50);
        assert_eq!(account.due_mint(20_001), Some(30));
        account.mint(20_001, 30);
        assert_eq!((account.balance, account.daily_mint_remaining), (80, 0));
        assert_eq!(account.due_mint(20_003), Some(20));
        account.mint(20_003, 20);
        assert_eq!((account.balance, account.daily_mint_remaining), (100, 10));
        assert_eq!((account.last_mint_day, account.burned_total), (20_003, 50));
    }

    #[test]
    fn what_is_reserved_counts_towards_the_limit() {
        let mut account = account();
        account.reserve(40);
        assert_eq!(account.due_mint(20_001), Some(0));
        assert_eq!(account.limit(50), 50);
        assert_eq!((account.balance, account.reserved), (10, 40));
        assert_eq!(account.limit(20), 10);
        assert_eq!((account.balance, account.reserved), (0, 40));
        account.settle(40, 5);
        assert_eq!((account.balance, account.credit_limit), (35, 20));
    }

    #[test]
    fn totals_find_a_credit_that_came_from_nowhere() {
        let mut totals = Totals::default();
        let fresh = account();
        totals.follow(None, &fresh);
        assert!(!totals.balance_out());
        totals.initial += u128::from(fresh.balance);
        assert!(totals.balance_out());
        let mut spent = fresh.clone();
        spent.reserve(10);
        totals.follow(Some(&fresh), &spent);
        assert!(totals.balance_out());
        totals.burned += 1;
        assert!(!totals.balance_out());
    }

    #[test]
    fn an_account_that_its_tag_alone_names_has_no_name() {
        let owner = OwnerTag([0xab; 16]);
        let open = |principal: &str| Accounting::default().open(0, owner, principal, 0);
        assert!(open("alice").is_named());
        assert!(open("owner-alice").is_named());
        assert!(!open("owner-abababababababababababababababab").is_named());
        assert_eq!(unnamed(owner), "owner-abababababababababababababababab");
    }
}
