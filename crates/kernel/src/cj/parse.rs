//! The strict reader of canonical JSON.
//!
//! Owns the parser and its errors: it accepts exactly the bytes that the writer makes, in one pass, and reports the
//! offset of the first wrong byte. [`MAX_DEPTH`] bounds recursion, the caller bounds size.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

use super::{MAX_INT, Object, Value, is_key, needs_escape, write_string};

/// The deepest nesting of arrays and objects that the parser follows.
pub const MAX_DEPTH: usize = 32;

/// Bytes that are not canonical JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not canonical JSON at byte {offset}: {rule}")]
pub struct CjError {
    /// Offset of the error in bytes, from 0.
    pub offset: usize,
    /// The rule that the bytes break.
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
    /// No value starts with this byte: white space, null, a sign or anything else outside the grammar.
    Value,
    /// The byte is not the expected `,`, `:`, `]`, `}` or a key's `"`.
    Punctuation,
    /// A number has a leading zero, or a fraction or exponent.
    Number,
    /// An integer is above [`MAX_INT`].
    Range,
    /// A key is not `[a-z0-9_]+`.
    Key,
    /// A key does not sort after the previous one.
    Order,
    /// A control character is unescaped, or an escape is not the canonical one.
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

/// Reads the value whose canonical form is `bytes`; refuses all other bytes.
///
/// # Errors
/// [`CjError`] with the first offset at which the bytes differ from any canonical form, and the broken rule. Input
/// longer than `max_bytes` is refused unread.
pub fn parse(bytes: &[u8], max_bytes: usize) -> Result<Value, CjError> {
    let mut parser = Parser { bytes, at: 0 };
    // Check the size first, so that the caller's bound limits time and memory too.
    if bytes.len() > max_bytes {
        parser.at = max_bytes;
        return Err(parser.broken(CjRule::Size));
    }
    let value = parser.value(0)?;
    // Bytes after the value would be hashed and signed with it, and no reader would see them.
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
        // Each level is a recursive call: without a bound, brackets alone would overflow the stack.
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
            // This also refuses a duplicate key: one reader would take the first value, another the
            // last.
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
            // A run ends at an ASCII character, so it never cuts a multi-byte character in two.
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
        // Each of the 34 escaped characters has one spelling: compare with what the writer would write.
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
        // A leading zero, a fraction or an exponent would be a second spelling of a number.
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
