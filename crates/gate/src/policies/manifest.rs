//! One manifest: its fields, their rules, and its signature.
//!
//! Owns what a manifest may say about an oracle. Invariant: the signature covers the canonical JSON
//! of what was parsed (sorted keys, no white space, the signature left out), never bytes that were
//! skipped: unknown and repeated fields are refused.

use std::{collections::BTreeMap, ops::RangeInclusive};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use evidenceos_files::without_mark;
use evidenceos_kernel::{claim::PolicyCode, id::Digest};
use evidenceos_sandbox::PolicyLimits;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TrustedKeys;

/// The limits of manifests, all inclusive.
pub mod bounds {
    use std::ops::RangeInclusive;

    /// The most oracles in a directory.
    pub const ORACLES: usize = 64;
    /// The longest manifest and list of trusted keys, in bytes.
    pub const JSON_BYTES: u64 = 64 << 10;
    /// `max_fuel`: a few seconds at most, and far too much for a tool call.
    pub const FUEL: RangeInclusive<u64> = 1..=1_000_000_000;
    /// `max_memory_bytes`: up to 256 MiB.
    pub const MEMORY_BYTES: RangeInclusive<u64> = 1..=256 << 20;
    /// `max_input_bytes`: up to 16 MiB.
    pub const INPUT_BYTES: RangeInclusive<u64> = 1..=16 << 20;
}

const SCHEMA: &str = "evidenceos.v1.policy_oracle_manifest";
const DECISION_MODE: &str = "veto_only";
const SIGNATURE_FIELD: &str = "signature_ed25519_hex";

/// A manifest's fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    schema: String,
    /// The oracle's id, unique in its directory.
    pub oracle_id: String,
    /// The maker, in their own words.
    pub vendor: String,
    /// The oracle's version.
    pub version: String,
    /// The oracle's purpose.
    pub description: String,
    /// The module, beside the manifest.
    pub wasm_filename: String,
    /// The module's SHA-256; empty in a draft that is to be signed.
    #[serde(default)]
    pub wasm_sha256_hex: String,
    /// The reason code of its vetoes, 9000 to 9999.
    pub reason_code: u16,
    decision_mode: String,
    max_fuel: u64,
    max_memory_bytes: u64,
    max_input_bytes: u64,
    require_signature: bool,
    /// The signer's public key, if the manifest is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer_pubkey_ed25519_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature_ed25519_hex: Option<String>,
    /// SHA-256 of the file.
    #[serde(skip, default = "no_file")]
    file_hash: Digest,
}

fn no_file() -> Digest {
    Digest([0; 32])
}

impl Manifest {
    /// Parses a manifest. Its signature and its module are checked separately.
    ///
    /// # Errors
    /// Every rule that it breaks, as clauses.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<String>> {
        let mut manifest: Self = serde_json::from_slice(without_mark(bytes))
            .map_err(|error| vec![format!("is not a manifest: {error}")])?;
        // The set's identity covers each file's bytes, not only the parsed fields.
        manifest.file_hash = Digest::of(bytes);
        let problems = manifest.problems();
        if problems.is_empty() {
            Ok(manifest)
        } else {
            Err(problems)
        }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut unless = |is_so: bool, problem: String| {
            if !is_so {
                problems.push(problem);
            }
        };
        unless(self.schema == SCHEMA, format!("schema must be {SCHEMA:?}"));
        unless(
            self.decision_mode == DECISION_MODE,
            format!("decision_mode must be {DECISION_MODE:?}: an oracle can only veto"),
        );
        unless(
            is_text(&self.oracle_id, 1..=128) && !self.oracle_id.contains(' '),
            "oracle_id must have 1 to 128 printable ASCII characters without spaces".to_owned(),
        );
        for (name, text, most) in [
            ("vendor", &self.vendor, 256),
            ("version", &self.version, 64),
            ("description", &self.description, 4_096),
        ] {
            unless(
                text.len() <= most && !text.chars().any(char::is_control),
                format!("{name} must have at most {most} bytes and no control characters"),
            );
        }
        unless(
            is_file_name(&self.wasm_filename),
            "wasm_filename must be the name of a file beside the manifest: no path, no \"..\""
                .to_owned(),
        );
        // A draft has no hash yet; `evidenceos policy sign` fills it in.
        unless(
            self.wasm_sha256_hex.is_empty()
                || Digest::from_typed_hex(&self.wasm_sha256_hex).is_some(),
            "wasm_sha256_hex must have 64 hex digits".to_owned(),
        );
        unless(
            PolicyCode::new(self.reason_code).is_some(),
            format!("reason_code must be 9000 to 9999, not {}", self.reason_code),
        );
        for (name, value, range) in [
            ("max_fuel", self.max_fuel, bounds::FUEL),
            (
                "max_memory_bytes",
                self.max_memory_bytes,
                bounds::MEMORY_BYTES,
            ),
            ("max_input_bytes", self.max_input_bytes, bounds::INPUT_BYTES),
        ] {
            unless(
                range.contains(&value),
                format!(
                    "{name} must be {} to {}, not {value}",
                    range.start(),
                    range.end()
                ),
            );
        }
        problems
    }

    /// The limits for a call of the module.
    #[must_use]
    pub fn limits(&self) -> PolicyLimits {
        PolicyLimits {
            fuel: self.max_fuel,
            memory_bytes: self.max_memory_bytes,
            input_bytes: self.max_input_bytes,
        }
    }

    pub(super) fn file_hash(&self) -> Digest {
        self.file_hash
    }

    /// Why `module` is not the manifest's module, if it is not.
    pub(super) fn problem_with_module(&self, module: &[u8]) -> Option<String> {
        let found = Digest::of(module);
        match Digest::from_typed_hex(&self.wasm_sha256_hex) {
            Some(stated) if stated == found => None,
            Some(_) => Some(format!(
                "wasm_sha256_hex is not the SHA-256 of {}, which is {found}: bring the signed module back, or sign the manifest again (evidenceos policy sign)",
                self.wasm_filename
            )),
            None => {
                Some("wasm_sha256_hex is missing; `evidenceos policy sign` fills it in".to_owned())
            }
        }
    }

    /// Why the signature is not acceptable, if it is not.
    pub(super) fn problem_with_signature(
        &self,
        trusted: &TrustedKeys,
        allow_unsigned: bool,
    ) -> Option<String> {
        let (signer, signature) = match (
            &self.signer_pubkey_ed25519_hex,
            &self.signature_ed25519_hex,
        ) {
            (Some(signer), Some(signature)) => (signer, signature),
            (None, None) if self.require_signature => {
                return Some(
                    "is unsigned, and says require_signature; sign it with `evidenceos policy sign`"
                        .to_owned(),
                );
            }
            (None, None) if allow_unsigned => return None,
            (None, None) => {
                return Some(
                    "is unsigned; sign it with `evidenceos policy sign`, or let the daemon take unsigned policies with --allow-unsigned-policies"
                        .to_owned(),
                );
            }
            (Some(_), None) => {
                return Some(
                    "names a signer and has no signature_ed25519_hex; sign it with `evidenceos policy sign`"
                        .to_owned(),
                );
            }
            (None, Some(_)) => {
                return Some(
                    "has a signature and no signer_pubkey_ed25519_hex; sign it with `evidenceos policy sign`"
                        .to_owned(),
                );
            }
        };
        let Some(key) = public_key(signer) else {
            return Some(
                "signer_pubkey_ed25519_hex is no Ed25519 public key, 64 hex digits".to_owned(),
            );
        };
        if !trusted.has(&key) {
            return Some(format!(
                "is signed by {signer}, which is not in {}; if you trust it: evidenceos policy trust DIR --key {signer}",
                super::TRUSTED_KEYS
            ));
        }
        let mut bytes = [0; 64];
        let is_good = hex::decode_to_slice(signature, &mut bytes).is_ok()
            && key
                .verify_strict(&self.signed_bytes(), &Signature::from_bytes(&bytes))
                .is_ok();
        (!is_good).then(|| {
            "signature_ed25519_hex is not the signer's signature of this manifest: it was changed after it was signed"
                .to_owned()
        })
    }

    /// The manifest with the hash of `module`, signed by the key of an Ed25519 seed.
    #[must_use]
    pub fn signed(mut self, module: &[u8], seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        self.wasm_sha256_hex = Digest::of(module).to_hex();
        self.signer_pubkey_ed25519_hex = Some(hex::encode(key.verifying_key().as_bytes()));
        let signature = key.sign(&self.signed_bytes());
        self.signature_ed25519_hex = Some(hex::encode(signature.to_bytes()));
        self
    }

    /// The file in a readable form.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("text and numbers are JSON");
        bytes.push(b'\n');
        bytes
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let value = serde_json::to_value(self).expect("text and numbers are JSON");
        let Value::Object(fields) = value else {
            unreachable!("a manifest is an object")
        };
        // Sorted here, in case a map of the library keeps another order.
        let sorted: BTreeMap<String, Value> = fields
            .into_iter()
            .filter(|(name, _)| name != SIGNATURE_FIELD)
            .collect();
        serde_json::to_vec(&sorted).expect("text and numbers are JSON")
    }
}

/// Parses a public key of 64 hex digits.
pub(super) fn public_key(text: &str) -> Option<VerifyingKey> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    VerifyingKey::from_bytes(&bytes).ok()
}

fn is_text(text: &str, len: RangeInclusive<usize>) -> bool {
    len.contains(&text.len()) && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}

fn is_file_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !name.contains("..")
        && name != "."
        && !name.contains(['/', '\\', '\0'])
}
