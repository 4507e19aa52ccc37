//! Bearer tokens. Only their SHA-256 digests are kept, and a token is compared with all of them in
//! constant time, so that neither memory nor timing reveals a token.

use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use crate::{Denied, Roles, credentials::single};

/// The longest accepted token, in bytes.
pub(crate) const MAX_TOKEN_BYTES: usize = 4_096;

/// SHA-256 of a token.
pub(crate) type TokenDigest = [u8; 32];

/// The accepted tokens, and the roles of each.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    entries: Vec<(TokenDigest, Roles)>,
}

impl Tokens {
    /// Accepts a token. If it is accepted already, it gets these roles as well.
    pub fn add(&mut self, token: &[u8], roles: Roles) {
        let digest = Sha256::digest(token).into();
        match self.entries.iter_mut().find(|(held, _)| *held == digest) {
            Some((_, held)) => *held = held.union(roles),
            None => self.entries.push((digest, roles)),
        }
    }

    /// Accepts the token with a digest, with exactly these roles, whatever it had before.
    pub fn set_digest(&mut self, digest: [u8; 32], roles: Roles) {
        self.entries.retain(|(held, _)| *held != digest);
        self.entries.push((digest, roles));
    }

    /// Whether no token is accepted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The roles of a token, in constant time for every entry.
    #[must_use]
    pub fn roles(&self, token: &[u8]) -> Option<Roles> {
        self.roles_of(&Sha256::digest(token).into())
    }

    /// The roles of the token with a digest, in constant time for every entry.
    pub(crate) fn roles_of(&self, digest: &TokenDigest) -> Option<Roles> {
        let mut found = Choice::from(0);
        let mut which = 0_u64;
        for (at, (held, _)) in (0_u64..).zip(&self.entries) {
            let same = held.ct_eq(digest);
            which.conditional_assign(&at, same);
            found |= same;
        }
        if !bool::from(found) {
            return None;
        }
        let which = usize::try_from(which).ok()?;
        self.entries.get(which).map(|(_, roles)| *roles)
    }
}

/// The token of a request. The scheme's case does not matter (RFC 9110, 11.1), and blanks may precede the token.
///
/// # Errors
/// If the header appears more than once, or is not a bearer token.
pub fn bearer(headers: &http::HeaderMap) -> Result<Option<&[u8]>, Denied> {
    let Some(header) = single(headers, "authorization")? else {
        return Ok(None);
    };
    let credentials = header.as_bytes().split_at_checked(b"Bearer ".len());
    credentials
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "))
        .map(|(_, token)| token.trim_ascii_start())
        .filter(|token| (1..=MAX_TOKEN_BYTES).contains(&token.len()))
        .map(Some)
        .ok_or(Denied::BadAuthorization)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_wherever_it_stands() {
        let mut tokens = Tokens::default();
        assert!(tokens.is_empty() && tokens.roles(b"a").is_none());
        tokens.add(b"a", Roles::SUBMITTER);
        tokens.add(b"b", Roles::SUBMITTER_AUDITOR);
        tokens.add(b"c", Roles::NONE);
        assert_eq!(tokens.roles(b"a"), Some(Roles::SUBMITTER));
        assert_eq!(tokens.roles(b"b"), Some(Roles::SUBMITTER_AUDITOR));
        assert_eq!(tokens.roles(b"c"), Some(Roles::NONE));
        for other in [&b""[..], b"A", b"ab", b"a "] {
            assert_eq!(tokens.roles(other), None);
        }
    }

    #[test]
    fn a_token_of_two_lists_has_the_roles_of_both_and_a_digest_replaces_them() {
        let mut tokens = Tokens::default();
        tokens.add(b"a", Roles::SUBMITTER);
        tokens.add(b"a", Roles::SUBMITTER_AUDITOR);
        assert_eq!(tokens.roles(b"a"), Some(Roles::SUBMITTER_AUDITOR));
        tokens.set_digest(Sha256::digest(b"a").into(), Roles::NONE);
        assert_eq!(tokens.roles(b"a"), Some(Roles::NONE));
    }

    #[test]
    fn a_scheme_has_no_case() {
        let token = |value: &'static str| {
            let mut headers = http::HeaderMap::new();
            headers.insert("authorization", http::HeaderValue::from_static(value));
            bearer(&headers).ok().flatten().map(<[u8]>::to_vec)
        };
        for good in ["Bearer abc", "bearer abc", "BEARER abc", "bEaReR   abc"] {
            assert_eq!(token(good).as_deref(), Some(&b"abc"[..]), "{good}");
        }
        for bad in [
            "Bearer",
            "Bearer ",
            "Bearerabc",
            "Basic abc",
            "abc",
            "Bearer   ",
        ] {
            assert_eq!(token(bad), None, "{bad}");
        }
    }

    #[test]
    fn debug_shows_no_token() {
        let mut tokens = Tokens::default();
        tokens.add(b"correct-horse", Roles::SUBMITTER);
        assert!(!format!("{tokens:?}").contains("correct-horse"));
    }
}
