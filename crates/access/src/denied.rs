//! Why a caller is not authenticated. Each text is stable, says what is expected, and repeats
//! nothing that the client sent.

use thiserror::Error;

use crate::CertificateError;

/// A call whose caller is not authenticated: `UNAUTHENTICATED` in gRPC, 401 in HTTP.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum Denied {
    /// No credential at all. The text lists what this daemon takes.
    #[error("missing credentials: {0}")]
    Missing(String),
    /// A header that may appear once appears more than once.
    #[error("the header {0} is there more than once; send it once")]
    Repeated(&'static str),
    /// Both a token and a signature: the call's caller would be ambiguous.
    #[error("send a bearer token or a signature, not both")]
    TwoCredentials,
    /// A token, but none are configured.
    #[error("bearer tokens are not taken here; do not send the authorization header")]
    TokensNotTaken,
    /// A signature, but no keys are configured.
    #[error("signatures are not taken here; do not send the x-evidenceos-signature headers")]
    SignaturesNotTaken,
    /// The header is not a bearer token.
    #[error("authorization must be \"Bearer \" and a token of 1 to 4096 bytes")]
    BadAuthorization,
    /// A token that is not configured.
    #[error("invalid bearer token")]
    UnknownToken,
    /// The request id is missing, which a signature must cover.
    #[error("missing x-request-id: it is part of what is signed")]
    MissingRequestId,
    /// A request id with invalid characters, or too long.
    #[error("x-request-id must be 1 to 128 characters of 0x21-0x7e without \":\"")]
    BadRequestId,
    /// A key id with invalid characters, or too long.
    #[error("x-evidenceos-key-id must be 1 to 128 characters of 0x21-0x7e without \":\"")]
    BadKeyId,
    /// The timestamp is missing, which this daemon requires in every signed request.
    #[error("missing x-evidenceos-timestamp: Unix seconds, part of what is signed")]
    MissingTimestamp,
    /// A timestamp that is not a number.
    #[error("x-evidenceos-timestamp must be Unix seconds in decimal digits")]
    BadTimestamp,
    /// Too old, or from the future.
    #[error("x-evidenceos-timestamp is more than 300 s from this server's clock")]
    OutsideWindow,
    /// A key id that is not configured.
    #[error("unknown x-evidenceos-key-id")]
    UnknownKeyId,
    /// Key id or timestamp without a signature.
    #[error("missing x-evidenceos-signature: sha256= and the HMAC-SHA256 in hex")]
    MissingSignature,
    /// A signature of an invalid form.
    #[error("x-evidenceos-signature must be \"sha256=\" and 64 hex digits")]
    BadSignature,
    /// The signature was not made by this key over this request.
    #[error(
        "invalid signature: HMAC-SHA256 over \"<x-request-id>:<path>\", and \":<x-evidenceos-timestamp>\" if that header is sent"
    )]
    WrongSignature,
    /// The client certificate has no identity.
    #[error("client certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// An authority has revoked the client certificate, or one between it and the authority.
    #[error("the client certificate is revoked; connect again with one that is not")]
    CertificateRevoked,
    /// The role policy denies the client certificate, whatever else the call brings.
    #[error("the role policy denies this client certificate; ask an operator")]
    CertificateShutOut,
    /// The role policy denies the token or the signing key.
    #[error("the role policy denies this caller; ask an operator")]
    ShutOut,
    /// The connection has outlived the certificate that it was opened with.
    #[error("the client certificate is not valid now; connect again with one that is")]
    CertificateNotCurrent,
}
