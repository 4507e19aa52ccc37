//! Canonical JSON: the one byte string for a record that is hashed, signed or logged.
//!
//! Owns the writer and a parser that accepts exactly what the writer writes. Does not own any record's fields. It is
//! the subset of RFC 8785 (JCS) without floats and null: keys `[a-z0-9_]+` in byte order, no white space, strings
//! escaped as in RFC 8785 §3.2.2.2, integers 0…2^53−1, booleans, arrays, objects. Absent fields are left out; bytes
//! are lower-case hex strings.
//!
//! Invariant: `parse(bytes)` succeeds only if `to_bytes` of the result is `bytes` again, so that equal records have
//! equal hashes and nothing can be smuggled in beside them.

use std::borrow::Cow;
use std::collections::BTreeMap;

mod parse;

pub use parse::{CjError, CjRule, MAX_DEPTH, parse};

/// The largest integer: 2^53 − 1, which every JSON reader holds exactly.
pub const MAX_INT: u64 = (1 << 53) - 1;

/// A value of canonical JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Bool(bool),
    /// An integer of at most [`MAX_INT`].
    Int(u64),
    Str(String),
    Array(Vec<Value>),
    Object(Object),
}

/// The fields of an object, in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object(BTreeMap<Cow<'static, str>, Value>);

impl Object {
    /// An object without fields.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a field and replaces one of the same key.
    ///
    /// # Panics
    /// If the key is not `[a-z0-9_]+`: our own code writes keys, no caller does.
    #[must_use]
    pub fn put(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        assert!(is_key(key.as_bytes()), "{key:?} is not a canonical key");
        // RFC 8785 §3.2.3 sorts keys by UTF-16 code units. For the characters of a key that is the
        // byte order of the map, so records may put their fields in any order.
        self.0.insert(Cow::Borrowed(key), value.into());
        self
    }

    /// Sets a field if there is a value: absent, never null.
    ///
    /// # Panics
    /// As [`Object::put`].
    #[must_use]
    pub fn put_some(self, key: &'static str, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.put(key, value),
            None => self,
        }
    }

    /// The value of a field.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Takes a field out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key)
    }

    /// All fields, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value))
    }

    /// The number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no fields.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The canonical bytes.
    ///
    /// # Panics
    /// As [`Value::to_bytes`].
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Most records fit, so that the buffer grows at most once.
        let mut out = Vec::with_capacity(2_048);
        write_object(self, &mut out);
        out
    }
}

impl Value {
    /// The canonical bytes.
    ///
    /// # Panics
    /// If an integer is above [`MAX_INT`]: the edges bound their inputs, and a record with a larger number must not
    /// be signed.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2_048);
        write(self, &mut out);
        out
    }

    /// The integer, if it is one.
    #[must_use]
    pub fn as_int(&self) -> Option<u64> {
        match self {
            Self::Int(int) => Some(*int),
            Self::Bool(_) | Self::Str(_) | Self::Array(_) | Self::Object(_) => None,
        }
    }

    /// The boolean, if it is one.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(fact) => Some(*fact),
            Self::Int(_) | Self::Str(_) | Self::Array(_) | Self::Object(_) => None,
        }
    }

    /// The string, if it is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            Self::Bool(_) | Self::Int(_) | Self::Array(_) | Self::Object(_) => None,
        }
    }

    /// The elements, if it is an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(elements) => Some(elements),
            Self::Bool(_) | Self::Int(_) | Self::Str(_) | Self::Object(_) => None,
        }
    }

    /// The fields, if it is an object.
    #[must_use]
    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            Self::Bool(_) | Self::Int(_) | Self::Str(_) | Self::Array(_) => None,
        }
    }
}

impl From<bool> for Value {
    fn from(fact: bool) -> Self {
        Self::Bool(fact)
    }
}

impl From<u8> for Value {
    fn from(int: u8) -> Self {
        Self::Int(int.into())
    }
}

impl From<u32> for Value {
    fn from(int: u32) -> Self {
        Self::Int(int.into())
    }
}

impl From<u64> for Value {
    fn from(int: u64) -> Self {
        Self::Int(int)
    }
}

impl From<crate::bits::MicroBits> for Value {
    fn from(amount: crate::bits::MicroBits) -> Self {
        Self::Int(amount.get())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text)
    }
}

impl From<Object> for Value {
    fn from(object: Object) -> Self {
        Self::Object(object)
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(elements: Vec<T>) -> Self {
        elements.into_iter().collect()
    }
}

impl<T: Into<Value>> FromIterator<T> for Value {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        Self::Array(elements.into_iter().map(Into::into).collect())
    }
}

/// Writes the fields of an object directly, without building an [`Object`] first: for records that
/// are made so often that the tree would cost time. The bytes are those of an [`Object`].
#[derive(Debug)]
pub struct Writer {
    out: Vec<u8>,
    last: &'static str,
}

impl Writer {
    /// An object without fields, with room for this many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        let mut out = Vec::with_capacity(bytes);
        out.push(b'{');
        Self { out, last: "" }
    }

    /// Adds a text field.
    ///
    /// # Panics
    /// If the key is not `[a-z0-9_]+`, or does not sort after the previous key.
    #[must_use]
    pub fn str(mut self, key: &'static str, text: &str) -> Self {
        self.key(key);
        write_string(text, &mut self.out);
        self
    }

    /// Adds bytes as hex.
    ///
    /// # Panics
    /// As [`Writer::str`].
    #[must_use]
    pub fn hex(mut self, key: &'static str, bytes: &[u8]) -> Self {
        self.key(key);
        self.out.push(b'"');
        for byte in bytes {
            write_hex(*byte, &mut self.out);
        }
        self.out.push(b'"');
        self
    }

    /// Adds bytes as hex, if there are any.
    ///
    /// # Panics
    /// As [`Writer::str`].
    #[must_use]
    pub fn hex_if(self, key: &'static str, bytes: Option<impl AsRef<[u8]>>) -> Self {
        match bytes {
            Some(bytes) => self.hex(key, bytes.as_ref()),
            None => self,
        }
    }

    /// Adds an integer field.
    ///
    /// # Panics
    /// As [`Writer::str`], and if the integer is above [`MAX_INT`].
    #[must_use]
    pub fn int(mut self, key: &'static str, int: u64) -> Self {
        self.key(key);
        write_int(int, &mut self.out);
        self
    }

    /// Closes the object and returns its canonical bytes.
    #[must_use]
    pub fn to_bytes(mut self) -> Vec<u8> {
        self.out.push(b'}');
        self.out
    }

    fn key(&mut self, key: &'static str) {
        assert!(is_key(key.as_bytes()), "{key:?} is not a canonical key");
        // Written fields cannot be sorted any more, and another order would give another hash.
        assert!(self.last < key, "{key:?} comes before {:?}", self.last);
        if !self.last.is_empty() {
            self.out.push(b',');
        }
        write_key(key, &mut self.out);
        self.last = key;
    }
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(int) => write_int(*int, out),
        Value::Str(text) => write_string(text, out),
        Value::Array(elements) => {
            out.push(b'[');
            for (i, element) in elements.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(element, out);
            }
            out.push(b']');
        }
        Value::Object(object) => write_object(object, out),
    }
}

fn write_object(object: &Object, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (key, value)) in object.0.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_key(key, out);
        write(value, out);
    }
    out.push(b'}');
}

/// Keys contain no character that needs escaping.
fn write_key(key: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn write_hex(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(HEX[usize::from(byte >> 4)]);
    out.push(HEX[usize::from(byte & 15)]);
}

fn write_int(mut int: u64, out: &mut Vec<u8>) {
    assert!(int <= MAX_INT, "a canonical integer is at most 2^53 - 1");
    // 2^53 − 1 has 16 digits.
    let mut digits = [0; 16];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (int % 10) as u8;
        int /= 10;
        if int == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut written = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if !needs_escape(byte) {
            continue;
        }
        out.extend_from_slice(&bytes[written..at]);
        out.push(b'\\');
        match short_escape(byte) {
            Some(letter) => out.push(letter),
            None => {
                // RFC 8785 §3.2.2.2 writes the other control characters as \u00hh, in lower case.
                out.extend_from_slice(b"u00");
                write_hex(byte, out);
            }
        }
        written = at + 1;
    }
    out.extend_from_slice(&bytes[written..]);
    out.push(b'"');
}

fn needs_escape(byte: u8) -> bool {
    // RFC 8785 §3.2.2.2 leaves DEL and all characters beyond ASCII unescaped: a second spelling of
    // a text would be a second hash of its record.
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// The letter after the backslash, for the seven characters that have one (RFC 8785 §3.2.2.2).
fn short_escape(byte: u8) -> Option<u8> {
    Some(match byte {
        0x08 => b'b',
        0x09 => b't',
        0x0a => b'n',
        0x0c => b'f',
        0x0d => b'r',
        b'"' | b'\\' => byte,
        _ => return None,
    })
}

fn is_key(key: &[u8]) -> bool {
    let allowed = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
    !key.is_empty() && key.iter().all(allowed)
}

#[cfg(test)]
mod tests;
