//! Null specs: the flags that select one, and the words that describe one.

use clap::Args;
use evidenceos_kernel::{
    evidence::{BetTable, Strategy},
    null::{NullSpec, accuracy},
};
use evidenceos_proto as proto;
use serde_json::{Value, json};

use crate::{error::CliError, render::decimal, units};

/// The null spec of a registration.
#[derive(Debug, Args)]
pub struct NullArgs {
    /// The null: "the chance to be right is at most P0". A claim is certified if it is better.
    #[arg(long, value_parser = units::chance, value_name = "P0")]
    p0: u32,
    /// How to bet against the null: `grid`, or `fixed:P1` if you expect an accuracy P1.
    #[arg(long, value_parser = units::strategy, default_value = "grid")]
    strategy: Strategy,
    /// When the null spec expires, in Unix seconds.
    #[arg(long, value_name = "UNIX_SECONDS")]
    expires: Option<u64>,
}

impl NullArgs {
    /// The null spec in the form of a registration request.
    ///
    /// # Errors
    /// [`CliError::Usage`] if the alternative is not above p0: choose a higher one.
    pub fn to_wire(&self) -> Result<proto::NullSpec, CliError> {
        let p1_micros = self.strategy.p1_micros();
        // An alternative at or below p0 is part of the null hypothesis.
        if p1_micros.is_some_and(|p1_micros| p1_micros <= self.p0) {
            return Err(CliError::Usage(
                "--strategy fixed:P1 needs a P1 above --p0".to_owned(),
            ));
        }
        Ok(proto::NullSpec {
            kind: accuracy::KIND.to_owned(),
            p0_micros: self.p0,
            strategy: self.strategy.word().to_owned(),
            p1_micros: p1_micros.unwrap_or(0),
            expires_unix: self.expires,
        })
    }
}

/// A null spec on the wire in the kernel's form; `None` if this release does not know it.
pub fn parse(spec: &proto::NullSpec) -> Option<NullSpec> {
    let strategy = Strategy::named(&spec.strategy, spec.p1_micros)?;
    (spec.kind == accuracy::KIND)
        .then(|| NullSpec::accuracy(spec.p0_micros, strategy, spec.expires_unix).ok())
        .flatten()
}

/// The bets against a null.
pub fn bets_of(null_spec: &NullSpec) -> &BetTable {
    let NullSpec::Accuracy(accuracy) = null_spec;
    &accuracy.bets
}

/// A null spec on the wire for machines.
pub fn to_json(spec: &proto::NullSpec) -> Value {
    json!({
        "kind": spec.kind,
        "p0_micros": spec.p0_micros,
        "strategy": spec.strategy,
        "p1_micros": spec.p1_micros,
        "expires_unix": spec.expires_unix,
    })
}

/// A null spec on the wire for users.
pub fn to_text(spec: &proto::NullSpec) -> String {
    let bet = match Strategy::named(&spec.strategy, spec.p1_micros) {
        Some(Strategy::FixedAlternative { p1_micros }) => format!("fixed:{}", decimal(p1_micros)),
        // A strategy of a later release is shown by its name.
        Some(Strategy::Grid) | None => spec.strategy.clone(),
    };
    format!(
        "{} at most {}, bet {bet}",
        spec.kind,
        decimal(spec.p0_micros)
    )
}

/// The statement of a certificate, such as `accuracy above 0.8`.
pub fn refuted(null_spec: &NullSpec) -> String {
    let NullSpec::Accuracy(accuracy) = null_spec;
    let bet = match accuracy.strategy {
        Strategy::Grid => String::new(),
        Strategy::FixedAlternative { p1_micros } => {
            format!(" (bet on {})", decimal(p1_micros))
        }
    };
    format!("accuracy above {}{bet}", decimal(accuracy.p0_micros))
}

/// The chance that a claim must exceed, in millionths.
pub fn p0_micros(null_spec: &NullSpec) -> u32 {
    let NullSpec::Accuracy(accuracy) = null_spec;
    accuracy.p0_micros
}
