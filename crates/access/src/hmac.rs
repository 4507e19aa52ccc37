//! Signed requests: HMAC-SHA256 over request id, path and timestamp, byte for byte as published.
//!
//! The signed bytes are `<request id>:<path>`, and `:<timestamp>` as it was sent if the header is
//! present. The checks have a fixed order: request id, key id, timestamp, known key, signature. The
//! body is not signed: [`crate::Uses`] makes sure that a signature serves one request.

use std::{collections::BTreeMap, fmt};

use ::hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderValue};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::{Denied, credentials::single};

/// How far a timestamp may be from the server's clock, either way, in seconds.
pub const TIMESTAMP_WINDOW_S: u64 = 300;

/// The key id of a request that does not name one.
pub(crate) const DEFAULT_KEY_ID: &str = "default";

const REQUEST_ID: &str = "x-request-id";
const KEY_ID: &str = "x-evidenceos-key-id";
const TIMESTAMP: &str = "x-evidenceos-timestamp";
const SIGNATURE: &str = "x-evidenceos-signature";

/// The secrets that sign requests, by key id. `Debug` shows only the ids.
#[derive(Clone, Default)]
pub struct HmacKeys {
    secrets: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

/// The daemon's requirements for signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HmacRules {
    /// A request without a timestamp is refused: its signature would be valid forever.
    pub require_timestamp: bool,
    /// A signature over the path `/` is accepted for every path, because one published client signs
    /// that. The method is then not signed.
    pub accept_root_path: bool,
}

/// A request with a valid signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed<'a> {
    /// The key that signed it.
    pub key_id: &'a str,
    /// The request id that was signed.
    pub request_id: &'a str,
    /// The path that was signed: the request's, or `/`.
    pub path: &'a str,
    /// The timestamp as it was sent and signed.
    pub timestamp: Option<&'a str>,
}

impl HmacKeys {
    /// Adds the keys of `kid:hex,kid2:hex`.
    ///
    /// # Errors
    /// Every invalid entry, by its position, after `source`. No secret and no entry is shown: an
    /// entry without its colon may be a secret.
    pub fn add_list(&mut self, source: &str, list: &str) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        for (at, entry) in (1..).zip(list.split(',')) {
            if let Err(problem) = self.add_entry(entry.trim()) {
                problems.push(format!("{source}, entry {at}: {problem}"));
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    /// Adds a secret of raw bytes under the key id `default`.
    ///
    /// # Errors
    /// If the secret is empty, or there is a `default` already.
    pub fn add_default(&mut self, source: &str, secret: &str) -> Result<(), Vec<String>> {
        self.add(DEFAULT_KEY_ID, Zeroizing::new(secret.as_bytes().to_vec()))
            .map_err(|problem| vec![format!("{source}: {problem}")])
    }

    /// The ids of keys whose secret is shorter than `bytes`.
    pub(crate) fn shorter_than(&self, bytes: usize) -> impl Iterator<Item = &str> {
        self.secrets
            .iter()
            .filter(move |(_, secret)| secret.len() < bytes)
            .map(|(key_id, _)| key_id.as_str())
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Whether there is a key of this id.
    pub(crate) fn contains(&self, key_id: &str) -> bool {
        self.secrets.contains_key(key_id)
    }

    /// Checks a request.
    ///
    /// # Errors
    /// The first check that fails, in the order of the module's description.
    pub fn verify<'a>(
        &'a self,
        rules: HmacRules,
        now_unix: u64,
        path: &'a str,
        headers: &'a HeaderMap,
    ) -> Result<Signed<'a>, Denied> {
        let request_id = single(headers, REQUEST_ID)?.ok_or(Denied::MissingRequestId)?;
        let request_id = identifier(request_id).ok_or(Denied::BadRequestId)?;
        let key_id = match single(headers, KEY_ID)? {
            Some(value) => identifier(value).ok_or(Denied::BadKeyId)?,
            None => DEFAULT_KEY_ID,
        };
        let timestamp = timestamp(rules, now_unix, headers)?;
        let (key_id, secret) = self
            .secrets
            .get_key_value(key_id)
            .ok_or(Denied::UnknownKeyId)?;
        let signature = signature(headers)?;

        let holds = |path: &'a str| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
            for part in [request_id, ":", path] {
                mac.update(part.as_bytes());
            }
            for part in timestamp.iter().flat_map(|timestamp| [":", timestamp]) {
                mac.update(part.as_bytes());
            }
            // `verify_slice` takes the same time wherever the signatures differ: a refusal must not
            // reveal how much of a guess is right.
            mac.verify_slice(&signature).ok().map(|()| path)
        };
        let path = holds(path)
            .or_else(|| holds("/").filter(|_| rules.accept_root_path))
            .ok_or(Denied::WrongSignature)?;
        Ok(Signed {
            key_id,
            request_id,
            path,
            timestamp,
        })
    }

    fn add_entry(&mut self, entry: &str) -> Result<(), &'static str> {
        let (key_id, secret) = entry
            .split_once(':')
            .ok_or("must be a key id, a colon and the secret in hex")?;
        // The cause would name a character, which belongs to the secret.
        let secret = hex::decode(secret)
            .map_err(|_secret| "the secret must be an even number of hex digits")?;
        self.add(key_id, Zeroizing::new(secret))
    }

    fn add(&mut self, key_id: &str, secret: Zeroizing<Vec<u8>>) -> Result<(), &'static str> {
        if !is_identifier(key_id.as_bytes()) {
            return Err("the key id must be 1 to 128 characters of 0x21-0x7e without \":\"");
        }
        if secret.is_empty() {
            return Err("the secret must not be empty");
        }
        if self.secrets.contains_key(key_id) {
            return Err("another entry has the same key id; give each its own");
        }
        // The key id is not signed: a signature for one id would be valid for the other.
        if self.secrets.values().any(|held| *held == secret) {
            return Err("another key id has the same secret; give each its own");
        }
        self.secrets.insert(key_id.to_owned(), secret);
        Ok(())
    }
}

impl fmt::Debug for HmacKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.secrets.keys()).finish()
    }
}

/// Whether a request claims to be signed. Any one of the headers counts: a client that sends part
/// of a signature expects a check.
pub(crate) fn is_signed(headers: &HeaderMap) -> bool {
    [SIGNATURE, KEY_ID, TIMESTAMP]
        .iter()
        .any(|name| headers.contains_key(*name))
}

/// 1 to 128 characters of 0x21-0x7e without the colon, which separates what is signed.
pub(crate) fn is_identifier(bytes: &[u8]) -> bool {
    (1..=128).contains(&bytes.len())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_graphic() && *byte != b':')
}

fn identifier(value: &HeaderValue) -> Option<&str> {
    value
        .to_str()
        .ok()
        .filter(|text| is_identifier(text.as_bytes()))
}

/// A leading `+` and leading zeros are accepted, as published: the text itself is signed.
fn timestamp(rules: HmacRules, now_unix: u64, headers: &HeaderMap) -> Result<Option<&str>, Denied> {
    let Some(header) = single(headers, TIMESTAMP)? else {
        return if rules.require_timestamp {
            Err(Denied::MissingTimestamp)
        } else {
            Ok(None)
        };
    };
    let text = header.to_str().ok().ok_or(Denied::BadTimestamp)?;
    let seconds: u64 = text.parse().ok().ok_or(Denied::BadTimestamp)?;
    if now_unix.abs_diff(seconds) > TIMESTAMP_WINDOW_S {
        return Err(Denied::OutsideWindow);
    }
    Ok(Some(text))
}

fn signature(headers: &HeaderMap) -> Result<[u8; 32], Denied> {
    let header = single(headers, SIGNATURE)?.ok_or(Denied::MissingSignature)?;
    let mut signature = [0; 32];
    header
        .as_bytes()
        .strip_prefix(b"sha256=")
        .and_then(|digits| hex::decode_to_slice(digits, &mut signature).ok())
        .ok_or(Denied::BadSignature)?;
    Ok(signature)
}
