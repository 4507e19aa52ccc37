//! Holdouts that only the test and the daemon know, and modules for them.

use evidenceos_proto as wire;
use evidenceos_sandbox::{Mode, PackOptions, pack};
use sha2::{Digest as _, Sha256};

use crate::{Failed, fail};

/// Far more than any round uses.
const BUDGET_MICROBITS: u64 = 4_096_000_000;
/// With this many predictions a module is a blob and not a row.
const ITEMS_OF_LARGE: usize = 17_000;
const ITEMS: usize = 200;

/// The kind of a claim's module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// The same predictions as all other claims.
    Shared,
    /// Predictions of its own.
    Own,
    /// As [`Module::Own`]; asks its oracle about them.
    Asking,
    /// Computes for a while, and is not judged.
    Slow,
}

/// Whether a holdout has enough items to make its modules blobs.
#[must_use]
pub fn is_large(holdout: &str) -> bool {
    holdout.starts_with("large")
}

fn items(holdout: &str) -> usize {
    if is_large(holdout) {
        ITEMS_OF_LARGE
    } else {
        ITEMS
    }
}

/// The labels of a holdout.
#[must_use]
pub fn labels(holdout: &str) -> Vec<u8> {
    bits(holdout, items(holdout))
}

fn bits(of: &str, count: usize) -> Vec<u8> {
    (0..count.div_ceil(32) as u64)
        .flat_map(|block| {
            <[u8; 32]>::from(Sha256::digest(
                [of.as_bytes(), &block.to_be_bytes()].concat(),
            ))
        })
        .map(|byte| byte & 1)
        .take(count)
        .collect()
}

/// The header under which a holdout is registered.
#[must_use]
pub fn header(holdout: &str) -> wire::PutHoldoutHeader {
    wire::PutHoldoutHeader {
        holdout_ref: holdout.to_owned(),
        items: items(holdout) as u64,
        policy: Some(wire::HoldoutPolicy {
            answer_budget_microbits: Some(BUDGET_MICROBITS),
            principal_answer_budget_microbits: Some(BUDGET_MICROBITS),
            sealed_budget_microbits: Some(BUDGET_MICROBITS),
            ..Default::default()
        }),
        null_spec: Some(wire::NullSpec {
            p0_micros: 500_000,
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Module {
    /// The module's bytes, for a claim of this number.
    ///
    /// # Errors
    /// [`Failed`] if a module cannot be made, which is a bug of the test.
    pub fn bytes(self, holdout: &str, number: u64) -> Result<Vec<u8>, Failed> {
        let count = items(holdout);
        let (predictions, mode) = match self {
            Self::Shared => (bits("shared", count), Mode::Judge),
            Self::Own => (bits(&format!("own {number}"), count), Mode::Judge),
            Self::Asking => (bits(&format!("own {number}"), count), Mode::AskAndJudge),
            Self::Slow => return slow(),
        };
        pack(&PackOptions::new(&predictions, mode)).map_err(fail)
    }

    /// The lane that it needs.
    #[must_use]
    pub fn lane(self) -> &'static str {
        match self {
            Self::Slow => "heavy",
            Self::Shared | Self::Own | Self::Asking => "fast",
        }
    }
}

/// A guest that runs for some tens of milliseconds, so that crashes find it under way.
fn slow() -> Result<Vec<u8>, Failed> {
    wat::parse_str(
        r#"(module
            (import "env" "emit_structured_claim" (func $emit (param i32 i32)))
            (memory (export "memory") 1)
            (func (export "run") (local $i i32)
                (loop $l
                    (local.set $i (i32.add (local.get $i) (i32.const 1)))
                    (br_if $l (i32.lt_u (local.get $i) (i32.const 40000000))))
                (call $emit (i32.const 0) (i32.const 1))))"#,
    )
    .map_err(fail)
}
