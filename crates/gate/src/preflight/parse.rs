//! Requests of the gate for agents: bytes in, checked fields out.
//!
//! The fields of a body are first parsed to JSON trees: of repeated keys the last counts, nesting
//! is bounded, invalid numbers are refused, unknown fields are skipped, and null means absent. A
//! refusal repeats nothing from the request.

use std::fmt;

use evidenceos_kernel::id::Digest;
use http::{HeaderMap, HeaderName};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

/// The longest name, in bytes.
const MAX_NAME: usize = 128;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_ALIAS: HeaderName = HeaderName::from_static("x-evidenceos-request-id");

/// The problem of a request. The words are those of the published daemon's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// The request has no id.
    MissingRequestId,
    /// A request id with invalid characters, or too long.
    InvalidRequestId,
    /// The body is not JSON.
    InvalidJson,
    /// The body lacks a field, or a field has another type.
    Schema,
    /// A name that is empty or too long.
    InvalidLength,
    /// A name with invalid characters.
    InvalidChars,
    /// A hash that is not 64 hex digits.
    InvalidParamsHash,
    /// A hash that differs from the gate's own, if that is an error.
    ParamsHashMismatch,
    /// The body did not come in time.
    Slow,
}

impl Malformed {
    /// The name of the problem in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::MissingRequestId => "missing_request_id",
            Self::InvalidRequestId => "invalid_request_id",
            Self::InvalidJson => "invalid_json",
            Self::Schema => "params_not_object",
            Self::InvalidLength => "invalid_length",
            Self::InvalidChars => "invalid_chars",
            Self::InvalidParamsHash => "invalid_params_hash",
            Self::ParamsHashMismatch => "params_hash_mismatch",
            Self::Slow => "slow",
        }
    }
}

impl Malformed {
    /// The problem in words, for a header of the answer: it repeats nothing from the request.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::MissingRequestId => "send the header x-request-id",
            Self::InvalidRequestId => {
                "x-request-id has 1 to 128 characters of 0x21-0x7e without a colon"
            }
            Self::InvalidJson => "the body is not JSON",
            Self::Schema => {
                "the body is a JSON object with toolName (a string) and params (an object); other fields have their own kinds, see /openapi.json"
            }
            Self::InvalidLength => "a name is empty or longer than 128 bytes",
            Self::InvalidChars => "a name has a character that is not printable ASCII",
            Self::InvalidParamsHash => "paramsHash is 64 hex digits",
            Self::ParamsHashMismatch => "paramsHash is not the SHA-256 of params as canonical JSON",
            Self::Slow => "the body did not come in time",
        }
    }
}

/// Requires a request id: 1–128 bytes of 0x21–0x7E without a colon.
pub fn request_id(headers: &HeaderMap) -> Result<&str, Malformed> {
    let value = headers
        .get(REQUEST_ID)
        .or_else(|| headers.get(REQUEST_ID_ALIAS))
        .ok_or(Malformed::MissingRequestId)?;
    value
        .to_str()
        .ok()
        .filter(|id| (1..=MAX_NAME).contains(&id.len()))
        .filter(|id| id.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b':'))
        .ok_or(Malformed::InvalidRequestId)
}

/// The fields of bodies; others are skipped and take no memory.
const FIELDS: [&str; 12] = [
    "toolName",
    "params",
    "paramsHash",
    "sessionId",
    "agentId",
    "outputHash",
    "preflightReceiptHash",
    "output",
    "status",
    "moduleBase64",
    "declaredExports",
    "fuelLimit",
];

/// The fields of a body, by their position in `FIELDS`.
#[derive(Default)]
pub struct Body([Option<Value>; FIELDS.len()]);

impl Body {
    /// Parses a body that must be one JSON object.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        // Other JSON is parsed once more to find out what it is.
        serde_json::from_slice(bytes).map_err(|_| match serde_json::from_slice(bytes) {
            Ok(Value::Object(_)) | Err(_) => Malformed::InvalidJson,
            Ok(_) => Malformed::Schema,
        })
    }

    /// Takes a field; null means absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        let at = place(name)?;
        self.0[at].take().filter(|value| !value.is_null())
    }

    /// Takes a field that must be text; null means absent.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Malformed> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Malformed::Schema),
        }
    }

    /// Takes a name: at most 128 bytes of printable ASCII.
    pub fn name(&mut self, name: &str) -> Result<Option<String>, Malformed> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        if text.len() > MAX_NAME {
            Err(Malformed::InvalidLength)
        } else if !text.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
            Err(Malformed::InvalidChars)
        } else {
            Ok(Some(text))
        }
    }

    /// Takes a digest: 64 hex digits.
    pub fn digest(&mut self, name: &str) -> Result<Option<HexDigest>, Malformed> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match Digest::from_typed_hex(&text) {
            Some(digest) => Ok(Some(HexDigest { text, digest })),
            None => Err(Malformed::InvalidParamsHash),
        }
    }
}

fn place(name: &str) -> Option<usize> {
    FIELDS.iter().position(|field| *field == name)
}

/// A body's key: the position of its field, if it is a known one.
struct Key(Option<usize>);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl Visitor<'_> for Words {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, word: &str) -> Result<Key, E> {
                Ok(Key(place(word)))
            }
        }
        deserializer.deserialize_identifier(Words)
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Body;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
                let mut body = Body::default();
                while let Some(Key(at)) = map.next_key()? {
                    match at {
                        Some(at) => body.0[at] = Some(map.next_value()?),
                        None => {
                            // The value is skipped without a tree, so that an unknown field costs
                            // no memory.
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(body)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A digest as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HexDigest {
    /// The text of the digest.
    pub text: String,
    pub digest: Digest,
}

/// A tool call that is about to be made.
#[derive(Debug)]
pub struct ToolCall {
    pub tool_name: String,
    /// The parameters as canonical JSON: keys in byte order, no white space.
    pub canonical_params: Vec<u8>,
    /// SHA-256 of the canonical parameters.
    pub params_hash: Digest,
    /// The caller's name for the session.
    pub session_id: Option<String>,
    /// The agent's name from the caller; never an identity.
    pub agent_id: Option<String>,
}

impl ToolCall {
    /// Parses a body. With `strict`, a hash that differs from the gate's own is an error.
    pub fn parse(bytes: &[u8], strict: bool) -> Result<Self, Malformed> {
        let mut body = Body::parse(bytes)?;
        // The types of all fields come first, then their content, in the published daemon's order.
        let params = match body.take("params") {
            Some(Value::Object(params)) => params,
            _ => return Err(Malformed::Schema),
        };
        let tool_name = tool_name(&mut body)?;
        let session_id = body.name("sessionId")?;
        let agent_id = body.name("agentId")?;
        // The map is sorted, so this is canonical.
        let canonical_params =
            serde_json::to_vec(&params).map_err(|_unprintable| Malformed::InvalidJson)?;
        let params_hash = Digest::of(&canonical_params);
        if let Some(sent) = params_hash_of(&mut body)?
            && strict
            && sent.text != params_hash.to_hex()
        {
            return Err(Malformed::ParamsHashMismatch);
        }
        Ok(Self {
            tool_name,
            canonical_params,
            params_hash,
            session_id,
            agent_id,
        })
    }
}

/// A digest with an optional `sha256:` before it, which one published client writes.
fn params_hash_of(body: &mut Body) -> Result<Option<HexDigest>, Malformed> {
    let Some(text) = body.text("paramsHash")? else {
        return Ok(None);
    };
    let text = text.strip_prefix("sha256:").unwrap_or(&text).to_owned();
    match Digest::from_typed_hex(&text) {
        Some(digest) => Ok(Some(HexDigest { text, digest })),
        None => Err(Malformed::InvalidParamsHash),
    }
}

/// The tool's name: 1–128 bytes of printable ASCII, not spaces alone.
pub fn tool_name(body: &mut Body) -> Result<String, Malformed> {
    let name = body.name("toolName")?.ok_or(Malformed::Schema)?;
    if name.trim().is_empty() {
        return Err(Malformed::InvalidLength);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(params: &str) -> String {
        format!(r#"{{"toolName":"search.web","params":{params}}}"#)
    }

    /// One line of `testdata/gate/params-hash.json`. Another program computed its hash. The first seven are those of
    /// the published contract.
    #[derive(serde::Deserialize)]
    struct Vector {
        params: String,
        canonical: String,
        sha256: String,
    }

    #[test]
    fn params_hash_as_published() {
        let vectors = include_str!("../../../../testdata/gate/params-hash.json");
        let vectors: Vec<Vector> = serde_json::from_str(vectors).expect("vectors");
        assert!(vectors.len() > 7);
        for Vector {
            params,
            canonical,
            sha256,
        } in vectors
        {
            let call = ToolCall::parse(call(&params).as_bytes(), false).expect(&params);
            let found = String::from_utf8(call.canonical_params).expect("text");
            assert_eq!(found, canonical, "{params}");
            assert_eq!(call.params_hash.to_hex(), sha256, "{params}");
        }
    }

    #[test]
    fn a_number_is_the_nearest_double() {
        // As Python and JavaScript read it; found by fuzzing.
        let number =
            "26666666666666666666666666666666666666666666666666666666666666666666666666.5e3";
        let body = call(&format!(r#"{{"n":{number}}}"#));
        let call = ToolCall::parse(body.as_bytes(), false).expect("a number");
        assert_eq!(call.canonical_params, br#"{"n":2.6666666666666668e+76}"#);
    }

    #[test]
    fn what_is_malformed_is_refused_by_its_name() {
        use Malformed as M;
        let long = "x".repeat(129);
        let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
        for (body, expected) in [
            (String::new(), M::InvalidJson),
            ("{".to_owned(), M::InvalidJson),
            ("\u{feff}{}".to_owned(), M::InvalidJson),
            (call(r#"{"n":NaN}"#), M::InvalidJson),
            (call(r#"{"n":1e400}"#), M::InvalidJson),
            (call(r#"{"n":"\ud800"}"#), M::InvalidJson),
            (call(&deep), M::InvalidJson),
            ("[]".to_owned(), M::Schema),
            (call("[]"), M::Schema),
            (call("null"), M::Schema),
            (r#"{"params":{}}"#.to_owned(), M::Schema),
            (r#"{"toolName":7,"params":{}}"#.to_owned(), M::Schema),
            (
                r#"{"toolName":"","params":{}}"#.to_owned(),
                M::InvalidLength,
            ),
            (
                format!(r#"{{"toolName":"{long}","params":{{}}}}"#),
                M::InvalidLength,
            ),
            (
                r#"{"toolName":"é","params":{}}"#.to_owned(),
                M::InvalidChars,
            ),
            (
                r#"{"toolName":"a","params":{},"sessionId":"\n"}"#.to_owned(),
                M::InvalidChars,
            ),
            (
                format!(r#"{{"toolName":"a","params":{{}},"agentId":"{long}"}}"#),
                M::InvalidLength,
            ),
            (
                r#"{"toolName":"a","params":{},"paramsHash":"ab"}"#.to_owned(),
                M::InvalidParamsHash,
            ),
            (
                r#"{"toolName":"a","params":{},"paramsHash":3}"#.to_owned(),
                M::Schema,
            ),
        ] {
            let refused = ToolCall::parse(body.as_bytes(), false).err();
            assert_eq!(refused, Some(expected), "{body}");
        }
        assert_eq!(
            ToolCall::parse(b"{\"toolName\":\"\xff\",\"params\":{}}", false).err(),
            Some(M::InvalidJson)
        );
    }

    #[test]
    fn a_hash_that_is_not_ours_is_an_error_only_if_that_is_asked_for() {
        let ours = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        let other = "0".repeat(64);
        for (hash, strict, refused) in [
            (ours, true, None),
            (ours, false, None),
            (&format!("sha256:{ours}"), true, None),
            (&other, false, None),
            (&other, true, Some(Malformed::ParamsHashMismatch)),
            (
                &ours.to_uppercase(),
                true,
                Some(Malformed::ParamsHashMismatch),
            ),
        ] {
            let body = format!(r#"{{"toolName":"a","params":{{}},"paramsHash":"{hash}"}}"#);
            assert_eq!(
                ToolCall::parse(body.as_bytes(), strict).err(),
                refused,
                "{hash} {strict}"
            );
        }
    }

    #[test]
    fn the_last_of_two_equal_keys_counts_and_null_is_absent() {
        let body =
            r#"{"toolName":"a","toolName":"b","params":{"x":1,"x":2},"sessionId":null,"more":[]}"#;
        let call = ToolCall::parse(body.as_bytes(), false).expect("a call");
        assert_eq!(call.tool_name, "b");
        assert_eq!(call.canonical_params, br#"{"x":2}"#);
        assert_eq!(call.session_id, None);
    }

    #[test]
    fn unknown_fields_may_be_anything_that_is_json() {
        let with = |more: &str| format!(r#"{{"more":{more},"toolName":"a","params":{{}}}}"#);
        for (more, is_fine) in [
            ("[1,{\"a\":null}]", true),
            ("1e400", true),
            ("tru", false),
            ("[", false),
        ] {
            let parsed = ToolCall::parse(with(more).as_bytes(), false);
            assert_eq!(parsed.is_ok(), is_fine, "{more}");
        }
    }

    #[test]
    fn a_request_id_is_demanded_and_has_a_second_name() {
        for (name, value, expected) in [
            ("x-request-id", "r-1", Ok("r-1")),
            ("x-evidenceos-request-id", "r-2", Ok("r-2")),
            ("x-other", "r", Err(Malformed::MissingRequestId)),
            ("x-request-id", "", Err(Malformed::InvalidRequestId)),
            ("x-request-id", "a:b", Err(Malformed::InvalidRequestId)),
            ("x-request-id", "a b", Err(Malformed::InvalidRequestId)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a value"));
            assert_eq!(request_id(&headers), expected, "{name}: {value}");
        }
    }
}
