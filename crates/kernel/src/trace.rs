//! The trace of a run: what was asked, what was answered, what was judged.
//!
//! Without it nothing can be recomputed from opened labels; with it and them, everything can.
//! The bytes are
//!
//! ```text
//! "evidenceos/trace/v1" 0x00 ‖ items u64BE ‖ record*
//! record = 0x01 n_symbols u32BE symbol u32BE bits     a question; bits = the vector, packed
//!        | 0x02 question u32BE                        the same question again, answered free
//!        | 0x03 count u32BE                           free questions: no answer part, always 0
//!        | 0x10 bits                                  the judged vector; at most one, last
//! ```
//!
//! Vectors are packed eight items a byte, the first item in the lowest bit, unused bits zero.

use thiserror::Error;

const MAGIC: &[u8] = b"evidenceos/trace/v1\0";
const ASKED: u8 = 0x01;
const REPLAYED: u8 = 0x02;
const FREE: u8 = 0x03;
const JUDGED: u8 = 0x10;

/// One record of a trace; vectors are one byte an item, 0 or 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A question that was answered and charged.
    Asked {
        /// The alphabet of the answer.
        n_symbols: u32,
        /// The answer.
        symbol: u32,
        /// The question.
        vector: Vec<u8>,
    },
    /// A question that had been asked in this run already: the number of the first asking,
    /// counted over `Asked` records.
    Replayed(u32),
    /// So many questions to a holdout without an answer part.
    Free(u32),
    /// The vector that was judged.
    Judged(Vec<u8>),
}

/// Why bytes are not a trace.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a trace: {what} at byte {offset}")]
pub struct TraceError {
    /// What was wrong.
    pub what: &'static str,
    /// Where.
    pub offset: usize,
}

/// Writes a trace while a run goes on.
#[derive(Debug, Clone)]
pub struct TraceWriter {
    bytes: Vec<u8>,
    free: u32,
}

impl TraceWriter {
    /// An empty trace over so many items.
    #[must_use]
    pub fn new(items: u64) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&items.to_be_bytes());
        Self { bytes, free: 0 }
    }

    /// Records an answered question.
    pub fn asked(&mut self, vector: &[u8], n_symbols: u32, symbol: u32) {
        self.bytes.push(ASKED);
        self.bytes.extend_from_slice(&n_symbols.to_be_bytes());
        self.bytes.extend_from_slice(&symbol.to_be_bytes());
        pack(vector, &mut self.bytes);
    }

    /// Records that question number `first` was asked again.
    pub fn replayed(&mut self, first: u32) {
        self.bytes.push(REPLAYED);
        self.bytes.extend_from_slice(&first.to_be_bytes());
    }

    /// Records a question to a holdout that answers none.
    pub fn free(&mut self) {
        self.free = self.free.saturating_add(1);
    }

    /// Ends the trace with the judged vector, if there is one.
    #[must_use]
    pub fn finish(mut self, judged: Option<&[u8]>) -> Vec<u8> {
        if self.free > 0 {
            self.bytes.push(FREE);
            self.bytes.extend_from_slice(&self.free.to_be_bytes());
        }
        if let Some(vector) = judged {
            self.bytes.push(JUDGED);
            pack(vector, &mut self.bytes);
        }
        self.bytes
    }
}

/// Reads a trace: the number of items and the records.
///
/// # Errors
/// [`TraceError`] names the first byte that does not fit.
pub fn parse(bytes: &[u8]) -> Result<(u64, Vec<Record>), TraceError> {
    let mut input = Input { bytes, offset: 0 };
    if input.take(MAGIC.len())? != MAGIC {
        return Err(TraceError {
            what: "wrong magic",
            offset: 0,
        });
    }
    let items = u64::from_be_bytes(input.array()?);
    let count = usize::try_from(items).map_err(|_| input.error("too many items"))?;
    let mut records = Vec::new();
    while input.offset < bytes.len() {
        if matches!(records.last(), Some(Record::Judged(_))) {
            return Err(input.error("a record after the judged vector"));
        }
        records.push(match input.take(1)?[0] {
            ASKED => Record::Asked {
                n_symbols: u32::from_be_bytes(input.array()?),
                symbol: u32::from_be_bytes(input.array()?),
                vector: input.vector(count)?,
            },
            REPLAYED => Record::Replayed(u32::from_be_bytes(input.array()?)),
            FREE => Record::Free(u32::from_be_bytes(input.array()?)),
            JUDGED => Record::Judged(input.vector(count)?),
            _ => return Err(input.error("unknown record")),
        });
    }
    Ok((items, records))
}

struct Input<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Input<'a> {
    fn error(&self, what: &'static str) -> TraceError {
        TraceError {
            what,
            offset: self.offset,
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], TraceError> {
        let rest = &self.bytes[self.offset..];
        if rest.len() < len {
            return Err(self.error("too short"));
        }
        self.offset += len;
        Ok(&rest[..len])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TraceError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn vector(&mut self, items: usize) -> Result<Vec<u8>, TraceError> {
        let packed = self.take(items.div_ceil(8))?;
        let vector: Vec<u8> = (0..items).map(|i| packed[i / 8] >> (i % 8) & 1).collect();
        let unused = items % 8;
        if unused != 0 && packed[items / 8] >> unused != 0 {
            return Err(self.error("unused bits are set"));
        }
        Ok(vector)
    }
}

fn pack(vector: &[u8], out: &mut Vec<u8>) {
    for group in vector.chunks(8) {
        let byte = group
            .iter()
            .enumerate()
            .fold(0, |byte, (i, &bit)| byte | (bit & 1) << i);
        out.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = TraceWriter::new(11);
        writer.asked(&[1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1], 4, 3);
        writer.replayed(0);
        writer.free();
        writer.finish(Some(&[1; 11]))
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (items, records) = parse(&sample()).expect("own bytes");
        assert_eq!(items, 11);
        assert_eq!(records.len(), 4);
        assert_eq!(records[1], Record::Replayed(0));
        assert_eq!(records[3], Record::Judged(vec![1; 11]));
    }

    #[test]
    fn every_truncation_and_every_spare_bit_is_refused_or_shorter() {
        let whole = sample();
        for len in 0..whole.len() {
            if let Ok((_, records)) = parse(&whole[..len]) {
                assert!(records.len() < 4, "cut at {len}");
            }
        }
        let mut spare = whole;
        *spare.last_mut().expect("not empty") |= 0x80;
        assert!(parse(&spare).is_err());
    }
}
