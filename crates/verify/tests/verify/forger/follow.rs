//! Making everything downstream of a change follow, as somebody would who owns the log's key.
//!
//! Ledgers, prices, thresholds, run numbers, reservations, hashes of dependencies and revoked capsules, ids of
//! holdouts, links of keys, sizes and roots: all are computed again by the kernel's formulas. What only traces,
//! openings or other people know stays as it is.

use std::{cell::RefCell, collections::HashMap};

use evidenceos_kernel::{
    bits::MicroBits,
    claim::Outcome,
    id::{Digest, HoldoutId},
    log_key::KeyRotated,
    price,
    record::{self, Capsule, Registered},
};
use evidenceos_tlog::{SignerKey, Tree, leaf_hash};
use serde_json::{Value, json};

use super::edit::{self, Edit};
use crate::{
    history::second_key,
    world::{key, signed_by},
};

/// An entry of the forged log: an honest one, or one with a change that must survive.
#[derive(Clone)]
pub(super) struct Draft {
    pub(super) tree: Value,
    pub(super) edits: Vec<Edit>,
}

/// The log with everything made to follow.
pub(super) fn follow(drafts: &[Draft]) -> Vec<Vec<u8>> {
    Forge::default().through(drafts).entries
}

/// What there is before each entry of the honest log: a change leaves that as it is.
pub(super) fn states(honest: &[Draft]) -> Vec<Forge> {
    let mut forge = Forge::default();
    let mut states = vec![forge.clone()];
    for at in 0..honest.len() {
        forge.step(honest, at);
        states.push(forge.clone());
    }
    states
}

#[derive(Clone, Default)]
pub(super) struct Forge {
    entries: Vec<Vec<u8>>,
    tree: Tree,
    /// Hex texts that are others now: ids of holdouts, hashes of capsules.
    renamed: Vec<(String, String)>,
    books: HashMap<String, Book>,
    origin: String,
    decisions: Option<(u64, u64)>,
}

#[derive(Clone)]
struct Book {
    registered: Registered,
    /// Its id in the honest log.
    honest_id: String,
    k: u64,
    answers: u64,
    settled: u64,
    certified: u64,
    /// The old number, and (m, s) after it, of each run that ended.
    ends: Vec<(u64, u64, u64)>,
}

impl Forge {
    /// Goes on to the end of a log of which some entries are there.
    pub(super) fn through(mut self, drafts: &[Draft]) -> Self {
        for at in self.entries.len()..drafts.len() {
            self.step(drafts, at);
        }
        self
    }

    /// The entries so far.
    pub(super) fn into_entries(self) -> Vec<Vec<u8>> {
        self.entries
    }

    fn step(&mut self, drafts: &[Draft], at: usize) {
        let entry = self.entry(&drafts[at], &drafts[at + 1..]);
        self.tree.append(leaf_hash(&entry));
        self.entries.push(entry);
    }

    fn entry(&mut self, draft: &Draft, later: &[Draft]) -> Vec<u8> {
        let mut text = String::from_utf8(edit::write(&draft.tree)).expect("text");
        for (old, new) in &self.renamed {
            text = text.replace(old, new);
        }
        let mut tree = edit::read(text.as_bytes());
        tree = apply(&draft.edits, tree);
        self.derive(&mut tree, later);
        tree = apply(&draft.edits, tree);
        self.sign_again(&mut tree, &draft.edits);
        let entry = edit::write(&tree);
        self.note(&draft.tree, &tree, &entry);
        entry
    }

    fn derive(&mut self, tree: &mut Value, later: &[Draft]) {
        let size = self.entries.len() as u64;
        let root = json!(self.tree.root().to_hex());
        match kind(tree) {
            "claim_capsule" => self.derive_capsule(tree),
            "key_rotated" => {
                tree["tree_size"] = json!(size);
                tree["root_hash_hex"] = root;
                tree["origin"] = json!(self.origin);
            }
            "log_restarted" => {
                tree["old_size"] = json!(size);
                tree["old_root_hash_hex"] = root;
                tree["old_origin"] = json!(self.origin);
            }
            "log_continued" => {
                tree["size"] = json!(size);
                tree["root_hash_hex"] = root;
                tree["origin"] = json!(self.origin);
            }
            "holdout_compared" => {
                let agrees = tree["agrees"] == json!(true);
                let price = if agrees { 16_000_000 } else { 23 };
                let answers = self.of(tree).map_or(price, |book| {
                    match book.registered.description.answer_items {
                        0 => 0,
                        _ => price,
                    }
                });
                tree["sealed_microbits"] = json!(price);
                tree["answers_microbits"] = json!(answers);
            }
            "holdout_charged" if tree["basis"] == "exhausted" => {
                let Some(book) = self.of(tree) else { return };
                let ended = book.ends.len() as u64;
                let (sealed, answers) = reserved_later(&book.honest_id, ended, later);
                let policy = &book.registered.description.policy;
                let left = |budget: MicroBits, charged: u64, reserved: u64| {
                    json!(
                        budget
                            .get()
                            .saturating_sub(charged)
                            .saturating_sub(reserved)
                    )
                };
                tree["sealed_microbits"] = left(policy.sealed_budget, book.k, sealed);
                tree["answers_microbits"] = left(policy.answer_budget, book.answers, answers);
            }
            "decision_batch" => {
                let first = tree["first_decision_hex"].as_str().unwrap_or_default();
                let Ok(first) = u64::from_str_radix(first, 16) else {
                    return;
                };
                // Contiguous before, contiguous now.
                if let Some((old_next, next)) = self.decisions
                    && first == old_next
                {
                    tree["first_decision_hex"] = json!(format!("{next:016x}"));
                }
            }
            _ => {}
        }
    }

    fn of(&self, tree: &Value) -> Option<&Book> {
        self.books.get(tree["holdout_id_hex"].as_str()?)
    }

    fn derive_capsule(&self, tree: &mut Value) {
        let Ok(mut capsule) = Capsule::parse(&edit::write(tree)) else {
            return;
        };
        let Some(book) = self.of(tree) else { return };
        let description = &book.registered.description;
        let policy = &description.policy;
        let (m, s) = (book.settled, book.certified);
        let levels = capsule.run.map_or(0, |run| run.levels);
        let base = |ledger: &record::Ledger| {
            let (alpha, divisor) = (ledger.alpha_micros, ledger.alpha_divisor.max(1));
            price::released_log2(alpha.clamp(1, 999_999), divisor, 0, policy.level_width)
        };
        let level = capsule
            .e_value_log2
            .map_or(0, |stated| stated.saturating_sub(base(&capsule.ledger)))
            .min(31) as u8;
        let mut topic = description_id(&book.registered).0.to_vec();
        topic.extend_from_slice(&description.null_spec.hash().0);
        capsule.topic_id = Digest::domain("evidenceos:topic:v3", &topic);
        capsule.policy_hash = policy.hash();
        capsule.null_spec_hash = description.null_spec.hash();
        capsule.items = (
            description.answer_items,
            description.sealed_items,
            description.sealed_units,
        );
        capsule.dependencies.sort();
        let quote = policy.settlement_prices.quote(m, s);
        let ledger = &mut capsule.ledger;
        ledger.k = MicroBits(book.k);
        ledger.c = quote.certified;
        ledger.settled_before = m;
        ledger.certified_before = s;
        ledger.ordinal = s + 1;
        ledger.alpha_micros = ledger.alpha_micros.clamp(1, policy.alpha_micros);
        ledger.multiplicity = policy.multiplicity;
        ledger.alpha_divisor = policy.multiplicity.divisor(s + 1);
        ledger.threshold = price::threshold(
            ledger.k,
            ledger.c,
            ledger.alpha_micros,
            ledger.alpha_divisor,
        );
        if let Some(run) = &mut capsule.run {
            let old_ended = run.ended_before;
            run.number = book.ends.len() as u64;
            let ended = book
                .ends
                .iter()
                .filter(|(old, ..)| *old < old_ended)
                .count() as u64;
            run.ended_before = ended.min(run.number);
            let (m, s) = match run.ended_before.checked_sub(1) {
                Some(last) => (book.ends[last as usize].1, book.ends[last as usize].2),
                None => (0, 0),
            };
            run.sealed_reserved = match capsule.duplicate_of {
                Some(_) => MicroBits::ZERO,
                None => policy.settlement_prices.worst_case(
                    m,
                    s,
                    run.number - run.ended_before,
                    run.levels.min(32),
                ),
            };
        }
        capsule.answers.charged = match capsule.outcome {
            Outcome::Aborted => capsule
                .run
                .map_or(capsule.answers.charged, |run| run.answers_reserved),
            Outcome::Certified | Outcome::NotCertified | Outcome::NotJudged => capsule
                .answers
                .by_symbol
                .iter()
                .map(|&(symbol, count)| {
                    let one = policy
                        .answer_prices
                        .price(capsule.answers.n_symbols, symbol);
                    one.unwrap_or_default().get().saturating_mul(count.into())
                })
                .fold(MicroBits::ZERO, |sum, one| {
                    sum.saturating_add(MicroBits(one))
                }),
        };
        capsule.ledger.price = match capsule.outcome {
            Outcome::Certified => policy.settlement_prices.level_price(m, s, levels, level),
            Outcome::NotCertified => quote.not_certified,
            Outcome::NotJudged => MicroBits::ZERO,
            Outcome::Aborted => capsule
                .run
                .map_or(capsule.ledger.price, |run| run.sealed_reserved),
        };
        capsule.e_value_log2 = capsule
            .e_value_log2
            .map(|_| base(&capsule.ledger) + u64::from(level));
        if bounded(&capsule) {
            *tree = edit::read(&capsule.to_bytes());
        }
    }

    /// Both keys are the forger's: a link that was changed is signed again, unless a signature is the change.
    fn sign_again(&self, tree: &mut Value, edits: &[Edit]) {
        let is_signature = edits
            .iter()
            .any(|edit| edit.field.ends_with("signature_hex"));
        if kind(tree) != "key_rotated" || is_signature {
            return;
        }
        let Ok(rotated) = KeyRotated::parse(&edit::write(tree)) else {
            return;
        };
        let link = rotated.signed.link;
        let (old, new): (SignerKey, SignerKey) = (key(), second_key());
        let signed = signed_by(&old, &new, link);
        tree["old_signature_hex"] = json!(hex::encode(signed.old_signature));
        tree["new_signature_hex"] = json!(hex::encode(signed.new_signature));
    }

    /// Takes over what an entry did.
    fn note(&mut self, honest: &Value, tree: &Value, entry: &[u8]) {
        match kind(tree) {
            "log_started" | "log_restarted" => {
                self.origin = tree["origin"].as_str().unwrap_or_default().to_owned();
            }
            "holdout_registered" => {
                let Some(registered) = parse_registered(entry) else {
                    return;
                };
                let old = record::holdout_id(&edit::write(honest)).to_hex();
                let id = registered.id.to_hex();
                self.renamed.push((old.clone(), id.clone()));
                self.books.insert(
                    id,
                    Book {
                        registered,
                        honest_id: old,
                        k: 0,
                        answers: 0,
                        settled: 0,
                        certified: 0,
                        ends: Vec::new(),
                    },
                );
            }
            "holdout_compared" | "holdout_charged" => {
                let number = |field: &str| tree[field].as_u64().unwrap_or_default();
                let (sealed, answers) = (number("sealed_microbits"), number("answers_microbits"));
                let Some(id) = tree["holdout_id_hex"].as_str() else {
                    return;
                };
                if let Some(book) = self.books.get_mut(id) {
                    book.k = book.k.saturating_add(sealed);
                    book.answers = book.answers.saturating_add(answers);
                }
            }
            "claim_capsule" => self.note_capsule(honest, entry),
            "decision_batch" => {
                let first = |tree: &Value| {
                    let text = tree["first_decision_hex"].as_str().unwrap_or_default();
                    u64::from_str_radix(text, 16).unwrap_or_default()
                };
                let count = |tree: &Value| tree["count"].as_u64().unwrap_or_default();
                let next = |tree: &Value| first(tree).saturating_add(count(tree));
                self.decisions = Some((next(honest), next(tree)));
            }
            _ => {}
        }
    }

    fn note_capsule(&mut self, honest: &Value, entry: &[u8]) {
        let Ok(capsule) = Capsule::parse(entry) else {
            return;
        };
        let old = edit::write(honest);
        self.renamed
            .push((Digest::of(&old).to_hex(), capsule.hash().to_hex()));
        if let Ok(old) = Capsule::parse(&old) {
            let (old, new) = (old.claim_id.to_hex(), capsule.claim_id.to_hex());
            if old != new {
                self.renamed.push((old, new));
            }
        }
        let Some(book) = self.books.get_mut(&capsule.holdout_id.to_hex()) else {
            return;
        };
        book.k = book.k.saturating_add(capsule.ledger.price.get());
        book.answers = book.answers.saturating_add(capsule.answers.charged.get());
        match capsule.outcome {
            Outcome::Certified => {
                book.settled += 1;
                book.certified += 1;
            }
            Outcome::NotCertified => book.settled += 1,
            Outcome::NotJudged | Outcome::Aborted => {}
        }
        let number = honest["run"]["number"].as_u64().unwrap_or_default();
        book.ends.push((number, book.settled, book.certified));
    }
}

fn apply(edits: &[Edit], tree: Value) -> Value {
    edits.iter().fold(tree, |tree, edit| edit.apply(&tree))
}

pub(super) fn kind(tree: &Value) -> &str {
    let schema = tree["schema"].as_str().unwrap_or_default();
    schema.strip_prefix("evidenceos.v2.").unwrap_or(schema)
}

thread_local! {
    static REGISTERED: RefCell<HashMap<Vec<u8>, Option<Registered>>> = RefCell::default();
}

/// A description, read once: its constants take long.
fn parse_registered(entry: &[u8]) -> Option<Registered> {
    REGISTERED.with_borrow_mut(|known| {
        known
            .entry(entry.to_vec())
            .or_insert_with(|| Registered::parse(entry).ok())
            .clone()
    })
}

fn description_id(registered: &Registered) -> HoldoutId {
    registered.id
}

/// What runs under way at a restart had reserved: their capsules come later.
fn reserved_later(id: &str, ended: u64, later: &[Draft]) -> (u64, u64) {
    let runs = later.iter().filter_map(|draft| {
        let run = &draft.tree["run"];
        let under_way = run["ended_before"].as_u64()? <= ended;
        (draft.tree["holdout_id_hex"] == id && under_way).then(|| {
            let number = |field: &str| run[field].as_u64().unwrap_or_default();
            (
                number("sealed_reserved_microbits"),
                number("answers_reserved_microbits"),
            )
        })
    });
    runs.fold((0, 0), |(sealed, answers), (s, a)| {
        (sealed + s, answers + a)
    })
}

/// Whether a record can be written: canonical JSON has no integers beyond 2^53 − 1.
fn bounded(capsule: &Capsule) -> bool {
    let most = (1 << 53) - 1;
    let ledger = &capsule.ledger;
    [
        ledger.k.get(),
        ledger.c.get(),
        ledger.price.get(),
        ledger.threshold.get(),
        ledger.alpha_divisor,
        ledger.ordinal,
        capsule.answers.charged.get(),
    ]
    .iter()
    .all(|&int| int <= most)
}
