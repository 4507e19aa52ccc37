//! The credentials of a call, and the headers that are never trusted.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::Denied;

/// The parts of a call that may identify its caller.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// The path of the request, `/package.Service/Method` for gRPC: it is part of what is signed.
    pub path: &'a str,
    /// All headers of the request.
    pub headers: &'a HeaderMap,
    /// DER of the peer's leaf certificate, verified by the TLS listener when the connection was
    /// opened. [`crate::Peer::is_revoked`] tells whether it has been revoked since.
    pub certificate: Option<&'a [u8]>,
}

/// Prefixes of headers in which a proxy, or any client, states the client's identity. They are
/// never read, and are dropped before any code behind the edge could read them.
pub const IDENTITY_HEADERS: [&str; 4] = [
    "x-client-cert-",
    "x-evidenceos-auth-role",
    "x-evidenceos-token-scopes",
    "x-evidenceos-principal",
];

/// Drops every header of [`IDENTITY_HEADERS`].
pub fn strip_identity_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            IDENTITY_HEADERS
                .iter()
                .any(|prefix| name.as_str().starts_with(prefix))
        })
        .cloned()
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// The only value of a header. Of two values, one part of the system might trust the first and
/// another the last.
pub(crate) fn single<'h>(
    headers: &'h HeaderMap,
    name: &'static str,
) -> Result<Option<&'h HeaderValue>, Denied> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        Some(_) => Err(Denied::Repeated(name)),
        None => Ok(first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_tell_who_the_client_is_are_dropped_and_others_stay() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-client-cert-san",
            "x-client-cert-fp",
            "X-Client-Cert-Anything",
            "x-evidenceos-auth-role",
            "x-evidenceos-token-scopes",
            "x-evidenceos-principal",
            "x-evidenceos-signature",
            "x-request-id",
        ] {
            let name: HeaderName = name.parse().expect("a header name");
            headers.append(name.clone(), HeaderValue::from_static("operator"));
            headers.append(name, HeaderValue::from_static("auditor"));
        }
        strip_identity_headers(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["x-evidenceos-signature", "x-request-id"]);
    }
}
