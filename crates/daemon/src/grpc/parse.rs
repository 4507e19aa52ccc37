//! From the wire to commands: every field is checked here, once.

use evidenceos_kernel::{
    claim::{Artifact, Lane},
    command::Stamp,
    id::{ClaimId, Digest, Fingerprint, RequestKey},
};
use evidenceos_proto as wire;
use prost::Message;
use sha2::{Digest as _, Sha256};
use tonic::{Status, metadata::MetadataMap};

use super::status::invalid;
use crate::auth::Principal;

/// Integers in public records stay below 2⁵³.
const MAX_PUBLIC_INT: u64 = (1 << 53) - 1;
/// The default oracle.
const DEFAULT_ORACLE: &str = "builtin.accuracy";
/// The schema of plain symbols.
const LEGACY_SCHEMA: &str = "legacy/v1";

/// The idempotency key of a request, if it carries one. `method` is part of the key, the owner
/// too: nobody meets another's requests. So is what a signature covers beside the id, since
/// processes that share a secret count their ids from 1 each.
pub fn stamp(
    metadata: &MetadataMap,
    principal: &Principal,
    method: &'static str,
    content: &impl Message,
) -> Result<Option<Stamp>, Status> {
    stamp_of(metadata, principal, method, || {
        Fingerprint::of(&content.encode_to_vec())
    })
}

/// As [`stamp`], for content that is fingerprinted differently.
pub fn stamp_of(
    metadata: &MetadataMap,
    principal: &Principal,
    method: &'static str,
    fingerprint: impl FnOnce() -> Fingerprint,
) -> Result<Option<Stamp>, Status> {
    let Some(id) = metadata.get("x-request-id") else {
        return Ok(None);
    };
    let id = id
        .to_str()
        .ok()
        .filter(|id| {
            (1..=128).contains(&id.len()) && id.bytes().all(|b| (0x21..=0x7e).contains(&b))
        })
        .ok_or_else(|| {
            invalid(
                "x-request-id",
                "must be 1 to 128 printable ASCII characters",
            )
        })?;
    let digest: [u8; 32] = Sha256::new()
        .chain_update(principal.caller.tag.as_bytes())
        .chain_update(method)
        .chain_update([0])
        .chain_update(id)
        // Neither an id nor a timestamp has a zero byte.
        .chain_update([0])
        .chain_update(principal.request_scope.as_deref().unwrap_or_default())
        .finalize()
        .into();
    let mut key = RequestKey([0; 16]);
    key.0.copy_from_slice(&digest[..16]);
    Ok(Some(Stamp {
        key,
        fingerprint: fingerprint(),
    }))
}

pub fn claim_id(bytes: &[u8]) -> Result<ClaimId, Status> {
    ClaimId::from_slice(bytes).ok_or_else(|| {
        invalid(
            "claim_id",
            &format!("must be 32 bytes, not {}", bytes.len()),
        )
    })
}

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

/// The lane; an unknown one is `fast`, which the reply notes.
pub fn lane(text: &str) -> Result<(Lane, bool), Status> {
    match text.to_ascii_lowercase().as_str() {
        "" | "fast" | "highassurance" | "high_assurance" => Ok((Lane::Fast, true)),
        "heavy" | "lowassurance" | "low_assurance" => Ok((Lane::Heavy, true)),
        _ => reference("metadata.lane", text).map(|_| (Lane::Fast, false)),
    }
}

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
        Some(0.0) => Ok(()),
        Some(_) => Err(invalid(field, "is not offered; leave it out")),
    }
}

pub fn public_int(field: &str, value: u64) -> Result<u64, Status> {
    if value <= MAX_PUBLIC_INT {
        Ok(value)
    } else {
        Err(invalid(field, "must be below 2^53"))
    }
}

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

#[cfg(test)]
mod tests {
    use evidenceos_access::Roles;
    use evidenceos_kernel::{command::Caller, id::OwnerTag};

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

    #[test]
    fn the_same_id_of_two_principals_or_signed_times_is_two_keys() {
        let mut metadata = MetadataMap::new();
        let content = wire::SealRequest::default();
        let principal = |tag: u8, scope: Option<&str>| Principal {
            name: String::new(),
            caller: Caller {
                tag: OwnerTag([tag; 16]),
                operator: false,
                auditor: false,
            },
            roles: Roles::SUBMITTER,
            request_scope: scope.map(str::to_owned),
            proof: evidenceos_access::Proof::Nothing,
        };
        assert_eq!(
            stamp(&metadata, &principal(1, None), "m", &content).expect("none"),
            None
        );
        metadata.insert("x-request-id", "id-1".parse().expect("ascii"));
        let key = |tag, method, scope| {
            let stamp = stamp(&metadata, &principal(tag, scope), method, &content).expect("fine");
            stamp.expect("an id").key
        };
        assert_eq!(key(1, "m", None), key(1, "m", None));
        assert_ne!(key(1, "m", None), key(2, "m", None));
        assert_ne!(key(1, "m", None), key(1, "n", None));
        assert_ne!(key(1, "m", Some("1700000000")), key(1, "m", None));
        assert_ne!(
            key(1, "m", Some("1700000000")),
            key(1, "m", Some("1700000001"))
        );
        let long = "x".repeat(129);
        for bad in ["a b", &long] {
            metadata.insert("x-request-id", bad.parse().expect("ascii"));
            assert!(
                stamp(&metadata, &principal(1, None), "m", &content).is_err(),
                "{bad}"
            );
        }
    }
}
