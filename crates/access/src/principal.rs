//! The names of callers. One file, because a name is an owner: if it changes, claims change hands.
//!
//! A name is its kind, a colon and 64 lowercase hex digits of SHA-256, so that neither a token
//! nor a certificate's subject can be read from it.

use sha2::{Digest as _, Sha256};

use crate::IdentityKind;

/// The unauthenticated caller of a development server.
pub const ANONYMOUS: &str = "anonymous";

/// `bearer:` and SHA-256 of the token.
#[must_use]
pub fn bearer(token: &[u8]) -> String {
    named("bearer", Sha256::digest(token))
}

/// The principal of the token with this SHA-256 digest.
pub(crate) fn bearer_of(digest: &[u8; 32]) -> String {
    named("bearer", digest)
}

/// `hmac:` and SHA-256 of the key id: the same for every request that the key signs.
#[must_use]
pub fn hmac(key_id: &str) -> String {
    named("hmac", Sha256::digest(key_id))
}

/// `mtls:` and SHA-256 of the kind, a zero byte and the name. The kind is part of it, so that a DNS
/// name that reads like a URI gives another principal.
#[must_use]
pub fn certificate(kind: IdentityKind, name: &str) -> String {
    let digest = Sha256::new()
        .chain_update(kind.as_str())
        .chain_update([0])
        .chain_update(name);
    named("mtls", digest.finalize())
}

/// Whether a text has the form of a principal: [`ANONYMOUS`], or a kind, a colon and 64 lowercase hex digits.
#[must_use]
pub fn is_principal(text: &str) -> bool {
    let is_hex = |digest: &str| {
        let digits = digest.bytes();
        digest.len() == 64
            && digits
                .into_iter()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    match text.split_once(':') {
        Some(("mtls" | "bearer" | "hmac", digest)) => is_hex(digest),
        _ => text == ANONYMOUS,
    }
}

fn named(kind: &str, digest: impl AsRef<[u8]>) -> String {
    let digest = digest.as_ref();
    let mut hex = vec![0; digest.len() * 2];
    hex::encode_to_slice(digest, &mut hex)
        .unwrap_or_else(|error| unreachable!("there is room: {error}"));
    let hex = str::from_utf8(&hex).unwrap_or_else(|error| unreachable!("hex is ASCII: {error}"));
    [kind, ":", hex].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with `printf 'uri\0spiffe://lab/submitter' | sha256sum`, and likewise.
    #[test]
    fn the_names_of_callers_never_change() {
        let cases = [
            (
                bearer(b"t"),
                "bearer:e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8",
            ),
            (
                hmac("default"),
                "hmac:37a8eec1ce19687d132fe29051dca629d164e2c4958ba141d5f4133a33f0688f",
            ),
            (
                certificate(IdentityKind::Uri, "spiffe://lab/submitter"),
                "mtls:0f57071af5f1d5d2121926529e768131c0685bded541ee354f5a7f3200df51b9",
            ),
        ];
        for (name, expected) in cases {
            assert_eq!(name, expected);
        }
    }

    #[test]
    fn a_principal_is_known_by_its_form() {
        let bearer = bearer(b"t");
        for good in [
            &*bearer,
            &*hmac("ci"),
            &*certificate(IdentityKind::Dns, "a"),
            ANONYMOUS,
        ] {
            assert!(is_principal(good), "{good}");
        }
        let upper = bearer.to_uppercase();
        let (short, long) = (&bearer[..70], format!("{bearer}0"));
        let bad = [
            "",
            "alice",
            "spiffe://lab/alice",
            "bearer:",
            "other:",
            short,
            &*long,
            &*upper,
        ];
        for bad in bad {
            assert!(!is_principal(bad), "{bad}");
        }
    }

    #[test]
    fn the_same_name_of_another_kind_is_another_caller() {
        let uri = certificate(IdentityKind::Uri, "bob.example");
        assert_ne!(uri, certificate(IdentityKind::Dns, "bob.example"));
    }
}
