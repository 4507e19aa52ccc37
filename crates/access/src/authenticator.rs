//! Who makes a call: everything that was verified, put together.
//!
//! A credential in the headers decides; a client certificate alone is enough where the listener
//! verifies certificates. With both, the header's identity is the call's: a certificate says which
//! machine connects, and one machine, such as a proxy, may make the calls of many, while a token or
//! signature belongs to the one call. Whatever is there must be valid: falling back to the
//! certificate would hide from a caller that its token was revoked.
//!
//! Without anything configured this is a development server: whoever sends no token is `anonymous`
//! with every role, and each token is a submitter of its own.

use crate::{
    Credentials, Denied, HmacKeys, HmacRules, PeerCertificate, Policy, Roles, Tokens, hmac,
    principal, token,
};

/// Who makes a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name under which it owns things; see [`principal`].
    pub principal: String,
    /// What it may do. May be empty.
    pub roles: Roles,
    /// What makes its request ids unique, beside the principal: the signed timestamp. Processes
    /// that share a key count their request ids each from 1.
    pub request_scope: Option<String>,
    /// How it was verified: `bearer`, `hmac`, `mtls`, or `anonymous`.
    pub kind: &'static str,
}

/// Tells callers apart. Immutable: to change it, put another in its place.
#[derive(Debug, Clone)]
pub struct Authenticator {
    methods: Methods,
    tokens: Tokens,
    keys: HmacKeys,
    rules: HmacRules,
    policy: Policy,
}

/// What callers can be told apart by. None of it: a development server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Methods {
    pub tokens: bool,
    pub signatures: bool,
    pub certificates: bool,
}

impl Authenticator {
    pub(crate) fn new(
        methods: Methods,
        tokens: Tokens,
        keys: HmacKeys,
        rules: HmacRules,
        policy: Policy,
    ) -> Self {
        Self {
            methods,
            tokens,
            keys,
            rules,
            policy,
        }
    }

    /// Whether nothing is configured, so that everybody may everything.
    #[must_use]
    pub fn is_development(&self) -> bool {
        self.methods == Methods::default()
    }

    /// The text of the file that says who may do what; none without one.
    #[must_use]
    pub fn role_policy(&self) -> Option<&str> {
        self.policy.text()
    }

    /// Who makes a call, at a time in Unix seconds.
    ///
    /// # Errors
    /// Where there is no credential, or one that does not hold.
    pub fn identify(
        &self,
        now_unix: u64,
        credentials: &Credentials<'_>,
    ) -> Result<Identity, Denied> {
        let token = token::bearer(credentials.headers)?;
        if self.is_development() {
            return Ok(token.map_or_else(anonymous, |token| bearer(token, Roles::SUBMITTER)));
        }
        // Also under a header's identity: nobody goes on over a connection that ought to be closed.
        let certificate = self.certificate(now_unix, credentials)?;
        match (token, hmac::is_signed(credentials.headers)) {
            (Some(_), true) => Err(Denied::TwoCredentials),
            (Some(token), false) => self.token(token),
            (None, true) => self.signed(now_unix, credentials),
            (None, false) => certificate.ok_or_else(|| Denied::Missing(self.methods.expected())),
        }
    }

    fn token(&self, token: &[u8]) -> Result<Identity, Denied> {
        if !self.methods.tokens {
            return Err(Denied::TokensNotTaken);
        }
        let roles = self.tokens.roles(token).ok_or(Denied::UnknownToken)?;
        Ok(bearer(token, roles))
    }

    fn signed(&self, now_unix: u64, credentials: &Credentials<'_>) -> Result<Identity, Denied> {
        if !self.methods.signatures {
            return Err(Denied::SignaturesNotTaken);
        }
        let Credentials { path, headers, .. } = *credentials;
        let signed = self.keys.verify(self.rules, now_unix, path, headers)?;
        Ok(Identity {
            principal: principal::hmac(signed.key_id),
            roles: self.policy.hmac_key(signed.key_id),
            request_scope: signed.timestamp.map(str::to_owned),
            kind: "hmac",
        })
    }

    fn certificate(
        &self,
        now_unix: u64,
        credentials: &Credentials<'_>,
    ) -> Result<Option<Identity>, Denied> {
        let Some(der) = credentials
            .certificate
            .filter(|_| self.methods.certificates)
        else {
            return Ok(None);
        };
        let certificate = PeerCertificate::read(der)?;
        // The handshake checked it when the connection was opened, which may be long ago.
        if !certificate.is_valid_at(now_unix) {
            return Err(Denied::CertificateNotCurrent);
        }
        Ok(Some(Identity {
            principal: certificate.principal(),
            roles: self.policy.certificate(&certificate),
            request_scope: None,
            kind: "mtls",
        }))
    }
}

impl Methods {
    /// What to send.
    fn expected(self) -> String {
        let ways = [
            (self.tokens, "send \"authorization: Bearer <token>\""),
            (
                self.signatures,
                "sign the request (x-request-id, x-evidenceos-timestamp, x-evidenceos-signature)",
            ),
            (self.certificates, "connect with a client certificate"),
        ];
        let taken: Vec<_> = ways
            .iter()
            .filter_map(|(taken, way)| taken.then_some(*way))
            .collect();
        taken.join(", or ")
    }
}

fn bearer(token: &[u8], roles: Roles) -> Identity {
    Identity {
        principal: principal::bearer(token),
        roles,
        request_scope: None,
        kind: "bearer",
    }
}

fn anonymous() -> Identity {
    Identity {
        principal: principal::ANONYMOUS.to_owned(),
        roles: Roles::ALL,
        request_scope: None,
        kind: "anonymous",
    }
}
