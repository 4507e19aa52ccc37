//! What can be asked of the kernel, and what it answers.
//!
//! Commands carry everything that a decision needs from outside: time comes beside them, random
//! bytes and digests of bulk data inside them. Nothing here is parsed from the wire, and no command
//! is stored: what is stored of it are its [`Event`]s and entries.
//!
//! Commands are nested by area, and each area has a module. Beside its commands, the module states
//! what must be loaded for each (`keys`), which rule decides it (`decide`), and, if the row of a
//! claim or an account remembers its requests, which row (`remembered_on`).
//!
//! Invariant: an area matches its commands without a wildcard, so that the compiler lists what a
//! new command must state.

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

/// Who calls, as the edge has verified it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The log names the caller by this tag.
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
    pub key: RequestKey,
    /// Of the request's content: the same key with another content is refused.
    pub fingerprint: Fingerprint,
}

/// A command, who sent it, and under which key.
#[derive(Debug, Clone)]
pub struct Request {
    pub caller: Caller,
    /// Under which key; absent: no idempotency.
    pub stamp: Option<Stamp>,
    pub command: Command,
}

macro_rules! areas {
    ($($(#[$doc:meta])* $area:ident($command:ident),)*) => {
        /// What can be asked.
        #[derive(Debug, Clone)]
        pub enum Command {
            $($(#[$doc])* $area($command),)*
        }

        impl Command {
            /// Names what must be loaded before the command can be decided. It is asked again
            /// after each load, since one row names the next.
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

/// Where a request is remembered, so that the same request again gets the same reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RememberedOn {
    /// In the row of a claim, as the last request of its method.
    Claim(Method, ClaimId),
    /// In the row of an account.
    Account {
        owner: OwnerTag,
        /// Whether the request sets the limit; otherwise it gives credit.
        limits: bool,
    },
    /// In a row of its own, under its key.
    Key,
}

impl Command {
    /// Where a request with this command is remembered.
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
        claim: ClaimId,
        commitment: Box<crate::claim::Commitment>,
    },
    /// A claim was bound.
    ClaimSealed {
        claim: ClaimId,
        /// Covers everything that the claim is bound to.
        seal_hash: Digest,
    },
    /// A run took its place.
    RunAdmitted { holdout: HoldoutId, run: InFlight },
    /// A run was begun again after a crash.
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
    /// A request that has no claim row to live in is remembered.
    RequestRemembered {
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
        owner: OwnerTag,
        /// In UTC, counted since 1970-01-01.
        day: u64,
        /// In whole credits, added to the balance.
        amount: u64,
    },
    /// The worst case of a run was set aside.
    CreditReserved {
        owner: OwnerTag,
        claim: ClaimId,
        /// In whole credits; the run's worst case.
        amount: u64,
        /// The fuel that it pays for.
        max_fuel: u64,
    },
    /// What a run used was burned, the rest given back.
    CreditBurned {
        owner: OwnerTag,
        claim: ClaimId,
        /// In whole credits; the rest of the reservation is given back.
        amount: u64,
    },
    /// A run was refused for want of credit.
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
    /// An account became what a file says.
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
    /// A holdout was charged what no capsule of this state says.
    HoldoutCharged {
        holdout: HoldoutId,
        /// About the answer part.
        answers: MicroBits,
        /// About the sealed part.
        sealed: MicroBits,
    },
    /// The result of a run came back from the log; the claim's own row may be lost.
    RunRecovered {
        holdout: HoldoutId,
        /// Whose claim it was.
        owner: OwnerTag,
        claim: ClaimId,
        /// Its result, as far as the log has it.
        settlement: Box<Settlement>,
    },
    /// Decisions about tool calls are in the log; their records lie beside it.
    DecisionsRecorded {
        /// What the log has of them.
        batch: DecisionBatch,
        /// The entry's index in the log, from 0.
        index: u64,
    },
    /// Records of decisions are not kept any longer.
    DecisionsForgotten {
        /// The last one of them.
        through: DecisionId,
    },
    /// What a holdout was registered with beside what [`Event::HoldoutRegistered`] has room for.
    HoldoutTold {
        holdout: HoldoutId,
        later: Box<Later>,
    },
    /// What was so when a run was admitted, beside what [`Event::RunAdmitted`] has room for.
    RunPlaced {
        holdout: HoldoutId,
        /// The run's number in the order of its holdout.
        number: u64,
        place: Place,
    },
    /// A claim is the one to whose verdict the same question is referred.
    QuestionAsked { question: Question, claim: ClaimId },
    /// A new column of labels was compared with a holdout's.
    HoldoutCompared {
        /// The earlier holdout, which pays for the comparison.
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
    /// A run failed; each failure counts towards its abort.
    RunFailed {
        holdout: HoldoutId,
        /// The run's number in the order of its holdout.
        number: u64,
    },
    /// Other policies are in force.
    PoliciesStated(InForce),
}

/// A request remembered under its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Tells a repeated request from another one under the same key.
    pub fingerprint: Fingerprint,
    pub at_unix_ms: u64,
    /// What came of it; the reply is made from this again.
    pub result: RememberedResult,
}

/// What came of a remembered request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RememberedResult {
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
    /// A claim was withdrawn.
    Revoked {
        at_unix_ms: u64,
    },
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
    /// In the order in which they apply.
    pub events: Vec<Event>,
    /// In order; the first stands at the stage's next index.
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
