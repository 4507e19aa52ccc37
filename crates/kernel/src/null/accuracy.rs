//! The null hypothesis "the chance of a right prediction is at most p0", over labels of 0 and 1.
//!
//! `evidence.rs` owns the bet against it and its constants; `docs/formats.md` states the record.

use serde::{Deserialize, Serialize};

use crate::{
    cj,
    evidence::{self, BetTable, Strategy},
    holdout::{Policy, PolicyError},
    id::Digest,
    planner::{self, Proposal},
    record::{RecordError, fields::Fields},
};

/// The word for this kind, in public records and on the wire.
pub const KIND: &str = "accuracy";

/// The chance that a claim must exceed, and the bet on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accuracy {
    /// p0, the chance of a right item under the null, in millionths.
    pub p0_micros: u32,
    /// The bet against the null.
    pub strategy: Strategy,
    /// The bet's integer constants.
    pub bets: BetTable,
    /// When it expires, in Unix seconds.
    pub expires_unix: Option<u64>,
}

impl Accuracy {
    /// A null spec with its constants computed.
    ///
    /// # Errors
    /// [`PolicyError`] if p0 or the alternative is out of range.
    pub fn new(
        p0_micros: u32,
        strategy: Strategy,
        expires_unix: Option<u64>,
    ) -> Result<Self, PolicyError> {
        let bets = BetTable::new(p0_micros, strategy).map_err(|error| PolicyError {
            field: "null_spec",
            rule: error.to_string(),
        })?;
        Ok(Self {
            p0_micros,
            strategy,
            bets,
            expires_unix,
        })
    }

    /// The public record without its kind.
    pub(super) fn to_object(&self) -> cj::Object {
        cj::Object::new()
            .put("p0_micros", self.p0_micros)
            .put("constants_hash", self.constants_hash().to_hex())
            .put("strategy", self.strategy.word())
            .put_some("p1_micros", self.strategy.p1_micros())
            .put_some("expires_unix", self.expires_unix)
    }

    /// Reads the public record and computes the bet's constants again.
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, RecordError> {
        let word = fields.string("strategy")?;
        let p1_micros = if word == evidence::FIXED_ALTERNATIVE {
            fields.int("p1_micros")?
        } else {
            0
        };
        let strategy = Strategy::named(&word, p1_micros)
            .ok_or_else(|| RecordError::Field("strategy".to_owned()))?;
        let expires_unix = fields.maybe_int("expires_unix")?;
        let accuracy =
            Self::new(fields.int("p0_micros")?, strategy, expires_unix).map_err(|error| {
                RecordError::Value {
                    field: error.field.to_owned(),
                    rule: error.rule,
                }
            })?;
        // Constants computed in another way would certify by another rule than the registered one.
        if fields.digest("constants_hash")? != accuracy.constants_hash() {
            return Err(RecordError::Value {
                field: "constants_hash".to_owned(),
                rule: "the bet's constants, computed again, have another digest".to_owned(),
            });
        }
        Ok(accuracy)
    }

    fn constants_hash(&self) -> Digest {
        Digest::of(&self.bets.canonical_bytes())
    }

    pub(super) fn proposed_sealed_budget(&self, sealed_units: u64, policy: &Policy) -> Proposal {
        planner::proposed_sealed_budget(sealed_units, self.p0_micros, &self.bets, policy)
    }
}
