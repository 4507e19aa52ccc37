//! Canonical JSON: the one byte string for a record that is hashed, signed or logged.
//!
//! Owns the writer and a parser that accepts exactly what the writer writes. Does not own any record's
//! fields. It is the subset of RFC 8785 (JCS) without floats and null: keys `[a-z0-9_]+` in byte order, no
//! white space, strings escaped as in RFC 8785 §3.2.2.2, integers 0…2^53−1, booleans, arrays, objects. What
//! is absent is left out; bytes are lower-case hex strings.
//!
//! Invariant: `parse(bytes)` succeeds only if `to_bytes` of the result is `bytes` again, so that equal
//! records have equal hashes and nothing can be smuggled in beside them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

/// The largest integer: 2^53 − 1, which every JSON reader holds exactly.
pub const MAX_INT: u64 = (1 << 53) - 1;

/// The deepest nesting of arrays and objects that the parser follows.
pub const MAX_DEPTH: usize = 32;

/// A value of canonical JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// An integer of at most [`MAX_INT`].
    Int(u64),
    /// A string.
    Str(String),
    /// An array.
    Array(Vec<Value>),
    /// An object.
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

    /// With this field; a field of the same key is replaced.
    ///
    /// # Panics
    /// If the key is not `[a-z0-9_]+`: keys are written by us, not received.
    #[must_use]
    pub fn put(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        assert!(is_key(key.as_bytes()), "{key:?} is not a canonical key");
        self.0.insert(Cow::Borrowed(key), value.into());
        self
    }

    /// With this field, if there is a value: absent, never null.
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
    /// If an integer is above [`MAX_INT`]: the edges bound what they let in, and a record with another
    /// number must not be signed.
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
        // A key holds nothing that would have to be escaped.
        out.push(b'"');
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":");
        write(value, out);
    }
    out.push(b'}');
}

fn write_int(mut int: u64, out: &mut Vec<u8>) {
    assert!(int <= MAX_INT, "a canonical integer is at most 2^53 - 1");
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
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
        written = at + 1;
    }
    out.extend_from_slice(&bytes[written..]);
    out.push(b'"');
}

fn needs_escape(byte: u8) -> bool {
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

/// Bytes that are not canonical JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not canonical JSON at byte {offset}: {rule}")]
pub struct CjError {
    /// Where, counted from 0.
    pub offset: usize,
    /// The rule that is broken there.
    pub rule: CjRule,
}

/// The rules that bytes can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CjRule {
    /// There are more bytes than the caller allows.
    Size,
    /// The bytes end inside a value.
    Truncated,
    /// Bytes follow the value.
    Trailing,
    /// No value starts so: white space, null, a sign and everything else that is not in the grammar.
    Value,
    /// Another byte was due: `,`, `:`, `]`, `}` or a key's `"`.
    Punctuation,
    /// A number has a leading zero, or a fraction or exponent.
    Number,
    /// An integer is above [`MAX_INT`].
    Range,
    /// A key is not `[a-z0-9_]+`.
    Key,
    /// A key does not come after the one before it.
    Order,
    /// A control character stands unescaped, or an escape is not the canonical one.
    Escape,
    /// A string is not UTF-8.
    Utf8,
    /// Arrays and objects are nested deeper than [`MAX_DEPTH`].
    Depth,
}

impl fmt::Display for CjRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "too many bytes",
            Self::Truncated => "the bytes end inside a value",
            Self::Trailing => "bytes follow the value",
            Self::Value => "no value starts with this byte",
            Self::Punctuation => "unexpected byte between values",
            Self::Number => "a number is an integer without leading zeros",
            Self::Range => "an integer is at most 2^53 - 1",
            Self::Key => "a key is made of a-z, 0-9 and _",
            Self::Order => "keys are distinct and in byte order",
            Self::Escape => "this character is escaped otherwise, or not at all",
            Self::Utf8 => "a string is UTF-8",
            Self::Depth => "nested more than 32 deep",
        })
    }
}

/// Reads the value of which `bytes` are the canonical form; refuses every other bytes.
///
/// # Errors
/// The first offset at which the bytes differ from any canonical form, and why. More than `max_bytes` are
/// refused unread.
pub fn parse(bytes: &[u8], max_bytes: usize) -> Result<Value, CjError> {
    let mut parser = Parser { bytes, at: 0 };
    if bytes.len() > max_bytes {
        parser.at = max_bytes;
        return Err(parser.broken(CjRule::Size));
    }
    let value = parser.value(0)?;
    if parser.at < bytes.len() {
        return Err(parser.broken(CjRule::Trailing));
    }
    Ok(value)
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, CjError> {
        if depth > MAX_DEPTH {
            return Err(self.broken(CjRule::Depth));
        }
        match self.peek()? {
            b'{' => self.object(depth).map(Value::Object),
            b'[' => self.array(depth).map(Value::Array),
            b'"' => self.string().map(Value::Str),
            b'0'..=b'9' => self.int().map(Value::Int),
            b't' => self.word(b"true", true),
            b'f' => self.word(b"false", false),
            _ => Err(self.broken(CjRule::Value)),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Object, CjError> {
        self.at += 1;
        let mut fields = BTreeMap::<Cow<'static, str>, Value>::new();
        if self.take_if(b'}') {
            return Ok(Object(fields));
        }
        loop {
            let start = self.at;
            let key = self.key()?;
            if fields
                .last_key_value()
                .is_some_and(|(last, _)| **last >= *key)
            {
                self.at = start;
                return Err(self.broken(CjRule::Order));
            }
            self.take(b':')?;
            let value = self.value(depth + 1)?;
            fields.insert(key.into(), value);
            if self.ends_with(b'}')? {
                return Ok(Object(fields));
            }
        }
    }

    fn key(&mut self) -> Result<String, CjError> {
        self.take(b'"')?;
        let start = self.at;
        while self.peek()? != b'"' {
            if !is_key(&self.bytes[self.at..=self.at]) {
                return Err(self.broken(CjRule::Key));
            }
            self.at += 1;
        }
        if self.at == start {
            return Err(self.broken(CjRule::Key));
        }
        let key = self.bytes[start..self.at].iter().copied().map(char::from);
        self.at += 1;
        Ok(key.collect())
    }

    fn array(&mut self, depth: usize) -> Result<Vec<Value>, CjError> {
        self.at += 1;
        let mut elements = Vec::new();
        if self.take_if(b']') {
            return Ok(elements);
        }
        loop {
            elements.push(self.value(depth + 1)?);
            if self.ends_with(b']')? {
                return Ok(elements);
            }
        }
    }

    fn string(&mut self) -> Result<String, CjError> {
        self.at += 1;
        let mut text = String::new();
        loop {
            let start = self.at;
            while !needs_escape(self.peek()?) {
                self.at += 1;
            }
            let run = &self.bytes[start..self.at];
            let run = std::str::from_utf8(run).map_err(|why| CjError {
                offset: start + why.valid_up_to(),
                rule: CjRule::Utf8,
            })?;
            text.push_str(run);
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Ok(text);
                }
                b'\\' => text.push(self.escape()?),
                _ => return Err(self.broken(CjRule::Escape)),
            }
        }
    }

    fn escape(&mut self) -> Result<char, CjError> {
        let start = self.at;
        let mut written = Vec::with_capacity(8);
        // There are 34 characters with an escape, and each has one: compare with what would be written.
        for byte in (0..0x20).chain([b'"', b'\\']) {
            let character = char::from(byte);
            written.clear();
            write_string(character.encode_utf8(&mut [0; 4]), &mut written);
            let escape = &written[1..written.len() - 1];
            if self.bytes[start..].starts_with(escape) {
                self.at += escape.len();
                return Ok(character);
            }
        }
        Err(self.broken(CjRule::Escape))
    }

    fn int(&mut self) -> Result<u64, CjError> {
        let start = self.at;
        let mut int = 0u64;
        while let Some(digit @ b'0'..=b'9') = self.bytes.get(self.at) {
            // At most 2^53 before the step, so this cannot overflow.
            int = int * 10 + u64::from(digit - b'0');
            if int > MAX_INT {
                return Err(self.broken(CjRule::Range));
            }
            self.at += 1;
        }
        let leading_zero = self.bytes[start] == b'0' && self.at > start + 1;
        let goes_on = matches!(self.bytes.get(self.at), Some(b'.' | b'e' | b'E'));
        if leading_zero || goes_on {
            return Err(self.broken(CjRule::Number));
        }
        Ok(int)
    }

    fn word(&mut self, word: &[u8], fact: bool) -> Result<Value, CjError> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(Value::Bool(fact))
        } else {
            Err(self.broken(CjRule::Value))
        }
    }

    /// After an element: `end` closes the list, a comma continues it.
    fn ends_with(&mut self, end: u8) -> Result<bool, CjError> {
        if self.peek()? == end {
            self.at += 1;
            return Ok(true);
        }
        self.take(b',').map(|()| false)
    }

    fn take(&mut self, due: u8) -> Result<(), CjError> {
        if self.peek()? == due {
            self.at += 1;
            Ok(())
        } else {
            Err(self.broken(CjRule::Punctuation))
        }
    }

    fn take_if(&mut self, wanted: u8) -> bool {
        let found = self.bytes.get(self.at) == Some(&wanted);
        self.at += usize::from(found);
        found
    }

    fn peek(&self) -> Result<u8, CjError> {
        let next = self.bytes.get(self.at).copied();
        next.ok_or_else(|| self.broken(CjRule::Truncated))
    }

    fn broken(&self, rule: CjRule) -> CjError {
        CjError {
            offset: self.at,
            rule,
        }
    }
}

#[cfg(test)]
mod tests;
