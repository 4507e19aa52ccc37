//! The path and the headers of a call: tokens, signatures, and what proxies tell.
//!
//! The bytes are lines: the path, then `name: value` each. Nobody can guess a signature, so that the value `sign` of
//! `x-evidenceos-signature` stands for the right one, and `sign /` for the right one of the root path.

use std::sync::LazyLock;

use evidenceos_access::{
    AuthSettings, Authenticator, Credentials, IDENTITY_HEADERS, TIMESTAMP_WINDOW_S, principal,
    strip_identity_headers,
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::Sha256;

const NOW_UNIX: u64 = 1_700_000_000;
const SECRET: &str = "a secret of the fuzz targets";
const TOKEN: &str = "a-token-of-the-fuzz-targets";

const REQUEST_ID: &str = "x-request-id";
const KEY_ID: &str = "x-evidenceos-key-id";
const TIMESTAMP: &str = "x-evidenceos-timestamp";
const SIGNATURE: &str = "x-evidenceos-signature";
const AUTHORIZATION: &str = "authorization";

struct Servers {
    development: Authenticator,
    tokens: Authenticator,
    signatures: Authenticator,
    lenient: Authenticator,
}

static SERVERS: LazyLock<Servers> = LazyLock::new(|| {
    let build = |settings: AuthSettings| settings.build().expect("settings");
    let signing = AuthSettings {
        hmac_key: Some(SECRET.to_owned().into()),
        ..AuthSettings::default()
    };
    Servers {
        development: build(AuthSettings::default()),
        tokens: build(AuthSettings {
            auth_token: Some(TOKEN.to_owned().into()),
            ..AuthSettings::default()
        }),
        lenient: build(AuthSettings {
            hmac_require_timestamp: false,
            hmac_accept_root_path: true,
            ..signing.clone()
        }),
        signatures: build(signing),
    }
});

/// A caller is let in exactly if the rules, stated again here, say so.
pub fn check(bytes: &[u8]) {
    let Some((path, headers)) = read(bytes) else {
        return;
    };
    let identify = |server: &Authenticator| {
        let credentials = Credentials {
            path: &path,
            headers: &headers,
            certificate: None,
        };
        server.identify(NOW_UNIX, &credentials)
    };
    let signed_headers = [SIGNATURE, KEY_ID, TIMESTAMP];
    let is_signed = signed_headers
        .iter()
        .any(|name| headers.contains_key(*name));
    let token = match only(&headers, AUTHORIZATION) {
        Only::None => Some(None),
        Only::One(value) => value
            .as_bytes()
            .strip_prefix(b"Bearer ")
            .filter(|token| (1..=4_096).contains(&token.len()))
            .map(Some),
        Only::Several => None,
    };

    let anybody = identify(&SERVERS.development).ok();
    assert_eq!(
        anybody.map(|caller| caller.principal),
        token.map(|token| token.map_or_else(|| principal::ANONYMOUS.to_owned(), principal::bearer))
    );
    assert_eq!(
        identify(&SERVERS.tokens).is_ok(),
        token == Some(Some(TOKEN.as_bytes())) && !is_signed
    );
    for (server, lenient) in [(&SERVERS.signatures, false), (&SERVERS.lenient, true)] {
        let expected = token == Some(None) && is_signed && holds(&path, &headers, lenient);
        let caller = identify(server);
        assert_eq!(caller.is_ok(), expected, "{caller:?}");
        if let Ok(caller) = caller {
            assert_eq!(caller.principal, principal::hmac("default"));
            let sent = text(only(&headers, TIMESTAMP));
            assert_eq!(caller.request_scope.as_deref(), sent);
        }
    }

    let mut stripped = headers.clone();
    strip_identity_headers(&mut stripped);
    for (name, value) in &headers {
        let told = IDENTITY_HEADERS
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix));
        let stays = stripped.get_all(name).iter().any(|left| left == value);
        assert_ne!(told, stays, "{name}");
    }
}

/// Whether the request is signed with the only key, as the published rules say.
fn holds(path: &str, headers: &HeaderMap, lenient: bool) -> bool {
    let is_id = |text: &&str| {
        (1..=128).contains(&text.len())
            && text
                .bytes()
                .all(|byte| (0x21..=0x7e).contains(&byte) && byte != b':')
    };
    let Some(id) = text(only(headers, REQUEST_ID)).filter(is_id) else {
        return false;
    };
    let names_key = match only(headers, KEY_ID) {
        Only::None => true,
        one => text(one) == Some("default"),
    };
    let time = match only(headers, TIMESTAMP) {
        Only::None if lenient => None,
        one => {
            let time = text(one);
            let seconds = time.and_then(|time| time.parse::<u64>().ok());
            if seconds.is_none_or(|s| s.abs_diff(NOW_UNIX) > TIMESTAMP_WINDOW_S) {
                return false;
            }
            time
        }
    };
    let Some(signature) = text(only(headers, SIGNATURE)) else {
        return false;
    };
    let is_right = |path: &str| {
        let right = signature_of(id, path, time);
        signature
            .strip_prefix("sha256=")
            .is_some_and(|digits| digits.to_ascii_lowercase() == right)
    };
    names_key && (is_right(path) || lenient && is_right("/"))
}

fn signature_of(id: &str, path: &str, time: Option<&str>) -> String {
    let signed = match time {
        Some(time) => format!("{id}:{path}:{time}"),
        None => format!("{id}:{path}"),
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length");
    mac.update(signed.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

enum Only<'h> {
    None,
    One(&'h HeaderValue),
    Several,
}

fn only<'h>(headers: &'h HeaderMap, name: &str) -> Only<'h> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Only::None,
        (Some(one), None) => Only::One(one),
        _ => Only::Several,
    }
}

fn text(only: Only<'_>) -> Option<&str> {
    match only {
        Only::One(value) => value.to_str().ok(),
        Only::None | Only::Several => None,
    }
}

fn read(bytes: &[u8]) -> Option<(String, HeaderMap)> {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let path = String::from_utf8(lines.next()?.to_vec()).ok()?;
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let value = line[colon + 1..].trim_ascii();
        let name = HeaderName::from_bytes(&line[..colon]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let signed_path = match text(only(&headers, SIGNATURE)) {
        Some("sign") => Some(path.as_str()),
        Some("sign /") => Some("/"),
        _ => None,
    };
    if let Some(signed_path) = signed_path {
        let id = text(only(&headers, REQUEST_ID)).unwrap_or_default();
        let time = text(only(&headers, TIMESTAMP));
        let right = format!("sha256={}", signature_of(id, signed_path, time));
        let right = HeaderValue::from_str(&right).expect("ASCII");
        headers.insert(SIGNATURE, right);
    }
    Some((path, headers))
}
