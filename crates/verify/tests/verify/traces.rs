//! Traces and capsules that were changed together: what a settlement cannot have come to is refused.

use evidenceos_kernel::{
    claim::Outcome,
    id::Digest,
    record::Capsule,
    trace::{Record, TraceWriter, TracedEnd, TracedRun, parse},
};
use evidenceos_verify::{Opening, OpeningFailure, Replayed, verify_log};

use crate::history::{History, honest};

/// A capsule and its trace, taken apart.
#[derive(Clone)]
struct Forged {
    capsule: Capsule,
    run: TracedRun,
    asked: Vec<Record>,
    judged: Option<Vec<u8>>,
    end: TracedEnd,
}

impl Forged {
    fn of(history: &History, at: usize) -> Self {
        let capsule = Capsule::parse(&history.world.entries[at]).expect("a capsule");
        let trace = &history.world.traces[&capsule.claim_id];
        let (_, records) = parse(trace).expect("own trace");
        let mut forged = Self {
            capsule,
            run: match &records[0] {
                Record::Run(run) => (**run).clone(),
                other => panic!("a trace begins with its run: {other:?}"),
            },
            asked: Vec::new(),
            judged: None,
            end: match records.last() {
                Some(Record::End(end)) => end.clone(),
                other => panic!("a trace ends with its end: {other:?}"),
            },
        };
        for record in records {
            match record {
                Record::Judged(vector) => forged.judged = Some(vector),
                Record::Run(_) | Record::End(_) => {}
                asked => forged.asked.push(asked),
            }
        }
        forged
    }

    /// How often the guest called, as capsule and trace say it.
    fn calls(&mut self, more: u32) {
        self.capsule.answers.asked += more;
        self.end.asked += more;
    }

    fn emits(&mut self, output: Vec<u8>) {
        self.capsule.structured_output_hash = Digest::of(&output);
        self.end.output = output;
    }

    fn not_judged(&mut self, code: u16) {
        self.capsule.outcome = Outcome::NotJudged;
        self.capsule.reason_codes = vec![2, code];
    }

    fn alphabet(&mut self, n_symbols: u32) {
        self.capsule.answers.n_symbols = n_symbols;
        self.run.n_symbols = n_symbols;
    }

    fn bytes(&self, items: usize) -> Vec<u8> {
        let writer = TraceWriter::new(items as u64, &self.run);
        let mut bytes = writer.finish(None, &self.end);
        // Before the end, by hand: the writer counts free questions itself.
        let end_len = 1 + 2 + 1 + 8 + 4 + 4 + self.end.output.len();
        let end = bytes.split_off(bytes.len() - end_len);
        let packed = |vector: &[u8]| -> Vec<u8> {
            let byte = |group: &[u8]| group.iter().rev().fold(0, |byte, bit| 2 * byte + bit);
            vector.chunks(8).map(byte).collect()
        };
        for record in &self.asked {
            match record {
                Record::Asked {
                    n_symbols,
                    symbol,
                    vector,
                } => {
                    bytes.push(1);
                    bytes.extend(n_symbols.to_be_bytes());
                    bytes.extend(symbol.to_be_bytes());
                    bytes.extend(packed(vector));
                }
                Record::Replayed(first) => {
                    bytes.push(2);
                    bytes.extend(first.to_be_bytes());
                }
                Record::Free(count) => {
                    bytes.push(3);
                    bytes.extend(count.to_be_bytes());
                }
                other => panic!("no question: {other:?}"),
            }
        }
        if let Some(judged) = &self.judged {
            bytes.push(0x10);
            bytes.extend(packed(judged));
        }
        bytes.extend(end);
        bytes
    }
}

/// Who changes an honest history.
struct Forger {
    history: History,
}

impl Forger {
    fn new() -> Self {
        Self { history: honest() }
    }

    fn opening(&self, capsule: &Capsule) -> &Opening {
        let mut openings = self.history.openings.iter();
        openings
            .find(|opening| opening.holdout_id == capsule.holdout_id)
            .expect("opened")
    }

    /// The index of the first capsule with these reasons.
    fn ended(&self, codes: &[u16]) -> usize {
        let found = self.history.world.entries.iter().position(|entry| {
            Capsule::parse(entry).is_ok_and(|capsule| capsule.reason_codes == codes)
        });
        found.expect("a claim that ended so")
    }

    fn check(
        &self,
        at: usize,
        change: impl FnOnce(&mut Forged),
    ) -> Result<Replayed, OpeningFailure> {
        let mut forged = Forged::of(&self.history, at);
        change(&mut forged);
        let opening = self.opening(&forged.capsule);
        let report = verify_log(
            &self.history.world.entries,
            &self.history.world.checkpoint(),
        );
        let ledger = report.holdout(&opening.holdout_id).expect("registered");
        let opened = opening.check(&ledger.registered).expect("own labels");
        let bytes = forged.bytes(opening.labels.len());
        forged.capsule.trace_hash = Digest::of(&bytes);
        opened.check_trace(&forged.capsule, false, &bytes)
    }

    fn holds(&self, at: usize, change: impl FnOnce(&mut Forged)) {
        if let Err(failure) = self.check(at, change) {
            panic!("{failure}");
        }
    }

    fn refuses(&self, at: usize, rule: &str, change: impl FnOnce(&mut Forged)) {
        let failure = self.check(at, change).expect_err(rule).to_string();
        assert!(failure.contains(rule), "{rule}: {failure}");
    }
}

#[test]
fn a_replay_repeats_what_was_asked_before() {
    let forger = Forger::new();
    let good = forger.history.marks.certified;
    forger.holds(good, |_| ());
    // Two questions and a replay.
    let replays = |first: u32| {
        move |forged: &mut Forged| {
            *forged.asked.last_mut().expect("the replay") = Record::Replayed(first);
        }
    };
    forger.holds(good, replays(1));
    forger.refuses(good, "a replay repeats an earlier question", replays(2));
}

#[test]
fn free_questions_are_counted_once_and_only_without_an_answer_part() {
    let forger = Forger::new();
    let rule = "questions are free only without an answer part, and counted once";
    let free = |counts: &'static [u32]| {
        move |forged: &mut Forged| {
            let before: u32 = forged.asked.iter().map(free_count).sum();
            forged.asked.retain(|record| free_count(record) == 0);
            let records = counts.iter().map(|&count| Record::Free(count));
            forged.asked.extend(records);
            let calls = counts.iter().sum::<u32>();
            forged.calls(calls.saturating_sub(before));
        }
    };
    let weak = forger.history.marks.weak;
    forger.refuses(weak, rule, free(&[1]));
    let entries = forger.history.world.entries.iter();
    let asks_free = entries
        .enumerate()
        .filter_map(|(at, entry)| Some((at, Capsule::parse(entry).ok()?)))
        .find(|(_, capsule)| capsule.items.0 == 0 && capsule.answers.asked > 0)
        .expect("a claim that asked without an answer part")
        .0;
    forger.holds(asks_free, free(&[1]));
    forger.holds(asks_free, free(&[2]));
    forger.refuses(asks_free, rule, free(&[1, 1]));
    forger.refuses(asks_free, rule, free(&[0, 1]));
}

fn free_count(record: &Record) -> u32 {
    match record {
        Record::Free(count) => *count,
        _ => 0,
    }
}

#[test]
fn a_call_without_a_record_is_the_one_that_ended_the_run() {
    let forger = Forger::new();
    let rule = "answers.asked counts the calls of the trace";
    let marks = &forger.history.marks;
    for at in [marks.weak, marks.certified, marks.nothing_to_judge] {
        forger.refuses(at, rule, |forged| forged.calls(1));
    }
    for codes in [[2, 110], [2, 111]] {
        let at = forger.ended(&codes);
        forger.holds(at, |_| ());
        forger.holds(at, |forged| forged.calls(1));
        forger.refuses(at, rule, |forged| forged.calls(2));
    }
    // A question that did not fit the allowance was a call, and no answer.
    let greedy = forger.ended(&[2, 114]);
    for more in [1, 2] {
        forger.refuses(greedy, "answers.asked", |forged| forged.calls(more));
    }
}

#[test]
fn a_capsule_says_what_the_end_of_its_trace_says() {
    let forger = Forger::new();
    let marks = &forger.history.marks;
    for at in [marks.weak, marks.trapped] {
        forger.refuses(at, "fuel", |forged| forged.end.fuel += 1);
        forger.refuses(at, "asked", |forged| forged.end.asked += 1);
    }
    let babbles = forger.ended(&[2, 119]);
    let emits = |len: usize| move |forged: &mut Forged| forged.end.output = vec![7; len];
    forger.holds(babbles, emits(2_048));
    forger.refuses(babbles, "at most 2,048 bytes", emits(2_049));
}

#[test]
fn a_policy_is_asked_only_about_what_could_be_judged() {
    let forger = Forger::new();
    let vetoed = forger.history.marks.vetoed;
    forger.holds(vetoed, |_| ());
    let rule = "policies are asked about runs that could be judged";
    forger.refuses(vetoed, rule, |forged| forged.judged = None);
    forger.refuses(vetoed, rule, |forged| forged.emits(vec![9]));
}

#[test]
fn an_output_is_a_symbol_of_as_many_bytes_as_the_alphabet_takes() {
    let forger = Forger::new();
    // It asked nothing and was judged: only its output shows the alphabet.
    let failed = forger.history.marks.failed;
    for (n_symbols, output, is_symbol) in [
        (2, vec![1], true),
        (2, vec![2], false),
        (4, vec![3], true),
        (4, vec![4], false),
        (256, vec![255], true),
        (256, vec![0, 1], false),
        (257, vec![1], false),
        (300, vec![1, 43], true),
        (300, vec![1, 44], false),
        (65_536, vec![255, 255], true),
        (65_536, vec![0, 255, 255], false),
    ] {
        let emits = |forged: &mut Forged| {
            forged.alphabet(n_symbols);
            forged.emits(output.clone());
        };
        let no_symbol = |forged: &mut Forged| {
            emits(forged);
            forged.not_judged(119);
            forged.capsule.structured_output_hash = Digest::of(b"");
        };
        assert_eq!(
            forger.check(failed, emits).is_ok(),
            is_symbol,
            "{n_symbols}: {output:?}"
        );
        assert_eq!(
            forger.check(failed, no_symbol).is_ok(),
            !is_symbol,
            "{n_symbols}: {output:?}"
        );
    }
}
