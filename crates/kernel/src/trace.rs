//! The trace of a run: its identity, its questions and answers, the vector to judge, and its end.
//!
//! With the trace and the opened labels, an auditor can recompute the whole run; without the trace,
//! nothing. The capsule states the trace's digest, so a capsule that contradicts the trace is
//! wrong. The bytes are
//!
//! ```text
//! "evidenceos/trace/v3" 0x00 ‖ items u64BE ‖ run ‖ record* ‖ end
//! run    = 0x20 claim_id[32] owner_tag[16] wasm_hash[32] seal_hash[32] number u64BE levels u8
//!          alpha_micros u32BE n_symbols u32BE engine_len u16BE engine admission
//! admission = ended_before u64BE answers_reserved u64BE count u8 (capsule_hash[32])*count
//! record = 0x01 n_symbols u32BE symbol u32BE bits     a question; bits = the vector, packed
//!        | 0x02 question u32BE                        the same question again, answered free
//!        | 0x03 count u32BE                           free questions: no answer part, always 0
//!        | 0x10 bits                                  the vector to judge; at most one, last
//! end    = 0x21 code u16BE deferred u8 fuel u64BE asked u32BE output_len u32BE output
//! ```
//!
//! Vectors are packed eight items a byte, the first item in the lowest bit, unused bits zero.
//! `alpha_micros` is the significance level that the claim asked for. `code` is 1 for a run that
//! emitted `output` and that no policy module vetoed; otherwise the code of the
//! [`Reason`](crate::claim::Reason). `answers_reserved` are microbits; the hashes are the capsules
//! of the claim's parents, sorted.
//!
//! A run with unknown admission is written as `evidenceos/trace/v2`, the same without `admission`.
//! Releases before 2.2 wrote `evidenceos/trace/v1` without `run` and `end`. [`parse`] reads all
//! three.

use thiserror::Error;

use crate::{
    bits::MicroBits,
    id::{ClaimId, Digest, OwnerTag},
};

const MAGIC: &[u8] = b"evidenceos/trace/v3\0";
const MAGIC_WITHOUT_ADMISSION: &[u8] = b"evidenceos/trace/v2\0";
const MAGIC_WITHOUT_RUN: &[u8] = b"evidenceos/trace/v1\0";
const ASKED: u8 = 0x01;
const REPLAYED: u8 = 0x02;
const FREE: u8 = 0x03;
const JUDGED: u8 = 0x10;
const RUN: u8 = 0x20;
const END: u8 = 0x21;

/// The code of a run that emitted an output and was not vetoed.
pub const EMITTED: u16 = 1;

/// The identity of a traced run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedRun {
    pub claim_id: ClaimId,
    pub owner_tag: OwnerTag,
    /// Digest of the module.
    pub wasm_hash: Digest,
    /// Digest of everything that the claim's seal bound.
    pub seal_hash: Digest,
    /// The run's number in the holdout's order of admission, from 0.
    pub number: u64,
    /// Levels of the e-value that the claim may release.
    pub levels: u8,
    /// The significance level that the claim asked for, in millionths.
    pub alpha_micros: u32,
    /// The alphabet of its oracle and of its output.
    pub n_symbols: u32,
    /// The guest engine; at most 65,535 bytes.
    pub engine: String,
    /// Facts about its admission; `None` if an earlier release admitted it.
    pub admission: Option<TracedAdmission>,
}

/// Facts about the admission of a traced run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedAdmission {
    /// Runs of the holdout that had ended before it.
    pub ended_before: u64,
    /// The most that its questions may be charged.
    pub answers_reserved: MicroBits,
    /// Capsules of the claim's parents, sorted; at most 64 ([`crate::claim::MAX_PARENTS`]).
    pub dependencies: Vec<Digest>,
}

/// How a traced run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedEnd {
    /// [`EMITTED`], or the code of the reason for another end: a trap (110 to 117, 119, 123, 124), no output (118), a
    /// policy module's veto (9000 to 9999).
    pub code: u16,
    /// Whether a policy module deferred the verdict instead of rejecting.
    pub deferred: bool,
    /// In units of fuel.
    pub fuel: u64,
    /// Oracle calls, including repeated and free ones.
    pub asked: u32,
    /// The guest's output, if it emitted one.
    pub output: Vec<u8>,
}

/// One record of a trace; vectors are one byte an item, 0 or 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The first record: the run's identity. Absent in traces of releases before 2.2.
    Run(Box<TracedRun>),
    /// The last record: the run's end. Absent if `Run` is.
    End(TracedEnd),
    /// A question that was answered and charged.
    Asked {
        /// The alphabet of the answer.
        n_symbols: u32,
        /// The oracle's answer, below `n_symbols`.
        symbol: u32,
        /// The vector that was asked: one byte an item, 0 or 1.
        vector: Vec<u8>,
    },
    /// A repeated question of this run: the number of its first asking, counted over `Asked`
    /// records.
    Replayed(u32),
    /// The number of questions to a holdout without an answer part.
    Free(u32),
    /// The vector that was judged.
    Judged(Vec<u8>),
}

/// The reason why bytes are not a trace.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a trace: {what} at byte {offset}")]
pub struct TraceError {
    pub what: &'static str,
    /// Offset in bytes from the beginning.
    pub offset: usize,
}

/// Writes a trace while a run goes on.
#[derive(Debug, Clone)]
pub struct TraceWriter {
    bytes: Vec<u8>,
    free: u32,
}

impl TraceWriter {
    /// A trace of a run over this many items.
    #[must_use]
    pub fn new(items: u64, run: &TracedRun) -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend_from_slice(match run.admission {
            Some(_) => MAGIC,
            None => MAGIC_WITHOUT_ADMISSION,
        });
        bytes.extend_from_slice(&items.to_be_bytes());
        bytes.push(RUN);
        bytes.extend_from_slice(run.claim_id.as_bytes());
        bytes.extend_from_slice(run.owner_tag.as_bytes());
        bytes.extend_from_slice(run.wasm_hash.as_bytes());
        bytes.extend_from_slice(run.seal_hash.as_bytes());
        bytes.extend_from_slice(&run.number.to_be_bytes());
        bytes.push(run.levels);
        bytes.extend_from_slice(&run.alpha_micros.to_be_bytes());
        bytes.extend_from_slice(&run.n_symbols.to_be_bytes());
        let engine = &run.engine.as_bytes()[..run.engine.len().min(usize::from(u16::MAX))];
        bytes.extend_from_slice(&(engine.len() as u16).to_be_bytes());
        bytes.extend_from_slice(engine);
        if let Some(admission) = &run.admission {
            bytes.extend_from_slice(&admission.ended_before.to_be_bytes());
            bytes.extend_from_slice(&admission.answers_reserved.get().to_be_bytes());
            // The kernel takes no claim with more than 64 parents.
            bytes.push(admission.dependencies.len() as u8);
            for capsule in &admission.dependencies {
                bytes.extend_from_slice(capsule.as_bytes());
            }
        }
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

    /// Ends the trace with the vector to judge, if there is one, and the run's end.
    #[must_use]
    pub fn finish(mut self, judged: Option<&[u8]>, end: &TracedEnd) -> Vec<u8> {
        // Free questions release nothing, so one count stands for all of them.
        if self.free > 0 {
            self.bytes.push(FREE);
            self.bytes.extend_from_slice(&self.free.to_be_bytes());
        }
        if let Some(vector) = judged {
            self.bytes.push(JUDGED);
            pack(vector, &mut self.bytes);
        }
        self.bytes.push(END);
        self.bytes.extend_from_slice(&end.code.to_be_bytes());
        self.bytes.push(u8::from(end.deferred));
        self.bytes.extend_from_slice(&end.fuel.to_be_bytes());
        self.bytes.extend_from_slice(&end.asked.to_be_bytes());
        // The engine bounds an output at 2,048 bytes.
        let len = end.output.len() as u32;
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(&end.output);
        self.bytes
    }
}

/// Reads a trace: the number of items and the records.
///
/// # Errors
/// [`TraceError`] names the first byte that does not fit.
pub fn parse(bytes: &[u8]) -> Result<(u64, Vec<Record>), TraceError> {
    let mut input = Input { bytes, offset: 0 };
    let (whole, admission) = match input.take(MAGIC.len())? {
        magic if magic == MAGIC => (true, true),
        magic if magic == MAGIC_WITHOUT_ADMISSION => (true, false),
        magic if magic == MAGIC_WITHOUT_RUN => (false, false),
        _ => {
            return Err(TraceError {
                what: "wrong magic",
                offset: 0,
            });
        }
    };
    let items = u64::from_be_bytes(input.array()?);
    let count = usize::try_from(items).map_err(|_| input.error("too many items"))?;
    let mut records = Vec::new();
    if whole {
        if input.take(1)?[0] != RUN {
            return Err(input.error("no run comes first"));
        }
        records.push(Record::Run(Box::new(input.run(admission)?)));
    }
    while input.offset < bytes.len() {
        let kind = input.take(1)?[0];
        match records.last() {
            Some(Record::End(_)) => return Err(input.error("a record after the end")),
            Some(Record::Judged(_)) if kind != END => {
                return Err(input.error("a record after the judged vector"));
            }
            _ => {}
        }
        records.push(match kind {
            END if whole => Record::End(input.end()?),
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
    if whole && !matches!(records.last(), Some(Record::End(_))) {
        return Err(input.error("no end comes last"));
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

    fn run(&mut self, admission: bool) -> Result<TracedRun, TraceError> {
        Ok(TracedRun {
            claim_id: ClaimId(self.array()?),
            owner_tag: OwnerTag(self.array()?),
            wasm_hash: Digest(self.array()?),
            seal_hash: Digest(self.array()?),
            number: u64::from_be_bytes(self.array()?),
            levels: self.take(1)?[0],
            alpha_micros: u32::from_be_bytes(self.array()?),
            n_symbols: u32::from_be_bytes(self.array()?),
            engine: {
                let len = u16::from_be_bytes(self.array()?);
                let bytes = self.take(usize::from(len))?.to_vec();
                String::from_utf8(bytes).map_err(|_| self.error("the engine is not text"))?
            },
            admission: admission.then(|| self.admission()).transpose()?,
        })
    }

    fn admission(&mut self) -> Result<TracedAdmission, TraceError> {
        Ok(TracedAdmission {
            ended_before: u64::from_be_bytes(self.array()?),
            answers_reserved: MicroBits(u64::from_be_bytes(self.array()?)),
            dependencies: {
                let count = self.take(1)?[0];
                let capsules = (0..count).map(|_| self.array().map(Digest));
                capsules.collect::<Result<_, _>>()?
            },
        })
    }

    fn end(&mut self) -> Result<TracedEnd, TraceError> {
        Ok(TracedEnd {
            code: u16::from_be_bytes(self.array()?),
            deferred: match self.take(1)?[0] {
                0 => false,
                1 => true,
                _ => return Err(self.error("deferred is neither 0 nor 1")),
            },
            fuel: u64::from_be_bytes(self.array()?),
            asked: u32::from_be_bytes(self.array()?),
            output: {
                let len = u32::from_be_bytes(self.array()?);
                let len = usize::try_from(len).map_err(|_| self.error("too long an output"))?;
                self.take(len)?.to_vec()
            },
        })
    }

    fn vector(&mut self, items: usize) -> Result<Vec<u8>, TraceError> {
        // Take the bytes before allocating anything: a short file that claims many items costs no
        // memory.
        let packed = self.take(items.div_ceil(8))?;
        let vector: Vec<u8> = (0..items).map(|i| packed[i / 8] >> (i % 8) & 1).collect();
        // A vector has one packing: set bits beyond the items would give one run several digests.
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

    fn run() -> TracedRun {
        TracedRun {
            claim_id: ClaimId([1; 32]),
            owner_tag: OwnerTag([2; 16]),
            wasm_hash: Digest([3; 32]),
            seal_hash: Digest([4; 32]),
            number: 5,
            levels: 6,
            alpha_micros: 7,
            n_symbols: 8,
            engine: "engine/9".to_owned(),
            admission: Some(TracedAdmission {
                ended_before: 4,
                answers_reserved: MicroBits(11),
                dependencies: vec![Digest([5; 32]), Digest([6; 32])],
            }),
        }
    }

    fn end() -> TracedEnd {
        TracedEnd {
            code: EMITTED,
            deferred: false,
            fuel: 10,
            asked: 3,
            output: vec![1],
        }
    }

    fn sample() -> Vec<u8> {
        sample_of(&run())
    }

    fn sample_of(run: &TracedRun) -> Vec<u8> {
        let mut writer = TraceWriter::new(11, run);
        writer.asked(&[1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1], 4, 3);
        writer.replayed(0);
        writer.free();
        writer.finish(Some(&[1; 11]), &end())
    }

    fn run_without_admission() -> TracedRun {
        TracedRun {
            admission: None,
            ..run()
        }
    }

    /// The same trace without its first and last record, as releases before 2.2 wrote it.
    fn sample_of_before() -> Vec<u8> {
        let whole = sample_of(&run_without_admission());
        let head = MAGIC.len() + 8;
        let run_len = 1 + 32 + 16 + 32 + 32 + 8 + 1 + 4 + 4 + 2 + "engine/9".len();
        let end_len = 1 + 2 + 1 + 8 + 4 + 4 + 1;
        let mut before = MAGIC_WITHOUT_RUN.to_vec();
        before.extend_from_slice(&whole[MAGIC.len()..head]);
        before.extend_from_slice(&whole[head + run_len..whole.len() - end_len]);
        before
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (items, records) = parse(&sample()).expect("own bytes");
        assert_eq!(items, 11);
        assert_eq!(records.len(), 6);
        assert_eq!(records[0], Record::Run(Box::new(run())));
        assert_eq!(records[2], Record::Replayed(0));
        assert_eq!(records[4], Record::Judged(vec![1; 11]));
        assert_eq!(records[5], Record::End(end()));
    }

    #[test]
    fn a_run_whose_admission_is_not_known_has_none() {
        let run = run_without_admission();
        let bytes = sample_of(&run);
        assert!(bytes.starts_with(b"evidenceos/trace/v2\0"));
        let (_, records) = parse(&bytes).expect("own bytes");
        assert_eq!(records[0], Record::Run(Box::new(run)));
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_trace_of_before_has_no_run_and_no_end() {
        let (items, records) = parse(&sample_of_before()).expect("bytes of an earlier release");
        let (_, now) = parse(&sample()).expect("own bytes");
        assert_eq!((items, records.as_slice()), (11, &now[1..5]));
    }

    #[test]
    fn every_truncation_and_every_spare_bit_is_refused() {
        let whole = sample();
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "cut at {len}");
        }
        let mut longer = whole;
        longer.push(FREE);
        assert!(parse(&longer).is_err());
        let mut spare = sample_of_before();
        *spare.last_mut().expect("not empty") |= 0x80;
        assert!(parse(&spare).is_err());
    }

    #[test]
    fn every_record_comes_back_as_it_was_written() {
        let vectors = [
            [1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0],
            [0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0],
            [0; 11],
        ];
        for deferred in [false, true] {
            let end = TracedEnd { deferred, ..end() };
            let mut writer = TraceWriter::new(11, &run());
            for vector in &vectors[..2] {
                writer.asked(vector, 4, 3);
            }
            let written = writer.finish(Some(&vectors[2]), &end);
            let asked = |vector: &[u8]| Record::Asked {
                n_symbols: 4,
                symbol: 3,
                vector: vector.to_vec(),
            };
            // No question was free, so there is no record of free ones.
            let wanted = vec![
                Record::Run(Box::new(run())),
                asked(&vectors[0]),
                asked(&vectors[1]),
                Record::Judged(vectors[2].to_vec()),
                Record::End(end),
            ];
            assert_eq!(parse(&written), Ok((11, wanted)));
        }
    }

    #[test]
    fn records_out_of_their_place_are_refused() {
        let whole = sample();
        let refused = |bytes: &[u8], what: &str| {
            assert_eq!(parse(bytes).expect_err(what).what, what);
        };
        let mut other = whole.clone();
        other[0] ^= 1;
        refused(&other, "wrong magic");
        let free = [FREE, 0, 0, 0, 1];
        refused(&[&whole[..], &free].concat(), "a record after the end");
        let before = sample_of_before();
        let late = [&before[..], &free].concat();
        refused(&late, "a record after the judged vector");
        // A trace of the first format must not contain the newer end record.
        let mut end = vec![END];
        end.extend_from_slice(&[0; 2 + 1 + 8 + 4 + 4]);
        let unjudged = &before[..before.len() - 3];
        refused(&[unjudged, &end].concat(), "unknown record");
    }
}
