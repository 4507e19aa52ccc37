//! Typed access to an entry's fields: reading a field removes it, and an unread field is an error.

use evidenceos_kernel::{
    cj,
    id::{Digest, HoldoutId},
    record::{MAX_ENTRY_LEN, RecordError},
};

/// An entry's unread fields.
pub(crate) struct Fields(cj::Object);

impl Fields {
    pub(crate) fn parse(entry: &[u8]) -> Result<Self, RecordError> {
        match cj::parse(entry, MAX_ENTRY_LEN)? {
            cj::Value::Object(object) => Ok(Self(object)),
            cj::Value::Bool(_) | cj::Value::Int(_) | cj::Value::Str(_) | cj::Value::Array(_) => {
                Err(missing("schema"))
            }
        }
    }

    /// The one field with the entry's time, whatever its name; it stays unread.
    pub(crate) fn unix_ms(&self) -> Option<u64> {
        // With two times, the rule that time does not go back would be ambiguous.
        let mut times = self.0.iter().filter(|(key, _)| key.ends_with("_unix_ms"));
        match (times.next(), times.next()) {
            (Some((_, time)), None) => time.as_int(),
            _ => None,
        }
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<String, RecordError> {
        match self.0.remove(name) {
            Some(cj::Value::Str(text)) => Ok(text),
            _ => Err(missing(name)),
        }
    }

    /// A text that a person wrote: 1 to 256 bytes without control characters.
    pub(crate) fn public_text(&mut self, name: &str) -> Result<String, RecordError> {
        let text = self.text(name)?;
        public_text(name, &text)?;
        Ok(text)
    }

    pub(crate) fn maybe_text(&mut self, name: &str) -> Result<Option<String>, RecordError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(_) => self.text(name).map(Some),
        }
    }

    pub(crate) fn int(&mut self, name: &str) -> Result<u64, RecordError> {
        match self.0.remove(name) {
            Some(cj::Value::Int(int)) => Ok(int),
            _ => Err(missing(name)),
        }
    }

    pub(crate) fn digest(&mut self, name: &str) -> Result<Digest, RecordError> {
        Digest::from_hex(&self.text(name)?).ok_or_else(|| missing(name))
    }

    pub(crate) fn holdout(&mut self) -> Result<HoldoutId, RecordError> {
        Ok(HoldoutId(self.digest("holdout_id_hex")?.0))
    }

    pub(crate) fn finish(self) -> Result<(), RecordError> {
        match self.0.iter().next() {
            Some((name, _)) => Err(RecordError::Unknown(name.to_owned())),
            None => Ok(()),
        }
    }
}

/// Demands 1 to 256 bytes without control characters.
pub(crate) fn public_text(name: &str, text: &str) -> Result<(), RecordError> {
    if (1..=256).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(value(
            name,
            "must be 1 to 256 bytes of text without control characters",
        ))
    }
}

/// The error for a value out of its range.
pub(crate) fn value(name: &str, rule: &str) -> RecordError {
    RecordError::Value {
        field: name.to_owned(),
        rule: rule.to_owned(),
    }
}

fn missing(name: &str) -> RecordError {
    RecordError::Field(name.to_owned())
}
