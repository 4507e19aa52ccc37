//! Reading an object of canonical JSON field by field.

use super::{MAX_ENTRY_LEN, RecordError};
use crate::{
    bits::MicroBits,
    cj,
    id::{Digest, HoldoutId, canonical_hex},
};

pub(crate) fn as_int(value: cj::Value) -> Result<u64, RecordError> {
    match value {
        cj::Value::Int(int) => Ok(int),
        _ => Err(RecordError::Field("an integer".to_owned())),
    }
}

pub(crate) fn as_digest(value: cj::Value) -> Result<Digest, RecordError> {
    match &value {
        cj::Value::Str(text) => Digest::from_hex(text),
        _ => None,
    }
    .ok_or_else(|| RecordError::Field("a digest".to_owned()))
}

/// The unread fields of an object; a field that stays unread is an error.
pub(crate) struct Fields<'e> {
    left: cj::Object,
    entry: &'e [u8],
}

impl<'e> Fields<'e> {
    pub(crate) fn parse(entry: &'e [u8]) -> Result<Self, RecordError> {
        Self::of(cj::parse(entry, MAX_ENTRY_LEN)?, entry)
    }

    fn of(value: cj::Value, entry: &'e [u8]) -> Result<Self, RecordError> {
        match value {
            cj::Value::Object(left) => Ok(Self { left, entry }),
            _ => Err(RecordError::Field("an object".to_owned())),
        }
    }

    /// The bytes of the whole entry, even if these fields belong to an object inside it.
    pub(crate) fn entry(&self) -> &'e [u8] {
        self.entry
    }

    pub(crate) fn maybe(&mut self, name: &str) -> Option<cj::Value> {
        // A field that is read is removed, so that `finish` sees the unread ones.
        self.left.remove(name)
    }

    fn take(&mut self, name: &str) -> Result<cj::Value, RecordError> {
        self.maybe(name)
            .ok_or_else(|| RecordError::Field(name.to_owned()))
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Self, RecordError> {
        Self::of(self.take(name)?, self.entry)
    }

    pub(crate) fn maybe_object(&mut self, name: &str) -> Result<Option<Self>, RecordError> {
        self.maybe(name)
            .map(|value| Self::of(value, self.entry))
            .transpose()
    }

    /// The objects of an array.
    pub(crate) fn objects(&mut self, name: &str) -> Result<Vec<Self>, RecordError> {
        let values = self.array(name, Some)?;
        values
            .into_iter()
            .map(|value| Self::of(value, self.entry))
            .collect()
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<String, RecordError> {
        match self.take(name)? {
            cj::Value::Str(text) => Ok(text),
            _ => Err(RecordError::Field(name.to_owned())),
        }
    }

    pub(crate) fn expect(&mut self, name: &str, wanted: &str) -> Result<(), RecordError> {
        if self.string(name)? == wanted {
            Ok(())
        } else {
            Err(RecordError::Field(name.to_owned()))
        }
    }

    pub(crate) fn word<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, RecordError> {
        let text = self.string(name)?;
        read(&text).ok_or_else(|| RecordError::Field(name.to_owned()))
    }

    pub(crate) fn digest(&mut self, name: &str) -> Result<Digest, RecordError> {
        self.word(name, Digest::from_hex)
    }

    pub(crate) fn holdout(&mut self) -> Result<HoldoutId, RecordError> {
        Ok(HoldoutId(self.digest("holdout_id_hex")?.0))
    }

    pub(crate) fn bits(&mut self, name: &str) -> Result<MicroBits, RecordError> {
        Ok(MicroBits(self.int(name)?))
    }

    pub(crate) fn maybe_bits(&mut self, name: &str) -> Result<Option<MicroBits>, RecordError> {
        Ok(self.maybe_int(name)?.map(MicroBits))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.left.get(name).is_some()
    }

    pub(crate) fn maybe_int(&mut self, name: &str) -> Result<Option<u64>, RecordError> {
        self.maybe(name).map(as_int).transpose()
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, RecordError> {
        match self.take(name)? {
            cj::Value::Bool(flag) => Ok(flag),
            _ => Err(RecordError::Field(name.to_owned())),
        }
    }

    /// A flag that is present and true, or absent.
    pub(crate) fn said(&mut self, name: &str) -> Result<bool, RecordError> {
        match self.maybe(name) {
            None => Ok(false),
            Some(cj::Value::Bool(true)) => Ok(true),
            // `false` would be a second spelling of a record that leaves the field out.
            Some(_) => Err(RecordError::Field(name.to_owned())),
        }
    }

    pub(crate) fn maybe_digest(&mut self, name: &str) -> Result<Option<Digest>, RecordError> {
        self.maybe(name).map(as_digest).transpose()
    }

    pub(crate) fn signature(&mut self, name: &str) -> Result<[u8; 64], RecordError> {
        self.word(name, canonical_hex)
    }

    pub(crate) fn int<T: TryFrom<u64>>(&mut self, name: &str) -> Result<T, RecordError> {
        // A number beyond the field's type is refused: truncated, it would read as another number.
        T::try_from(as_int(self.take(name)?)?).map_err(|_| RecordError::Field(name.to_owned()))
    }

    pub(crate) fn array<T>(
        &mut self,
        name: &str,
        read: impl Fn(cj::Value) -> Option<T>,
    ) -> Result<Vec<T>, RecordError> {
        match self.take(name)? {
            cj::Value::Array(values) => values
                .into_iter()
                .map(|value| read(value).ok_or_else(|| RecordError::Field(name.to_owned())))
                .collect(),
            _ => Err(RecordError::Field(name.to_owned())),
        }
    }

    pub(crate) fn finish(self) -> Result<(), RecordError> {
        match self.left.iter().next() {
            Some((name, _)) => Err(RecordError::Unknown(name.to_owned())),
            None => Ok(()),
        }
    }
}
