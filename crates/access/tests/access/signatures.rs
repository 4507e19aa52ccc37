//! Signed requests: the published vectors, the order of the checks, and what is not taken.

use evidenceos_access::{Denied, HmacKeys, HmacRules, Signed};
use http::{HeaderMap, HeaderName, HeaderValue};

const LENIENT: HmacRules = HmacRules {
    require_timestamp: false,
    accept_root_path: false,
};
const STRICT: HmacRules = HmacRules {
    require_timestamp: true,
    accept_root_path: false,
};

const SECRET: &str = "hmac-secret";
const CREATE: &str = "/evidenceos.v2.EvidenceOS/CreateClaimV2";
const HEALTH_V1: &str = "/evidenceos.v1.EvidenceOS/Health";
/// Over `req-1:/evidenceos.v1.EvidenceOS/Health`.
const UNTIMED: &str = "b0a0e75fe3c8bb4296cedb74b4b019148dac88d3ebd7617fac5c29c9f873c994";
/// The same with `:1735689600`.
const TIMED: &str = "ed726476d189dc797b09ebe8f2a881cce52fc7dc714d1b3c32a1ead78a863267";
const TIME: u64 = 1_735_689_600;

fn keys(secret: &str) -> HmacKeys {
    let mut keys = HmacKeys::default();
    keys.add_default("a test", secret).expect("a secret");
    keys
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
            (HeaderName::from_static(name), value)
        })
        .collect()
}

fn signed(id: &str, signature: &str, timestamp: Option<&str>) -> HeaderMap {
    let signature = format!("sha256={signature}");
    let mut pairs = vec![("x-request-id", id), ("x-evidenceos-signature", &signature)];
    pairs.extend(timestamp.map(|timestamp| ("x-evidenceos-timestamp", timestamp)));
    headers(&pairs)
}

#[test]
fn the_published_vectors_hold() {
    let cases = [
        (SECRET, "req-1", HEALTH_V1, None, UNTIMED),
        (SECRET, "req-1", HEALTH_V1, Some("1735689600"), TIMED),
        (
            "rotating-secret",
            "req-kid",
            "/evidenceos.v1.EvidenceOS/CreateClaimV2",
            Some("1735689620"),
            "743bd7bc5795b44b3695a19a8f701b5efdf1c704fe3819479a7b87d0975d8d9e",
        ),
        (
            "discos-shared-secret",
            "req-1",
            "/evidenceos.v2.EvidenceOS/Health",
            None,
            "bcbd74399d155e8abe362c7f3cb83cf1b50fa894f243a8b4f63ecbe92e4b9636",
        ),
        (
            "discos-shared-secret",
            "req-1",
            CREATE,
            Some("1700000000"),
            "6eb7d9afc53e140b05ce6fb79933b8c95a8bc4b28790f8ec6ec38e03b5a9978b",
        ),
        (
            "discos-shared-secret",
            "discos-1",
            "/",
            Some("1700000000"),
            "b1123792ef7b15ab617748a11cd397489c91f7267bf48f7ab920340001bc3903",
        ),
    ];
    for (secret, id, path, timestamp, signature) in cases {
        let now = timestamp.map_or(0, |timestamp| timestamp.parse().expect("a number"));
        for signature in [signature.to_owned(), signature.to_uppercase()] {
            let headers = signed(id, &signature, timestamp);
            let keys = keys(secret);
            let expected = Signed {
                key_id: "default",
                request_id: id,
                path,
                timestamp,
            };
            assert_eq!(
                keys.verify(LENIENT, now, path, &headers),
                Ok(expected),
                "{path}"
            );
            let elsewhere = keys.verify(LENIENT, now, "/other", &headers);
            assert_eq!(elsewhere, Err(Denied::WrongSignature), "{path}");
        }
    }
}

#[test]
fn a_signature_over_the_root_path_is_taken_only_by_the_explicit_switch() {
    let keys = keys("discos-shared-secret");
    let signature = "b1123792ef7b15ab617748a11cd397489c91f7267bf48f7ab920340001bc3903";
    let headers = signed("discos-1", signature, Some("1700000000"));
    let compatible = HmacRules {
        accept_root_path: true,
        ..STRICT
    };
    let now = 1_700_000_000;
    assert_eq!(
        keys.verify(STRICT, now, CREATE, &headers),
        Err(Denied::WrongSignature)
    );
    assert!(keys.verify(compatible, now, CREATE, &headers).is_ok());
    // With the switch a signature over the real path holds as before.
    let signature = "6eb7d9afc53e140b05ce6fb79933b8c95a8bc4b28790f8ec6ec38e03b5a9978b";
    let headers = signed("req-1", signature, Some("1700000000"));
    assert!(keys.verify(compatible, now, CREATE, &headers).is_ok());
    assert!(keys.verify(compatible, now, "/other", &headers).is_err());
}

#[test]
fn a_timestamp_holds_300_seconds_either_way() {
    let keys = keys(SECRET);
    let headers = signed("req-1", TIMED, Some("1735689600"));
    for (now, holds) in [
        (TIME - 301, false),
        (TIME - 300, true),
        (TIME, true),
        (TIME + 300, true),
        (TIME + 301, false),
        (0, false),
        (u64::MAX, false),
    ] {
        let verified = keys.verify(STRICT, now, HEALTH_V1, &headers);
        if holds {
            assert!(verified.is_ok(), "{now}");
        } else {
            assert_eq!(verified, Err(Denied::OutsideWindow), "{now}");
        }
    }
}

#[test]
fn a_request_without_timestamp_is_refused_where_one_is_required() {
    let keys = keys(SECRET);
    let headers = signed("req-1", UNTIMED, None);
    assert!(keys.verify(LENIENT, TIME, HEALTH_V1, &headers).is_ok());
    let refused = keys.verify(STRICT, TIME, HEALTH_V1, &headers);
    assert_eq!(refused, Err(Denied::MissingTimestamp));
}

#[test]
fn the_timestamp_is_signed_as_it_is_written() {
    let keys = keys(SECRET);
    // It reads as a time in the window, so that only the signature can tell.
    for text in ["+1735689600", "01735689600"] {
        let headers = signed("req-1", TIMED, Some(text));
        let refused = keys.verify(STRICT, TIME, HEALTH_V1, &headers);
        assert_eq!(refused, Err(Denied::WrongSignature), "{text}");
    }
    // openssl dgst -sha256 -hmac hmac-secret over req-1:/evidenceos.v1.EvidenceOS/Health:+1735689600
    let headers = signed(
        "req-1",
        "ff959eb662313058bfefc960e30463ac7758abd106d751e3597bd279cf00e1cd",
        Some("+1735689600"),
    );
    let verified = keys
        .verify(STRICT, TIME, HEALTH_V1, &headers)
        .expect("it holds");
    assert_eq!(verified.timestamp, Some("+1735689600"));
    for text in [
        "",
        "now",
        "-1",
        "1735689600.0",
        "18446744073709551616",
        "0x67748580",
    ] {
        let headers = signed("req-1", TIMED, Some(text));
        let refused = keys.verify(STRICT, TIME, HEALTH_V1, &headers);
        assert_eq!(refused, Err(Denied::BadTimestamp), "{text}");
    }
}

#[test]
fn checks_come_in_the_published_order() {
    let (id, kid, time, signature) = (
        "x-request-id",
        "x-evidenceos-key-id",
        "x-evidenceos-timestamp",
        "x-evidenceos-signature",
    );
    // Each row mends what the row before was refused for.
    let rows: [(&[(&'static str, &str)], Denied); 11] = [
        (&[(kid, "é"), (time, "x")], Denied::MissingRequestId),
        (
            &[(id, "a:b"), (kid, "é"), (time, "x")],
            Denied::BadRequestId,
        ),
        (&[(id, "a"), (kid, "é"), (time, "x")], Denied::BadKeyId),
        (&[(id, "a"), (kid, ""), (time, "x")], Denied::BadKeyId),
        (&[(id, "a"), (kid, "k2")], Denied::MissingTimestamp),
        (&[(id, "a"), (kid, "k2"), (time, "x")], Denied::BadTimestamp),
        (
            &[(id, "a"), (kid, "k2"), (time, "1")],
            Denied::OutsideWindow,
        ),
        (
            &[(id, "a"), (kid, "k2"), (time, "1735689600")],
            Denied::UnknownKeyId,
        ),
        (&[(id, "a"), (time, "1735689600")], Denied::MissingSignature),
        (
            &[(id, "a"), (time, "1735689600"), (signature, TIMED)],
            Denied::BadSignature,
        ),
        (
            &[(id, "a"), (time, "1735689600"), (signature, "sha256=00")],
            Denied::BadSignature,
        ),
    ];
    let keys = keys(SECRET);
    for (pairs, expected) in rows {
        let headers = headers(pairs);
        let refused = keys.verify(STRICT, TIME, HEALTH_V1, &headers);
        assert_eq!(refused, Err(expected), "{pairs:?}");
    }
}

#[test]
fn a_request_id_is_1_to_128_visible_characters_without_a_colon() {
    let keys = keys(SECRET);
    let longest = "~".repeat(128);
    let too_long = "~".repeat(129);
    for (id, expected) in [
        ("!", Denied::WrongSignature),
        (longest.as_str(), Denied::WrongSignature),
        (&too_long, Denied::BadRequestId),
        ("", Denied::BadRequestId),
        ("a b", Denied::BadRequestId),
        ("a:b", Denied::BadRequestId),
        ("é", Denied::BadRequestId),
    ] {
        let headers = signed(id, TIMED, Some("1735689600"));
        let refused = keys.verify(STRICT, TIME, HEALTH_V1, &headers);
        assert_eq!(refused, Err(expected), "{id}");
    }
}

#[test]
fn a_header_that_is_there_twice_is_refused() {
    let keys = keys(SECRET);
    for name in [
        "x-request-id",
        "x-evidenceos-key-id",
        "x-evidenceos-timestamp",
        "x-evidenceos-signature",
    ] {
        let mut headers = signed("req-1", TIMED, Some("1735689600"));
        headers.insert("x-evidenceos-key-id", HeaderValue::from_static("default"));
        let value = headers[name].clone();
        headers.append(name, value);
        let refused = keys.verify(STRICT, TIME, HEALTH_V1, &headers);
        assert_eq!(refused, Err(Denied::Repeated(name)));
    }
}

#[test]
fn a_key_is_found_by_its_id() {
    let mut keys = HmacKeys::default();
    keys.add_list("a test", "old:00ff, ci:686d61632d736563726574")
        .expect("two keys");
    let mut headers = signed("req-1", TIMED, Some("1735689600"));
    let refused = keys.verify(STRICT, TIME, HEALTH_V1, &headers);
    assert_eq!(refused, Err(Denied::UnknownKeyId), "there is no default");
    for (id, expected) in [("ci", Ok("ci")), ("old", Err(Denied::WrongSignature))] {
        headers.insert("x-evidenceos-key-id", HeaderValue::from_static(id));
        let verified = keys.verify(STRICT, TIME, HEALTH_V1, &headers);
        assert_eq!(verified.map(|signed| signed.key_id), expected);
    }
}

#[test]
fn key_lists_that_are_wrong_are_told_by_place_and_without_secrets() {
    let cases = [
        ("", "entry 1: must be a key id, a colon"),
        ("hunter2", "entry 1: must be a key id, a colon"),
        ("a:6875,", "entry 2: must be a key id, a colon"),
        ("a:", "entry 1: the secret must not be empty"),
        (":6875", "entry 1: the key id must be"),
        ("a b:6875", "entry 1: the key id must be"),
        (
            "a:6875,b:hunter2",
            "entry 2: the secret must be an even number",
        ),
        ("a:687", "entry 1: the secret must be an even number"),
        (
            "a:6875,b:6877,a:6876",
            "entry 3: another entry has the same key id; give each its own",
        ),
        (
            "a:6875,b:6877,c:6875",
            "entry 3: another key id has the same secret",
        ),
    ];
    for (list, expected) in cases {
        let problems = HmacKeys::default()
            .add_list("EVIDENCEOS_HMAC_KEYS", list)
            .expect_err(list);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let expected = format!("EVIDENCEOS_HMAC_KEYS, {expected}");
        assert!(problems[0].starts_with(&expected), "{problems:?}");
        for secret in ["hunter2", "6875", "687"] {
            assert!(!problems[0].contains(secret), "{problems:?}");
        }
    }
    let mut keys = keys(SECRET);
    assert!(keys.add_default("again", "other").is_err());
    assert!(HmacKeys::default().add_default("empty", "").is_err());
    assert!(!format!("{keys:?}").contains(SECRET));
}
