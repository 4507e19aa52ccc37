//! Null hypotheses: the hypothesis that a certificate rejects, and the evidence of a score.
//!
//! Owns the closed list of null specs and their common interface: canonical bytes and hash, parser,
//! expiry, the evidence of a score, the least count that certifies. Each kind is implemented in a
//! module of its own. Does not own the threshold that evidence must reach (`price.rs`) or the
//! counting of scores (`score.rs`).
//!
//! Invariant: code that needs the kind matches [`NullSpec`] without a wildcard, so that the
//! compiler lists the places when a kind is added.

use serde::{Deserialize, Serialize};

use crate::{
    bits::MicroBits,
    cj,
    evidence::Strategy,
    holdout::{Policy, PolicyError},
    id::Digest,
    planner::Proposal,
    record::{RecordError, fields::Fields},
    score::Score,
};

pub mod accuracy;

pub use accuracy::Accuracy;

/// A null hypothesis that was registered before any measurement, and the bet against it.
///
/// Rows and journals of every release store the only kind so far without a tag. A second kind needs
/// a place of its own in them: the conversions below stop compiling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Accuracy", into = "Accuracy")]
pub enum NullSpec {
    /// The chance of a right prediction is at most p0.
    Accuracy(Accuracy),
}

impl From<Accuracy> for NullSpec {
    fn from(accuracy: Accuracy) -> Self {
        Self::Accuracy(accuracy)
    }
}

impl From<NullSpec> for Accuracy {
    fn from(null_spec: NullSpec) -> Self {
        match null_spec {
            NullSpec::Accuracy(accuracy) => accuracy,
        }
    }
}

impl NullSpec {
    /// An accuracy null spec, as [`Accuracy::new`] makes it.
    ///
    /// # Errors
    /// [`PolicyError`] if p0 or the alternative is out of range.
    pub fn accuracy(
        p0_micros: u32,
        strategy: Strategy,
        expires_unix: Option<u64>,
    ) -> Result<Self, PolicyError> {
        Accuracy::new(p0_micros, strategy, expires_unix).map(Self::Accuracy)
    }

    /// Reads the public record; its `kind` selects the reader of the other fields.
    pub(crate) fn read(mut fields: Fields<'_>) -> Result<Self, RecordError> {
        let null_spec = match fields.string("kind")?.as_str() {
            accuracy::KIND => Self::Accuracy(Accuracy::read(&mut fields)?),
            _ => return Err(RecordError::Field("kind".to_owned())),
        };
        fields.finish()?;
        Ok(null_spec)
    }

    /// The word for its kind, in public records and on the wire.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Accuracy(_) => accuracy::KIND,
        }
    }

    /// The null spec as public records and the wire have it.
    #[must_use]
    pub fn to_object(&self) -> cj::Object {
        match self {
            Self::Accuracy(accuracy) => accuracy.to_object(),
        }
        .put("kind", self.kind())
    }

    /// The null spec's digest, `D("evidenceos:null_spec:v1", CJ(null spec))`.
    #[must_use]
    pub fn hash(&self) -> Digest {
        Digest::domain("evidenceos:null_spec:v1", &self.to_object().to_bytes())
    }

    /// When it expires, in Unix seconds.
    #[must_use]
    pub fn expires_unix(&self) -> Option<u64> {
        match self {
            Self::Accuracy(accuracy) => accuracy.expires_unix,
        }
    }

    /// Whether it has expired at this time.
    #[must_use]
    pub fn expired_at(&self, unix_ms: u64) -> bool {
        self.expires_unix()
            .is_some_and(|expires| unix_ms / 1_000 >= expires)
    }

    /// The evidence of a score in microbits, rounded down; negative if the null does better.
    #[must_use]
    pub fn evidence_of(&self, score: &Score) -> i64 {
        match self {
            Self::Accuracy(accuracy) => accuracy.bets.evidence_of(score),
        }
    }

    /// The evidence of a perfect vector over this many units; 0 if it is negative.
    #[must_use]
    pub fn reach(&self, units: u64) -> MicroBits {
        match self {
            Self::Accuracy(accuracy) => accuracy.bets.reach(units),
        }
    }

    /// Whether a perfect vector over this many units would reach `threshold`.
    #[must_use]
    pub fn can_reach(&self, units: u64, threshold: MicroBits) -> bool {
        match self {
            Self::Accuracy(accuracy) => accuracy.bets.can_reach(units, threshold),
        }
    }

    /// The least count of right items whose evidence reaches `threshold`; `None` if a perfect
    /// vector fails. Assumes that each item is a unit.
    #[must_use]
    pub fn fewest_right(&self, items: u64, threshold: MicroBits) -> Option<u64> {
        match self {
            Self::Accuracy(accuracy) => accuracy.bets.fewest_right(items, threshold),
        }
    }

    /// The sealed budget that the planner proposes for this many sealed units, by the prices, α and
    /// multiplicity of a valid policy.
    #[must_use]
    pub fn proposed_sealed_budget(&self, sealed_units: u64, policy: &Policy) -> Proposal {
        match self {
            Self::Accuracy(accuracy) => accuracy.proposed_sealed_budget(sealed_units, policy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs() -> Vec<NullSpec> {
        [
            (Strategy::Grid, None),
            (Strategy::FixedAlternative { p1_micros: 600_000 }, Some(9)),
        ]
        .map(|(strategy, expires)| {
            NullSpec::accuracy(500_000, strategy, expires).expect("in range")
        })
        .into()
    }

    fn read(text: &str) -> Result<NullSpec, RecordError> {
        Fields::parse(text.as_bytes()).and_then(NullSpec::read)
    }

    #[test]
    fn a_null_spec_is_read_as_it_was_written() {
        for spec in specs() {
            let text = String::from_utf8(spec.to_object().to_bytes()).expect("JSON");
            assert_eq!(read(&text), Ok(spec));
            for (from, to) in [
                (r#""kind":"accuracy""#, r#""kind":"recall""#),
                (r#""p0_micros":500000"#, r#""p0_micros":500001"#),
                (r#""p0_micros":500000"#, r#""p0_micros":0"#),
                (r#""strategy":""#, r#""strategy":"x"#),
            ] {
                let changed = text.replace(from, to);
                assert_ne!(changed, text);
                assert!(read(&changed).is_err(), "{changed}");
            }
        }
    }

    #[test]
    fn it_expires_with_the_second_that_it_names() {
        let check = |expires, at_unix_ms, expired| {
            let spec = NullSpec::accuracy(500_000, Strategy::Grid, expires).expect("in range");
            assert_eq!(
                spec.expired_at(at_unix_ms),
                expired,
                "{expires:?} {at_unix_ms}"
            );
        };
        check(None, u64::MAX, false);
        check(Some(9), 8_999, false);
        check(Some(9), 9_000, true);
    }

    /// Rows of earlier releases have the fields of an accuracy null spec and no tag.
    #[test]
    fn what_is_stored_has_no_tag() {
        for spec in specs() {
            let NullSpec::Accuracy(accuracy) = &spec;
            let stored = serde_json::to_string(accuracy).expect("plain data");
            assert!(
                stored.starts_with(r#"{"p0_micros":500000,"strategy":"#),
                "{stored}"
            );
            assert_eq!(serde_json::to_string(&spec).expect("plain data"), stored);
            assert_eq!(
                serde_json::from_str::<NullSpec>(&stored).expect("ours"),
                spec
            );
        }
    }
}
