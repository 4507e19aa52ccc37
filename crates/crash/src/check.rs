//! Checks after a restart: everything acknowledged is there exactly once, and nothing else is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use evidenceos_kernel::entry::{Entry, Kind};
use evidenceos_proto as wire;
use evidenceos_tlog::{Checkpoint, Hash, Note, VerifierKey, verify_consistency};
use evidenceos_verify::{LogReport, Trust, verify_log, verify_receipt};
use prost::bytes::Bytes;

use crate::{
    Failed,
    client::{Answer, Client},
    dice::Dice,
    fail,
    ledger::{Ledger, Life, RAISED_LIMIT, Step, Told},
    load,
};

/// Acknowledged steps that each check repeats under their old request ids.
const REPLAYS: usize = 6;

/// The log as seen from outside.
#[derive(Debug, Clone, Default)]
pub struct Mirror {
    vkey: Option<String>,
    entries: Vec<Vec<u8>>,
    head: Option<(u64, Hash)>,
}

impl Mirror {
    /// The number of known entries.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The entries that are known.
    #[must_use]
    pub fn entries(&self) -> &[Vec<u8>] {
        &self.entries
    }

    /// The number of entries that clients asked for, and of links between keys.
    #[must_use]
    pub fn asked_for(&self) -> usize {
        let asked_for = |entry: &&Vec<u8>| !is_comparison(entry);
        self.entries.iter().filter(asked_for).count()
    }

    /// The key that signed the first head seen.
    #[must_use]
    pub fn vkey(&self) -> &str {
        self.vkey.as_deref().unwrap_or_default()
    }

    /// Follows the log to its newest checkpoint: it only grew, it is signed, and every ledger in it adds up.
    ///
    /// # Errors
    /// [`Failed`] if any of that does not hold.
    pub async fn follow(&mut self, client: &mut Client, vkey: &str) -> Result<LogReport, Failed> {
        let note = client.checkpoint().await?;
        let checkpoint = stated(&note)?;
        let (size, root) = (checkpoint.size(), checkpoint.root());
        if let Some((before, old_root)) = self.head {
            if size < before {
                return Err(fail(format!(
                    "the log shrank from {before} entries to {size}"
                )));
            }
            let (path, first, second) = client.consistency(before, size).await?;
            // The server names the roots of its proof. Only signed roots count.
            must(first == old_root && second == root, || {
                format!("the roots of trees {before} and {size} are not those that were signed")
            })?;
            verify_consistency(before, size, &path, old_root, root).map_err(fail)?;
        }
        let known = self.size();
        self.entries.extend(client.entries(known, size).await?);
        self.head = Some((size, root));
        let report = verify_log(&self.entries, &checkpoint);
        must(report.is_sound(), || {
            let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
            format!("the log does not hold: {}", findings.join("; "))
        })?;
        // The mirror trusts the first key seen, and later keys must follow from the log.
        let first = self.vkey.get_or_insert_with(|| vkey.to_owned()).clone();
        let trust = trust(&first, &report)?;
        trust.open(note.as_bytes()).map_err(fail)?;
        Ok(report)
    }

    fn trust(&self, report: &LogReport) -> Result<Trust, Failed> {
        trust(self.vkey(), report)
    }
}

fn trust(vkey: &str, report: &LogReport) -> Result<Trust, Failed> {
    let key: VerifierKey = vkey.parse().map_err(fail)?;
    Trust::along(key, &report.keys).map_err(fail)
}

/// Reads a checkpoint, whichever key has signed it.
pub(crate) fn stated(note: &str) -> Result<Checkpoint, Failed> {
    let note = Note::parse(note.as_bytes()).map_err(fail)?;
    note.text().parse().map_err(fail)
}

/// Fails with a sentence unless something holds.
pub(crate) fn must(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds {
        Ok(())
    } else {
        Err(fail(otherwise()))
    }
}

/// The number of acknowledged entries of the log; links between keys are counted separately.
pub(crate) fn entries_of(ledger: &Ledger) -> usize {
    let steps = [
        Step::Register,
        Step::Retire,
        Step::Execute,
        Step::Revoke,
        Step::Grant,
        Step::GrantMore,
    ];
    let of_a_life = |life: &Life| {
        let told = steps.iter().filter(|step| life.told_at(**step).is_some());
        told.count()
    };
    // Entry 0 begins the log, and no client asked for it.
    1 + ledger.lives().map(of_a_life).sum::<usize>()
}

/// Whether an entry is a comparison. A registration writes one for each earlier holdout on which
/// something can still be certified: their number depends on the order of settlements.
fn is_comparison(entry: &[u8]) -> bool {
    Kind::of(entry) == Some(Kind::HoldoutCompared)
}

/// The server's state, as it reports it.
pub struct State {
    claims: HashMap<Bytes, wire::Claim>,
    holdouts: HashMap<String, wire::Holdout>,
    revocations: BTreeMap<String, usize>,
    accounts: HashMap<String, wire::Account>,
    totals: wire::CreditTotals,
    report: LogReport,
    trust: Trust,
    entries: usize,
}

impl State {
    /// Reads the server's whole state.
    ///
    /// # Errors
    /// [`Failed`] if the server does not report it, or its log does not hold.
    pub async fn read(
        client: &mut Client,
        vkey: &str,
        mirror: &mut Mirror,
    ) -> Result<Self, Failed> {
        let report = mirror.follow(client, vkey).await?;
        let listed = client.claims().await?;
        let count = listed.len();
        let claims: HashMap<Bytes, wire::Claim> = listed
            .into_iter()
            .map(|claim| (claim.claim_id.clone(), claim))
            .collect();
        must(claims.len() == count, || {
            "a claim is listed twice".to_owned()
        })?;
        let listed = client.holdouts().await?;
        let count = listed.len();
        let holdouts: HashMap<String, wire::Holdout> = listed
            .into_iter()
            .map(|holdout| (holdout.holdout_ref.clone(), holdout))
            .collect();
        must(holdouts.len() == count, || {
            "a holdout is listed twice".to_owned()
        })?;
        // Counted from the entries, not from the server's lists.
        let mut revocations = BTreeMap::new();
        for entry in &mirror.entries {
            if let Ok(Entry::ClaimRevoked(revoked)) = Entry::parse(entry) {
                *revocations.entry(revoked.claim.to_hex()).or_insert(0) += 1;
            }
        }
        let (listed, totals) = client.accounts().await?;
        let listed_accounts = listed
            .into_iter()
            .map(|account| (account.principal_id.clone(), account))
            .collect();
        Ok(Self {
            claims,
            holdouts,
            revocations,
            accounts: listed_accounts,
            totals,
            trust: mirror.trust(&report)?,
            entries: mirror.asked_for(),
            report,
        })
    }

    /// Checks that a life is at least as far as its client was told; the first `told` steps count.
    ///
    /// # Errors
    /// [`Failed`] if something acknowledged is missing or different.
    pub fn must_hold(&self, life: &Life, told: usize) -> Result<(), Failed> {
        for (step, (what, _)) in life.steps().iter().zip(&life.told[..told]) {
            self.must_hold_step(life, *step, what)
                .map_err(|Failed(why)| fail(format!("life {}, {step:?}: {why}", life.number)))?;
        }
        Ok(())
    }

    fn must_hold_step(&self, life: &Life, step: Step, told: &Told) -> Result<(), Failed> {
        match (step, told) {
            (Step::Register, Told::Made(id)) => {
                let holdout = self.holdout(&life.holdout)?;
                must(holdout.holdout_id == *id, || {
                    "another holdout is under its name".to_owned()
                })
            }
            (Step::Retire, _) => {
                let status = self.holdout(&life.holdout)?.status.as_str();
                must(status == "retired", || format!("the holdout is {status}"))
            }
            (Step::Create, Told::Made(id)) => {
                let name = &self.claim(id)?.claim_name;
                must(*name == life.name(), || format!("it is called {name}"))
            }
            (Step::Commit | Step::Seal, _) => {
                let claim = self.own_claim(life)?;
                let least = if step == Step::Commit {
                    wire::ClaimState::Committed
                } else {
                    wire::ClaimState::Sealed
                };
                // The claim may be further than this step: only a step back is a loss.
                must(claim.state >= least as i32, || {
                    format!("its state is {}", claim.state)
                })
            }
            (Step::Execute, Told::Settled(settled)) => {
                let claim = self.own_claim(life)?;
                let result = claim.result.as_ref();
                let result = result.ok_or_else(|| fail("it has no result any more"))?;
                must(
                    result.etl_index == settled.index
                        && result.capsule_hash == settled.capsule_hash
                        && result.outcome == settled.outcome,
                    || format!("it was told {settled:?}, and is {result:?}"),
                )?;
                self.has_capsule_at(&claim.claim_id, settled.index)
            }
            (Step::Fetch, Told::Fetched(fetched)) => {
                let verified = verify_receipt(&fetched.receipt, &self.trust).map_err(fail)?;
                let size = verified.checkpoint.size();
                // A receipt over a larger tree would mean that the tree was shown before it was
                // durable.
                must(size <= self.report.entries, || {
                    format!(
                        "its receipt is of a tree of {size}, the log has {}",
                        self.report.entries
                    )
                })?;
                must(verified.checkpoint.root() == fetched.head.1, || {
                    "its reply names another root than its checkpoint".to_owned()
                })
            }
            (Step::Revoke, Told::Revoked(at)) => {
                let claim = self.own_claim(life)?;
                let revocation = claim.revocation.as_ref();
                let revocation = revocation.ok_or_else(|| fail("it is not revoked any more"))?;
                must(revocation.timestamp_unix == *at, || {
                    "it was revoked at another time".to_owned()
                })?;
                must(self.revoked(&claim.claim_id) == 1, || {
                    format!(
                        "the log has {} revocations of it",
                        self.revoked(&claim.claim_id)
                    )
                })
            }
            (Step::Limit, Told::Done) => {
                let limit = self.account(&life.principal())?.credit_limit;
                must(limit == RAISED_LIMIT, || format!("its limit is {limit}"))
            }
            (Step::Grant | Step::GrantMore, Told::Granted(told)) => {
                let balance = self.account(&life.principal())?.credit_balance;
                // The account may have got more since, and accounts like this one run nothing.
                must(balance >= *told, || {
                    format!("its balance was {told}, and is {balance}, and it burns nothing")
                })
            }
            _ => Err(fail("it was told something of another kind")),
        }
    }

    fn claim(&self, id: &Bytes) -> Result<&wire::Claim, Failed> {
        self.claims.get(id).ok_or_else(|| fail("the claim is gone"))
    }

    fn own_claim(&self, life: &Life) -> Result<&wire::Claim, Failed> {
        self.claim(life.id().ok_or_else(|| fail("it has no id"))?)
    }

    fn holdout(&self, name: &str) -> Result<&wire::Holdout, Failed> {
        self.holdouts
            .get(name)
            .ok_or_else(|| fail(format!("the holdout {name} is gone")))
    }

    fn account(&self, principal: &str) -> Result<&wire::Account, Failed> {
        let account = self.accounts.get(principal);
        account.ok_or_else(|| fail(format!("the account {principal} is gone")))
    }

    fn revoked(&self, claim: &[u8]) -> usize {
        self.revocations.get(&hex(claim)).copied().unwrap_or(0)
    }

    fn has_capsule_at(&self, claim: &[u8], index: u64) -> Result<(), Failed> {
        let of_claim: Vec<u64> = self
            .report
            .capsules
            .iter()
            .filter(|(_, capsule)| capsule.claim_id.as_bytes() == claim)
            .map(|(index, _)| *index)
            .collect();
        must(of_claim == [index], || {
            format!("its capsule was said to be entry {index}, and the log has it at {of_claim:?}")
        })
    }

    /// Checks that nothing is there that no client asked for, and nothing that was reported as not
    /// done.
    ///
    /// # Errors
    /// [`Failed`] if there is.
    pub fn must_be_all(&self, ledger: &Ledger) -> Result<(), Failed> {
        // A change of keys writes an entry that no client asked for.
        let entries = entries_of(ledger) + self.report.keys.links.len();
        let (mut claims, mut holdouts) = (BTreeSet::new(), BTreeSet::new());
        for life in ledger.lives() {
            let told = |step| life.told_at(step).is_some();
            if told(Step::Create) {
                claims.insert(life.name());
            }
            if told(Step::Register) {
                holdouts.insert(life.holdout.clone());
            }
            self.must_hold(life, life.told.len())?;
            if life.given_up {
                self.must_not_be_done(life)?;
            }
        }
        let found: BTreeSet<String> = self
            .claims
            .values()
            .map(|claim| claim.claim_name.clone())
            .collect();
        must(found == claims, || {
            let (more, less): (Vec<_>, Vec<_>) = (
                found.difference(&claims).collect(),
                claims.difference(&found).collect(),
            );
            format!("claims that nobody was told of: {more:?}; that are gone: {less:?}")
        })?;
        let found: BTreeSet<String> = self.holdouts.keys().cloned().collect();
        must(found == holdouts, || {
            format!("the holdouts are {found:?}, and should be {holdouts:?}")
        })?;
        must(self.entries == entries, || {
            format!(
                "the log has {} entries, and {entries} were acknowledged",
                self.entries
            )
        })?;
        self.credit_must_add_up(ledger)?;
        self.meters_must_agree()
    }

    /// Every grant counts once, every run was paid once, and nothing is reserved forever.
    fn credit_must_add_up(&self, ledger: &Ledger) -> Result<(), Failed> {
        let mut granted = 0;
        let mut burned: HashMap<String, u64> = HashMap::new();
        for life in ledger.lives() {
            let grants = [Step::Grant, Step::GrantMore];
            let told = grants.iter().filter(|step| life.told_at(**step).is_some());
            granted += told.count() as u64 * life.grant();
            if let (Some(settled), Some(id)) = (life.settled(), life.id()) {
                let owner = self.claim(id)?.owner_tag_hex.clone();
                *burned.entry(owner).or_insert(0) += settled.burned;
            }
        }
        let totals = &self.totals;
        must(totals.granted == granted, || {
            format!(
                "{granted} credits were granted, and the accounts have got {}",
                totals.granted
            )
        })?;
        let in_all: u64 = burned.values().sum();
        // Every client has its answer by now, so no run is under way.
        must(totals.burned == in_all && totals.reserved == 0, || {
            format!(
                "runs said to have burned {in_all} credits, and the accounts say {}, and {} reserved",
                totals.burned, totals.reserved
            )
        })?;
        for account in self.accounts.values() {
            let should = burned.get(&hex(&account.owner_tag)).copied().unwrap_or(0);
            must(account.burned_total == should, || {
                format!(
                    "{} has burned {should} credits by its runs, and {} by its account",
                    account.principal_id, account.burned_total
                )
            })?;
        }
        let came = totals.initial + totals.minted + totals.granted;
        let went = totals.withdrawn + totals.burned + totals.reserved;
        let balances: u64 = self
            .accounts
            .values()
            .map(|account| account.credit_balance)
            .sum();
        must(
            came - went == totals.balances && balances == totals.balances,
            || {
                format!(
                    "credit is not conserved: {totals:?}, and the balances add up to {balances}"
                )
            },
        )
    }

    /// Checks that `accounts.json` shows exactly the accounts.
    ///
    /// # Errors
    /// [`Failed`] if it differs.
    pub fn file_must_be(&self, directory: &Path) -> Result<(), Failed> {
        let file = accounts_json(directory)?;
        let listed: BTreeMap<String, serde_json::Value> = self
            .accounts
            .iter()
            .map(|(principal, account)| {
                let value = serde_json::json!({
                    "credit_balance": account.credit_balance,
                    "daily_mint_remaining": account.daily_mint_remaining,
                    "last_mint_day": account.last_mint_day,
                    "limits": {
                        "credit_limit": account.credit_limit,
                        "daily_mint_limit": account.daily_mint_limit,
                    },
                    "burned_total": account.burned_total,
                    "denied_total": account.denied_total,
                });
                (principal.clone(), value)
            })
            .collect();
        let differs = listed
            .iter()
            .find(|(principal, value)| file.get(*principal) != Some(*value));
        must(differs.is_none() && file.len() == listed.len(), || {
            format!(
                "accounts.json has {} accounts, the server {}; the first that differs: {differs:?}, in the file {:?}",
                file.len(),
                listed.len(),
                differs.and_then(|(principal, _)| file.get(principal))
            )
        })
    }

    fn must_not_be_done(&self, life: &Life) -> Result<(), Failed> {
        let done = match (life.next(), life.id()) {
            (Some(Step::Limit), _) => self.accounts.contains_key(&life.principal()),
            // The sums would reveal an unwanted grant.
            (Some(Step::Create), _) => {
                let name = life.name();
                self.claims.values().any(|claim| claim.claim_name == name)
            }
            (Some(Step::Register), _) => self.holdouts.contains_key(&life.holdout),
            (Some(Step::Retire), _) => self.holdout(&life.holdout)?.status == "retired",
            (Some(Step::Commit), Some(id)) => {
                self.claim(id)?.state != wire::ClaimState::Uncommitted as i32
            }
            (Some(Step::Seal), Some(id)) => {
                self.claim(id)?.state != wire::ClaimState::Committed as i32
            }
            (Some(Step::Execute), Some(id)) => {
                self.claim(id)?.state != wire::ClaimState::Sealed as i32
            }
            (Some(Step::Revoke), Some(id)) => self.revoked(id) > 0,
            _ => false,
        };
        must(!done, || {
            format!(
                "life {}: {:?} was said not to be done, and was",
                life.number,
                life.next()
            )
        })
    }

    /// The server's meters match the log, and nothing is reserved forever.
    fn meters_must_agree(&self) -> Result<(), Failed> {
        for holdout in self.holdouts.values() {
            let ledger = self
                .report
                .holdouts
                .iter()
                .find(|ledger| ledger.registered.id.as_bytes() == holdout.holdout_id.as_ref());
            let ledger = ledger.ok_or_else(|| fail("a holdout is not in the log"))?;
            let says = [
                holdout.sealed_charged_microbits,
                holdout.answer_charged_microbits,
                holdout.settled,
                holdout.certified,
                holdout.in_flight,
                holdout.sealed_reserved_microbits,
                holdout.answer_reserved_microbits,
            ];
            // No run is under way by now: a remaining reservation was forgotten by a settlement.
            let should = [
                ledger.sealed_charged.get(),
                ledger.answers_charged.get(),
                ledger.settled,
                ledger.certified,
                0,
                0,
                0,
            ];
            must(says == should, || {
                format!(
                    "holdout {} says {says:?} (sealed, answers, settled, certified, in flight, reserved), and the log {should:?}",
                    holdout.holdout_ref
                )
            })?;
        }
        Ok(())
    }
}

/// The accounts in `accounts.json`; empty if there is no file.
///
/// # Errors
/// [`Failed`] if the file is not whole.
pub fn accounts_json(directory: &Path) -> Result<BTreeMap<String, serde_json::Value>, Failed> {
    let path = directory.join("accounts.json");
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let bytes = std::fs::read(&path).map_err(fail)?;
    let whole: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| fail(format!("accounts.json: {error}")))?;
    let accounts = whole["accounts"].as_object();
    let accounts = accounts.ok_or_else(|| fail("accounts.json has no accounts"))?;
    Ok(accounts.clone().into_iter().collect())
}

/// Repeats a few acknowledged steps under their old request ids: the answers must be the old ones.
///
/// # Errors
/// [`Failed`] if an answer differs.
pub async fn replay(client: &mut Client, lives: &[Life], dice: &mut Dice) -> Result<(), Failed> {
    for _ in 0..REPLAYS.min(lives.len()) {
        let life = dice.one_of(lives);
        // Requests on a claim are remembered with the claim, the last of each kind.
        let step = match life
            .told
            .len()
            .checked_sub(1)
            .map(|last| life.steps()[last])
        {
            None => continue,
            // A fetch has no request id, so repeating it proves nothing.
            Some(Step::Fetch) => Step::Execute,
            // The first request is remembered by its key and later ones in a row: both places must
            // answer.
            Some(_) if dice.one_in(2) => life.steps()[0],
            Some(step) => step,
        };
        let answer = load::ask(client, life, step).await?;
        let before = life.told_at(step);
        let same = match (&answer, before) {
            (Answer::Done(Told::Made(now)), Some(Told::Made(before))) => now == before,
            (Answer::Done(Told::Settled(now)), Some(Told::Settled(before))) => now == before,
            (Answer::Done(Told::Revoked(now)), Some(Told::Revoked(before))) => now == before,
            (Answer::Done(Told::Granted(now)), Some(Told::Granted(before))) => now == before,
            (Answer::Done(Told::Done), Some(Told::Done)) => true,
            _ => false,
        };
        must(same, || {
            format!(
                "life {}: {step:?} was told {before:?}, and again {answer:?}",
                life.number
            )
        })?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
