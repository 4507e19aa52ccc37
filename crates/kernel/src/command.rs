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
    /// About holdouts.
    Holdout(HoldoutCommand),
    /// About claims.
    Claim(ClaimCommand),
    /// About runs under way.
    Run(RunCommand),
    /// About principals' credit.
    Credit(CreditCommand),
    /// About the log.
    Log(LogCommand),
    /// About decisions on tool calls.
    Decision(DecisionCommand),
    /// About the server.
    Server(ServerCommand),
}

/// Where a request is remembered, so that the same request again gets the same reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RememberedOn {
    /// In the row of a claim, as the last request of its method.
    Claim(Method, ClaimId),
    /// In the row of an account.
    Account {
        /// The account's owner.
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
