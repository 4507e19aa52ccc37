//! The whole log: every entry hashed into the signed root, every ledger computed again.
//!
//! Owns the order of the replay and its report. The modules below check each kind of entry: `keys` (the start, key
//! links, restarts), `holdouts` (descriptions, budgets, comparisons), `runs` (capsules and revocations), `others`
//! (decisions, policies, credit); `book` keeps one holdout's ledger. Does not own the arithmetic of one settlement
//! (`capsule.rs`), or the source of the entries.
//!
//! Invariant: nothing is skipped. An entry of an unknown kind is a finding. After a wrong entry the replay goes on
//! with the right values, if the other entries determine them, so that one wrong entry is one finding.

use std::collections::{BTreeMap, HashMap};

use evidenceos_kernel::{
    bits::MicroBits,
    decision::DecisionId,
    entry::Kind,
    holdout::NarrowerBudgets,
    id::{ClaimId, Digest, HoldoutId, OwnerTag},
    in_force::InForce,
    log_key::KeyLink,
    record::{Capsule, Registered},
};
use evidenceos_tlog::{Checkpoint, Tree, leaf_hash};

use crate::{
    fault::{Check, Fault},
    fields::Fields,
};

mod book;
mod holdouts;
mod keys;
mod others;
mod rooms;
mod runs;

use book::Book;

/// A broken rule and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The entry; `None` if the finding is about the log as a whole.
    pub index: Option<u64>,
    pub fault: Fault,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let check = self.fault.check();
        match self.index {
            Some(index) => write!(f, "entry {index}: {} ({check})", self.fault),
            None => write!(f, "the log: {} ({check})", self.fault),
        }
    }
}

/// The ledger of one holdout, recomputed from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldoutLedger {
    pub registered: Registered,
    /// Index of its registration.
    pub index: u64,
    /// k: charged to the sealed part.
    pub sealed_charged: MicroBits,
    /// Charged to the answer part.
    pub answers_charged: MicroBits,
    /// m: claims that were judged.
    pub settled: u64,
    /// s: claims that were certified.
    pub certified: u64,
    /// Claims whose sealed part was not looked at, duplicates included.
    pub not_judged: u64,
    /// Claims that were not judged because an earlier verdict answers them.
    pub duplicates: u64,
    /// Claims that were aborted.
    pub aborted: u64,
    /// Whether it takes no more claims.
    pub retired: bool,
    /// Whether its labels are public.
    pub opened: bool,
    /// Whether it was withdrawn before it released anything.
    pub withdrawn: bool,
    /// Budgets below the registered ones that are in force.
    pub budgets: NarrowerBudgets,
    /// The claims and charges of each owner.
    pub owners: BTreeMap<OwnerTag, OwnerLedger>,
}

/// The claims and charges of one owner on one holdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnerLedger {
    /// Claims with a capsule.
    pub claims: u64,
    /// Claims that were certified.
    pub certified: u64,
    /// Charged for answers to this owner.
    pub answers_charged: MicroBits,
    /// Charged for settlements of this owner's claims.
    pub sealed_charged: MicroBits,
}

/// A claim that was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    pub claim: ClaimId,
    /// Index of the revocation.
    pub index: u64,
    /// The revoker's reason.
    pub reason: String,
    /// When, in Unix milliseconds.
    pub unix_ms: u64,
}

/// An event of the log or of a holdout that a reader should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The log went on under another name after its end was lost.
    Restarted {
        /// The name so far.
        old_origin: String,
        /// The name from here on.
        origin: String,
        /// The operator's reason.
        because: String,
    },
    /// A holdout's charge at a restart.
    Charged {
        holdout: HoldoutId,
        /// To its sealed part.
        sealed: MicroBits,
        /// True if the operator stated the charge; false if its budgets were exhausted.
        stated: bool,
    },
    /// An operator stated that nothing was signed since.
    Continued {
        /// The operator's reason.
        because: String,
    },
    /// A new column of labels was compared with a holdout's.
    Compared {
        /// The earlier holdout, which was charged for the comparison.
        holdout: HoldoutId,
        /// Whether the columns agreed, so that the registration was refused.
        agrees: bool,
    },
    /// A holdout was withdrawn.
    Withdrawn {
        holdout: HoldoutId,
        /// The operator's reason.
        reason: String,
    },
    /// A holdout's budgets changed.
    BudgetsChanged { holdout: HoldoutId },
    /// Other policy modules, or another role policy, are in force.
    Policies(InForce),
}

/// The keys that signed a log, as its entries state them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyChain {
    /// SHA-256 of the first key, from entry 0; `None` if the log states none.
    pub first: Option<Digest>,
    /// The links from each key to the next, in order.
    pub links: Vec<KeyLink>,
}

/// The result of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogReport {
    /// The number of entries that were read.
    pub entries: u64,
    /// Capsules among them, with their indices, in order.
    pub capsules: Vec<(u64, Capsule)>,
    /// Each holdout, in order of registration.
    pub holdouts: Vec<HoldoutLedger>,
    /// The keys, with the trees that each signs.
    pub keys: KeyChain,
    /// Revoked claims, in order.
    pub revoked: Vec<Revoked>,
    /// Indices of the capsules whose claims had a revoked ancestor when they settled.
    pub tainted: Vec<u64>,
    /// Restarts, comparisons and the like, with their indices, in order.
    pub events: Vec<(u64, Event)>,
    /// The findings, in order; empty if all is well.
    pub findings: Vec<Finding>,
}

impl LogReport {
    /// Whether every check passed.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// The ledger of one holdout; `None` if the log does not register it.
    #[must_use]
    pub fn holdout(&self, id: &HoldoutId) -> Option<&HoldoutLedger> {
        self.holdouts
            .iter()
            .find(|ledger| ledger.registered.id == *id)
    }

    /// The revocation of a claim, if there is one.
    #[must_use]
    pub fn revocation(&self, claim: &ClaimId) -> Option<&Revoked> {
        self.revoked.iter().find(|revoked| revoked.claim == *claim)
    }
}

/// Replays a log from its first entry and compares it with a head whose signature was checked.
///
/// Takes time linear in the log, and memory linear in its capsules. Never fails: the report has all errors.
#[must_use]
pub fn verify_log<E: AsRef<[u8]>>(
    entries: impl IntoIterator<Item = E>,
    checkpoint: &Checkpoint,
) -> LogReport {
    let mut replay = Replay::default();
    let mut tree = Tree::new();
    for entry in entries {
        let entry = entry.as_ref();
        let index = tree.size();
        // The tree must not hold the entry yet: links and restarts bind the root before them.
        if let Err(fault) = replay.entry(index, entry, &tree) {
            replay.find(Some(index), fault);
        }
        tree.append(leaf_hash(entry));
        // Only the root is needed: drop the completed tiles, so that they do not pile up.
        drop(tree.take_full_tiles());
    }
    replay.end(tree.size());
    // Without a readable entry 0 there is no name to compare, and that is already a finding.
    if let Err(fault) = Check::Origin.equal("origin", replay.origin.as_str(), checkpoint.origin())
        && replay.keys.first.is_some()
    {
        // The finding belongs to the entry that gave the log its last name; without a restart that
        // is entry 0.
        replay.find(Some(replay.named_at), fault);
    }
    let (size, root) = (tree.size(), tree.root());
    // If the sizes differ, the roots do too, and the size is the better explanation.
    if size != checkpoint.size() {
        let signed = checkpoint.size();
        let entries = size;
        replay.find(None, Fault::Size { entries, signed });
    } else if root != checkpoint.root() {
        let (computed, signed) = (root, checkpoint.root());
        replay.find(None, Fault::Root { computed, signed });
    }
    // A finding at the end of the log may be about an early entry.
    replay
        .findings
        .sort_by_key(|finding| finding.index.unwrap_or(u64::MAX));
    LogReport {
        entries: size,
        capsules: replay.capsules,
        holdouts: replay.books.into_iter().map(|book| book.ledger).collect(),
        keys: replay.keys,
        revoked: replay.revoked,
        tainted: replay.tainted,
        events: replay.events,
        findings: replay.findings,
    }
}

/// The facts about a settled claim that its descendants and revocations refer to.
#[derive(Debug, Clone)]
struct Settled {
    capsule: Digest,
    /// Its place in `Replay::capsules`.
    place: usize,
    parents: Vec<ClaimId>,
    ancestors: u64,
    depth: u64,
    revoked_at: Option<u64>,
}

#[derive(Default)]
struct Replay {
    books: Vec<Book>,
    by_id: HashMap<HoldoutId, usize>,
    names: HashMap<String, usize>,
    capsules: Vec<(u64, Capsule)>,
    settled: HashMap<ClaimId, Settled>,
    claim_of_capsule: HashMap<Digest, ClaimId>,
    revoked: Vec<Revoked>,
    tainted: Vec<u64>,
    /// The log's present name, and the entry that gave it.
    origin: String,
    named_at: u64,
    keys: KeyChain,
    /// The id of the key that signs at present.
    key_id: Option<Digest>,
    last_unix_ms: u64,
    /// Whether an entry was seen that releases before 2.2 did not write: from there on, fields that those releases
    /// omitted must be present.
    modern: bool,
    /// Whether already entry 0 shows it: then no earlier release admitted any run.
    begun_modern: bool,
    /// The comparisons just before this entry.
    compared: Vec<(usize, bool)>,
    /// The restart whose charges are being read.
    restart: Option<keys::Restart>,
    next_decision: Option<DecisionId>,
    in_force: InForce,
    events: Vec<(u64, Event)>,
    findings: Vec<Finding>,
}

impl Replay {
    fn find(&mut self, index: Option<u64>, fault: Fault) {
        self.findings.push(Finding { index, fault });
    }

    /// Reads an entry; `tree` has those before it.
    fn entry(&mut self, index: u64, entry: &[u8], tree: &Tree) -> Result<(), Fault> {
        let mut fields = Fields::parse(entry)?;
        let unix_ms = fields.unix_ms();
        let schema = fields.text("schema")?;
        let kind = Kind::named(&schema);
        self.close_groups(index, kind);
        if (index == 0) != (kind == Some(Kind::LogStarted)) {
            return Err(Fault::Start);
        }
        let own = match kind {
            Some(kind) => self.of_kind(kind, index, entry, fields, tree),
            None => Err(Fault::UnknownKind(schema)),
        };
        // The first fault of an entry is the one that explains the others.
        own.and(self.time(unix_ms))
    }

    /// Checks an entry by its kind. `fields` are the entry's without its schema; `tree` has those before it.
    fn of_kind(
        &mut self,
        kind: Kind,
        index: u64,
        entry: &[u8],
        fields: Fields,
        tree: &Tree,
    ) -> Result<(), Fault> {
        match kind {
            Kind::LogStarted => self.started(fields),
            Kind::LogRestarted => self.restarted(index, entry, tree.root()),
            Kind::LogContinued => self.continued(index, fields, tree.root()),
            Kind::KeyRotated => self.key_rotated(index, entry, tree.root()),
            Kind::HoldoutRegistered => self.registered(index, entry),
            Kind::HoldoutPolicy => self.budgets_changed(index, entry),
            Kind::HoldoutCompared => self.compared(index, entry),
            Kind::HoldoutWithdrawn => self.withdrawn(index, fields),
            Kind::HoldoutRetired => self.retired(index, fields),
            Kind::HoldoutOpened => self.opened(fields),
            Kind::HoldoutCharged => self.charged(index, entry),
            Kind::ClaimCapsule => self.capsule(index, entry),
            Kind::ClaimRevoked => self.revoked(index, fields),
            Kind::CreditGranted => others::credit_granted(fields),
            Kind::AccountsImported => others::accounts_imported(fields),
            Kind::DecisionBatch => self.decisions(entry),
            Kind::PoliciesInForce => self.policies(index, entry),
        }
    }

    /// Every entry states its time, and none is earlier than the entry before it.
    fn time(&mut self, unix_ms: Option<u64>) -> Result<(), Fault> {
        let Some(unix_ms) = unix_ms else {
            return Err(Fault::rule(Check::Form, "an entry has one time"));
        };
        // A time too far ahead is one finding, at the entry after it.
        let before = std::mem::replace(&mut self.last_unix_ms, unix_ms);
        Check::Time.holds(
            unix_ms >= before,
            "time runs backwards: the entry before is younger",
        )
    }

    /// Entries of a group are consecutive: an entry of another kind completes the group.
    fn close_groups(&mut self, index: u64, kind: Option<Kind>) {
        if self.restart.is_some() && kind != Some(Kind::HoldoutCharged) {
            self.close_restart(index);
        }
        if !matches!(kind, Some(Kind::HoldoutCompared | Kind::HoldoutRegistered)) {
            self.close_comparison(index);
        }
    }

    /// Checks the rules that only the end of the log can decide.
    fn end(&mut self, size: u64) {
        let last = size.saturating_sub(1);
        if self.restart.is_some() {
            self.close_restart(last);
        }
        self.close_comparison(last);
        for at in 0..self.books.len() {
            if let Err(fault) = self.books[at].end() {
                let index = self.books[at].exhausted_at();
                self.find(index, fault);
            }
            if let Some(index) = self.books[at].mispriced_comparison() {
                let rule = "a comparison is priced at 16 bits for agreement, or at as many whole bits as are free";
                self.find(Some(index), Fault::rule(Check::Comparison, rule));
            }
        }
    }

    fn book(&mut self, id: HoldoutId) -> Result<&mut Book, Fault> {
        let at = self.by_id.get(&id).ok_or(Fault::UnknownHoldout(id))?;
        Ok(&mut self.books[*at])
    }
}
