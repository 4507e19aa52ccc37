//! Authenticates the caller of a call from everything that was verified.
//!
//! A credential in the headers decides. A client certificate alone is enough if the listener
//! verifies certificates. If a call carries both, it is attributed to the header's identity: a
//! certificate tells which machine connects, and one machine, such as a proxy, may make calls for
//! many callers, while a token or signature belongs to the one call. Both must be valid: a fallback
//! to the certificate would hide from a caller that its token was revoked.
//!
//! If nothing is configured, this is a development server: a call without a token is `anonymous`
//! with every role, and each token is a submitter of its own.

use sha2::{Digest as _, Sha256};

use crate::{
    Credentials, Denied, HmacKeys, HmacRules, PeerCertificate, Policy, Roles, Signature, Tokens,
    hmac, principal, token, token::TokenDigest,
};

/// The authenticated caller of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name under which the caller owns claims and credit; see [`principal`].
    pub principal: String,
    /// The caller's roles; may be empty.
    pub roles: Roles,
    /// The signed timestamp. It makes request ids unique beside the principal, since processes that
    /// share a key each count their request ids from 1.
    pub request_scope: Option<String>,
    /// The kind of credential: `bearer`, `hmac`, `mtls`, or `anonymous`.
    pub kind: &'static str,
    /// The verified credential, which is checked again while the call goes on.
    pub proof: Proof,
}

/// The credential that verified a caller. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// Nothing: a development server.
    Nothing,
    /// The token of this digest.
    Token(TokenDigest),
    Signature(Signature),
    /// The client certificate that the TLS handshake verified.
    Certificate,
}

/// Authenticates callers. Immutable: to change the rules, replace the whole.
#[derive(Debug, Clone)]
pub struct Authenticator {
    methods: Methods,
    tokens: Tokens,
    keys: HmacKeys,
    rules: HmacRules,
    policy: Policy,
}

/// The kinds of credentials that are configured; with none it is a development server.
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

    /// Whether nothing is configured, so that every caller may do everything.
    #[must_use]
    pub fn is_development(&self) -> bool {
        self.methods == Methods::default()
    }

    /// The text of the role policy; `None` without one.
    #[must_use]
    pub fn role_policy(&self) -> Option<&str> {
        self.policy.text()
    }

    /// Principals, and their names in the role policy.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.policy.names()
    }

    /// Authenticates the caller of a call at a time in Unix seconds.
    ///
    /// # Errors
    /// If there is no credential, or an invalid one.
    pub fn identify(
        &self,
        now_unix: u64,
        credentials: &Credentials<'_>,
    ) -> Result<Identity, Denied> {
        self.identify_with(None, now_unix, credentials)
    }

    /// Authenticates the caller of a call on a port that has its own tokens. These are credentials
    /// like any others; if nothing else is configured, the call needs one of them.
    ///
    /// # Errors
    /// As [`Authenticator::identify`].
    pub fn identify_with(
        &self,
        own: Option<&Tokens>,
        now_unix: u64,
        credentials: &Credentials<'_>,
    ) -> Result<Identity, Denied> {
        // A development server also refuses a malformed header: it must not pass for a missing one.
        let token = token::bearer(credentials.headers)?;
        if self.is_development() && own.is_none() {
            let bearer = |token| bearer(Sha256::digest(token).into(), Roles::SUBMITTER);
            return Ok(token.map_or_else(anonymous, bearer));
        }
        // This applies even if a header decides: no caller may go on over a connection that must be
        // closed.
        let certificate = self.certificate(now_unix, credentials.certificate)?;
        match (token, hmac::is_signed(credentials.headers)) {
            (Some(_), true) => Err(Denied::TwoCredentials),
            (Some(token), false) => self.token(own, token),
            (None, true) => self.signed(now_unix, credentials),
            (None, false) => certificate.ok_or_else(|| Denied::Missing(self.expected(own))),
        }
    }

    /// The caller's roles at a later time, in Unix seconds, by the same credential: for long calls.
    /// A signature's timestamp is not checked again.
    ///
    /// # Errors
    /// If the credential, or the connection's certificate, would not be accepted now.
    pub fn roles_now(
        &self,
        own: Option<&Tokens>,
        now_unix: u64,
        proof: &Proof,
        certificate: Option<&[u8]>,
    ) -> Result<Roles, Denied> {
        let by_certificate = self.certificate(now_unix, certificate)?;
        match proof {
            Proof::Nothing if self.is_development() => Ok(Roles::ALL),
            Proof::Token(_) if self.is_development() && own.is_none() => Ok(Roles::SUBMITTER),
            Proof::Token(digest) => self.token_of(own, *digest).map(|identity| identity.roles),
            Proof::Signature(signature) => {
                // A reload may have removed the key: calls that it signed end with it.
                if !self.keys.contains(&signature.key_id) {
                    return Err(Denied::UnknownKeyId);
                }
                self.let_in(principal::hmac(&signature.key_id))?;
                Ok(self.policy.hmac_key(&signature.key_id))
            }
            Proof::Nothing | Proof::Certificate => by_certificate
                .map(|identity| identity.roles)
                .ok_or_else(|| Denied::Missing(self.expected(own))),
        }
    }

    fn expected(&self, own: Option<&Tokens>) -> String {
        Methods {
            tokens: self.methods.tokens || own.is_some(),
            ..self.methods
        }
        .expected()
    }

    /// The principal, unless a deny entry names it.
    fn let_in(&self, principal: String) -> Result<String, Denied> {
        if self.policy.denials().principal(&principal) {
            return Err(Denied::ShutOut);
        }
        Ok(principal)
    }

    fn token(&self, own: Option<&Tokens>, token: &[u8]) -> Result<Identity, Denied> {
        self.token_of(own, Sha256::digest(token).into())
    }

    fn token_of(&self, own: Option<&Tokens>, digest: TokenDigest) -> Result<Identity, Denied> {
        if !self.methods.tokens && own.is_none() {
            return Err(Denied::TokensNotTaken);
        }
        let roles = own
            .and_then(|own| own.roles_of(&digest))
            .or_else(|| self.tokens.roles_of(&digest))
            .ok_or(Denied::UnknownToken)?;
        let mut identity = bearer(digest, roles);
        // A token that is denied by its own digest stays denied, whichever principal owns it.
        self.let_in(identity.principal.clone())?;
        if let Some(owner) = self.policy.token_owner(&digest) {
            identity.principal = self.let_in(owner.to_owned())?;
        }
        Ok(identity)
    }

    fn signed(&self, now_unix: u64, credentials: &Credentials<'_>) -> Result<Identity, Denied> {
        if !self.methods.signatures {
            return Err(Denied::SignaturesNotTaken);
        }
        let Credentials { path, headers, .. } = *credentials;
        let signed = self.keys.verify(self.rules, now_unix, path, headers)?;
        Ok(Identity {
            principal: self.let_in(principal::hmac(signed.key_id))?,
            roles: self.policy.hmac_key(signed.key_id),
            request_scope: signed.timestamp.map(str::to_owned),
            kind: "hmac",
            proof: Proof::Signature(Signature::of(&signed)),
        })
    }

    fn certificate(
        &self,
        now_unix: u64,
        certificate: Option<&[u8]>,
    ) -> Result<Option<Identity>, Denied> {
        let Some(der) = certificate.filter(|_| self.methods.certificates) else {
            return Ok(None);
        };
        let certificate = PeerCertificate::read(der)?;
        // The handshake checked the certificate when the connection was opened, perhaps long ago.
        if !certificate.is_valid_at(now_unix) {
            return Err(Denied::CertificateNotCurrent);
        }
        if self.policy.denials().certificate(&certificate) {
            return Err(Denied::CertificateShutOut);
        }
        Ok(Some(Identity {
            principal: certificate.principal(),
            roles: self.policy.certificate(&certificate),
            request_scope: None,
            kind: "mtls",
            proof: Proof::Certificate,
        }))
    }
}

impl Methods {
    /// The end of a refusal's sentence: the credentials that the server accepts.
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

fn bearer(digest: TokenDigest, roles: Roles) -> Identity {
    Identity {
        principal: principal::bearer_of(&digest),
        roles,
        request_scope: None,
        kind: "bearer",
        proof: Proof::Token(digest),
    }
}

fn anonymous() -> Identity {
    Identity {
        principal: principal::ANONYMOUS.to_owned(),
        roles: Roles::ALL,
        request_scope: None,
        kind: "anonymous",
        proof: Proof::Nothing,
    }
}
