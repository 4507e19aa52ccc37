//! The reason why a run ended as it did.

use serde::{Deserialize, Serialize};

/// The reason code of a policy oracle's veto: 9000 to 9999. The oracle's author chooses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct PolicyCode(u16);

impl PolicyCode {
    /// The code, if it is one of a policy's.
    #[must_use]
    pub fn new(code: u16) -> Option<Self> {
        (9_000..=9_999).contains(&code).then_some(Self(code))
    }

    /// The number on the wire.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl From<PolicyCode> for u16 {
    fn from(code: PolicyCode) -> Self {
        code.0
    }
}

impl TryFrom<u16> for PolicyCode {
    type Error = &'static str;

    fn try_from(code: u16) -> Result<Self, Self::Error> {
        Self::new(code).ok_or("a policy's reason code is 9000 to 9999")
    }
}

/// The reason why a run ended as it did. The codes are on the wire and in capsules. Rows store the
/// position in this list, so new reasons go at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// The published code of an approval.
    Approved,
    /// The published code of a rejection.
    Rejected,
    /// The evidence stayed below the threshold.
    BelowThreshold,
    /// No vector, not even a perfect one, could reach the threshold.
    OutOfReach,
    /// The module trapped, and the cause has no code of its own.
    Trap,
    /// It ran out of fuel.
    OutOfFuel,
    /// It asked for more memory, or a deeper stack, than its lane has.
    OutOfMemory,
    /// It passed a vector of a wrong length or with a value other than 0 and 1.
    InvalidVector,
    /// The next question would have cost more than the run's allowance.
    AllowanceExhausted,
    /// It made more oracle calls than its lane has.
    TooManyCalls,
    /// It passed a pointer outside its memory.
    OutOfBounds,
    /// It emitted a second output.
    EmittedTwice,
    /// It ended without emitting.
    NoOutput,
    /// Its output does not fit the output schema.
    InvalidOutput,
    /// It submitted no vector to judge.
    NothingToJudge,
    /// An ancestor was revoked.
    AncestorRevoked,
    /// The run was aborted.
    Aborted,
    /// The published code of a deferral.
    Deferred,
    /// A policy oracle's veto, under its own code.
    Policy(PolicyCode),
    /// An earlier claim asked the same and was judged.
    Duplicate,
    /// It executed `unreachable`.
    Unreachable,
    /// The module was admitted at its commit, and is refused by the release that was to run it.
    NotAdmitted,
}

impl Reason {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Approved => 1,
            Self::Rejected => 2,
            Self::BelowThreshold => 101,
            Self::OutOfReach => 102,
            Self::Trap => 110,
            Self::OutOfFuel => 111,
            Self::OutOfMemory => 112,
            Self::InvalidVector => 113,
            Self::AllowanceExhausted => 114,
            Self::TooManyCalls => 115,
            Self::OutOfBounds => 116,
            Self::EmittedTwice => 117,
            Self::NoOutput => 118,
            Self::InvalidOutput => 119,
            Self::NothingToJudge => 120,
            Self::AncestorRevoked => 121,
            Self::Aborted => 130,
            Self::Deferred => 3,
            Self::Policy(code) => code.get(),
            Self::Duplicate => 122,
            Self::Unreachable => 123,
            Self::NotAdmitted => 124,
        }
    }

    /// The reason with this code.
    #[must_use]
    pub fn of_code(code: u16) -> Option<Self> {
        [
            Self::Approved,
            Self::Rejected,
            Self::BelowThreshold,
            Self::OutOfReach,
            Self::Trap,
            Self::OutOfFuel,
            Self::OutOfMemory,
            Self::InvalidVector,
            Self::AllowanceExhausted,
            Self::TooManyCalls,
            Self::OutOfBounds,
            Self::EmittedTwice,
            Self::NoOutput,
            Self::InvalidOutput,
            Self::NothingToJudge,
            Self::AncestorRevoked,
            Self::Aborted,
            Self::Deferred,
            Self::Duplicate,
            Self::Unreachable,
            Self::NotAdmitted,
        ]
        .into_iter()
        .find(|reason| reason.code() == code)
        .or_else(|| PolicyCode::new(code).map(Self::Policy))
    }

    /// A sentence that says what happened.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Approved => "Certified: the evidence reached the threshold.",
            Self::Rejected => "Not certified.",
            Self::BelowThreshold => "The evidence on the sealed part stayed below the threshold.",
            Self::OutOfReach => {
                "After all that has leaked, no prediction on these items, not even a perfect one, could be certified; the sealed part was not looked at."
            }
            Self::Trap => {
                "The module broke a rule of WebAssembly: it divided by zero, overflowed, converted a number out of range, or called a function that is not in its table."
            }
            Self::Unreachable => {
                "The module executed `unreachable`, as a panic, a failed assertion or an abort does."
            }
            Self::NotAdmitted => {
                "This release of the server refuses the module, which an earlier release accepted; the module did not run."
            }
            Self::OutOfFuel => {
                "The module used all its fuel, which its lane and its owner's credit bound: it does too much work, or it loops without end."
            }
            Self::OutOfMemory => {
                "The module asked for more memory or stack than its lane has, and could not continue without it."
            }
            Self::InvalidVector => {
                "The module passed a prediction vector of a wrong length, or with a value other than 0 and 1."
            }
            Self::AllowanceExhausted => {
                "The module asked a question that could cost more than this claim may still be charged."
            }
            Self::TooManyCalls => "The module asked more questions than its lane allows.",
            Self::OutOfBounds => {
                "The module passed or used an address outside its memory or a table."
            }
            Self::EmittedTwice => "The module emitted its claim twice.",
            Self::NoOutput => "The module ended without emitting a claim.",
            Self::InvalidOutput => {
                "The module's output is not one big-endian symbol of the claim's alphabet."
            }
            Self::NothingToJudge => "The module submitted no predictions to judge.",
            Self::AncestorRevoked => "A claim on which this one depends was revoked.",
            Self::Aborted => {
                "The run could not be completed or repeated; its worst case was charged to the holdout, no credit to you."
            }
            Self::Deferred => "Not certified: a policy module deferred the decision.",
            Self::Policy(_) => {
                "A policy module of this server does not allow the claim to be judged; the sealed part was not looked at."
            }
            Self::Duplicate => {
                "You had the same module judged under the same terms before; the verdict of that claim stands, and nothing was charged but one credit."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_a_reason_reads_back() {
        let codes: Vec<u16> = (0..=u16::MAX)
            .filter(|&code| Reason::of_code(code).is_some_and(|reason| reason.code() == code))
            .collect();
        let named = [
            1, 2, 3, 101, 102, 110, 111, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122,
            123, 124, 130,
        ];
        let wanted: Vec<u16> = named.into_iter().chain(9_000..=9_999).collect();
        assert_eq!(codes, wanted);
    }

    #[test]
    fn a_policys_code_is_its_number() {
        assert_eq!(PolicyCode::new(9_017).map(u16::from), Some(9_017));
    }
}
