//! Checks that a request names its host exactly once.
//!
//! RFC 9112, 3.2: a server answers 400 to an HTTP/1.1 request without a Host header, with more than
//! one, or with an invalid one. If a proxy took the first of two and the daemon the second, an
//! attacker could make them serve one caller what belongs to another.

use axum::{
    Json,
    http::{Request, StatusCode, Version, header, uri::Authority},
    response::{IntoResponse as _, Response},
};
use serde_json::json;

/// Whether a request has as many Host headers as its version demands, and a valid one.
pub fn is_named<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    match (first, second) {
        // HTTP/1.0 has no Host header, and HTTP/2 has the host in `:authority`.
        (None, _) => request.version() != Version::HTTP_11,
        (Some(host), None) => is_host(host.as_bytes()),
        (Some(_), Some(_)) => false,
    }
}

/// A name or address, with or without a port. It may be empty if the target has no authority.
fn is_host(host: &[u8]) -> bool {
    host.is_empty() || (!host.contains(&b'@') && Authority::try_from(host).is_ok())
}

/// The answer to a request that does not name its host.
pub fn refusal() -> Response {
    let body = Json(json!({ "error": "the request must have one Host header" }));
    (StatusCode::BAD_REQUEST, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_1_1_has_one_host_and_others_at_most_one() {
        use Version as V;
        for (version, hosts, named) in [
            (V::HTTP_11, &[][..], false),
            (V::HTTP_11, &["h"], true),
            (V::HTTP_11, &["h:8081"], true),
            (V::HTTP_11, &["127.0.0.1:8081"], true),
            (V::HTTP_11, &["[::1]:8081"], true),
            (V::HTTP_11, &[""], true),
            (V::HTTP_11, &["h", "h"], false),
            (V::HTTP_11, &["h", "other"], false),
            (V::HTTP_11, &["h, other"], false),
            (V::HTTP_11, &["h other"], false),
            (V::HTTP_11, &["me@h"], false),
            (V::HTTP_11, &["h/path"], false),
            (V::HTTP_10, &[], true),
            (V::HTTP_10, &["h", "h"], false),
            (V::HTTP_2, &[], true),
            (V::HTTP_2, &["h"], true),
            (V::HTTP_2, &["h", "h"], false),
        ] {
            let mut request = Request::builder().version(version);
            for host in hosts {
                request = request.header(header::HOST, *host);
            }
            let request = request.body(()).expect("a request");
            assert_eq!(is_named(&request), named, "{version:?} {hosts:?}");
        }
    }
}
