//! From the wire to commands: every field is checked here, once.

use std::str::FromStr;

use evidenceos_kernel::{
    claim::{Artifact, Lane},
    id::{ClaimId, Digest},
};
use evidenceos_proto as wire;
use tonic::Status;

use super::status::invalid;

/// The most claims, holdouts or accounts in one reply, and the default.
const MAX_PAGE: u32 = 500;
const PAGE: u32 = 50;

/// Integers in public records stay below 2⁵³.
const MAX_PUBLIC_INT: u64 = (1 << 53) - 1;
/// The oracle of a claim that does not name one.
const DEFAULT_ORACLE: &str = "builtin.accuracy";
/// The schema of plain symbols.
const LEGACY_SCHEMA: &str = "legacy/v1";

/// A claim's id: exactly 32 bytes.
pub fn claim_id(bytes: &[u8]) -> Result<ClaimId, Status> {
    ClaimId::from_slice(bytes).ok_or_else(|| {
        invalid(
            "claim_id",
            &format!("must be 32 bytes, not {}", bytes.len()),
        )
    })
}

/// A digest of exactly 32 bytes; `field` names it in the error.
pub fn digest(field: &str, bytes: &[u8]) -> Result<Digest, Status> {
    Digest::from_slice(bytes)
        .ok_or_else(|| invalid(field, &format!("must be 32 bytes, not {}", bytes.len())))
}

/// Absent or 32 bytes.
pub fn maybe_digest(field: &str, bytes: &[u8]) -> Result<Option<Digest>, Status> {
    if bytes.is_empty() {
        Ok(None)
    } else {
        digest(field, bytes).map(Some)
    }
}

/// A claim's name: 1 to 128 bytes without control characters.
pub fn claim_name(name: &str) -> Result<String, Status> {
    if (1..=128).contains(&name.len()) && !name.chars().any(char::is_control) {
        Ok(name.to_owned())
    } else {
        Err(invalid(
            "claim_name",
            "must be 1 to 128 bytes of text without control characters",
        ))
    }
}

/// A reference names a thing and is never a path: 1–128 of `[A-Za-z0-9._/-]`, no empty, `.` or
/// `..` segment.
pub fn reference(field: &str, text: &str) -> Result<String, Status> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
    let segments = text
        .split('/')
        .all(|segment| !matches!(segment, "" | "." | ".."));
    if (1..=128).contains(&text.len()) && text.chars().all(allowed) && segments {
        Ok(text.to_owned())
    } else {
        Err(invalid(
            field,
            "must be 1 to 128 of A-Z a-z 0-9 . _ / - without empty, \".\" or \"..\" segments",
        ))
    }
}

/// The oracle: the built-in one, under its own name or `default`.
pub fn oracle(text: &str) -> Result<String, Status> {
    match text.trim() {
        "" | "default" | DEFAULT_ORACLE => Ok(DEFAULT_ORACLE.to_owned()),
        other => {
            reference("oracle_id", other)?;
            Err(invalid(
                "oracle_id",
                &format!("{other:?} is not offered; leave it empty, or say {DEFAULT_ORACLE:?}"),
            ))
        }
    }
}

/// The lane; an unknown one becomes `fast`, and the reply says so.
pub fn lane(text: &str) -> Result<(Lane, bool), Status> {
    match text.to_ascii_lowercase().as_str() {
        "" | "fast" | "highassurance" | "high_assurance" => Ok((Lane::Fast, true)),
        "heavy" | "lowassurance" | "low_assurance" => Ok((Lane::Heavy, true)),
        _ => reference("metadata.lane", text).map(|_| (Lane::Fast, false)),
    }
}

/// The name of the output schema; empty and the published wire's name mean the same schema.
pub fn output_schema(text: &str) -> Result<String, Status> {
    match text {
        "" | LEGACY_SCHEMA | "EVIDENCEOS_SC_V0" => Ok(LEGACY_SCHEMA.to_owned()),
        other => Err(invalid(
            "metadata.output_schema_id",
            &format!("{other:?} is not offered; say {LEGACY_SCHEMA:?}: one big-endian symbol"),
        )),
    }
}

/// Differential-privacy budgets are not offered.
pub fn no_dp(field: &str, budget: Option<f64>) -> Result<(), Status> {
    match budget {
        None => Ok(()),
        // Some clients send every field: a zero asks for nothing.
        Some(0.0) => Ok(()),
        Some(_) => Err(invalid(field, "is not offered; leave it out")),
    }
}

/// An integer that public records can hold: below 2⁵³.
pub fn public_int(field: &str, value: u64) -> Result<u64, Status> {
    if value <= MAX_PUBLIC_INT {
        Ok(value)
    } else {
        Err(invalid(field, "must be below 2^53"))
    }
}

/// At most 128 artifacts; a parent's claim id may be left out.
pub fn artifacts(artifacts: &[wire::Artifact]) -> Result<Vec<Artifact>, Status> {
    if artifacts.len() > 128 {
        return Err(invalid("artifacts", "there must be 1 to 128 of them"));
    }
    artifacts
        .iter()
        .map(|artifact| {
            Ok(Artifact {
                kind: artifact.kind.clone(),
                hash: digest("artifacts.artifact_hash", &artifact.artifact_hash)?,
                parent: maybe_digest("artifacts.claim_id", &artifact.claim_id)?
                    .map(|digest| ClaimId(digest.0)),
            })
        })
        .collect()
}

/// The place where a page begins, `None` for the first page, and the most rows in it.
pub fn page<P: FromStr>(size: u32, token: &str) -> Result<(Option<P>, usize), Status> {
    let size = match size {
        0 => PAGE,
        size => size.min(MAX_PAGE),
    };
    let from = match token {
        "" => None,
        token => Some(
            token
                .parse()
                .map_err(|_| invalid("page_token", "must be the next_page_token of a reply"))?,
        ),
    };
    Ok((from, size as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_never_paths() {
        for good in ["a", "holdout/default", "v1.2_x-3", "a/b/c"] {
            assert!(reference("f", good).is_ok(), "{good}");
        }
        let long = "a".repeat(129);
        for bad in [
            "", "/", "../x", "a/../b", "a//b", "/a", "a/", ".", "a b", "é", &long,
        ] {
            assert!(reference("f", bad).is_err(), "{bad}");
        }
    }
}
