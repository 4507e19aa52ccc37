//! The whole log: every entry hashed into the signed root, every ledger computed again.
//!
//! Owns the replay: what each holdout has been charged, in what order, and whether each capsule says so. Does not
//! own the arithmetic of one settlement (`capsule.rs`), nor where entries come from.
//!
//! Invariant: nothing is skipped. An entry that is not understood and names a holdout is a finding, since it may
//! have changed a ledger. After a wrong entry the replay goes on with what should have been there, so that one wrong
//! entry is one finding; only where a level or an abort leaves that open may later entries be named too.

use std::collections::{BTreeMap, HashMap, HashSet};

use evidenceos_kernel::{
    bits::MicroBits,
    cj,
    claim::Outcome,
    continuity::{HOLDOUT_CHARGED, HoldoutCharged, LOG_RESTARTED, LogRestarted},
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
    log_key::KeyLink,
    record::{self, Capsule, Compared, RecordError, Registered},
};
use evidenceos_tlog::{Checkpoint, Hash, Tree, leaf_hash};

use crate::{capsule::Expected, fault::Fault, trust::check_signatures};

/// Kinds that say nothing about a holdout's ledger.
const WITHOUT_LEDGER: [&str; 3] = [
    "evidenceos.v2.claims_tainted",
    "evidenceos.v2.decision_batch",
    "evidenceos.v2.credit_granted",
];

/// A broken rule and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The entry; none where the log as a whole is meant.
    pub index: Option<u64>,
    /// What is broken.
    pub fault: Fault,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.index {
            Some(index) => write!(f, "entry {index}: {}", self.fault),
            None => write!(f, "the log: {}", self.fault),
        }
    }
}

/// What the log says about one holdout, computed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldoutLedger {
    /// Its description.
    pub registered: Registered,
    /// Where its registration stands.
    pub index: u64,
    /// k: charged to the sealed part.
    pub sealed_charged: MicroBits,
    /// Charged to the answer part.
    pub answers_charged: MicroBits,
    /// m: claims that were judged.
    pub settled: u64,
    /// s: claims that were certified.
    pub certified: u64,
    /// Claims whose sealed part was not looked at.
    pub not_judged: u64,
    /// Claims that were aborted.
    pub aborted: u64,
    /// Whether it takes no more claims.
    pub retired: bool,
    /// Whether its labels are public.
    pub opened: bool,
    /// Answers by owner.
    pub owners: BTreeMap<OwnerTag, OwnerLedger>,
}

/// What one owner asked of one holdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnerLedger {
    /// Claims with a capsule.
    pub claims: u64,
    /// Certified ones.
    pub certified: u64,
    /// Charged for answers.
    pub answers_charged: MicroBits,
}

/// The result of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogReport {
    /// Entries read.
    pub entries: u64,
    /// Capsules among them, with their indices, in order.
    pub capsules: Vec<(u64, Capsule)>,
    /// Each holdout, in order of registration.
    pub holdouts: Vec<HoldoutLedger>,
    /// The keys that followed one another, in order.
    pub key_links: Vec<KeyLink>,
    /// Revoked claims.
    pub revoked: u64,
    /// Entries of kinds that were passed over because they cannot change a ledger.
    pub passed_over: u64,
    /// What is wrong, in order; empty if all is well.
    pub findings: Vec<Finding>,
}

impl LogReport {
    /// Whether every check passed.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// A holdout's ledger.
    #[must_use]
    pub fn holdout(&self, id: &HoldoutId) -> Option<&HoldoutLedger> {
        self.holdouts
            .iter()
            .find(|ledger| ledger.registered.id == *id)
    }
}

/// Replays a log from its first entry and compares it with a head whose signature was checked.
///
/// Takes time linear in the log, and memory linear in its capsules. Never fails: what is wrong is in the report.
#[must_use]
pub fn verify_log<E: AsRef<[u8]>>(
    entries: impl IntoIterator<Item = E>,
    checkpoint: &Checkpoint,
) -> LogReport {
    let mut replay = Replay::default();
    let mut tree = Tree::new();
    for entry in entries {
        let entry = entry.as_ref();
        // A link is about the tree before it; to no other entry that root matters.
        let root_before = may_be_a_link(entry).then(|| tree.root());
        let index = tree.append(leaf_hash(entry));
        if let Err(fault) = replay.entry(index, entry, root_before) {
            replay.findings.push(Finding {
                index: Some(index),
                fault,
            });
        }
        // Only the root is wanted: completed tiles need not pile up.
        drop(tree.take_full_tiles());
    }
    let (size, root) = (tree.size(), tree.root());
    if let Err(fault) = Fault::unless_equal("origin", replay.origin.as_str(), checkpoint.origin())
        && replay.key_id.is_some()
    {
        // The entry that gave the log its last name; without a new beginning the very first.
        let index = Some(replay.named_at);
        replay.findings.push(Finding { index, fault });
        replay.findings.sort_by_key(|finding| finding.index);
    }
    let whole = if size != checkpoint.size() {
        Some(Fault::Size {
            entries: size,
            signed: checkpoint.size(),
        })
    } else if root != checkpoint.root() {
        Some(Fault::Root {
            computed: root,
            signed: checkpoint.root(),
        })
    } else {
        None
    };
    replay
        .findings
        .extend(whole.map(|fault| Finding { index: None, fault }));
    LogReport {
        entries: size,
        capsules: replay.capsules,
        holdouts: replay.holdouts,
        key_links: replay.key_links,
        revoked: replay.revoked.len() as u64,
        passed_over: replay.passed_over,
        findings: replay.findings,
    }
}

#[derive(Default)]
struct Replay {
    holdouts: Vec<HoldoutLedger>,
    by_id: HashMap<HoldoutId, usize>,
    capsules: Vec<(u64, Capsule)>,
    settled: HashSet<ClaimId>,
    claim_of_capsule: HashMap<Digest, ClaimId>,
    revoked: HashSet<ClaimId>,
    /// The log's name so far, and the entry that gave it.
    origin: String,
    named_at: u64,
    /// The id of the key that signs so far.
    key_id: Option<Digest>,
    key_links: Vec<KeyLink>,
    passed_over: u64,
    findings: Vec<Finding>,
}

impl Replay {
    fn entry(&mut self, index: u64, entry: &[u8], root_before: Option<Hash>) -> Result<(), Fault> {
        let schema = record::schema_of(entry);
        let is_start = schema.as_deref() == Some(record::LOG_STARTED);
        if (index == 0) != is_start {
            return Err(Fault::Start);
        }
        let object = Fields::parse(entry)?;
        match object.text("schema")? {
            record::LOG_STARTED => {
                self.key_id = Some(object.digest("key_id_hex")?);
                self.origin = object.text("origin")?.to_owned();
                Ok(())
            }
            LOG_RESTARTED => self.restarted(index, entry, root_before),
            HOLDOUT_CHARGED => self.charged(entry),
            record::HOLDOUT_COMPARED => {
                let compared = Compared::parse(entry)?;
                let ledger = self.holdout(compared.holdout)?;
                ledger.sealed_charged = ledger.sealed_charged.saturating_add(compared.sealed);
                ledger.answers_charged = ledger.answers_charged.saturating_add(compared.answers);
                Ok(())
            }
            record::HOLDOUT_POLICY | record::HOLDOUT_WITHDRAWN => {
                self.passed_over += 1;
                Ok(())
            }
            record::KEY_ROTATED => self.key_rotated(index, entry, root_before),
            record::HOLDOUT_REGISTERED => self.registered(index, entry),
            record::HOLDOUT_RETIRED => self.retired(entry, &object),
            record::HOLDOUT_OPENED => self.opened(entry, &object),
            record::CLAIM_CAPSULE => self.capsule(index, entry),
            record::CLAIM_REVOKED => self.revoked(entry, &object),
            kind if WITHOUT_LEDGER.contains(&kind) || !object.names_a_holdout() => {
                self.passed_over += 1;
                Ok(())
            }
            kind => Err(Fault::UnknownKind(kind.to_owned())),
        }
    }

    /// The log goes on under another name: the entry binds all that came before.
    fn restarted(
        &mut self,
        index: u64,
        entry: &[u8],
        root_before: Option<Hash>,
    ) -> Result<(), Fault> {
        let restarted = LogRestarted::parse(entry)?;
        // Whatever it binds, the name is another from here on.
        let before = std::mem::replace(&mut self.origin, restarted.origin);
        self.named_at = index;
        Fault::unless_equal("old_origin", restarted.old_origin.as_str(), before.as_str())?;
        Fault::unless_equal("old_size", restarted.old.size, index)?;
        Fault::unless_equal(
            "old_root_hash_hex",
            Hash(restarted.old.root).to_string(),
            root_before.unwrap_or(Hash([0; 32])).to_string(),
        )
    }

    /// What leaked in entries that were lost, as the operator states it or at its worst.
    fn charged(&mut self, entry: &[u8]) -> Result<(), Fault> {
        let charged = HoldoutCharged::parse(entry)?;
        let ledger = self.holdout(charged.holdout)?;
        ledger.sealed_charged = ledger.sealed_charged.saturating_add(charged.sealed);
        ledger.answers_charged = ledger.answers_charged.saturating_add(charged.answers);
        let policy = &ledger.registered.description.policy;
        for (budget, charged, allowed) in [
            (
                "sealed_budget_microbits",
                ledger.sealed_charged,
                policy.sealed_budget,
            ),
            (
                "answer_budget_microbits",
                ledger.answers_charged,
                policy.answer_budget,
            ),
        ] {
            if charged > allowed {
                return Err(Fault::Budget {
                    budget,
                    charged: charged.get(),
                    allowed: allowed.get(),
                });
            }
        }
        Ok(())
    }

    fn key_rotated(
        &mut self,
        index: u64,
        entry: &[u8],
        root_before: Option<Hash>,
    ) -> Result<(), Fault> {
        let signed = record::parse_key_rotated(entry)?;
        let link = &signed.link;
        Fault::unless_equal("origin", link.origin.as_str(), self.origin.as_str())?;
        Fault::unless_equal("tree_size", link.tree_size, index)?;
        Fault::unless_equal(
            "root_hash_hex",
            Hash(link.root).to_string(),
            root_before.unwrap_or(Hash([0; 32])).to_string(),
        )?;
        let signs_so_far = self.key_id == Some(Digest::of(&link.old_public_key));
        Fault::unless(
            signs_so_far,
            "the old key of a link is the one that signs so far",
        )?;
        check_signatures(&signed)?;
        self.key_id = Some(Digest::of(&link.new_public_key));
        self.key_links.push(signed.link);
        Ok(())
    }

    fn registered(&mut self, index: u64, entry: &[u8]) -> Result<(), Fault> {
        let registered = Registered::parse(entry)?;
        let id = registered.id;
        let description = &registered.description;
        Fault::unless(
            description
                .answer_items
                .checked_add(description.sealed_items)
                == Some(description.items)
                && (1..=description.units).contains(&description.sealed_units)
                && description.units <= description.items,
            "the parts add up to the items, and units are no more than items",
        )?;
        if self.by_id.contains_key(&id) {
            return Err(Fault::RegisteredTwice(id));
        }
        self.by_id.insert(id, self.holdouts.len());
        self.holdouts.push(HoldoutLedger {
            registered,
            index,
            sealed_charged: MicroBits::ZERO,
            answers_charged: MicroBits::ZERO,
            settled: 0,
            certified: 0,
            not_judged: 0,
            aborted: 0,
            retired: false,
            opened: false,
            owners: BTreeMap::new(),
        });
        Ok(())
    }

    fn holdout(&mut self, id: HoldoutId) -> Result<&mut HoldoutLedger, Fault> {
        let at = self.by_id.get(&id).ok_or(Fault::UnknownHoldout(id))?;
        Ok(&mut self.holdouts[*at])
    }

    fn retired(&mut self, entry: &[u8], object: &Fields) -> Result<(), Fault> {
        let id = HoldoutId(object.digest("holdout_id_hex")?.0);
        let again =
            record::holdout_retired(id, object.text("reason")?, object.int("retired_unix_ms")?);
        no_more_fields(entry, &again)?;
        let ledger = self.holdout(id)?;
        Fault::unless(!ledger.retired, "a holdout is retired once")?;
        ledger.retired = true;
        Ok(())
    }

    fn opened(&mut self, entry: &[u8], object: &Fields) -> Result<(), Fault> {
        let id = HoldoutId(object.digest("holdout_id_hex")?.0);
        let again = record::holdout_opened(id, object.int("opened_unix_ms")?);
        no_more_fields(entry, &again)?;
        let ledger = self.holdout(id)?;
        Fault::unless(
            ledger.retired && !ledger.opened,
            "a holdout is opened once, and retired before",
        )?;
        ledger.opened = true;
        Ok(())
    }

    fn revoked(&mut self, entry: &[u8], object: &Fields) -> Result<(), Fault> {
        let claim = ClaimId(object.digest("claim_id_hex")?.0);
        let capsule = object.digest("capsule_hash_hex")?;
        let reason = object.text("reason")?;
        let again = record::claim_revoked(claim, capsule, reason, object.int("revoked_unix_ms")?);
        no_more_fields(entry, &again)?;
        if self.claim_of_capsule.get(&capsule) != Some(&claim) {
            return Err(Fault::UnknownCapsule(capsule));
        }
        if self.revoked.insert(claim) {
            Ok(())
        } else {
            Err(Fault::RevokedTwice(claim))
        }
    }

    fn capsule(&mut self, index: u64, entry: &[u8]) -> Result<(), Fault> {
        let capsule = Capsule::parse(entry)?;
        let ledger = self.holdout(capsule.holdout_id)?;
        let expected = Expected {
            description: &ledger.registered.description,
            k: ledger.sealed_charged,
            settled: ledger.settled,
            certified: ledger.certified,
        };
        let own = expected.check(&capsule);
        let charge = expected.charge(&capsule);
        let budgets = ledger.charge(&capsule, charge);
        let was_open = ledger.opened;
        let known = self.bookkeep(index, entry, capsule);
        // The first fault of an entry is the one that explains the others.
        own.and(known).and(budgets).and(Fault::unless(
            !was_open,
            "nothing settles on a holdout whose labels are public",
        ))
    }

    /// Notes that a claim has its capsule; checks that it had none, and that its parents have theirs.
    fn bookkeep(&mut self, index: u64, entry: &[u8], capsule: Capsule) -> Result<(), Fault> {
        let claim = capsule.claim_id;
        let fresh = self.settled.insert(claim);
        let parents = &capsule.dependencies;
        let orphan = parents
            .iter()
            .find(|parent| !self.claim_of_capsule.contains_key(parent))
            .copied();
        self.claim_of_capsule.insert(Digest::of(entry), claim);
        self.capsules.push((index, capsule));
        match orphan {
            _ if !fresh => Err(Fault::SettledTwice(claim)),
            Some(parent) => Err(Fault::UnknownCapsule(parent)),
            None => Ok(()),
        }
    }
}

impl HoldoutLedger {
    /// Adds a settlement to the ledger and compares the sums with the budgets.
    fn charge(&mut self, capsule: &Capsule, price: MicroBits) -> Result<(), Fault> {
        self.sealed_charged = self.sealed_charged.saturating_add(price);
        let answers = capsule.answers.charged;
        self.answers_charged = self.answers_charged.saturating_add(answers);
        let owner = self.owners.entry(capsule.owner_tag).or_default();
        owner.claims += 1;
        owner.answers_charged = owner.answers_charged.saturating_add(answers);
        match capsule.outcome {
            Outcome::Certified => {
                self.settled += 1;
                self.certified += 1;
                owner.certified += 1;
            }
            Outcome::NotCertified => self.settled += 1,
            Outcome::NotJudged => self.not_judged += 1,
            Outcome::Aborted => self.aborted += 1,
        }
        let policy = &self.registered.description.policy;
        for (budget, added, charged, allowed) in [
            (
                "sealed_budget_microbits",
                price,
                self.sealed_charged,
                policy.sealed_budget,
            ),
            (
                "answer_budget_microbits",
                answers,
                self.answers_charged,
                policy.answer_budget,
            ),
            (
                "principal_answer_budget_microbits",
                answers,
                owner.answers_charged,
                policy.principal_answer_budget,
            ),
        ] {
            // Whoever adds nothing has broken no budget, even if somebody before him has.
            if added > MicroBits::ZERO && charged > allowed {
                return Err(Fault::Budget {
                    budget,
                    charged: charged.get(),
                    allowed: allowed.get(),
                });
            }
        }
        Ok(())
    }
}

/// Whether an entry could be a link of keys, without reading it.
fn may_be_a_link(entry: &[u8]) -> bool {
    [record::KEY_ROTATED, LOG_RESTARTED].iter().any(|kind| {
        let kind = kind.as_bytes();
        entry.windows(kind.len()).any(|window| window == kind)
    })
}

/// An entry written again from the fields that were read must be the same bytes: then it has no others.
fn no_more_fields(entry: &[u8], again: &[u8]) -> Result<(), Fault> {
    Fault::unless(
        entry == again,
        "the entry has a field that its kind does not have",
    )
}

/// Typed access to an entry's fields.
struct Fields(cj::Object);

impl Fields {
    fn parse(entry: &[u8]) -> Result<Self, RecordError> {
        match cj::parse(entry, record::MAX_ENTRY_LEN)? {
            cj::Value::Object(object) => Ok(Self(object)),
            _ => Err(RecordError::Field("schema".to_owned())),
        }
    }

    fn text(&self, name: &str) -> Result<&str, RecordError> {
        let text = self.0.get(name).and_then(cj::Value::as_str);
        text.ok_or_else(|| RecordError::Field(name.to_owned()))
    }

    fn int(&self, name: &str) -> Result<u64, RecordError> {
        let int = self.0.get(name).and_then(cj::Value::as_int);
        int.ok_or_else(|| RecordError::Field(name.to_owned()))
    }

    fn digest(&self, name: &str) -> Result<Digest, RecordError> {
        let text = self.text(name)?;
        Digest::from_hex(text).ok_or_else(|| RecordError::Field(name.to_owned()))
    }

    fn names_a_holdout(&self) -> bool {
        names_a_holdout(&self.0)
    }
}

fn names_a_holdout(object: &cj::Object) -> bool {
    object
        .iter()
        .any(|(key, value)| key.starts_with("holdout") || nested(value).any(names_a_holdout))
}

fn nested(value: &cj::Value) -> impl Iterator<Item = &cj::Object> {
    let elements = value.as_array().unwrap_or_default();
    let inside = elements.iter().filter_map(cj::Value::as_object);
    value.as_object().into_iter().chain(inside)
}
