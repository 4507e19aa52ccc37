//! What can be asked of the kernel, and what it answers.
//!
//! Commands carry everything that a decision needs from outside: time comes beside them, random
//! bytes and digests of bulk data inside them. Nothing here is parsed from the wire.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    account::{Account, LastCredit},
    bits::MicroBits,
    claim::{
        Artifact, Claim, ClaimState, LastRequest, Method, ModuleFacts, PolicyCode, Reason,
        Revocation, Settlement, Terms,
    },
    continuity::{BegunBy, KnownTree},
    decision::{DecisionBatch, DecisionId},
    holdout::{Description, Holdout, InFlight, Later, NarrowerBudgets, Place},
    id::{ClaimId, Digest, Fingerprint, HoldoutId, OwnerTag, Question, RequestKey},
    in_force::InForce,
    log_key::{LogKey, SignedKeyLink},
    record::AnswerTally,
    refusal::{Refusal, Role},
    score::Score,
};

/// Who calls, as the edge has verified it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The caller's tag.
    pub tag: OwnerTag,
    /// Whether the caller administers the server.
    pub operator: bool,
    /// Whether the caller reads all capsules.
    pub auditor: bool,
}

impl Caller {
    /// The driver itself, about work of its own.
    pub const DRIVER: Self = Self {
        tag: OwnerTag([0; 16]),
        operator: true,
        auditor: true,
    };

    /// Demands the operator role.
    ///
    /// # Errors
    /// [`Refusal::RoleRequired`].
    pub fn must_operate(&self) -> Result<(), Refusal> {
        if self.operator {
            Ok(())
        } else {
            Err(Refusal::RoleRequired(Role::Operator))
        }
    }

    /// Whether a claim is this caller's to act on.
    #[must_use]
    pub fn may_act_on(&self, claim: &Claim) -> bool {
        self.operator || claim.terms.owner == self.tag
    }

    /// Whether a claim is this caller's to read.
    #[must_use]
    pub fn may_read(&self, claim: &Claim) -> bool {
        self.auditor || self.may_act_on(claim)
    }
}

/// An idempotency key with the content that it was sent with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The key.
    pub key: RequestKey,
    /// The content.
    pub fingerprint: Fingerprint,
}

/// A command, who sent it, and under which key.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who.
    pub caller: Caller,
    /// Under which key; absent: no idempotency.
    pub stamp: Option<Stamp>,
    /// What.
    pub command: Command,
}

/// What can be asked.
#[derive(Debug, Clone)]
pub enum Command {
    /// Register a holdout.
    PutHoldout(Box<PutHoldout>),
    /// Take no more claims on a holdout.
    RetireHoldout {
        /// Which.
        holdout: HoldoutId,
        /// Why, 1–256 bytes.
        reason: String,
    },
    /// Make a retired holdout's labels public.
    OpenHoldout {
        /// Which.
        holdout: HoldoutId,
    },
    /// Create a claim.
    CreateClaim {
        /// `terms.claim_id()`.
        id: ClaimId,
        /// What it is bound to.
        terms: Box<Terms>,
        /// Its owner's name, for his account.
        principal: String,
    },
    /// Give a claim its module and artifacts.
    CommitArtifacts {
        /// Which.
        claim: ClaimId,
        /// What it is committed to.
        artifacts: Vec<Artifact>,
        /// What is known of the validated module.
        module: ModuleFacts,
    },
    /// Bind a claim.
    SealClaim {
        /// Which.
        claim: ClaimId,
    },
    /// Admit a claim's run.
    ExecuteClaim {
        /// Which.
        claim: ClaimId,
    },
    /// Withdraw a claim.
    RevokeClaim {
        /// Which.
        claim: ClaimId,
        /// Why, 1–256 bytes.
        reason: String,
    },
    /// Note that a run is begun again: it was found unfinished, or it failed.
    BeginAgain {
        /// The holdout.
        holdout: HoldoutId,
        /// The run's number.
        number: u64,
        /// Whether it failed, which counts towards its abort.
        failed: bool,
    },
    /// End a run. Only the oldest run of its holdout can end.
    Settle {
        /// The holdout.
        holdout: HoldoutId,
        /// The run's number.
        number: u64,
        /// What it did.
        report: Box<RunReport>,
    },
    /// End the run of a claim that was judged before, under its first verdict.
    SettleDuplicate {
        /// The holdout.
        holdout: HoldoutId,
        /// The run's number.
        number: u64,
    },
    /// Take a holdout back that released nothing.
    WithdrawHoldout {
        /// Which.
        holdout: HoldoutId,
        /// Why, 1–256 bytes.
        reason: String,
    },
    /// End a run that cannot be repeated, at its worst case.
    Abort {
        /// The holdout.
        holdout: HoldoutId,
        /// The run's number.
        number: u64,
    },
    /// Begin the log.
    BeginLog(Box<BeginLog>),
    /// Note the first key of a log that a release before the history of keys began.
    KnowFirstKey([u8; 32]),
    /// Note that another key signs the log from here on.
    RotateKey(Box<SignedKeyLink>),
    /// Go on under another name, since the end of the log was lost.
    RestartLog(Box<RestartLog>),
    /// State that the log was signed nowhere else since its newest entry.
    ContinueLog(Box<ContinueLog>),
    /// Append an entry that this log had.
    RecoverEntry(Vec<u8>),
    /// Note that the holdouts' items are encrypted under another key.
    RekeyHoldouts {
        /// The generation of holdouts that was encrypted.
        generation: u64,
        /// Each holdout's new blob.
        blobs: Vec<(HoldoutId, Digest)>,
    },
    /// Give a principal credit.
    GrantCredit {
        /// Whom.
        owner: OwnerTag,
        /// His name.
        principal: String,
        /// How much; at least 1.
        amount: u64,
        /// Why, 1–256 bytes.
        reason: String,
    },
    /// Set what a principal's credit may come to.
    SetCreditLimit {
        /// Whose.
        owner: OwnerTag,
        /// His name.
        principal: String,
        /// To what.
        limit: u64,
    },
    /// Make accounts what a file says.
    ImportAccounts {
        /// The accounts in the file, in its order.
        accounts: Vec<ImportedAccount>,
        /// Digest of the file.
        file: Digest,
        /// Why, 1–256 bytes.
        reason: String,
    },
    /// Narrow what a holdout may be asked, or what may be burned on it.
    SetBudgets {
        /// Which.
        holdout: HoldoutId,
        /// The narrower budgets; absent ones stay as they are.
        narrower: NarrowerBudgets,
    },
    /// These policies are in force from here on; nothing, if they are already.
    StatePolicies(InForce),
    /// A clock that went further than time passed is right after all.
    ConfirmClock {
        /// Where it was, in Unix milliseconds.
        from_unix_ms: u64,
        /// Where it went.
        to_unix_ms: u64,
    },
    /// Put decisions about tool calls into the log.
    RecordDecisions(Box<NewDecisions>),
    /// Keep records of decisions no longer; their roots stay in the log.
    ForgetDecisions {
        /// The last one that is not kept.
        through: DecisionId,
    },
}

/// Decisions to put into the log.
#[derive(Debug, Clone)]
pub struct NewDecisions {
    /// What the log will have of them.
    pub batch: DecisionBatch,
    /// Their records, as the store keeps them.
    pub records: Arc<[u8]>,
}

/// An account as a file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedAccount {
    /// Whose, as the log names him.
    pub owner: OwnerTag,
    /// Whose; 1–256 bytes.
    pub principal: String,
    /// What is not burned, reservations included.
    pub unburned: u64,
    /// What may still be minted on `last_mint_day`.
    pub daily_mint_remaining: u64,
    /// The UTC day of the last mint.
    pub last_mint_day: u64,
    /// The most that the balance comes to.
    pub credit_limit: u64,
    /// The most that a day mints.
    pub daily_mint_limit: u64,
    /// Burned ever.
    pub burned_total: u64,
    /// Refused ever.
    pub denied_total: u64,
}

/// A log that goes on under another name.
#[derive(Debug, Clone)]
pub struct RestartLog {
    /// Its name from here on.
    pub origin: String,
    /// Its name so far.
    pub old_origin: String,
    /// What is left of it.
    pub old: KnownTree,
    /// The largest tree that an anchor remembers.
    pub known: Option<KnownTree>,
    /// Why, 1–256 bytes.
    pub because: String,
    /// What holdouts were charged in what was lost, as the operator states it.
    pub charged: Vec<(HoldoutId, MicroBits)>,
}

/// A log that begins.
#[derive(Debug, Clone)]
pub struct BeginLog {
    /// Its name.
    pub origin: String,
    /// The key that signs it, Ed25519.
    pub public_key: [u8; 32],
    /// The release that begins it.
    pub software: String,
    /// What lets it begin.
    pub begun_by: BegunBy,
}

/// A log that goes on by its operator's word.
#[derive(Debug, Clone)]
pub struct ContinueLog {
    /// Its name.
    pub origin: String,
    /// What it holds.
    pub tree: KnownTree,
    /// Why, 1–256 bytes.
    pub because: String,
}

/// A holdout to register; its bulk is in the store already.
#[derive(Debug, Clone)]
pub struct PutHoldout {
    /// Its name.
    pub reference: String,
    /// What will be public of it.
    pub description: Description,
    /// Digest of its encrypted items.
    pub blob: Digest,
    /// Keyed digest of its labels.
    pub labels_key: Digest,
    /// Whether its items came with ids.
    pub has_item_ids: bool,
    /// The generation of holdouts that it was checked against.
    pub generation: u64,
    /// Whether its labels agree beyond chance with those of each earlier holdout that is not
    /// withdrawn; empty if its items are declared fresh.
    pub compared: Vec<(HoldoutId, bool)>,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunReport {
    /// How it ended.
    pub end: RunEnd,
    /// What it asked.
    pub answers: AnswerTally,
    /// How right the judged vector is on the sealed part, if there is one.
    pub score: Option<Score>,
    /// Fuel used.
    pub fuel: u64,
    /// Memory at its end, in Wasm pages.
    pub pages: u64,
    /// Digest of the trace.
    pub trace_hash: Digest,
    /// Length of the trace in bytes.
    pub trace_len: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEnd {
    /// It returned after emitting this.
    Emitted(Vec<u8>),
    /// It returned without emitting.
    NoOutput,
    /// It trapped.
    Trapped(Reason),
    /// It returned after emitting this, and a policy keeps it from being judged.
    Vetoed {
        /// What it emitted.
        output: Vec<u8>,
        /// The policy's code.
        code: PolicyCode,
        /// Whether somebody else is to decide, instead of nobody.
        deferred: bool,
    },
}

/// What happened. Events are all that changes state; the journal keeps each whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A holdout was registered.
    HoldoutRegistered(Box<Holdout>),
    /// A holdout takes no more claims.
    HoldoutRetired(HoldoutId),
    /// A holdout's labels are public.
    HoldoutOpened(HoldoutId),
    /// A claim was created.
    ClaimCreated(Box<Claim>),
    /// A claim was given a module and artifacts.
    ArtifactsCommitted {
        /// Which.
        claim: ClaimId,
        /// What.
        commitment: Box<crate::claim::Commitment>,
    },
    /// A claim was bound.
    ClaimSealed {
        /// Which.
        claim: ClaimId,
        /// To what.
        seal_hash: Digest,
    },
    /// A run took its place.
    RunAdmitted {
        /// The holdout.
        holdout: HoldoutId,
        /// The run.
        run: InFlight,
    },
    /// A run was begun again after a crash.
    RunBegunAgain {
        /// The holdout.
        holdout: HoldoutId,
        /// The run's number.
        number: u64,
    },
    /// The oldest run of a holdout ended.
    RunSettled {
        /// The holdout.
        holdout: HoldoutId,
        /// The claim.
        claim: ClaimId,
        /// Its result.
        settlement: Box<Settlement>,
    },
    /// A claim was withdrawn.
    ClaimRevoked {
        /// Which.
        claim: ClaimId,
        /// How.
        revocation: Revocation,
    },
    /// A claim remembers its last request of a method.
    ClaimRequestRemembered {
        /// Which.
        claim: ClaimId,
        /// The request.
        request: LastRequest,
    },
    /// A request that has no claim row to live in is remembered.
    RequestRemembered {
        /// Its key.
        key: RequestKey,
        /// What came of it.
        remembered: Remembered,
    },
    /// Another key signs the log.
    KeyRotated(LogKey),
    /// The holdouts' items are in other blobs.
    HoldoutsRekeyed(Vec<(HoldoutId, Digest)>),
    /// A principal was seen for the first time.
    AccountOpened(Box<Account>),
    /// The first touch of an account on a day.
    CreditMinted {
        /// Whose.
        owner: OwnerTag,
        /// The UTC day.
        day: u64,
        /// How much.
        amount: u64,
    },
    /// The worst case of a run was set aside.
    CreditReserved {
        /// Whose.
        owner: OwnerTag,
        /// For which claim.
        claim: ClaimId,
        /// How much.
        amount: u64,
        /// The fuel that it pays for.
        max_fuel: u64,
    },
    /// What a run used was burned, the rest given back.
    CreditBurned {
        /// Whose.
        owner: OwnerTag,
        /// By which claim.
        claim: ClaimId,
        /// How much.
        amount: u64,
    },
    /// A run was refused for want of credit.
    CreditDenied(OwnerTag),
    /// An operator gave credit.
    CreditGranted {
        /// Whom.
        owner: OwnerTag,
        /// How much.
        amount: u64,
        /// Why.
        reason: String,
    },
    /// An operator set a limit.
    CreditLimitSet {
        /// Whose.
        owner: OwnerTag,
        /// To what.
        limit: u64,
    },
    /// An account became what a file says.
    AccountImported(Box<Account>),
    /// An account remembers its last request of a method.
    AccountRequestRemembered {
        /// Whose.
        owner: OwnerTag,
        /// The request.
        request: LastCredit,
    },
    /// A holdout's budgets were narrowed.
    BudgetsNarrowed {
        /// Which.
        holdout: HoldoutId,
        /// To what.
        narrower: NarrowerBudgets,
    },
    /// An operator confirmed a clock that had jumped.
    ClockConfirmed {
        /// Where it was.
        from_unix_ms: u64,
        /// Where it went.
        to_unix_ms: u64,
    },
    /// A holdout was charged what no capsule of this state says.
    HoldoutCharged {
        /// Which.
        holdout: HoldoutId,
        /// About the answer part.
        answers: MicroBits,
        /// About the sealed part.
        sealed: MicroBits,
    },
    /// The result of a run came back from the log; the claim's own row may be lost.
    RunRecovered {
        /// The holdout.
        holdout: HoldoutId,
        /// Whose claim it was.
        owner: OwnerTag,
        /// The claim.
        claim: ClaimId,
        /// Its result, as far as the log has it.
        settlement: Box<Settlement>,
    },
    /// Decisions about tool calls are in the log; their records lie beside it.
    DecisionsRecorded {
        /// What the log has of them.
        batch: DecisionBatch,
        /// The entry's index.
        index: u64,
    },
    /// Records of decisions are not kept any longer.
    DecisionsForgotten {
        /// The last one of them.
        through: DecisionId,
    },
    /// What a holdout was registered with beside what [`Event::HoldoutRegistered`] has room for.
    HoldoutTold {
        /// Which.
        holdout: HoldoutId,
        /// What.
        later: Box<Later>,
    },
    /// What was so when a run was admitted, beside what [`Event::RunAdmitted`] has room for.
    RunPlaced {
        /// The holdout.
        holdout: HoldoutId,
        /// The run's number.
        number: u64,
        /// What was so.
        place: Place,
    },
    /// A claim is the one to whose verdict the same question is referred.
    QuestionAsked {
        /// The question.
        question: Question,
        /// The claim.
        claim: ClaimId,
    },
    /// A new column of labels was compared with a holdout's.
    HoldoutCompared {
        /// The earlier holdout.
        holdout: HoldoutId,
        /// Charged to its answer pool.
        answers: MicroBits,
        /// Charged to its sealed pool.
        sealed: MicroBits,
    },
    /// A holdout was taken back.
    HoldoutWithdrawn(HoldoutId),
    /// The log goes on after something of it was lost, or may have been: what a holdout of before
    /// released is known by somebody's word.
    LogCarriedOn,
    /// A run failed.
    RunFailed {
        /// The holdout.
        holdout: HoldoutId,
        /// The run's number.
        number: u64,
    },
    /// Other policies are in force.
    PoliciesStated(InForce),
}

/// A request remembered under its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// What it asked.
    pub fingerprint: Fingerprint,
    /// When.
    pub at_unix_ms: u64,
    /// What came of it; the reply is made from this again.
    pub result: RememberedResult,
}

/// What came of a remembered request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RememberedResult {
    /// It was refused.
    Refused(Refusal),
    /// It created a claim, or found it in a state.
    Created(ClaimId, ClaimState),
    /// It acted on a claim.
    Acted(Method, ClaimId),
    /// It acted on a holdout.
    Holdout(HoldoutId),
    /// It acted on an account, and this number was answered.
    Credit(u64),
}

/// What the kernel answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A claim was created, or was there.
    Created {
        /// Its id.
        claim: ClaimId,
        /// Its topic.
        topic: Digest,
        /// Its state.
        state: ClaimState,
    },
    /// A claim is in a state.
    State(ClaimState),
    /// A run is under way; the result follows when it has settled.
    Running(ClaimId),
    /// A run has its result.
    Settled(Box<Claim>),
    /// A claim was withdrawn.
    Revoked {
        /// When.
        at_unix_ms: u64,
    },
    /// A holdout.
    Holdout(Box<Holdout>),
    /// Refused, and remembered under its key.
    Refused(Refusal),
    /// The driver's own work is done.
    Done,
    /// What an account has after a grant, reservations included, or its limit after it was set.
    Credit(u64),
}

/// Events to apply, entries to append, and the reply to give once both are durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// In order.
    pub events: Vec<Event>,
    /// In order; the first stands at the stage's next index.
    pub entries: Vec<Vec<u8>>,
    /// The reply.
    pub reply: Reply,
}

impl Decision {
    /// A decision that changes nothing.
    #[must_use]
    pub fn reply(reply: Reply) -> Self {
        Self {
            events: Vec::new(),
            entries: Vec::new(),
            reply,
        }
    }

    /// One event without an entry.
    #[must_use]
    pub fn event(event: Event, reply: Reply) -> Self {
        Self {
            events: vec![event],
            entries: Vec::new(),
            reply,
        }
    }
}
