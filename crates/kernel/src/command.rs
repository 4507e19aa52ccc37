//! The kernel's commands and its replies.
//!
//! Commands carry everything that a decision needs from outside: time comes beside them, random
//! bytes and digests of bulk data inside them. The kernel parses nothing from the wire and stores
//! no command: the store keeps a command's [`Event`]s and entries.
//!
//! Commands are nested by area, and each area has a module. Beside its commands, the module states
//! which rows must be loaded for each (`keys`), which rule decides it (`decide`), and, if the row
//! of a claim or an account remembers its requests, which row (`remembered_on`).
//!
//! Invariant: an area matches its commands without a wildcard, so the compiler lists what a new
//! command must state.

mod claim;
mod credit;
mod decision;
mod holdout;
mod log;
mod run;
mod server;

use serde::{Deserialize, Serialize};

pub use claim::ClaimCommand;
pub use credit::{CreditCommand, ImportedAccount};
pub use decision::{DecisionCommand, NewDecisions};
pub use holdout::{HoldoutCommand, PutHoldout};
pub use log::{BeginLog, ContinueLog, LogCommand, RestartLog};
pub use run::{RunCommand, RunEnd, RunReport};
pub use server::ServerCommand;

use crate::{
    account::{Account, LastCredit},
    bits::MicroBits,
    claim::{Claim, ClaimState, LastRequest, Method, Revocation, Settlement},
    decision::{DecisionBatch, DecisionId},
    holdout::{Holdout, InFlight, Later, NarrowerBudgets, Place},
    id::{ClaimId, Digest, Fingerprint, HoldoutId, OwnerTag, Question, RequestKey},
    in_force::InForce,
    log_key::LogKey,
    refusal::{Refusal, Role},
    state::{Stage, Wanted},
};

/// The caller, as the edge authenticated it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The caller's tag in the log.
    pub tag: OwnerTag,
    /// Whether the caller administers the server.
    pub operator: bool,
    /// Whether the caller reads all capsules.
    pub auditor: bool,
}

impl Caller {
    /// The driver itself, for its own work.
    pub const DRIVER: Self = Self {
        tag: OwnerTag([0; 16]),
        operator: true,
        auditor: true,
    };

    /// Demands the operator role.
    ///
    /// # Errors
    /// [`Refusal::RoleRequired`] if the caller is not an operator.
    pub fn must_operate(&self) -> Result<(), Refusal> {
        if self.operator {
            Ok(())
        } else {
            Err(Refusal::RoleRequired(Role::Operator))
        }
    }

    /// Whether this caller may act on a claim.
    #[must_use]
    pub fn may_act_on(&self, claim: &Claim) -> bool {
        self.operator || claim.terms.owner == self.tag
    }

    /// Whether this caller may read a claim.
    #[must_use]
    pub fn may_read(&self, claim: &Claim) -> bool {
        self.auditor || self.may_act_on(claim)
    }
}

/// An idempotency key with a fingerprint of the request's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub key: RequestKey,
    /// Fingerprint of the request's content: the same key with another content is refused.
    pub fingerprint: Fingerprint,
}

/// A command with its caller and its idempotency key.
#[derive(Debug, Clone)]
pub struct Request {
    pub caller: Caller,
    /// The idempotency key; if absent, the request is not idempotent.
    pub stamp: Option<Stamp>,
    pub command: Command,
}

macro_rules! areas {
    ($($(#[$doc:meta])* $area:ident($command:ident),)*) => {
        /// The commands, by area.
        #[derive(Debug, Clone)]
        pub enum Command {
            $($(#[$doc])* $area($command),)*
        }

        impl Command {
            /// Names the rows that must be loaded before the command can be decided. The caller
            /// asks again after each load, since one row names the next.
            pub(crate) fn keys(&self, wanted: &mut Wanted<'_>) {
                match self {
                    $(Self::$area(command) => command.keys(wanted),)*
                }
            }

            /// Decides the command by its rule.
            pub(crate) fn decide(
                &self,
                stage: &Stage<'_>,
                caller: &Caller,
            ) -> Result<Decision, Refusal> {
                match self {
                    $(Self::$area(command) => command.decide(stage, caller),)*
                }
            }
        }

        $(
            impl From<$command> for Command {
                fn from(command: $command) -> Self {
                    Self::$area(command)
                }
            }
        )*
    };
}

areas! {
    Holdout(HoldoutCommand),
    Claim(ClaimCommand),
    /// About runs under way.
    Run(RunCommand),
    /// Principals' credit and its limits.
    Credit(CreditCommand),
    Log(LogCommand),
    /// About decisions on tool calls.
    Decision(DecisionCommand),
    Server(ServerCommand),
}

/// Place where a request is remembered, so that a repeated request gets the same reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RememberedOn {
    /// In the row of a claim, as the last request of its method.
    Claim(Method, ClaimId),
    /// In the row of an account.
    Account {
        owner: OwnerTag,
        /// True if the request sets the limit, false if it grants credit.
        limits: bool,
    },
    /// In a row of its own, under its key.
    Key,
}

impl Command {
    /// The place where a request with this command is remembered.
    pub(crate) fn remembered_on(&self) -> RememberedOn {
        match self {
            Self::Claim(command) => command.remembered_on(),
            Self::Credit(command) => command.remembered_on(),
            Self::Holdout(_)
            | Self::Run(_)
            | Self::Log(_)
            | Self::Decision(_)
            | Self::Server(_) => RememberedOn::Key,
        }
    }
}

/// State changes. Only events change state; the journal keeps each event whole.
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
        claim: ClaimId,
        commitment: Box<crate::claim::Commitment>,
    },
    /// A claim was bound.
    ClaimSealed {
        claim: ClaimId,
        /// Digest of everything that the claim is bound to.
        seal_hash: Digest,
    },
    /// A run was admitted.
    RunAdmitted { holdout: HoldoutId, run: InFlight },
    /// A run was restarted after a crash.
    RunBegunAgain {
        holdout: HoldoutId,
        /// The run's number in the order of its holdout.
        number: u64,
    },
    /// The oldest run of a holdout ended.
    RunSettled {
        holdout: HoldoutId,
        claim: ClaimId,
        settlement: Box<Settlement>,
    },
    /// A claim was withdrawn.
    ClaimRevoked {
        claim: ClaimId,
        revocation: Revocation,
    },
    /// A claim remembers its last request of a method.
    ClaimRequestRemembered {
        claim: ClaimId,
        /// Takes the place of the claim's earlier request of the same method.
        request: LastRequest,
    },
    /// A request without a claim row is remembered.
    RequestRemembered {
        key: RequestKey,
        /// The content's fingerprint and the result of the request.
        remembered: Remembered,
    },
    /// Another key signs the log.
    KeyRotated(LogKey),
    /// The holdouts' items are in other blobs.
    HoldoutsRekeyed(Vec<(HoldoutId, Digest)>),
    /// A principal was seen for the first time.
    AccountOpened(Box<Account>),
    /// The first touch of an account on a day minted credit.
    CreditMinted {
        owner: OwnerTag,
        /// In UTC, counted since 1970-01-01.
        day: u64,
        /// In whole credits, added to the balance.
        amount: u64,
    },
    /// The worst case of a run was reserved.
    CreditReserved {
        owner: OwnerTag,
        claim: ClaimId,
        /// In whole credits; the run's worst case.
        amount: u64,
        /// The fuel that the amount pays for.
        max_fuel: u64,
    },
    /// A run's used credit was burned, the rest refunded.
    CreditBurned {
        owner: OwnerTag,
        claim: ClaimId,
        /// In whole credits; the rest of the reservation is refunded.
        amount: u64,
    },
    /// A run was refused because credit was short.
    CreditDenied(OwnerTag),
    /// An operator gave credit.
    CreditGranted {
        owner: OwnerTag,
        /// In whole credits, added to the balance.
        amount: u64,
        /// In the operator's words; 1–256 bytes.
        reason: String,
    },
    /// An operator set a limit.
    CreditLimitSet {
        owner: OwnerTag,
        /// In whole credits; balance and reservations together stay within it.
        limit: u64,
    },
    /// An account was set to a file's numbers.
    AccountImported(Box<Account>),
    /// An account remembers its last request of a method.
    AccountRequestRemembered {
        owner: OwnerTag,
        request: LastCredit,
    },
    /// A holdout's budgets were narrowed.
    BudgetsNarrowed {
        holdout: HoldoutId,
        narrower: NarrowerBudgets,
    },
    /// An operator confirmed a clock that had jumped.
    ClockConfirmed {
        /// The time before the jump.
        from_unix_ms: u64,
        /// The time that the operator accepted.
        to_unix_ms: u64,
    },
    /// A holdout was charged for bits that no capsule of this state states.
    HoldoutCharged {
        holdout: HoldoutId,
        /// About the answer part.
        answers: MicroBits,
        /// About the sealed part.
        sealed: MicroBits,
    },
    /// A run's result was recovered from the log; the claim's own row may be lost.
    RunRecovered {
        holdout: HoldoutId,
        /// The owner of the claim.
        owner: OwnerTag,
        claim: ClaimId,
        /// Its result, as far as the log has it.
        settlement: Box<Settlement>,
    },
    /// Decisions about tool calls are in the log; the store keeps their records beside it.
    DecisionsRecorded {
        /// The batch, as the log has it.
        batch: DecisionBatch,
        /// The entry's index in the log, from 0.
        index: u64,
    },
    /// Records of decisions were deleted.
    DecisionsForgotten {
        /// The last one of them.
        through: DecisionId,
    },
    /// Facts of a registration for which [`Event::HoldoutRegistered`] has no room.
    HoldoutTold {
        holdout: HoldoutId,
        later: Box<Later>,
    },
    /// Facts of an admission for which [`Event::RunAdmitted`] has no room.
    RunPlaced {
        holdout: HoldoutId,
        /// The run's number in the order of its holdout.
        number: u64,
        place: Place,
    },
    /// The first claim to ask a question; later claims that ask the same take its verdict.
    QuestionAsked { question: Question, claim: ClaimId },
    /// A new column of labels was compared with a holdout's.
    HoldoutCompared {
        /// The earlier holdout, which is charged for the comparison.
        holdout: HoldoutId,
        /// Charged to its answer pool.
        answers: MicroBits,
        /// Charged to its sealed pool.
        sealed: MicroBits,
    },
    /// A holdout was withdrawn.
    HoldoutWithdrawn(HoldoutId),
    /// The log goes on although some of it was lost, or may have been: only the operator's word
    /// says what earlier holdouts released.
    LogCarriedOn,
    /// A run failed; each failure counts towards its abort.
    RunFailed {
        holdout: HoldoutId,
        /// The run's number in the order of its holdout.
        number: u64,
    },
    /// Other policy modules or another role policy are in force.
    PoliciesStated(InForce),
    /// A claim that was not executed has no module and no artifacts any more.
    ClaimUncommitted(ClaimId),
}

/// A request remembered under its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Distinguishes a repeated request from another one under the same key.
    pub fingerprint: Fingerprint,
    pub at_unix_ms: u64,
    /// The result, from which the reply is made again.
    pub result: RememberedResult,
}

/// The result of a remembered request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RememberedResult {
    Refused(Refusal),
    /// The request created a claim, or found it in a state.
    Created(ClaimId, ClaimState),
    /// The request acted on a claim.
    Acted(Method, ClaimId),
    /// The request acted on a holdout.
    Holdout(HoldoutId),
    /// The request acted on an account; the reply had this number.
    Credit(u64),
}

/// The kernel's replies.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// A claim was created, or existed already.
    Created {
        claim: ClaimId,
        topic: Digest,
        state: ClaimState,
    },
    /// A claim is in a state.
    State(ClaimState),
    /// A run is under way; the result follows when it has settled.
    Running(ClaimId),
    /// A run has its result.
    Settled(Box<Claim>),
    /// A claim was revoked.
    Revoked {
        at_unix_ms: u64,
    },
    Holdout(Box<Holdout>),
    /// Refused, and remembered under its key.
    Refused(Refusal),
    /// The driver's own work is done.
    Done,
    /// The account's balance plus reservations after a grant, or its limit after it was set.
    Credit(u64),
}

/// Events to apply, entries to append, and the reply to give once both are durable.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// In the order in which they apply.
    pub events: Vec<Event>,
    /// In order; the first gets the stage's next index.
    pub entries: Vec<Vec<u8>>,
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

    /// A decision with one event and no entry.
    #[must_use]
    pub fn event(event: Event, reply: Reply) -> Self {
        Self {
            events: vec![event],
            entries: Vec::new(),
            reply,
        }
    }
}
